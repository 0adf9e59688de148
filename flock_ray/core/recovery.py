"""Snapshots of slots, and a shard rebuilt from them and the frames behind them.

Each slot is snapshotted by itself, so that no snapshot stops the shard for long: recovery skips the
records of a slot that its snapshot has seen. A snapshot holds what can still move: settled workflows
stay in the store's rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from flock_ray.core.approvals import Case, ShadowCount
from flock_ray.core.ballots import Decided
from flock_ray.core.budgets import Ledger
from flock_ray.core.claims import claim_for, is_claim
from flock_ray.core.ids import EPOCH_SHIFT
from flock_ray.core.pauses import Pause
from flock_ray.core.records import Frame, decode_frame, envelopes_of
from flock_ray.core.rows import ERASED, SHARD, Loaded, Snapshot
from flock_ray.core.scatter import Gather, Marks
from flock_ray.core.scatter_state import FanIn, Scatter
from flock_ray.core.schedules import Schedule
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Activation, Gate, Item, Lane, Letter, Slot, Waiting, Workflow
from flock_ray.core.usage import UsageRow
from flock_ray.core.wire import Attempt, Envelope, Forward, Match, SubscriptionSpec, TableSpec
from flock_ray.errors import StoreCorruptError

S = TypeVar("S", "SlotState", "ShardState")

SNAPSHOT_FORMAT = 1

CLAIMS_FORMAT = 2
"""Of snapshots in which payloads are claimed, as of frames."""


class _Item(msgspec.Struct, array_like=True):
    ref: int
    home: int
    announced: bool
    lane: str = ""
    ballot: bytes = b""


class _Gate(msgspec.Struct, array_like=True):
    spec: int
    """Its place in `specs`."""
    key: bytes
    opened_us: int
    opened_at: int
    deadline_us: int
    round: int
    timer_us: int
    held: dict[str, list[_Item]]
    batch: list[list[_Item]]
    quiet: dict[int, int] = {}
    watermark_us: int = 0


class _Activation(msgspec.Struct, array_like=True):
    id: bytes
    agent: str
    subscription: str
    correlation_id: str
    inputs: list[int]
    created_us: int
    priority: int
    groups: tuple[int, ...]
    charges: tuple[tuple[int, str, int], ...] | None
    crashes: int
    lane: str = ""
    admitted: bool = False
    probe: int = 0
    due_us: int = 0
    failures: int = 0
    history: tuple[Attempt, ...] = ()
    redrives: int = 0
    begun: bool = False
    gather: Gather | None = None
    offset: int = 0
    late: bool = False
    decision: bytes = b""


class _FanIn(msgspec.Struct, array_like=True):
    spec: int
    """Its place in `specs`."""
    scatter: bytes
    deadline_us: int
    delivered: Marks
    items: dict[int, list[int]]
    partials: list[tuple[int, int, int]]
    """(level, node, envelope); -1: there was nothing to merge."""
    resolved: list[tuple[int, int, int]]
    expired: bool


class SlotState(msgspec.Struct, array_like=True):
    """Everything of one slot that can still move."""

    format: int
    envelopes: list[Envelope]
    """Those the rest refers to by their place; payloads that are stored are empty."""
    artifacts: list[tuple[int, int]]
    """(feed position, envelope) of unsettled workflows."""
    workflows: list[Workflow]
    open: list[_Activation]
    gates: list[_Gate]
    arrivals: dict[str, int]
    held: list[tuple[str, str, list[tuple[int, Match]]]]
    delayed: list[tuple[bytes, str, Match]]
    timers: list[tuple[int, int, str, bytes, bytes]]
    outbox: list[Forward]
    out_seq: dict[int, int]
    inbox: dict[int, int]
    specs: list[SubscriptionSpec]
    """Of the gates: as they were when the gates opened."""
    usage: list[UsageRow] = []
    lanes: dict[str, Lane] = {}
    letters: list[Letter] = []
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    schedules: list[Schedule] = []
    candidates: dict[str, Waiting] = {}
    scatters: list[Scatter] = []
    fan_ins: list[_FanIn] = []
    parts: dict[bytes, dict[int, list[int]]] = {}
    stopped: list[bytes] = []
    approvals: list[Case] = []
    shadows: list[tuple[str, str, ShadowCount]] = []
    decided: dict[str, dict[bytes, Decided]] = {}
    kept: list[tuple[str, bytes, list[_Item]]] = []


class ShardState(msgspec.Struct, array_like=True):
    """What the slots of a shard share."""

    format: int
    table: TableSpec
    clock_us: int
    pauses: list[Pause] = []


_encode = msgspec.msgpack.Encoder().encode
_decode_slot = msgspec.msgpack.Decoder(SlotState).decode
_decode_shard = msgspec.msgpack.Decoder(ShardState).decode


def snapshot_shard(core: ShardCore) -> bytes:
    """Encode what all slots share."""
    return _encode(
        ShardState(SNAPSHOT_FORMAT, core.table, core.clock_us, list(core.pauses.by_place.values()))
    )


def snapshot_slot(core: ShardCore, index: int) -> bytes:
    """Encode a slot, after its settled workflows have left memory."""
    core.drop_settled(index)
    slot = core.slots[index]
    places: dict[tuple[bytes, bool], int] = {}
    envelopes: list[Envelope] = []

    def ref(envelope: Envelope) -> int:
        known = (
            envelope.id,
            bool(envelope.scatter),
        )  # aggregates use some again without their place in a fan-out
        place = places.get(known)
        if place is None:
            place = places[known] = len(envelopes)
            stored = envelope.slot in core.slots and not is_claim(envelope.payload)
            envelopes.append(msgspec.structs.replace(envelope, payload=b"") if stored else envelope)
        return place

    def item(held: Item) -> _Item:
        return _Item(ref(held.envelope), held.home, held.announced, held.lane, held.ballot)

    artifacts = [
        (seq, ref(envelope))
        for workflow in slot.workflows.values()
        for seq in workflow.seqs
        if (envelope := core.index.at(seq)) is not None
    ]
    opened = [
        _Activation(a.id, a.agent, a.subscription, a.correlation_id, [ref(e) for e in a.inputs], a.created_us,
                    a.priority, a.groups, a.charges, a.crashes, a.lane, a.admitted, a.probe, a.due_us, a.failures,
                    a.history, a.redrives, a.begun, a.gather, a.offset, a.late, a.decision)
        for a in slot.open.values()
    ]  # fmt: skip
    specs: dict[SubscriptionSpec, int] = {}
    gates = [
        _Gate(specs.setdefault(g.spec, len(specs)), g.key, g.opened_us, g.opened_at, g.deadline_us, g.round, g.timer_us,
              {name: [item(i) for i in queue] for name, queue in g.held.items()},
              [[item(i) for i in group] for group in g.batch], g.quiet, g.watermark_us)
        for keys in slot.gates.values() for g in keys.values()
    ]  # fmt: skip
    fan_ins = [
        _FanIn(specs.setdefault(g.spec, len(specs)), g.scatter, g.deadline_us, g.delivered,
               {index: [ref(e) for e in found] for index, found in g.items.items()},
               [(*place, -1 if e is None else ref(e)) for place, e in g.partials.items()],
               [(*place, count) for place, count in g.resolved.items()], g.expired)
        for gates_of in slot.fan_ins.values() for g in gates_of.values()
    ]  # fmt: skip
    held = [(sub, name, [(ref(e), m) for e, m in entries]) for (sub, name), entries in slot.held.items()]
    delayed = [(key, sub, match) for (key, sub), match in slot.delayed.items()]
    kept = [(sub, key, [item(i) for i in items]) for (sub, key), items in slot.kept.items()]
    return _encode(
        SlotState(
            CLAIMS_FORMAT if any(is_claim(e.payload) for e in envelopes) else SNAPSHOT_FORMAT,
            envelopes, artifacts, list(slot.workflows.values()), opened, gates, slot.arrivals, held,
            delayed, slot.timers, list(slot.outbox.values()), slot.out_seq, slot.inbox, list(specs),
            list(slot.usage.values()), slot.lanes, list(slot.letters.values()),
            slot.ledger, list(slot.schedules.values()), slot.candidates, list(slot.scatters.values()), fan_ins,
            slot.parts, list(slot.stopped), list(slot.approvals.values()),
            [(agent, name, count) for (agent, name), count in slot.shadows.items()], slot.decided, kept,
        )
    )  # fmt: skip


class Recovery:
    """A shard on its way back: decode, rebuild, fetch the payloads of what is still alive.

    A replay needs no payload, and most of what it replays is over by the end of it.
    """

    def __init__(self, loaded: Loaded) -> None:
        """Decode what a store has loaded.

        Raises:
            StoreCorruptError: It can't be read, or a newer version wrote it.
        """
        self._last_seq = loaded.last_seq
        self._live: set[bytes] = set()
        self.touched: set[int] = set()
        """Slots whose state is not what their snapshot says."""
        self._shard: ShardState | None = None
        self._slots: dict[int, SlotState] = {}
        self._lsns = {snapshot.slot: snapshot.lsn for snapshot in loaded.snapshots}
        for snapshot in loaded.snapshots:
            if snapshot.slot == SHARD:
                self._shard = _read(snapshot, _decode_shard)
            else:
                self._slots[snapshot.slot] = _read(snapshot, _decode_slot)
        self._frames: list[tuple[int, Frame]] = [(lsn, decode_frame(data)) for lsn, data in loaded.frames]

    def missing(self) -> set[bytes]:
        """Return the artifacts whose payloads have to be fetched; call after `rebuild`."""
        return {envelope.id for envelope in self._without_payload()}

    def fill(self, bodies: dict[bytes, bytes], inline_limit: int | None = None) -> None:
        """Put payloads where they belong; one that the store has no more was erased.

        Args:
            bodies: Those that the store has, of all that are missing.
            inline_limit: Larger ones, in bytes, are claimed: they stay in the store. None: all stay in memory.
        """
        claims: dict[bytes, bytes] = {}
        for envelope in list(self._without_payload()):
            body = bodies.get(envelope.id, ERASED)
            if inline_limit is not None and len(body) > inline_limit:
                body = claims.get(envelope.id) or claims.setdefault(envelope.id, claim_for(body))
            msgspec.structs.force_setattr(envelope, "payload", body)

    def _without_payload(self) -> Iterable[Envelope]:
        return (e for e in self._envelopes() if not e.payload and e.id in self._live)

    def _envelopes(self) -> Iterable[Envelope]:
        for state in self._slots.values():
            yield from state.envelopes
        for _, frame in self._frames:
            yield from envelopes_of(frame.records)

    def rebuild(self, core: ShardCore, epoch: int) -> int:
        """Bring an empty core to where the journal ends; returns how many records were replayed.

        What waited in a slot's journal is in the slot again, everything open is ready, and everything
        that another slot has not acknowledged is sent again.
        """
        if self._shard is not None:
            core.replay_table(self._shard.table)
            core.clock_us = self._shard.clock_us
            core.restore_pauses(self._shard.pauses)
        feed: list[tuple[int, Envelope]] = []
        for index, state in self._slots.items():
            feed += _restore(core, core.slots[index], state)
        feed.sort(key=lambda entry: entry[0])
        place = replayed = 0
        for lsn, frame in self._frames:
            core.clock_us = max(core.clock_us, frame.at_us)
            for head, record in zip(frame.heads, frame.records, strict=True):
                while place < len(feed) and feed[place][0] <= head:
                    _place(core, *feed[place])
                    place += 1
                if lsn <= self._lsns.get(record.slot, 0):
                    continue
                core.index.head = head
                core.replay(record)
                self.touched.add(record.slot)
                replayed += 1
        for seq, envelope in feed[place:]:
            _place(core, seq, envelope)
        for index in core.slots:
            core.drop_settled(index)
        core.index.head = self._last_seq
        core.index.floor = max(self._last_seq, 1 if self._frames or self._slots else 0)
        _ready(core, epoch)
        self._live = set(_referred_to(core))
        return replayed


def _read(snapshot: Snapshot, decode: Callable[[bytes], S]) -> S:
    try:
        state = decode(snapshot.data)
    except msgspec.DecodeError as error:
        raise StoreCorruptError(f"The snapshot of slot {snapshot.slot} can't be read: {error}.") from error
    if state.format not in (SNAPSHOT_FORMAT, CLAIMS_FORMAT):
        raise StoreCorruptError(
            f"The snapshot of slot {snapshot.slot} was written by a newer version of flock_ray (format "
            f"{state.format}, this one knows {CLAIMS_FORMAT}). Start it with that version or a later one."
        )
    return state


def _place(core: ShardCore, seq: int, envelope: Envelope) -> None:
    core.index.head = seq - 1
    core.index.add(envelope)


def _restore(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
    """Fill a slot from its snapshot; returns its artifacts by feed position."""
    envelopes = state.envelopes

    def item(held: _Item) -> Item:
        return Item(envelopes[held.ref], held.home, held.announced, held.lane, held.ballot)

    slot.workflows = {workflow.id: workflow for workflow in state.workflows}
    for a in state.open:
        slot.open[a.id] = Activation(
            a.id, a.agent, a.subscription, slot.index, a.correlation_id, tuple(envelopes[i] for i in a.inputs),
            a.created_us, a.priority, a.groups, a.charges, a.crashes, a.lane, a.admitted, a.probe, a.due_us,
            a.failures, a.history, a.redrives, a.begun, a.gather, a.offset, a.late, a.decision,
        )  # fmt: skip
    for g in state.gates:
        held = {name: deque(item(i) for i in queue) for name, queue in g.held.items()}
        batch = [[item(i) for i in group] for group in g.batch]
        spec = state.specs[g.spec]
        gate = Gate(spec, g.key, g.opened_us, g.opened_at, g.deadline_us, held, batch, g.round, g.timer_us,
                    g.quiet, g.watermark_us)  # fmt: skip
        slot.gates.setdefault(spec.id, {})[g.key] = gate
    slot.arrivals = state.arrivals
    slot.held = {(sub, name): [(envelopes[i], m) for i, m in entries] for sub, name, entries in state.held}
    slot.delayed = {(key, sub): match for key, sub, match in state.delayed}
    slot.timers = state.timers
    slot.outbox = {(f.target, f.seq): f for f in state.outbox}
    slot.out_seq, slot.inbox = state.out_seq, state.inbox
    slot.usage = {row.key: row for row in state.usage}
    slot.lanes = state.lanes
    slot.ledger = state.ledger
    slot.decided = state.decided
    slot.kept = {(sub, key): [item(i) for i in items] for sub, key, items in state.kept}
    slot.schedules = {schedule.info.name: schedule for schedule in state.schedules}
    slot.approvals = {case.id: case for case in state.approvals}
    slot.shadows = {(agent, name): count for agent, name, count in state.shadows}
    slot.letters.update((letter.envelope.id, letter) for letter in state.letters)
    slot.candidates = state.candidates
    slot.scatters = {scatter.id: scatter for scatter in state.scatters}
    for f in state.fan_ins:
        spec = state.specs[f.spec]
        slot.fan_ins.setdefault(f.scatter, {})[spec.id] = FanIn(
            spec, f.scatter, f.deadline_us, f.delivered,
            {index: [envelopes[ref] for ref in refs] for index, refs in f.items.items()},
            {(level, node): None if ref < 0 else envelopes[ref] for level, node, ref in f.partials},
            {(level, node): count for level, node, count in f.resolved}, f.expired,
        )  # fmt: skip
    slot.parts, slot.stopped = state.parts, dict.fromkeys(state.stopped)
    core.adopt(slot)
    return [(seq, envelopes[ref]) for seq, ref in state.artifacts]


def _referred_to(core: ShardCore) -> Iterable[bytes]:
    """Return the ids of all artifacts that a core can still show, hand out or send."""
    yield from core.index.ids
    for slot in core.slots.values():
        for activation in slot.open.values():
            yield from (envelope.id for envelope in activation.inputs)
        for keys in slot.gates.values():
            for gate in keys.values():
                yield from (item.envelope.id for item in gate.items())
        for held in slot.held.values():
            yield from (envelope.id for envelope, _ in held)
        for gates in slot.fan_ins.values():
            for fan_in in gates.values():
                yield from (envelope.id for found in fan_in.items.values() for envelope in found)
                yield from (envelope.id for envelope in fan_in.partials.values() if envelope is not None)
        for items in slot.kept.values():
            yield from (item.envelope.id for item in items)
        for forward in slot.outbox.values():
            if forward.posting is not None:
                yield forward.posting.envelope.id
            if forward.run is not None:
                yield from (envelope.id for envelope in forward.run.inputs)


def _ready(core: ShardCore, epoch: int) -> None:
    """Put everything that is derived in its place, and drop what the replay said to nobody."""
    outbox = [forward for slot in core.slots.values() for forward in slot.outbox.values()]
    core.local_forwards = [forward for forward in outbox if forward.target in core.slots]
    core.remote_forwards = [forward for forward in outbox if forward.target not in core.slots]
    core.records, core.cancels, core.quiet, core.lost_attempts = [], [], [], []
    core.large, core.index.released = [], []
    if core.changes is not None:
        core.changes.clear()
    core.events.begin_at((epoch << EPOCH_SHIFT) + 1)
    core.activity = epoch << EPOCH_SHIFT
    core.reset_dispatch(epoch << EPOCH_SHIFT)
