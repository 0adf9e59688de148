"""Agents that vote, and aggregates of every kind: decided once, on ballots that were cast, whatever dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel

from flock_ray import AggregationStrategy, SessionWindow, TumblingWindow, flock_type
from flock_ray.core import gates
from flock_ray.core.ballots import UNIT, AggregateRule, Ballot, Decision, decode_decision
from flock_ray.core.records import Hushed
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Gate, Item, Slot
from flock_ray.core.tallies import Tally
from flock_ray.core.wire import Envelope, SubscriptionSpec

if TYPE_CHECKING:
    from tests.simulation.simulator import SimFlock
    from tests.simulation.world import World


@flock_type(name="SimMotion")
class Motion(BaseModel):
    uid: int
    key: int


@flock_type(name="SimOpinion")
class Opinion(BaseModel):
    """Only `agg-early` wants to know."""

    uid: int
    key: int
    choice: int | None


@flock_type(name="SimVote")
class Vote(BaseModel):
    uid: int
    key: int
    choice: int | None


@flock_type(name="SimVerdict")
class Verdict(BaseModel):
    choice: int | None
    ballots: int


@flock_type(name="SimMinutes")
class Minutes(BaseModel):
    ballots: int


BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ONLY_FEED_ONE = {"speaker", "slow-speaker"}
"""Agents whose runs may be withdrawn when the aggregate that they feed is decided."""


def declare_aggregates(flock: SimFlock, world: World) -> None:
    """Put voters and aggregates on the board."""
    rng = world.rng

    def choice() -> int | None:
        return rng.choice((1, 1, 2, None))

    async def speak(motion: Motion) -> Opinion:
        await asyncio.sleep(rng.random() * rng.choice((0.01, 1.0)))
        return Opinion(uid=motion.uid, key=motion.key, choice=choice())

    async def vote(motion: Motion) -> list[Vote]:
        await asyncio.sleep(rng.random() * rng.choice((0.01, 0.5)))
        return [Vote(uid=motion.uid, key=motion.key, choice=choice()) for _ in range(rng.choice((1, 2)))]

    def happened(vote: Vote) -> datetime:
        # Few windows and no order, so that many come when theirs is over.
        return BEGIN + timedelta(seconds=vote.uid % 4)

    add: Callable[[str], Any] = flock.agent
    add("speaker").consumes(Motion).publishes(Opinion).runs(speak).max_concurrency(2)
    add("slow-speaker").consumes(Motion).publishes(Opinion).runs(speak).concurrency(1)
    add("teller").consumes(Motion).publishes(Vote, fan_out=(1, 2)).runs(vote)
    majority, second = AggregationStrategy.MAJORITY_VOTE, timedelta(seconds=1)
    add("agg-early").aggregates(
        Opinion, into=Verdict, strategy=majority, field="choice", trigger_on_count=3, name="agg"
    )
    add("agg-quiet").aggregates(Vote, into=Verdict, strategy=majority, field="choice", name="agg")
    add("agg-chain").aggregates(Verdict, into=Minutes, name="agg")
    add("agg-keyed").aggregates(
        Vote, into=Minutes, by="key", trigger_on_count=3, timeout=2 * second, name="agg"
    )
    add("agg-failing").aggregates(
        Vote,
        into=Minutes,
        timeout=second,
        min_count=2,
        on_timeout=rng.choice(("partial", "fail")),
        name="agg",
    )
    add("agg-corrected").aggregates(
        Vote, into=Verdict, strategy=majority, field="choice", timeout=second, on_late="correct", name="agg"
    )
    add("agg-window").aggregates(
        Vote, into=Minutes, window=TumblingWindow(second), timeout=second / 2, event_time=happened, name="agg"
    )
    add("agg-session").aggregates(
        Vote, into=Minutes, window=SessionWindow(second / 2), scope="workflow", name="agg"
    )


class AggregateAudit(ShardCore):
    """The part of `AuditCore` that keeps account of aggregates while it is replayed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.came_late: Counter[tuple[str, bytes]] = Counter()
        """(subscription, artifact) that came after the decision, and was not counted."""
        self.let_go: Counter[tuple[str, bytes]] = Counter()
        """(subscription, artifact) of groups that did not get what they need."""
        self.recalled: set[str] = set()
        """Agents whose runs were withdrawn."""

    def _on_hushed(self, record: Hushed) -> None:
        workflow = self.slots[record.slot].workflows.get(record.workflow)
        scatters = self._scatters_of(self.slots[record.slot], workflow)
        rests = workflow is None or (workflow.open <= len(scatters) and not workflow.delayed)
        assert rests, "decided while something ran"
        super()._on_hushed(record)

    def _give_up_group(
        self, slot: Slot, gate: Gate, items: list[Item], tally: Tally, reason: str, now_us: int
    ) -> None:
        self.let_go.update((gate.spec.id, item.envelope.id) for item in items)
        super()._give_up_group(slot, gate, items, tally, reason, now_us)

    def _leave_out(self, slot: Slot, spec: SubscriptionSpec, item: Item, why: str, now_us: int) -> None:
        self.came_late[spec.id, item.envelope.id] += 1
        super()._leave_out(slot, spec, item, why, now_us)

    def _withdraw_here(self, slot: Slot, subscription: str, name: str, now_us: int) -> None:
        before = {a.id: a.agent for a in slot.open.values()}
        super()._withdraw_here(slot, subscription, name, now_us)
        self.recalled |= {agent for key, agent in before.items() if key not in slot.open}


