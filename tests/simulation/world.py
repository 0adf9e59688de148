"""What a seed decides: how bad everything is, what dies, and what is seen of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from flock_ray.core.shard import ShardCore
from flock_ray.core.wire import Completion
from flock_ray.ports import PeerGoneError
from flock_ray.testing import VirtualClock
from tests.simulation.disk import SimDisk
from tests.simulation.trace import Trace

T = TypeVar("T")

MANY = 10**9


@dataclass
class Faults:
    """How bad this cluster is; every probability is per call."""

    max_delay_s: float = 0.0
    lost_request: float = 0.0
    lost_reply: float = 0.0
    repeated: float = 0.0
    max_repeat_s: float = 0.0
    """How much later a repeated request may come: long enough to find the successor of a dead shard."""
    repeated_to_successor: float = 0.0
    """Share of the calls that a death cut off which come again, to whoever is there then."""
    failing_append: float = 0.0
    failing_read: float = 0.0
    failing_snapshot: float = 0.0
    late_write: float = 0.0
    """Share of the failed writes that arrive nevertheless, when nobody waits for them any more."""
    repeated_write: float = 0.0
    """Share of the writes that arrive twice."""
    max_late_s: float = 0.0
    max_append_s: float = 0.0
    max_load_s: float = 0.0
    late_acquires: int = 0
    """How often slots are taken once more a few seconds later, in the name of whoever took them."""
    no_room: float = 0.0
    zombie: float = 0.0
    """Share of the dead shards that are only cut off: they go on, and write whatever they can."""

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        bad = rng.choice((0.0, 0.01, 0.04))
        return cls(
            max_delay_s=rng.choice((0.0, 0.002, 0.05, 0.3)),
            lost_request=bad,
            lost_reply=bad,
            repeated=rng.choice((0.0, 0.02, 0.1)),
            max_repeat_s=rng.choice((0.0, 0.5, 4.0)),
            repeated_to_successor=rng.choice((0.0, 0.5)),
            failing_append=rng.choice((0.0, 0.1, 0.4)),
            failing_snapshot=rng.choice((0.0, 0.4)),
            failing_read=rng.choice((0.0, 0.05, 0.2)),
            late_write=rng.choice((0.0, 0.5)),
            repeated_write=rng.choice((0.0, 0.3)),
            max_late_s=rng.choice((0.1, 5.0)),
            max_append_s=rng.choice((0.0, 0.003, 0.1)),
            max_load_s=rng.choice((0.0, 0.2, 2.0)),
            no_room=rng.choice((0.0, 0.2)),
            zombie=0.3,
        )


class SimClock(VirtualClock):
    """The wall clock of one machine: it jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.offset_us = 0

    def now_us(self) -> int:
        return super().now_us() + self.offset_us


class World:
    """The seed's randomness, what is dead, and what travels."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = Faults.draw(self.rng)
        self.payload_rng = random.Random(f"payloads of {seed}")
        """On its own: seeds without large payloads are what they were before there were any."""
        self.inline_payload_bytes = self.payload_rng.choice((20, MANY, MANY))
        """Below the size of every model: all payloads are large."""
        self.trace = Trace()
        self._deaths: dict[int, tuple[object, asyncio.Future[None]]] = {}
        self._travelling: set[asyncio.Task[Any]] = set()
        self.breakdowns: list[BaseException] = []
        self.disks: dict[int, SimDisk] = {}
        self.clocks: dict[int, SimClock] = {}
        """By shard: it outlives the process."""
        self.heard: list[tuple[int, bytes]] = []
        """(shard, request) of everything that was published."""
        self.owed: dict[bytes, int] = {}
        """Activations that have to end yet, with the shard that said that it knows of the failure of an attempt."""
        self.matching: set[bytes] = set()
        """Activations of the board's own agent, which have no rows."""
        self.lives: dict[int, list[ShardCore]] = {}
        """By shard: the cores of all its processes so far, the newest last."""

    def calm(self) -> None:
        """No more faults."""
        self.faults = Faults()
        self.trace.note("calm")

    def clock(self, shard: int) -> SimClock:
        return self.clocks.setdefault(shard, SimClock())

    def jump(self, shard: int) -> None:
        """Somebody sets the clock of a machine."""
        offset_s = self.rng.choice((-20.0, -1.0, 0.0, 0.5, 20.0))
        self.clock(shard).offset_us = int(offset_s * 1e6)
        self.trace.note(f"the clock jumps to {offset_s:+} s", shard)

    def death(self, thing: object) -> asyncio.Future[None]:
        entry = self._deaths.get(id(thing))
        if entry is None:
            entry = self._deaths[id(thing)] = (thing, asyncio.get_running_loop().create_future())
        return entry[1]

    def die(self, thing: object) -> None:
        future = self.death(thing)
        if not future.done():
            future.set_result(None)

    def broken(self, shard: int, text: str) -> None:
        """Note that a promise was broken; the scenario fails with it as soon as it looks."""
        self.trace.note(text, shard)
        self.trace.concerned.add(shard)
        self.breakdowns.append(AssertionError(text))

    def has_moved(self, completion: Completion) -> bool:
        """Say whether an activation is in another slot than the one that handed it out, on its way there, or over."""
        key = completion.id
        every = (slot for cores in self.lives.values() for core in cores for slot in core.slots.values())
        return any(key in disk.ended for disk in self.disks.values()) or any(
            (slot.index != completion.slot and key in slot.open)
            or any(f.run is not None and f.run.id == key for f in slot.outbox.values())
            for slot in every
        )

    def is_open(self, shard: int, completion: Completion) -> bool:
        """Say whether a process of a shard, maybe one that was cut off, means to run an activation again.

        Since a deploy it may be in another slot, or on its way there, or over.
        """
        key = completion.id
        slots = (core.slots.get(completion.slot) for core in self.lives[shard])
        if any(slot is not None and key in slot.open for slot in slots):
            return True
        every = (slot for cores in self.lives.values() for core in cores for slot in core.slots.values())
        return any(key in disk.ended for disk in self.disks.values()) or any(
            key in slot.open or any(f.run is not None and f.run.id == key for f in slot.outbox.values())
            for slot in every
        )

    def check_owed(self) -> None:
        """What was to be tried again has ended: call when nothing runs any more."""
        for key, shard in self.owed.items():
            if not any(key in disk.ended for disk in self.disks.values()):
                self.broken(shard, f"G2: {key.hex()[:8]} was to be tried again and never ended")
        self.check()

    def check(self) -> None:
        """Fail as soon as anything went wrong."""
        if self.breakdowns:
            raise self.breakdowns[0]

    @contextlib.contextmanager
    def about(self, shard: int) -> Iterator[None]:
        """Say which shard a check is about, for the trace."""
        try:
            yield
        except BaseException:
            self.trace.concerned.add(shard)
            raise

    def send(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let something go on whatever becomes of its caller."""
        task = asyncio.ensure_future(work)
        self._travelling.add(task)
        task.add_done_callback(self._arrived)
        return task

    def _arrived(self, task: asyncio.Task[Any]) -> None:
        self._travelling.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone: nobody has to look at it

    def on_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        if not isinstance(error, PeerGoneError):  # what was for a dead process is seen by what is missing
            self.breakdowns.append(error)

    async def delay(self) -> None:
        limit = self.faults.max_delay_s
        # Mostly short, sometimes long: that is what reorders.
        await asyncio.sleep(limit * self.rng.random() ** 4)
