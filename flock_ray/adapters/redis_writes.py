"""Turns rows into the commands that a Lua script then does in one atomic step.

Commands travel as one msgpack value: unpacking it in C on the server costs a fraction of thousands of
arguments, each of which redis-py would encode and Lua would push on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import msgpack  # type: ignore[import-untyped]  # ships no types

from flock_ray.adapters.redis_rows import (
    EVERYTHING,
    FEED,
    RUN,
    TIME,
    Keys,
    dimension,
    dimensions,
    link,
    member,
    pack_activation,
    pack_artifact,
    pack_workflow,
    seal,
    settled_member,
)
from flock_ray.core.rows import ActivationRow, StoreBatch, WorkflowRow, visibility_kind
from flock_ray.core.wire import Envelope

__all__ = ["Commands", "Value", "batch_commands", "encode_for_lua", "removal_commands"]

Value = bytes | str | int
_CHUNK = 4000
"""Most arguments of one command: Lua cannot pass more than about 8,000 at once. Even: they come in pairs."""
_BATCH_ROWS = 1 << 20
"""Activations of one batch that keep their order."""


def encode_for_lua(value: object) -> bytes:
    """Encode for Lua's cmsgpack, which up to Redis 7.0 does not know the type that msgspec gives to bytes."""
    return cast(bytes, msgpack.packb(value, use_bin_type=False))


class Commands:
    """Commands of a script, and the keys they name by number."""

    def __init__(self, *keys: bytes) -> None:
        """Start with the keys that the script itself uses."""
        self.keys = list(keys)
        self._numbers = {key: number for number, key in enumerate(keys, 1)}
        self.items: list[list[Value]] = []

    def number(self, key: bytes) -> int:
        """Return the number of a key in Lua."""
        number = self._numbers.get(key)
        if number is None:
            self.keys.append(key)
            number = self._numbers[key] = len(self.keys)
        return number

    def add(self, name: str, key: bytes, arguments: Sequence[Value]) -> None:
        """Add a command, in several parts when it has very many arguments; none without arguments."""
        if not arguments:
            return
        number = self.number(key)
        if len(arguments) <= _CHUNK:
            self.items.append([name, number, *arguments])
            return
        for start in range(0, len(arguments), _CHUNK):
            self.items.append([name, number, *arguments[start : start + _CHUNK]])

    def take(self) -> list[list[Value]]:
        """Return the commands added since the last time."""
        items, self.items = self.items, []
        return items

    def packed(self) -> bytes:
        """Encode the commands."""
        return encode_for_lua(self.items)


def batch_commands(keys: Keys, batch: StoreBatch) -> Commands:
    """Say what a batch changes. The frame is checksummed with its lsn."""
    commands = Commands(keys.head, keys.journal)
    frame = seal(b"%d" % batch.lsn, batch.frame)
    commands.items.append(["XADD", 2, f"{batch.lsn}-0", "f", frame])
    _add_artifacts(commands, keys, batch.artifacts)
    _add_activations(commands, keys, batch)
    _add_workflows(commands, keys, batch.workflows)
    return commands


def _add_artifacts(commands: Commands, keys: Keys, artifacts: Iterable[tuple[int, Envelope]]) -> None:
    rows: list[Value] = []
    bodies: list[Value] = []
    everything: list[Value] = []
    members: dict[tuple[str, str], list[Value]] = {}
    counts: dict[tuple[str, str], int] = {}
    for seq, envelope in artifacts:
        key = envelope.id
        kind = visibility_kind(envelope.visibility)
        rows += (key, pack_artifact(seq, envelope))
        bodies += (key, seal(key, envelope.payload))
        entry = (b"0", member(FEED, seq, key), b"0", member(TIME, envelope.created_us, key))
        everything += entry
        for name in dimensions(envelope, kind):
            if name in members:
                members[name] += entry
            else:
                members[name] = list(entry)
        for counted in _counted(envelope, kind):
            counts[counted] = counts.get(counted, 0) + 1
    commands.add("HSET", keys.artifacts, rows)
    commands.add("HSET", keys.bodies, bodies)
    commands.add("ZADD", keys.index(EVERYTHING), everything)
    for name, arguments in members.items():
        commands.add("ZADD", keys.index(dimension(*name)), arguments)
    _add_counts(commands, keys, counts)


