"""One run: a board of every kind of agent, clients, trouble, and everything that must be true of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from flock_ray.actors.shard import Shard
from flock_ray.board import Board
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import type_registry
from flock_ray.pausing import resume_on
from tests.simulation.audit import (
    Audit,
    AuditCore,
    check_quiet,
    check_replay,
    check_rows,
    differences,
    digest,
    replayed,
)
from tests.simulation.checks import (
    check_events,
    check_live_events,
    check_memory,
    check_order,
    check_recovery,
    check_snapshots,
    check_visibility,
)
from tests.simulation.disk import SimDisk
from tests.simulation.fanned import check_fans, has_fans
from tests.simulation.limited import lift_pauses, operate
from tests.simulation.simulator import SimBoard, SimFlock, persist, run_seeded
from tests.simulation.spending import check_ledgers, spend
from tests.simulation.store import SimStore
from tests.simulation.timed import check_times, publish_docs, wait_for_the_clock
from tests.simulation.workload import Story, declare, deploy_late, lose_payloads, make_trouble, publish_some
from tests.simulation.world import World

MISSING_S = 10.0
"""Virtual seconds after which work that a worker should have, and has not, is taken to be lost."""

Missing = dict[tuple[int, bytes, int], float]

QUIET_S = 900.0
"""Virtual seconds after which a board that still works is taken to hang."""


def run(seed: int, main: Callable[[World], Coroutine[Any, Any, None]] | None = None) -> World:
    """Run a seed; prints how to run it again, and what happened last, when it fails."""
    world = World(seed)
    try:
        run_seeded(world, main or scenario)
    except BaseException as error:
        shards = sorted(world.trace.concerned) or "all"
        print(f"\nseed {seed}: {type(error).__name__}: {str(error)[:500]}")
        print(f"The last that happened (shards: {shards}):", *world.trace.lines(), sep="\n  ")
        print(f"Run it again: FLOCK_SIM_SEED={seed} .venv/bin/python -m pytest tests/simulation")
        raise
    return world


async def scenario(world: World) -> None:
    flock = SimFlock(world, shards=world.rng.choice((1, 2, 3, 4)))
    declare(flock, world)
    story = Story(flock)
    await unless_broken(world, story, live(world, story))
    await check_all(world, story)
    await story.flock.shutdown(flush_batches=False)


async def live(world: World, story: Story) -> None:
    """Let clients and trouble at the board, and then let everything come to its end."""
    rng = world.rng
    await persist(story.flock.start)
    count = rng.choice((5, 12, 25))
    jobs = [publish_some(world, story, i, count // 2 + 1) for i in range(rng.choice((1, 3)))]
    trouble = make_trouble(world, story, rng.choice((0, 3, 6, 12)))
    operators = operate(world, story, rng.choice((0, 2, 6)))
    others = deploy_late(world, story), look_inside(world, story), lose_payloads(world, story)
    calls = spend(world, story, 2 * count)
    await asyncio.gather(*jobs, trouble, operators, calls, publish_docs(world, story), *others)
    await settle(world, story)
    if has_fans(world):  # somebody looks after the dead letters: fan-ins wait for that
        await persist(lambda: story.flock.dead_letters.redrive_all(by="sim"))
        await settle(world, story)
    if rng.random() < 0.5:
        await restart_and_repeat(world, story)
        await settle(world, story)


async def restart_and_repeat(world: World, story: Story) -> None:
    """Restart every shard, and let some old requests come again: nothing may come of it."""
    sim = story.flock.sim
    for index in range(sim.num_shards):
        await sim.restart_shard(index)
    for index, blob in world.rng.sample(world.heard, min(10, len(world.heard))):
        await persist(lambda i=index, b=blob: sim.shard(i).publish(b))  # type: ignore[misc]  # bound now


async def unless_broken(world: World, story: Story, work: Coroutine[Any, Any, None]) -> None:
    """Do something, and fail as soon as a promise is broken or a shard gives up."""
    task = asyncio.ensure_future(work)
    missing: Missing = {}
    while not task.done():
        await asyncio.wait([task], timeout=0.5)
        world.check()
        if story.flock.local is None:
            continue
        missing = check_handed_out(world, story.flock.sim, missing)
        for shard in story.flock.sim.alive():
            if shard._failure is not None and not shard.is_outrun:
                world.broken(shard.index, f"the shard gave up: {shard._failure!r}")
    task.result()
    world.check()


def check_handed_out(world: World, sim: SimBoard, before: Missing) -> Missing:
    """G6: what a shard takes to be running runs, or is found out; returns what seems to be nowhere, and since when."""
    now = asyncio.get_running_loop().time()
    missing: Missing = {}
    for shard in sim.alive():
        for worker, held in shard.core.dispatch.leases.items():
            made = sim.workers.get(worker)
            if made is None or shard.index in made._sending:
                continue  # its death is being noticed; or the results are on their way
            for gone in held.keys() - made._executor.open_ids() - {key for key, _ in made._fetching}:
                key = (shard.index, gone, held[gone].attempt)
                missing[key] = before.get(key, now)
                if now - missing[key] > MISSING_S:
                    world.broken(
                        shard.index, f"G6: {gone.hex()[:8]} is held by {worker}, which does not have it"
                    )
    return missing


def disk_of(shard: Shard) -> SimDisk:
    assert shard._keeper is not None
    assert isinstance(shard._keeper.store, SimStore)
    assert isinstance(shard._keeper.store.disk, SimDisk)
    return shard._keeper.store.disk


async def look_inside(world: World, story: Story) -> None:
    """At any moment, what is durable so far rebuilds the state of that moment."""
    for _ in range(3):
        await asyncio.sleep(world.rng.random() * 3)
        for shard in story.flock.sim.alive():
            with world.about(shard.index):
                await look_at(shard)


async def look_at(shard: Shard) -> None:
    keeper, disk = shard._keeper, disk_of(shard)
    assert keeper is not None
    expected = replayed(shard.core.slots, disk.records())
    await check_recovery(disk, expected)
    if keeper.pending or shard.core.records or not shard._recovered.is_set() or keeper.epoch != disk.epoch:
        return  # in between, or somebody else has its slots and writes
    assert differences(digest(expected), digest(shard.core)) == []


async def settle(world: World, story: Story) -> None:
    """Let everything come to its end without further faults."""
    world.calm()
    await lift_pauses(story)
    if story.gateway is not None:
        await story.gateway.end()
    board = story.flock.board
    assert board is not None
    idle = await persist(lambda: board.wait_idle(timeout_s=QUIET_S, timers=True))
    if not idle and await lift_late_pauses(story, board):
        idle = await persist(lambda: board.wait_idle(timeout_s=QUIET_S, timers=True))
    if not idle:
        status = [await shard.stats() for shard in story.flock.sim.alive()]
        raise AssertionError(f"the board never came to rest: {status} {await story.flock.pools()}")
    await wait_for_the_clock(story)
    await asyncio.sleep(5)  # acknowledgements and reports that are still on their way


async def lift_late_pauses(story: Story, board: Board) -> bool:
    """Resume what is still paused, as an operator would who sees it: a pause that was sent again came after its end."""
    left: set[Any] = {
        place for shard in story.flock.sim.alive() for place in shard.core.dispatch.pauses.by_place
    }
    for kind, name in sorted(left):
        await persist(partial(resume_on, board, kind, name, by="sim"))
    return bool(left)


async def check_all(world: World, story: Story) -> None:
    flock = story.flock
    world.check_owed()
    shards = flock.sim.alive()
    check_quiet([shard.core for shard in shards])
    cores: list[AuditCore] = []
    for shard in shards:
        with world.about(shard.index):
            cores.append(await check_shard(world, shard))
    check_ledgers([shard.core for shard in shards], story.books)
    audit = Audit(cores, story.cancelled)
    audit.check_artifacts(story.accepted)
    audit.check_effects()
    audit.check_matches(tables_of(flock))
    audit.check_singles()
    audit.check_gates()
    audit.check_letters()
    check_fans(audit)
    check_times(cores, [shard.core for shard in shards])
    agents = [definition.name for definition in flock._definitions()]
    check_visibility(audit, world.disks.values(), agents)


async def check_shard(world: World, shard: Shard) -> AuditCore:
    """Check what can be said of one shard by itself."""
    disk = disk_of(shard)
    check_order(disk)
    core = check_replay(shard.core, disk.records())
    check_rows(core, disk)
    await check_recovery(disk, core)
    check_snapshots(disk)
    check_memory(shard.core)
    check_events(core)
    if len(world.lives[shard.index]) == 1:
        check_live_events(shard.core, core)
    return core


def tables_of(flock: SimFlock) -> dict[frozenset[str], MatchTable]:
    """Return the tables of this run by the agents that are in them."""
    definitions = flock._definitions()
    early = [definition for definition in definitions if definition.name != "late"]
    return {
        frozenset(definition.name for definition in some): MatchTable(1, some, type_registry)
        for some in (early, definitions)
    }
