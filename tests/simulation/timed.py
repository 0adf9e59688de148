"""What the clock does in a simulated cluster: predicates of the time, deadlines, schedules; and what must hold."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flock_ray import IntervalTrigger, SlidingWindowTrigger, flock_type, now
from flock_ray.core.records import Completed, Late, Record, ScheduleFired
from flock_ray.core.schedules import Schedule
from flock_ray.core.shard import ShardCore
from flock_ray.core.system_types import DeadlineMissed
from tests.simulation.simulator import SimFlock, persist
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.workload import Story

LIMIT = timedelta(seconds=0.6)
"""Deadline of an agent's runs."""

OVER_S = 120.0
"""Virtual seconds after which everything that was to happen by the clock has happened."""


@flock_type(name="SimDoc")
class Doc(BaseModel):
    uid: int
    ripe: datetime
    """When the predicate of the time begins to hold."""


@flock_type(name="SimStale")
class Stale(BaseModel):
    uid: int


@flock_type(name="SimWindow")
class Window(BaseModel):
    window_start: datetime | None = None


def is_timed(world: World) -> bool:
    """Say whether the clock does something in this seed; in half of them it does."""
    return random.Random(world.seed + 3).random() < 0.5


def declare_timed(flock: SimFlock, world: World) -> None:
    """Put agents on the board that are asked again, that have a deadline, and that run by the clock."""
    if not is_timed(world):
        return
    rng = random.Random(world.seed + 4)

    async def slowly(doc: Doc) -> Stale:
        await asyncio.sleep(rng.random() * 1.2)
        return Stale(uid=doc.uid)

    add: Callable[[str], Any] = flock.agent
    add("stale").consumes(
        Doc, where=lambda doc: now() >= doc.ripe, reevaluate=timedelta(seconds=rng.choice((0.2, 1.0, 3.0)))
    ).publishes(Stale).runs(lambda doc: Stale(uid=doc.uid))
    add("punctual").consumes(Doc).publishes(Stale).runs(slowly).deadline(LIMIT)
    add("missed").consumes(DeadlineMissed).publishes(Stale).runs(lambda missed: Stale(uid=0))
    ticker = add("ticker").publishes(Stale).runs(lambda tick: Stale(uid=tick.iteration))
    every = timedelta(seconds=rng.choice((0.05, 0.5, 2.0)))
    flock.schedule(ticker, trigger=IntervalTrigger(every), misfire="catch_up", max_repeats=7, name="ticks")
    flock.schedule(
        trigger=SlidingWindowTrigger(2 * every, every), publish=Window(), misfire="catch_up", max_repeats=5,
        jitter=timedelta(seconds=rng.choice((0.0, 0.3))), name="windows",
    )  # fmt: skip


async def publish_docs(world: World, story: Story) -> None:
    """Publish what becomes ripe later, in workflows that must be done in time."""
    if not is_timed(world):
        return
    rng = random.Random(world.seed + 5)
    for number in range(rng.choice((3, 8))):
        await asyncio.sleep(rng.random() * 0.6)
        docs = [
            Doc(uid=rng.getrandbits(30), ripe=now() + timedelta(seconds=rng.choice((-1.0, 1.0, 6.0))))
            for _ in range(rng.choice((1, 1, 3)))
        ]
        options: dict[str, Any] = {
            "correlation_id": f"workflow-{rng.randrange(12)}",
            "idempotency_key": f"doc-{number}",
        }
        if rng.random() < 0.5:
            options["deadline"] = timedelta(seconds=rng.choice((0.1, 1.0, 10.0)))
        artifacts = await persist(lambda d=docs, o=options: story.flock.publish_many(d, **o))  # type: ignore[misc]  # bound now
        story.accepted += [artifact.id.bytes for artifact in artifacts]


async def wait_for_the_clock(story: Story) -> None:
    """Wait until no candidate and no schedule is left."""
    deadline = asyncio.get_running_loop().time() + OVER_S
    while left := [text for shard in story.flock.sim.alive() for text in _left(shard.core)]:
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {left[:5]}"
        await asyncio.sleep(1)


def _left(core: ShardCore) -> list[str]:
    slots = core.slots.values()
    return [
        f"{len(waiting.entries)} of {name}" for slot in slots for name, waiting in slot.candidates.items()
    ] + [
        f"schedule {name}" for slot in slots for name, schedule in slot.schedules.items() if schedule.next_us
    ]


class TimedAudit(ShardCore):
    """A core that checks deadlines and schedules while it is replayed."""

    def __init__(self, owned: Iterable[int]) -> None:
        super().__init__(list(owned))
        self.late: Counter[tuple[str, Any]] = Counter()
        """(run or workflow, which one): how often it was said to be late."""
        self.fires: dict[str, list[int]] = defaultdict(list)
        """By schedule."""
        self.offered: Counter[tuple[str, bytes]] = Counter()
        """(subscription, artifact): how often a candidate was matched."""

    def replay(self, record: Record) -> None:
        if isinstance(record, Late):
            self._check_late(record)
        elif isinstance(record, Completed):
            self._check_in_time(record)
            self.offered.update(
                (p.offered, p.envelope.id) for p in record.completion.outputs if p.offered and p.matches
            )
        elif isinstance(record, ScheduleFired):
            self.fires[record.name] += record.fires
        super().replay(record)

    def _check_late(self, record: Late) -> None:
        slot = self.slots[record.slot]
        for key in record.runs:
            run = slot.open[key]
            assert run.created_us + self._deadlines[run.agent] <= record.at_us, "said to be late too early"
            self.late["run", key] += 1
        for name in record.workflows:
            workflow = slot.workflows[name]
            assert not workflow.settled
            assert 0 < workflow.deadline_us <= record.at_us, "said to be late too early"
            self.late["workflow", (slot.index, name, workflow.deadline_us)] += 1

    def _check_in_time(self, record: Completed) -> None:
        run = self.slots[record.slot].open.get(record.completion.id)
        if run is not None and (limit_us := self._deadlines.get(run.agent, 0)):
            in_time = record.at_us < run.created_us + limit_us
            assert run.late != in_time, f"done {'in time' if in_time else 'too late'}: late is {run.late}"


def check_times(cores: Iterable[TimedAudit], lives: Iterable[ShardCore]) -> None:
    """Every deadline is missed once, every time of a schedule fires once, every candidate is matched once."""
    schedules: dict[str, Schedule] = {}
    for core in cores:
        assert set(core.late.values()) <= {1}, "said to be late twice"
        assert set(core.offered.values()) <= {1}, "a candidate was matched twice"
        for slot in core.slots.values():
            schedules |= slot.schedules
        for name, times in core.fires.items():
            steps = {later - sooner for sooner, later in pairwise(times)}
            assert len(steps) == 1 and min(steps) > 0, f"{name} fired at {times}"
    for live in lives:
        due = [workflow.deadline_us for slot in live.slots.values() for workflow in slot.workflows.values()]
        assert not [at_us for at_us in due if 0 < at_us <= live.clock_us], "nobody said that it is late"
    for name, schedule in schedules.items():
        fired = [time for core in cores for time in core.fires.get(name, ())]
        assert len(fired) == len(set(fired)) == schedule.info.max_repeats, f"{name} fired at {fired}"