def _counted(envelope: Envelope, kind: str) -> list[tuple[str, str]]:
    """Return what an artifact is counted by, as (letter of the property, name); a tag as often as it has it."""
    found = [("t", envelope.type), ("p", envelope.produced_by), ("v", kind)]
    return [*found, *(("g", tag) for tag in envelope.tags)] if envelope.tags else found


def _add_counts(commands: Commands, keys: Keys, counts: dict[tuple[str, str], int]) -> None:
    for (letter, name), count in counts.items():
        commands.add("HINCRBY", keys.counts, (letter + name, count))


def _add_activations(commands: Commands, keys: Keys, batch: StoreBatch) -> None:
    rows: list[Value] = []
    links: list[Value] = []
    ended: dict[str, list[Value]] = {}
    for order, row in enumerate(batch.activations, batch.lsn * _BATCH_ROWS):
        rows += (row.id, pack_activation(order, row))
        ended.setdefault(row.correlation_id, []).extend((b"0", member(RUN, order, row.id)))
        for artifact_id in row.inputs:
            links += (b"0", link(artifact_id, row.id))
    commands.add("HSET", keys.activations, rows)
    commands.add("ZADD", keys.consumptions, links)
    for name, arguments in ended.items():
        commands.add("ZADD", keys.index(dimension("workflow", name)), arguments)


def _add_workflows(commands: Commands, keys: Keys, workflows: Iterable[WorkflowRow]) -> None:
    settled: dict[bytes, int | None] = {}
    for row in workflows:
        commands.add("HSET", keys.workflow(row.id), (row.slot, pack_workflow(row)))
        settled[settled_member(row.slot, row.id)] = row.updated_us if row.settled else None
    put: list[Value] = []
    for name, time in settled.items():
        if time is not None:
            put += (time, name)
    commands.add("ZADD", keys.settled, put)
    commands.add("ZREM", keys.settled, [name for name, time in settled.items() if time is None])


def removal_commands(
    commands: Commands,
    keys: Keys,
    place: tuple[int, str],
    artifacts: Iterable[tuple[int, Envelope]],
    activations: Iterable[tuple[int, ActivationRow]],
) -> None:
    """Say what the removal of a workflow from a slot changes, given its artifacts and (order, activation)s."""
    slot, name = place
    ids: list[Value] = []
    everything: list[Value] = []
    members: dict[tuple[str, str], list[Value]] = {("workflow", name): []}
    counts: dict[tuple[str, str], int] = {}
    for seq, envelope in artifacts:
        kind = visibility_kind(envelope.visibility)
        ids.append(envelope.id)
        entry = (member(FEED, seq, envelope.id), member(TIME, envelope.created_us, envelope.id))
        everything += entry
        for property_ in dimensions(envelope, kind):
            members.setdefault(property_, []).extend(entry)
        for counted in _counted(envelope, kind):
            counts[counted] = counts.get(counted, 0) - 1
    runs: list[Value] = []
    links: list[Value] = []
    for order, row in activations:
        runs.append(row.id)
        links += (link(key, row.id) for key in row.inputs)
        members["workflow", name].append(member(RUN, order, row.id))
    commands.add("HDEL", keys.artifacts, ids)
    commands.add("HDEL", keys.bodies, ids)
    commands.add("HDEL", keys.activations, runs)
    commands.add("ZREM", keys.consumptions, links)
    commands.add("ZREM", keys.index(EVERYTHING), everything)
    for property_, arguments in members.items():
        commands.add("ZREM", keys.index(dimension(*property_)), arguments)
    _add_counts(commands, keys, counts)
    commands.add("HDEL", keys.workflow(name), (slot,))
    commands.add("ZREM", keys.settled, (settled_member(slot, name),))
