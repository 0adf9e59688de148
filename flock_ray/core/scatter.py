"""Scatters as data: what every chunk carries of its fan-out, and what a fan-in is told.

A scatter is one run of a fan-out agent: its id is that of the activation. Every chunk, and everything
that is made of it, carries its place in the scatter, the innermost one last (`wire.Envelope.scatter`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Protocol

import msgspec

from flock_ray.core.ids import NUM_SLOTS, slot_of

SPREAD = 64
"""Slots over which the chunks of a scatter spread, beginning behind its home: even over up to 64 shards."""

DROPPED, FAILED, BURIED = 0, 1, 2
"""Why a chunk has delivered nothing: nobody made anything of it, a run failed, a run became a dead letter."""

REASONS = ("dropped", "failed", "dead-lettered")


NEAR_BYTES = 100_000
"""Payload from which on a chunk stays on the shard that its fan-out reports to: the object store has it there."""


class Part(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The place of an artifact in one scatter."""

    scatter: bytes
    index: int
    """Of its chunk, from 0."""
    home: int
    """Slot that keeps the scatter."""
    agent: str
    """The fan-out."""
    partition_key: str | None = None
    """Of what was split: the fan-in's result has it again."""
    near: bool = False
    """The chunk lives in the home slot: a large one, which would else travel from shard to shard."""


class Split(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """On the completion of a fan-out: which chunks its outputs are."""

    first: int = 0
    """Index of the first one."""
    more: bool = False
    """There are more: the activation stays open and goes on behind these."""


class Gather(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What one run of a fan-in is about."""

    scatter: bytes
    agent: str
    """The fan-out."""
    total: int
    """Chunks of the scatter."""
    missing: tuple[tuple[int, int], ...] = ()
    """Chunks that delivered nothing, as ranges (first, last)."""
    final: bool = True
    """Its output is the result; otherwise what a later run merges further."""
    level: int = 0
    """In a tree of runs, from 0; and its place there."""
    node: int = 0
    empty: bool = False
    """There was nothing to merge: the inputs are those of the fan-out."""
    outer: tuple[Part, ...] = ()
    """Places of the fan-out's own inputs: what the result carries."""
    partition_key: str | None = None
    """Of the fan-out's own inputs."""
    home: int = 0
    """Slot that keeps the scatter."""


class FanInRule(msgspec.Struct, array_like=True, frozen=True):
    """What a shard must know of a fan-in."""

    strategy: str
    """merge, collect, reduce or first_success."""
    closes: tuple[str, ...] = ()
    """Fan-out agents whose scatters it closes; empty: any."""
    min_fraction: float = 1.0
    timeout_us: int = 0
    """Since the scatter began; 0: never."""
    on_failure: str = "fail"
    """fail, partial or wait."""
    width: int = 64
    """Inputs of one run of reduce."""


class HasParts(Protocol):
    """An envelope."""

    @property
    def scatter(self) -> tuple[Part, ...]:
        """Its places, the innermost one last."""
        ...


@cache
def chunk_key(slot: int) -> str:
    """Return a partition key that lives in a slot."""
    number = 0
    while slot_of(key := f"~{slot}.{number}") != slot:
        number += 1
    return key


def slot_of_part(part: Part) -> int:
    """Return where everything of a chunk lives."""
    return part.home if part.near else (part.home + 1 + part.index % SPREAD) % NUM_SLOTS


def key_of(stack: Sequence[Part]) -> str | None:
    """Return the partition key of what carries these places; None: it carries none."""
    return chunk_key(slot_of_part(stack[-1])) if stack else None


def common(inputs: Iterable[HasParts]) -> tuple[Part, ...]:
    """Return the places that all inputs share: what their outputs carry."""
    stacks = [envelope.scatter for envelope in inputs]
    if not stacks:
        return ()
    shared = stacks[0]
    for stack in stacks[1:]:
        if stack != shared:
            length = 0
            for mine, other in zip(shared, stack, strict=False):
                if mine != other:
                    break
                length += 1
            shared = shared[:length]
    return shared


def carried(inputs: Sequence[HasParts], gather: Gather | None) -> tuple[tuple[Part, ...], str | None, bool]:
    """Return what the outputs of a run carry of its inputs' places.

    Returns:
        The places, the partition key that goes with them, and whether that key is decided here: when it is not, what
        the inputs share otherwise decides.
    """
    if gather is not None:
        return gather.outer, key_of(gather.outer) if gather.outer else gather.partition_key, True
    shared = common(inputs)
    if not shared:
        # Chunks of one scatter have nothing else in common: what is made of several lives where the scatter began.
        first = next((e.scatter[0] for e in inputs if e.scatter), None)
        return (), None if first is None else first.partition_key, first is not None
    return shared, key_of(shared), True


class Marks(msgspec.Struct, array_like=True):
    """A set of small numbers as bits."""

    bits: bytearray = msgspec.field(default_factory=bytearray)
    count: int = 0

    def __contains__(self, number: int) -> bool:
        """Say whether a number is in."""
        place = number >> 3
        return place < len(self.bits) and bool(self.bits[place] & 1 << (number & 7))

    def add(self, number: int) -> bool:
        """Put a number in; False when it was in."""
        if number in self:
            return False
        place = number >> 3
        if place >= len(self.bits):
            self.bits.extend(bytes(place + 1 - len(self.bits)))
        self.bits[place] |= 1 << (number & 7)
        self.count += 1
        return True

    def discard(self, number: int) -> bool:
        """Take a number out; False when it was not in."""
        if number not in self:
            return False
        self.bits[number >> 3] &= ~(1 << (number & 7)) & 0xFF
        self.count -= 1
        return True

    def missing(self, total: int) -> tuple[tuple[int, int], ...]:
        """Return the numbers below a total that are not in, as ranges (first, last)."""
        if self.count == total:
            return ()
        ranges: list[list[int]] = []
        for number in range(total):
            if number in self:
                continue
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        return tuple((first, last) for first, last in ranges)


def shown(ranges: Sequence[tuple[int, int]], most: int = 20) -> str:
    """Write ranges as people do: 3, 7-9."""
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges[:most])
    return f"{text} and more" if len(ranges) > most else text
