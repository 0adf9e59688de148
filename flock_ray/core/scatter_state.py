"""What a slot keeps of fan-outs and fan-ins. Changed only by `core.scatter_desk`."""

from __future__ import annotations

import msgspec

from flock_ray.core.scatter import FanInRule, Marks, Part
from flock_ray.core.wire import Envelope, SubscriptionSpec

Place = tuple[int, int]
"""(level, node) in the tree of a reduce; level 0 merges chunks."""


class Scatter(msgspec.Struct, array_like=True):
    """One run of a fan-out, in its home slot."""

    id: bytes
    agent: str
    workflow: str
    opened_us: int
    source: tuple[Envelope, ...]
    """What was split, without payloads."""
    outer: tuple[Part, ...] = ()
    """Its own places in scatters around it."""
    partition_key: str | None = None
    """Of what was split."""
    total: int = -1
    """Chunks; -1 while it is still splitting."""
    made: int = 0
    """Chunks that are published."""
    settled: Marks = msgspec.field(default_factory=Marks)
    """Chunks of which nothing runs or waits any more."""
    reasons: dict[int, int] = {}
    """By chunk: FAILED or BURIED, if a run on it ended so."""
    owed: tuple[Part, ...] = ()
    """Places around it that count it as open until it is over."""
    runs: int = 0
    """Runs of fan-ins that have not ended."""
    failed: str = ""
    """Why the split ended early; empty: it did not."""
    waiting: bool = False
    """Everything has ended, and a fan-in waits for dead letters to be redriven."""
    told: int = 0
    """Tenths of the chunks that the last progress event told of."""
    done_us: int = 0
    """When it was over; 0: it is not."""

    @property
    def ended(self) -> bool:
        """Whether nothing is open of any chunk."""
        return self.total >= 0 and self.settled.count == self.total

    def size(self, level: int, node: int, width: int) -> int:
        """Return how many children a node of the tree over its chunks has."""
        below = self.total
        for _ in range(level):
            below = -(-below // width)
        return max(0, min(width, below - node * width))

    def is_root(self, level: int, width: int) -> bool:
        """Say whether a level of the tree over its chunks has one node only."""
        nodes = self.total
        for _ in range(level + 1):
            nodes = -(-nodes // width)
        return nodes <= 1


class FanIn(msgspec.Struct):
    """A fan-in that waits for the chunks of one scatter, in the scatter's home slot."""

    spec: SubscriptionSpec
    scatter: bytes
    deadline_us: int = 0
    """0: never."""
    delivered: Marks = msgspec.field(default_factory=Marks)
    items: dict[int, list[Envelope]] = {}
    """By chunk, in order of arrival: what is not merged yet."""
    partials: dict[Place, Envelope | None] = {}
    """Merged by a run of the tree and not merged further; None: there was nothing to merge."""
    resolved: dict[Place, int] = {}
    """By node: children that will not change any more."""
    expired: bool = False
    """Its time is over: what is missing stays missing."""

    @property
    def rule(self) -> FanInRule:
        """How it decides."""
        rule = self.spec.fan_in
        assert rule is not None  # of this kind of subscription
        return rule
