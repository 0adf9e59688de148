"""Agents that fail, agents with limits, and the people who look after them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.core.retries import ExponentialBackoff, FixedDelay, RetryBudget
from flock_ray.core.system_types import DeadLetter
from flock_ray.dead_letters import DeadLetterQueue
from flock_ray.errors import ArtifactNotFoundError, ArtifactSchemaError, ConfigurationError
from tests.simulation.simulator import SimFlock, persist
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.workload import Story


@flock_type(name="SimChore")
class Chore(BaseModel):
    uid: int
    key: int


@flock_type(name="SimTried")
class Tried(BaseModel):
    uid: int


MAX_REPEAT_S = 5.0
"""Virtual seconds after which no request comes a second time (`Faults.max_repeat_s`)."""
OPERATED = ("retry", "limited", "keyed", "fragile", "buried", "split")
"""Agents that somebody may pause."""


def declare_limited(flock: SimFlock, world: World) -> None:
    """Put agents on the board that fail and are tried again, that end in a queue, and whose runs are limited."""
    rng = world.rng
    failing = rng.choice((0.1, 0.5, 0.9))
    delay = rng.choice(
        (FixedDelay(timedelta(seconds=1)), ExponentialBackoff(initial_delay=timedelta(seconds=0.2)))
    )
    budget = rng.choice((None, RetryBudget(ratio=0.2, window=timedelta(seconds=5), min_retries=2)))

    def attempt(chore: Chore) -> Tried:
        if rng.random() < failing:
            raise ConnectionError("nobody there")
        return Tried(uid=chore.uid)

    async def slowly(chore: Chore) -> Tried:
        await asyncio.sleep(rng.random() * rng.choice((0.01, 1.0)))
        return attempt(chore)

    def key(chore: Chore) -> str:
        return f"key {chore.key}"

    add: Callable[[str], Any] = flock.agent
    again: dict[str, Any] = {"strategy": delay, "on": [ConnectionError]}
    second, queue = timedelta(seconds=1), DeadLetterQueue("sim")
    add("retry").consumes(Chore).publishes(Tried).retry(max_attempts=3, budget=budget, **again).runs(attempt)
    add("limited").consumes(Chore).publishes(Tried).concurrency(2).rate_limit(3, second).max_concurrency(
        2
    ).runs(slowly)
    add("keyed").consumes(Chore).publishes(Tried).concurrency(1, key).rate_limit(2, second, key).retry(
        max_attempts=2, **again
    ).max_concurrency(3).runs(slowly)
    add("fragile").consumes(Chore).publishes(Tried).circuit_breaker(
        2, recovery_timeout=second, half_open_attempts=2
    ).retry(max_attempts=3, **again).max_concurrency(4).runs(slowly)
    add("buried").consumes(Chore).publishes(Tried).retry(
        max_attempts=2, dead_letter=queue, **again
    ).concurrency(3).runs(attempt)
    add("latest").consumes(Chore).publishes(Tried).debounce(timedelta(seconds=0.5), key).runs(attempt)
    add("only").consumes(Chore).publishes(Tried).singleton(
        key, on_conflict=rng.choice(("skip", "replace"))
    ).runs(slowly)
    add("letters").consumes(DeadLetter).publishes(Tried).runs(lambda letter: Tried(uid=0))


async def operate(world: World, story: Story, times: int) -> None:
    """Look after the board: redrive and discard letters, pause and resume, open and close a circuit breaker."""
    rng = world.rng
    for _ in range(times):
        await asyncio.sleep(rng.random() * 1.5)
        what = rng.choice((redrive, redrive, edit, discard, pause, force))
        await what(world, story)


async def redrive(world: World, story: Story) -> None:
    """Redrive one letter, sometimes twice at once, or all of them."""
    if world.rng.random() < 0.3:
        await persist(lambda: story.flock.dead_letters.redrive_all(by="sim"))
        return
    if (letter := await pick(world, story)) is not None:
        times = world.rng.choice((1, 2))
        await asyncio.gather(*(persist(lambda: redrive_one(story, letter)) for _ in range(times)))


async def redrive_one(story: Story, letter: Any) -> None:
    with contextlib.suppress(ConfigurationError, ArtifactNotFoundError):  # its workflow was cancelled
        await story.flock.dead_letters.redrive(letter, by="sim")


async def edit(world: World, story: Story) -> None:
    """Put another payload in the place of a letter's input, and sometimes redrive it at once."""
    if (letter := await pick(world, story)) is None:
        return
    model = Chore(uid=world.rng.getrandbits(30), key=world.rng.randrange(3))
    # Somebody may have redriven it meanwhile; or it is of an agent that consumes something else.
    with contextlib.suppress(ArtifactNotFoundError, ArtifactSchemaError):
        await persist(lambda: story.flock.dead_letters.edit(letter, model, by="sim"))
    if world.rng.random() < 0.5:
        await persist(lambda: redrive_one(story, letter))


async def discard(world: World, story: Story) -> None:
    if (letter := await pick(world, story)) is not None:
        await persist(lambda: story.flock.dead_letters.discard(letter, by="sim"))


async def pick(world: World, story: Story) -> Any:
    """Return the id of an open letter; None when there is none."""
    page = await persist(lambda: story.flock.dead_letters.list(limit=20))
    return world.rng.choice(page.letters).id if page.letters else None


async def pause(world: World, story: Story) -> None:
    """Pause an agent, a workflow or a type for a while."""
    what: dict[str, Any] = world.rng.choice(
        (
            {"agent": world.rng.choice(OPERATED)},
            {"workflow": f"workflow-{world.rng.randrange(8)}"},
            {"type": Chore},
        )
    )
    await persist(lambda: story.flock.pause(by="sim", **what))
    await asyncio.sleep(world.rng.random() * 3)
    await persist(lambda: story.flock.resume(by="sim", **what))


async def lift_pauses(story: Story) -> None:
    """Resume what a request that came twice has paused again behind its resumption, as operators would."""
    await asyncio.sleep(MAX_REPEAT_S)
    for view in await persist(lambda: story.flock.paused()):
        what = Chore if view.kind == "type" else view.name
        await persist(lambda k=view.kind, w=what: story.flock.resume(by="sim", **{k: w}))  # type: ignore[misc]  # bound now
    if "fragile" in story.flock._builders:  # some scenarios have other agents
        await persist(lambda: story.flock.breakers.close("fragile", by="sim"))


async def force(world: World, story: Story) -> None:
    """Open the circuit breaker by hand, and close it again."""
    await persist(lambda: story.flock.breakers.open("fragile", by="sim"))
    await asyncio.sleep(world.rng.random() * 3)
    await persist(lambda: story.flock.breakers.close("fragile", by="sim"))
