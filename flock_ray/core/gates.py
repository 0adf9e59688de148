"""Gates: AND, join, batch and join-then-batch as pure state changes.

A gate takes the inputs it needs and keeps the rest for its next round; nothing that was
put in is ever dropped without being returned to the caller.
"""

from __future__ import annotations

from collections import Counter, deque
from functools import lru_cache
from typing import NamedTuple

from flock_ray.core.ids import slot_of
from flock_ray.core.state import Gate, Item, Slot
from flock_ray.core.wire import Envelope, Match, SubscriptionSpec


class Firing(NamedTuple):
    """Inputs that a gate releases for one activation, in declared (or arrival) order."""

    items: list[Item]
    groups: tuple[int, ...] = ()
    round: int = 0
    decision: bytes = b""
    """Of an aggregate."""


class Expiry(NamedTuple):
    """Inputs whose window ended before the gate was complete."""

    gate: Gate
    items: list[Item]


BATCH_KEY = b"\x00batch"
"""Gate key suffix of the batch that collects complete join groups."""


def gate_slot(spec: SubscriptionSpec, match: Match, envelope: Envelope) -> int:
    """Return the slot where the gate of a match lives."""
    if spec.scope == "workflow":
        together = envelope.partition_key is None or (spec.kind == "and" and envelope.scatter)
        return envelope.slot if together else slot_of(envelope.correlation_id)
    if spec.kind == "aggregate" or (spec.kind == "join" and not spec.within_count):
        return slot_of(spec.id + match.key.hex())
    return slot_of(spec.id)


def gate_key(spec: SubscriptionSpec, match: Match, envelope: Envelope) -> bytes:
    """Return the group that an input belongs to within its subscription."""
    key = match.key if spec.kind in ("join", "join_batch", "aggregate") else b""
    if spec.scope == "workflow":
        if spec.kind == "and" and envelope.scatter:  # what is made of one chunk never meets another one's
            part = envelope.scatter[-1]
            key = part.scatter + b"%d" % part.index
        return envelope.correlation_id.encode() + b"\x00" + key
    return key


def batch_key(spec: SubscriptionSpec, envelope: Envelope) -> bytes:
    """Return the key of the batch that complete join groups go to."""
    return (b"" if spec.scope == "board" else envelope.correlation_id.encode()) + BATCH_KEY


def feed(
    slot: Slot, spec: SubscriptionSpec, key: bytes, item: Item, now_us: int
) -> tuple[list[Firing], list[Expiry]]:
    """Put one input into its gate; returns what fires and what has expired, oldest first."""
    if spec.kind == "batch":
        return _feed_batch(slot, spec, key, [item], now_us), []
    expired: list[Expiry] = []
    arrival = 0
    if spec.within_count:
        arrival = slot.arrivals[spec.id] = slot.arrivals.get(spec.id, 0) + 1
        expired = _expire_by_count(slot, spec, arrival)
    gate = slot.gate(spec.id, key)
    if gate is not None and gate.deadline_us and now_us >= gate.deadline_us:
        expired.append(_close(slot, gate))
        gate = None
    if gate is None:
        gate = _open(slot, spec, key, now_us, arrival)
    queue = gate.held.get(item.envelope.type)
    if queue is None:
        queue = gate.held[item.envelope.type] = deque()
    queue.append(item)
    return _fire_groups(slot, gate, now_us, arrival), expired


def _open(slot: Slot, spec: SubscriptionSpec, key: bytes, now_us: int, arrival: int) -> Gate:
    window = spec.batch_timeout_us if spec.kind == "batch" or key.endswith(BATCH_KEY) else spec.within_us
    gate = Gate(spec, key, now_us, arrival, now_us + window if window else 0)
    slot.gates.setdefault(spec.id, {})[key] = gate
    return gate


def _close(slot: Slot, gate: Gate) -> Expiry:
    slot.drop_gate(gate)
    return Expiry(gate, gate.items())


def _expire_by_count(slot: Slot, spec: SubscriptionSpec, arrival: int) -> list[Expiry]:
    # A group takes what comes up to `within_count` arrivals of its subscription after its first one.
    # Gates of one subscription are kept in the order in which they opened, so only late ones are looked at.
    late: list[Gate] = []
    for gate in slot.gates.get(spec.id, {}).values():
        if gate.key.endswith(BATCH_KEY):
            continue
        if arrival - gate.opened_at <= spec.within_count:
            break
        late.append(gate)
    return [_close(slot, gate) for gate in late]


def _fire_groups(slot: Slot, gate: Gate, now_us: int, arrival: int) -> list[Firing]:
    spec = gate.spec
    firings: list[Firing] = []
    restarted = False
    while _complete(gate.held, spec.types):
        items = [gate.held[name].popleft() for name in spec.types]
        if spec.kind == "join_batch":
            firings += _feed_batch(slot, spec, batch_key(spec, items[0].envelope), items, now_us)
        else:
            firings.append(Firing(items, (), gate.round))
        gate.round += 1
        _restart(gate, now_us, arrival)
        restarted = True
    if gate.empty:
        slot.drop_gate(gate)
    elif restarted:
        slot.drop_gate(gate)
        slot.gates.setdefault(spec.id, {})[gate.key] = gate
    return firings


def _complete(held: dict[str, deque[Item]], types: tuple[str, ...]) -> bool:
    for name, count in _needs(types):
        queue = held.get(name)
        if queue is None or len(queue) < count:
            return False
    return True


@lru_cache(maxsize=4096)
def _needs(types: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(types).items())


def _restart(gate: Gate, now_us: int, arrival: int) -> None:
    gate.opened_us, gate.opened_at = now_us, arrival
    gate.deadline_us = now_us + gate.spec.within_us if gate.spec.within_us else 0


def _feed_batch(
    slot: Slot, spec: SubscriptionSpec, key: bytes, group: list[Item], now_us: int
) -> list[Firing]:
    gate = slot.gate(spec.id, key)
    if gate is None:
        gate = _open(slot, spec, key, now_us, 0)
    gate.batch.append(group)
    if spec.batch_size and len(gate.batch) >= spec.batch_size:
        return [flush(slot, gate)]
    return []


def flush(slot: Slot, gate: Gate) -> Firing:
    """Release a batch as it is, full or not."""
    slot.drop_gate(gate)
    groups = tuple(len(group) for group in gate.batch) if gate.spec.kind == "join_batch" else ()
    return Firing([item for group in gate.batch for item in group], groups, gate.round)


def on_deadline(slot: Slot, subscription: str, key: bytes, now_us: int) -> Firing | Expiry | None:
    """Handle a gate's timer: a batch fires, a window expires; None when the gate moved on or is not due."""
    gate = slot.gate(subscription, key)
    if gate is None or not gate.deadline_us or gate.deadline_us > now_us:
        return None
    return flush(slot, gate) if gate.batch else _close(slot, gate)


def waits_for(gate: Gate) -> dict[str, int]:
    """Return what the gate still needs, by type; for a batch the key is `items`."""
    if gate.batch:
        return {"items": gate.spec.batch_size - len(gate.batch)} if gate.spec.batch_size else {}
    needed = {name: gate.spec.types.count(name) - len(gate.held.get(name, ())) for name in gate.spec.types}
    return {name: count for name, count in needed.items() if count > 0}
