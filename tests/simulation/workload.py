"""Agents of every kind, and a driver that feeds them: what a simulated cluster works on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from flock_ray import BatchSpec, JoinSpec, When, flock_type
from flock_ray.core.system_types import WorkflowError
from flock_ray.core.visibility import PrivateVisibility
from tests.simulation.aggregating import Motion, declare_aggregates
from tests.simulation.fanned import Bundle, declare_fanned, has_fans
from tests.simulation.limited import Chore, declare_limited
from tests.simulation.simulator import SimFlock, persist
from tests.simulation.spending import Books, Gateway
from tests.simulation.timed import declare_timed
from tests.simulation.world import MANY, World


class Keyed(BaseModel):
    uid: int
    key: int


@flock_type(name="SimSeed")
class Seed(Keyed):
    pass


@flock_type(name="SimStep")
class Step(Keyed):
    pass


@flock_type(name="SimNote")
class Note(Keyed):
    pass


@flock_type(name="SimPart")
class Part(Keyed):
    pass


@flock_type(name="SimPair")
class Pair(Keyed):
    pass


@flock_type(name="SimDone")
class Done(Keyed):
    pass


@flock_type(name="SimPing")
class Ping(Keyed):
    """What settles at once: its workflows leave memory and come back."""


def declare(flock: SimFlock, world: World) -> None:
    """Put one agent of every kind on the board. A second run of an activation says something else."""
    rng = world.rng
    failing = rng.choice((0.0, 0.1))

    def work(*_: object) -> Done:
        if rng.random() < failing:
            raise ValueError("bad luck")
        return Done(uid=rng.getrandbits(30), key=0)

    async def slowly(first: Seed) -> Step:
        await asyncio.sleep(rng.random() * rng.choice((0.01, 1.0)))
        work()
        return Step(uid=rng.getrandbits(30), key=first.key)

    def split(step: Step) -> list[Part]:
        work()
        return [Part(uid=rng.getrandbits(30), key=step.key) for _ in range(rng.randint(1, 3))]

    def pair(step: Step, note: Note) -> Pair:
        work()
        return Pair(uid=rng.getrandbits(30), key=step.key)

    def loop(seed: Seed) -> Seed | None:
        return Seed(uid=seed.uid, key=seed.key) if rng.random() < 0.3 else None

    window = timedelta(seconds=rng.choice((0.2, 2.0, 20.0)))
    add: Callable[[str], Any] = flock.agent
    add("slow").consumes(Seed).publishes(Step).runs(slowly).pool(min=0, max=2).max_crashes(5).max_concurrency(
        3
    )
    add("split").consumes(Step).publishes(Part, fan_out=(1, 3)).runs(split)
    add("and").consumes(Step, Note).publishes(Pair).runs(pair)
    add("and-board").consumes(Note, Note, Part, scope="board").publishes(Done).runs(
        lambda notes, part: work()
    )
    add("join").consumes(Step, Note, join=JoinSpec(by=lambda x: x.key, within=window)).publishes(Pair).runs(
        pair
    )
    add("join-count").consumes(Part, Pair, join=JoinSpec(by=lambda x: x.key, within=5)).publishes(Done).runs(
        lambda part, other: work()
    )
    add("batch").consumes(Part, batch=BatchSpec(size=4, timeout=timedelta(seconds=2))).publishes(Done).runs(
        lambda parts: work()
    )
    add("batch-workflow").consumes(Pair, batch=BatchSpec(size=3), scope="workflow").publishes(Done).runs(
        lambda pairs: work()
    )
    add("join-batch").consumes(
        Step, Part, join=JoinSpec(by=lambda x: x.key, within=window), batch=BatchSpec(size=2, timeout=window)
    ).publishes(Done).runs(lambda groups: work())
    add("either-1").consumes(Part, delivery="exclusive").publishes(Done).runs(lambda part: work())
    add("either-2").consumes(Part, delivery="exclusive").publishes(Done).runs(lambda part: work())
    add("once-many").consumes(Note, activation=When.correlation(Part).count_at_least(2)).publishes(Done).runs(
        lambda note: work()
    )
    add("picky").consumes(Note, where=lambda note: 1 // note.key > 0).publishes(Done).runs(
        lambda note: work()
    )
    add("echo").consumes(Ping).publishes(Done).runs(lambda ping: work())
    add("third").consumes(Ping, activation=When.correlation(Ping).count_at_least(3)).publishes(Done).runs(
        lambda ping: work()
    )
    add("errors").consumes(WorkflowError).publishes(Done).runs(lambda error: work())
    add("loop").consumes(Seed).publishes(Seed).prevent_self_trigger(False).runs(loop)
    declare_limited(flock, world)
    if has_fans(world):
        declare_fanned(flock, world)
    declare_timed(flock, world)
    declare_aggregates(flock, world)


def declare_late(flock: SimFlock) -> None:
    """Deploy one more agent while everything runs."""
    flock.agent("late").consumes(Step).publishes(Done).runs(lambda step: Done(uid=step.uid, key=1))


@dataclass
class Story:
    """What the driver knows it did."""

    flock: SimFlock
    """The one of the driver that runs now."""
    accepted: list[bytes] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    restarts: int = 0
    books: Books = field(default_factory=Books)
    gateway: Gateway | None = None
    has_limits: bool = False
    """The late deploy has given limits to an agent that had none."""


SEEING = (
    "speaker",
    "teller",
    "agg-early",
    "agg-quiet",
    "agg-window",
    "slow",
    "split",
    "and",
    "join",
    "batch",
    "either-1",
    "loop",
    "retry",
    "limited",
    "buried",
    "fragile",
)
ONLY_SOME = PrivateVisibility(agents=frozenset(SEEING))
KINDS: tuple[Callable[..., BaseModel], ...] = (
    Seed, Seed, Step, Note, Note, Part, Ping, Ping, Ping, Chore, Chore, Chore, Motion, Motion
)  # fmt: skip


async def publish_some(world: World, story: Story, publisher: int, count: int) -> None:
    """Publish like a client whose calls fail: again and again until it is told that it is done."""
    rng = world.rng
    for number in range(count):
        await asyncio.sleep(rng.random() * 0.3)
        options: dict[str, Any] = {}
        kind = rng.choice((*KINDS, Bundle, Bundle, Bundle) if has_fans(world) else KINDS)
        if (name := rng.randrange(10)) < 8:
            options["correlation_id"] = f"pings-{name // 2}" if kind is Ping else f"workflow-{name}"
        if name < 2 and kind is not Ping:
            options["partition_key"] = f"partition-{rng.randrange(2)}"
        if rng.random() < 0.7:
            options["idempotency_key"] = f"{publisher}-{number}"
        if rng.random() < 0.2:
            options["delay"] = timedelta(seconds=rng.random() * 3)
        if rng.random() < 0.2:
            options["priority"] = rng.randrange(3)
        if rng.random() < 0.1:
            options["visibility"] = ONLY_SOME
        models = [
            kind(uid=rng.getrandbits(30), key=rng.randrange(3)) for _ in range(rng.choice((1, 1, 1, 1, 3)))
        ]
        artifacts = await persist(lambda m=models, o=options: story.flock.publish_many(m, **o))  # type: ignore[misc]  # bound now
        story.accepted += [artifact.id.bytes for artifact in artifacts]


async def deploy_late(world: World, story: Story) -> None:
    """Deploy an agent while clients publish and workers report what was matched without it."""

    async def deploy() -> None:
        flock = story.flock
        if "late" not in flock._builders:
            declare_late(flock)
        if not story.has_limits:  # this may be a second try
            story.has_limits = True
            flock._builders["retry"].concurrency(2).rate_limit(5, timedelta(seconds=1))
        await flock.start()

    await asyncio.sleep(world.rng.random() * 4)
    if world.rng.random() < 0.6:
        await persist(deploy)


async def make_trouble(world: World, story: Story, events: int) -> None:
    """Kill, redeploy, cancel, flush and set clocks while the board works."""
    rng = world.rng
    kinds = (
        "worker",
        "worker",
        "router",
        "cancel",
        "flush",
        "shard",
        "shard",
        "shard",
        "clock",
        "everything",
    )
    for _ in range(events):
        await asyncio.sleep(rng.random() * 0.8)
        await make_one(world, story, rng.choice(kinds))


async def lose_payloads(world: World, story: Story) -> None:
    """Kill the nodes on which payloads are: a board that is kept has them in its store."""
    rng = world.payload_rng
    for _ in range(rng.choice((0, 2, 6)) if world.inline_payload_bytes < MANY else 0):
        await asyncio.sleep(rng.random())
        story.flock.sim.lose_payloads(rng.randrange(story.flock.sim.num_shards))


async def make_one(world: World, story: Story, what: str) -> None:
    flock, rng = story.flock, world.rng
    if what == "worker":
        flock.sim.kill_worker()
    elif what == "router":
        await flock.sim.restart_router()
    elif what == "shard":
        await flock.sim.restart_shard()
    elif what == "clock":
        world.jump(rng.randrange(flock.sim.num_shards))
    elif what == "everything" and story.restarts < 2:
        story.restarts += 1
        story.flock = await flock.crash()
    elif what == "cancel" and len(story.cancelled) < 2:
        workflow = f"workflow-{rng.randrange(8)}"
        story.cancelled.add(workflow)
        world.trace.note(f"{workflow} is cancelled")
        await persist(lambda: flock.cancel(workflow))
    elif what == "flush":
        await persist(flock.flush_batches)
