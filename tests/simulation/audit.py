"""What must hold after every run: read from the shards' state and from a replay of their records."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from flock_ray.actors.keeping import Keeper
from flock_ray.adapters.memory import MemoryDisk, MemoryStore
from flock_ray.core import gates
from flock_ray.core.changes import workflow_row
from flock_ray.core.claims import claim_for, is_claim
from flock_ray.core.fan_in_desk import PARTIAL
from flock_ray.core.ids import activation_id, output_id
from flock_ray.core.matching import MatchTable
from flock_ray.core.records import Completed, Lost, Published, Record, Streamed, decode_record, encode_record
from flock_ray.core.rows import SHARD
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import MATCH_AGENT, Activation, Gate, Item, Slot, Workflow
from flock_ray.core.wire import Envelope, Match, Posting, SubscriptionSpec
from flock_ray.engines.posting import ERROR_POSITION
from flock_ray.publishing import EXTERNAL
from tests.simulation.aggregating import AggregateAudit, check_aggregates, check_group, used_by
from tests.simulation.failures import FailureAudit, check_lanes, check_letters, limits_digest
from tests.simulation.fanned import check_scatters_at_rest, scatters_digest

_FAILURES = ("WorkflowError", "DeadLetter")
"""What failed activations leave on the board."""

_ABOUT_OTHERS = ("DeadLetterAction", "ApprovalRequest")
"""What is said of an activation's outputs, and is none of them."""


class AuditCore(FailureAudit, AggregateAudit):
    """A core that is only replayed, and keeps account of everything that gates and activations did."""

    def __init__(self, owned: Iterable[int]) -> None:
        super().__init__(owned)
        self.fed: Counter[tuple[str, bytes]] = Counter()
        """(subscription, artifact): how often it went into a gate."""
        self.fired: list[tuple[SubscriptionSpec, gates.Firing]] = []
        self.expired: Counter[tuple[str, bytes]] = Counter()
        self.started: Counter[bytes] = Counter()
        self.ended: Counter[bytes] = Counter()
        self.matched: set[bytes] = set()
        """Activations of the board's own agent, which have no rows."""
        self.accepted: list[Posting] = []
        """Everything on the board."""
        self.decided: list[tuple[frozenset[str], Posting]] = []
        """(agents on the board, posting), of what came from an edge."""
        self.lost: list[tuple[bytes, str]] = []
        """(activation, worker) of what a dead worker is blamed for."""

    def _feed(self, slot: Slot, spec: SubscriptionSpec, match: Match, item: Item, now_us: int) -> None:
        self.fed[spec.id, item.envelope.id] += 1
        super()._feed(slot, spec, match, item, now_us)

    def _fire(self, slot: Slot, spec: SubscriptionSpec, firing: gates.Firing, now_us: int) -> None:
        self.fired.append((spec, firing))
        super()._fire(slot, spec, firing, now_us)

    def _expire(self, slot: Slot, expiry: gates.Expiry, now_us: int) -> None:
        self.expired.update((expiry.gate.spec.id, item.envelope.id) for item in expiry.items)
        super()._expire(slot, expiry, now_us)

    def _accept(self, slot: Slot, posting: Posting, now_us: int) -> None:
        self.accepted.append(posting)
        super()._accept(slot, posting, now_us)

    def replay(self, record: Record) -> None:
        before = (
            {key: a.agent for slot in self.slots.values() for key, a in slot.open.items()}
            if isinstance(record, Completed)
            else {}
        )
        postings = record.completion.outputs if isinstance(record, Completed | Streamed) else ()
        if isinstance(record, Published):
            postings = (record.posting,)
        self.decided += [(frozenset(self.agents), posting) for posting in postings]
        if isinstance(record, Lost):
            known = self.slots[record.slot].open.keys()
            self.lost += [(key, record.worker) for key in record.blamed if key in known]
        super().replay(record)
        if isinstance(record, Completed):
            assert record.completion.id in before, (
                "a result was committed for an activation that was not open"
            )
            self.ended[record.completion.id] += 1
            if before[record.completion.id] == MATCH_AGENT:
                self.matched.add(record.completion.id)


def replayed(owned: Iterable[int], records: Iterable[Record]) -> AuditCore:
    """Rebuild a core from its journal, through the bytes that a store would keep."""
    core = AuditCore(owned)
    for record in records:
        data = encode_record(record)
        again = decode_record(data)
        assert again == record
        core.replay(again)
    return core


async def recovered(slots: Iterable[int], disk: MemoryDisk) -> ShardCore:
    """Rebuild a core as a new shard would that found this disk."""
    core = ShardCore(list(slots), durable=True)
    await Keeper(core, MemoryStore(disk), snapshot_bytes=1).recover()
    return core


