"""What the gate of an aggregate holds, and what it waits for."""

from __future__ import annotations

from typing import cast

import msgspec

from flock_ray.core.ballots import UNIT, AggregateRule, Decision, decode_ballot
from flock_ray.core.state import Gate, Item, Slot
from flock_ray.core.tallies import Tally
from flock_ray.core.windows import Panes
from flock_ray.core.wire import Envelope


def workflow_of(gate: Gate) -> str:
    """Return the workflow of a gate of scope workflow."""
    return gate.key.partition(b"\x00")[0].decode()


def tally_of(gate: Gate, rule: AggregateRule) -> Tally:
    """Return the tally of what a gate holds; after a recovery it is counted anew."""
    if not isinstance(gate.count, Tally):
        gate.count = Tally(rule, (decode_ballot(item.ballot) for item in gate.items()))
    return gate.count


def panes_of(gate: Gate) -> Panes[Item]:
    """Return the windows of what a gate holds; after a recovery they are made anew."""
    if not isinstance(gate.count, Panes):
        rule = cast(AggregateRule, gate.spec.aggregate).window
        assert rule is not None
        things = ((decode_ballot(item.ballot).at_us, item) for item in gate.items())
        gate.count = Panes(rule, gate.watermark_us, things)
    return cast("Panes[Item]", gate.count)


def is_sure(gate: Gate) -> bool:
    """Say whether a gate's deadline makes an activation of what it holds."""
    return bool(gate.batch) or gate.spec.aggregate is not None


def gates_of(slot: Slot, name: str) -> list[Gate]:
    """Return the gates of scope workflow that hold inputs of a workflow, in the order of their subscriptions."""
    prefix = name.encode() + b"\x00"
    found = []
    for keys in slot.gates.values():
        spec = next(iter(keys.values())).spec
        if spec.scope != "workflow":
            continue
        if spec.kind in ("join", "join_batch") or (spec.aggregate is not None and spec.aggregate.keyed):
            found += [gate for key, gate in keys.items() if key.startswith(prefix)]
        elif (gate := keys.get(prefix)) is not None:
            found.append(gate)
    return found


def quiet_gates(slot: Slot, name: str | None) -> list[Gate]:
    """Return the aggregates that wait for the end of all other work, of a workflow or of all."""
    some = (
        gates_of(slot, name)
        if name is not None
        else [g for keys in slot.gates.values() for g in keys.values()]
    )
    return [
        gate for gate in some
        if gate.spec.aggregate is not None and gate.spec.scope == "workflow" and gate.spec.aggregate.waits_for_quiet
    ]  # fmt: skip


def unscattered(envelope: Envelope) -> Envelope:
    """Return an input for one more run on it: its chunk is counted by the one that uses it up."""
    return msgspec.structs.replace(envelope, scatter=()) if envelope.scatter else envelope


def told(decision: Decision, inputs: int) -> str:
    """Write a decision as a sentence."""
    values = ", ".join(choice.decode() for choice in decision.choices[:5])
    what = {"decided": values or "decided", "tied": f"a tie of {values}", "none": "no outcome"}[
        decision.outcome
    ]
    tally = ", ".join(f"{choice.decode()}: {total / UNIT:g}" for choice, total in decision.tally[:5])
    missing = f", {decision.missing} did not come" if decision.missing else ""
    votes = f" ({tally})" if tally else ""
    return f"{what}{votes} on {inputs} inputs, by {decision.reason}{missing}"


def waiting_text(gate: Gate) -> str:
    """Say what an aggregate has, and what it waits for."""
    rule = cast(AggregateRule, gate.spec.aggregate)
    until = []
    if rule.window is not None:
        spans = panes_of(gate).spans
        until.append(f"event time to pass the end of {len(spans)} windows")
    if rule.count:
        until.append(f"{rule.count - tally_of(gate, rule).seen} more of {rule.count}")
    if rule.timeout_us:
        until.append("its timeout")
    if rule.waits_for_quiet and gate.spec.scope == "workflow":
        until.append("all other work of the workflow to end")
    has = f"has {len(gate.items())}" if rule.window is not None else tally_of(gate, rule).told()
    return f"{has}, waits for {' or '.join(until) or 'more'}"