def used_by(firing: gates.Firing) -> list[Envelope]:
    """Return the inputs that a firing used for the first time: of a correction, the late one."""
    inputs = [item.envelope for item in firing.items]
    decision = decode_decision(firing.decision)
    return inputs[-1:] if decision is not None and decision.revision else inputs


def check_decision(
    spec: SubscriptionSpec, inputs: Sequence[Envelope], decision: Decision, rule: AggregateRule
) -> None:
    """What was decided is what the votes say that were cast, and when it was decided it could be."""
    tally = Tally(rule, map(ballot_of, inputs))
    again = tally.decide(decision.reason)
    assert (again.choices, again.tally, again.outcome) == (decision.choices, decision.tally, decision.outcome)
    if rule.keyed:
        assert len({msgspec.json.decode(e.payload)["key"] for e in inputs}) == 1
    if decision.reason == "count":
        assert len(inputs) == rule.count
    if decision.reason == "early":
        assert tally.state(rule.count - len(inputs)) != "undecided"
    if decision.reason in ("timeout", "quiet") and rule.window is None:
        assert len(inputs) >= rule.min_count


def ballot_of(envelope: Envelope) -> Ballot:
    """Read a vote from what was published, past everything that was journaled of it."""
    choice = msgspec.json.decode(envelope.payload).get("choice")
    return Ballot() if choice is None else Ballot((b"%d" % choice,), UNIT)


def check_aggregates(
    cores: Iterable[AggregateAudit], fired: Iterable[tuple[SubscriptionSpec, gates.Firing]]
) -> None:
    """Every group is decided once, every window once, and nothing was withdrawn that somebody else wants."""
    groups: Counter[tuple[str, str]] = Counter()
    windows: Counter[tuple[str, int]] = Counter()
    for spec, firing in fired:
        rule, decision = spec.aggregate, decode_decision(firing.decision)
        if rule is None or decision is None:
            continue
        inputs = [item.envelope for item in firing.items]
        check_decision(spec, inputs, decision, rule)
        if rule.window is not None and spec.scope == "board":
            windows[spec.id, decision.from_us] += 1
        elif rule.window is None and spec.scope == "workflow" and not decision.revision:
            groups[spec.id, inputs[0].correlation_id] += 1
    assert set(groups.values()) <= {1}, "a group was decided twice"
    assert set(windows.values()) <= {1}, "a window was decided twice"
    for core in cores:
        assert core.recalled <= ONLY_FEED_ONE, f"runs of {core.recalled} were withdrawn"


def check_group(gate: Gate, rule: AggregateRule, cancelled: set[str]) -> None:
    """What a group waits for has not come."""
    inputs = gate.items()
    if {item.envelope.correlation_id for item in inputs} & cancelled:
        return  # what was on its way when its workflow was cancelled
    assert not rule.timeout_us, "a timeout was forgotten"
    assert not (rule.waits_for_quiet and gate.spec.scope == "workflow"), (
        "nobody noticed that all work had ended"
    )
    assert not rule.count or len(inputs) < rule.count