def digest(core: ShardCore, slots: Iterable[int] | None = None) -> dict[int, Any]:
    """Everything durable of each slot, and of what they share, as plain comparable values."""
    found = {
        index: _slot_digest(core, core.slots[index]) for index in (slots if slots is not None else core.slots)
    }
    return {**found, SHARD: dict(core.pauses.by_place)}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Say where two digests differ, shortly."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(one) + [key for key in other if key not in one]
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{path}/{key}")]
    same = one == other or claimed(one) == claimed(other)
    return [] if same else [f"{path}: {str(one)[:600]} != {str(other)[:600]}"]


def claimed(value: Any) -> Any:
    """Return plain values with a claim in place of every payload: one shard has the payload, another its claim."""
    if isinstance(value, Envelope):
        payload = value.payload if is_claim(value.payload) else claim_for(value.payload)
        return msgspec.structs.astuple(msgspec.structs.replace(value, payload=payload))
    if isinstance(value, msgspec.Struct):
        return tuple(claimed(part) for part in msgspec.structs.astuple(value))
    if isinstance(value, dict):
        return {key: claimed(part) for key, part in value.items()}
    if isinstance(value, list | tuple | deque):
        return tuple(claimed(part) for part in value)
    return value


def _slot_digest(core: ShardCore, slot: Slot) -> Any:
    # What has settled may have left memory, at a moment that no record tells of.
    alive = {name: workflow for name, workflow in slot.workflows.items() if not workflow.settled}
    return {
        "workflows": {name: _workflow_digest(workflow) for name, workflow in alive.items()},
        "open": {key: _activation_digest(activation) for key, activation in slot.open.items()},
        "gates": {(sub, key): _gate_digest(g) for sub, keys in slot.gates.items() for key, g in keys.items()},
        "gate order": {sub: list(keys) for sub, keys in slot.gates.items()},
        "arrivals": slot.arrivals,
        "held": slot.held,
        "delayed": slot.delayed,
        "timers": sorted((due, kind, first, second) for due, _, kind, first, second in slot.timers),
        "outbox": slot.outbox,
        "out_seq": slot.out_seq,
        "inbox": slot.inbox,
        "lanes": limits_digest(slot),
        "letters": slot.letters,
        "decided": slot.decided,
        "kept": slot.kept,
        "letter order": list(slot.letters),
        "ledger": slot.ledger,
        "fans": scatters_digest(slot),
        "approvals": slot.approvals,
        "approval order": list(slot.approvals),
        "shadows": slot.shadows,
        "schedules": slot.schedules,
        "candidates": slot.candidates,
    }


def _workflow_digest(workflow: Workflow) -> Any:
    fields = msgspec.structs.asdict(workflow)
    del fields["seqs"]
    del fields["scatters"]  # those that are over are forgotten with the workflow, when it leaves memory
    return fields


def _activation_digest(activation: Activation) -> Any:
    return {
        k: v
        for k, v in msgspec.structs.asdict(activation).items()
        if k not in ("attempt", "worker", "holding")
    }


def _gate_digest(gate: Gate) -> Any:
    return (
        gate.spec, gate.opened_us, gate.opened_at, gate.deadline_us, gate.round, gate.timer_us,
        {name: list(queue) for name, queue in gate.held.items() if queue}, gate.batch,
        gate.quiet, gate.watermark_us,
    )  # fmt: skip


def check_quiet(cores: Sequence[ShardCore]) -> None:
    """G6: nothing is held by anybody, and every counter says so."""
    for core in cores:
        assert (core.num_open, core.num_outbox, core.num_active, core.idle) == (0, 0, 0, True)
        assert not any(core.dispatch.leases.values())
        for agent, holdings in core.dispatch._permits.by_agent.items():
            assert {worker: h.used for worker, h in holdings.items() if h.used} == {}, agent
        for slot in core.slots.values():
            assert not slot.open
            assert not slot.outbox
            assert not slot.delayed
            assert not slot.approvals
        check_lanes(core)
    waiting = sum((check_scatters_at_rest(core) for core in cores), Counter[tuple[int, str]]())
    for slot in (slot for core in cores for slot in core.slots.values()):
        for gate in (gate for keys in slot.gates.values() for gate in keys.values()):
            waiting.update((item.home, item.envelope.correlation_id) for item in gate.items())
        for (_, name), held in slot.held.items():
            waiting[slot.index, name] += len(held)
    for slot in (slot for core in cores for slot in core.slots.values()):
        for workflow in slot.workflows.values():
            counters = (workflow.open, workflow.delayed, workflow.waiting)
            assert counters == (0, 0, waiting.pop((slot.index, workflow.id), 0)), workflow
    assert not +waiting


def check_replay(core: ShardCore, records: Sequence[Record]) -> AuditCore:
    """G5: the journal rebuilds what ran."""
    again = replayed(core.slots, records)
    expected = digest(core)
    assert differences(digest(again), expected) == []
    return again


def check_rows(core: AuditCore, disk: MemoryDisk) -> None:
    """The store's rows say what the records say."""
    assert {e.id: e for e in disk.artifacts.values()} == {e.id: e for e in core.index}
    assert [e.id for _, e in sorted(disk.artifacts.items())] == [e.id for e in core.index]
    rows = {(w.slot, w.id): workflow_row(w) for slot in core.slots.values() for w in slot.workflows.values()}
    assert differences(disk.flows, rows) == []
    assert disk.ended.keys() >= set(core.ended) - core.matched


class Audit:
    """Everything that all shards of a board did, checked against what they were allowed to do."""

    def __init__(self, cores: Sequence[AuditCore], cancelled: set[str]) -> None:
        self.cores = cores
        self.cancelled = cancelled
        self.board = {e.id: e for core in cores for e in core.index}
        self.errors = {e.activation_id: e for e in self.board.values() if e.type in _FAILURES}
        self.ended = sum((core.ended for core in cores), Counter[bytes]())
        self.withdrawn = sum((core.withdrawn for core in cores), Counter[bytes]())

    def check_artifacts(self, accepted: Iterable[bytes]) -> None:
        """G1 and G4: accepted is on the board once; parents come before children."""
        feeds = Counter(e.id for core in self.cores for e in core.index)
        assert set(feeds.values()) <= {1}
        assert set(accepted) <= set(feeds)
        for core in self.cores:
            seen: set[bytes] = set()
            for envelope in core.index:
                assert envelope.slot in core.slots
                here = {parent for parent in envelope.parents if self.board[parent].slot in core.slots}
                same = {p for p in here if self.board[p].slot == envelope.slot}
                assert same <= seen, f"{envelope.type} came before its parents"
                seen.add(envelope.id)

    def check_effects(self) -> None:
        """G2: at most one result per activation, and either outputs or an error."""
        assert set(self.ended.values()) <= {1}
        by_activation: dict[bytes, list[Envelope]] = defaultdict(list)
        for envelope in self.board.values():
            if envelope.activation_id is not None and envelope.type not in _ABOUT_OTHERS:
                by_activation[envelope.activation_id].append(envelope)
        for key, outputs in by_activation.items():
            if key in self.errors:
                assert [e.id for e in outputs] == [output_id(key, ERROR_POSITION)]
            else:
                assert {e.id for e in outputs} == {output_id(key, i) for i in range(len(outputs))}
                # A fan-out publishes in parts: one that was withdrawn on the way has not ended.
                parts = key in self.withdrawn and any(e.scatter for e in outputs)
                assert key in self.ended or parts

    def check_matches(self, tables: dict[frozenset[str], MatchTable]) -> None:
        """What an edge decided is what the table in force says when it was accepted."""
        for core in self.cores:
            for agents, posting in core.decided:
                if posting.envelope.type == PARTIAL:
                    continue  # on its way to the next run of the same fan-in
                if is_edited(posting.envelope):
                    assert not posting.matches, "somebody was matched with an edited input of a dead letter"
                    continue
                matched = tables[agents].match(posting.envelope, None)
                wanted, found = ({m.subscription for m in p.matches} for p in (matched, posting))
                if posting.offered:
                    assert found <= wanted & {posting.offered}
                    continue
                # What was to match later does by now.
                assert found | set(posting.candidates) == wanted, posting.envelope
                assert found.isdisjoint(posting.candidates)
                assert posting.refusals == matched.refusals

    def check_singles(self) -> None:
        """Every match of a subscription without a gate has exactly one result."""
        for core in self.cores:
            for posting in core.accepted:
                envelope = posting.envelope
                if envelope.correlation_id in self.cancelled:
                    continue
                for name in (*(match.subscription for match in posting.matches), *posting.candidates):
                    spec = core.subscriptions[name]
                    if spec.kind != "single" or self._is_held(spec, envelope):
                        continue
                    key = activation_id(spec.agent, spec.id, (envelope.id,), 0)
                    ends = self.ends_of(key)
                    stopped = spec.agent in envelope.via and not ends and self._loop_stopped(spec.agent)
                    assert ends == 1 or stopped, f"{spec.id} has {ends} results for {envelope.type}"

    def ends_of(self, key: bytes) -> int:
        """Count how often an activation ended: with a result, with an error, or because another one took its place."""
        return self.ended[key] + (key in self.errors and not self.ended[key]) + self.withdrawn[key]

    def check_letters(self) -> None:
        """Every dead letter has one fate, and every redrive one end."""
        check_letters(self.cores, [e.id for e in self.board.values() if e.type == "DeadLetter"])
        for key, workflow in (pair for core in self.cores for pair in core.redriven.items()):
            assert workflow in self.cancelled or self.ends_of(key) == 1, "a redrive did not end once"

    def _loop_stopped(self, agent: str) -> bool:
        return any(
            b'"LoopGuardError"' in e.payload and agent.encode() in e.payload for e in self.errors.values()
        )

    def _is_held(self, spec: SubscriptionSpec, envelope: Envelope) -> bool:
        held = (
            slot.held.get((spec.id, envelope.correlation_id), ())
            for c in self.cores
            for slot in c.slots.values()
        )
        return any(e.id == envelope.id for entries in held for e, _ in entries)

    def check_gates(self) -> None:
        """Every input of a gate has exactly one fate, and what fired was allowed to fire together."""
        fed: Counter[tuple[str, bytes]] = Counter()
        fates: Counter[tuple[str, bytes]] = Counter()
        ids: Counter[bytes] = Counter()
        for core in self.cores:
            fed += core.fed
            fates += core.expired + core.came_late + core.let_go
            for spec, firing in core.fired:
                inputs = [item.envelope for item in firing.items]
                check_firing(spec, inputs, firing.groups)
                fates.update((spec.id, e.id) for e in used_by(firing))
                ids[activation_id(spec.agent, spec.id, tuple(e.id for e in inputs), firing.round)] += 1
            for slot in core.slots.values():
                for gate in (g for keys in slot.gates.values() for g in keys.values()):
                    check_leftover(gate, self.cancelled)
                    fates.update((gate.spec.id, item.envelope.id) for item in gate.items())
        assert set(ids.values()) <= {1}
        assert set(fed.values()) <= {1}
        assert set(fates.values()) <= {1}, "an input was used twice by one gate"
        lost = {e for e in fed.keys() - fates.keys() if self.board[e[1]].correlation_id not in self.cancelled}
        assert not lost, f"inputs vanished from their gates: {lost}"
        assert fates.keys() <= fed.keys()
        for core in self.cores:
            for spec, firing in core.fired:
                inputs = [item.envelope for item in firing.items]
                if self.cancelled.isdisjoint({e.correlation_id for e in inputs}):
                    key = activation_id(spec.agent, spec.id, tuple(e.id for e in inputs), firing.round)
                    assert self.ends_of(key) == 1
        self._check_fed(fed)
        check_aggregates(self.cores, (fired for core in self.cores for fired in core.fired))

    def _check_fed(self, fed: Counter[tuple[str, bytes]]) -> None:
        """Whatever matched a subscription with a gate came there."""
        for core in self.cores:
            for posting in core.accepted:
                if posting.envelope.correlation_id not in self.cancelled:
                    kinds = {m.subscription: core.subscriptions[m.subscription].kind for m in posting.matches}
                    gated = [name for name, kind in kinds.items() if kind not in ("single", "fan_in")]
                    assert all(fed[name, posting.envelope.id] == 1 for name in gated)


def is_edited(envelope: Envelope) -> bool:
    """Say whether an artifact stands for an input of a dead letter: from outside, and with that input as its parent."""
    return envelope.produced_by == EXTERNAL and bool(envelope.parents)


def check_firing(spec: SubscriptionSpec, inputs: list[Envelope], groups: tuple[int, ...]) -> None:
    """A gate may only release what fits together."""
    if spec.scope == "workflow":
        assert len({e.correlation_id for e in inputs}) == 1
    if spec.kind == "aggregate":
        return  # `check_decision` knows more of it
    if spec.kind == "batch":
        assert 0 < len(inputs) <= (spec.batch_size or len(inputs))
        return
    sets = [inputs]
    if spec.kind == "join_batch":
        assert set(groups) == {len(spec.types)}
        assert len(groups) <= (spec.batch_size or len(groups))
        sets = [inputs[i : i + len(spec.types)] for i in range(0, len(inputs), len(spec.types))]
    for group in sets:
        assert tuple(e.type for e in group) == spec.types
        if "join" in spec.kind:
            assert len({msgspec.json.decode(e.payload)["key"] for e in group}) == 1


def check_leftover(gate: Gate, cancelled: set[str]) -> None:
    """What waits could not have fired."""
    if gate.spec.aggregate is not None:
        check_group(gate, gate.spec.aggregate, cancelled)
    elif gate.batch:
        assert not gate.spec.batch_size or len(gate.batch) < gate.spec.batch_size
    else:
        assert any(len(gate.held.get(n, ())) < gate.spec.types.count(n) for n in gate.spec.types)
