from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from typing import Any, cast

import pytest
import ray

from flock_ray import Flock
from tests.integration.models import Shout, Word

pytestmark = pytest.mark.timeout(180)

DRIVER = """
    import asyncio, json, os, signal, sys, time
    from flock_ray import Flock
    from tests.integration.models import Shout, Word

    async def main(end, namespace):
        flock = Flock(namespace=namespace, max_workers=1, detached=end == "detached")
        flock.agent("pid").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=str(os.getpid())))
        await flock.publish(Word(text="a"))
        await flock.run_until_idle(timeout=100)
        board = await flock._ready_board()
        pids = [int(s.text) for s in await flock.store.get_by_type(Shout)]
        pids += [await board.router.pid(), await board.shard(0).start_up()]
        print(json.dumps(pids), flush=True)
        if end == "raise":
            raise RuntimeError("the script failed")
        if end == "wait":
            await asyncio.sleep(1000)

    # What a shell has started in the background would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asyncio.run(main(*sys.argv[1:]))
"""


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def actors_of(namespace: str) -> list[str]:
    named = cast(list[dict[str, str]], ray.util.list_named_actors(all_namespaces=True))
    return [str(entry["name"]) for entry in named if entry["namespace"] == namespace]


async def test_a_board_leaves_no_process_however_its_driver_ends(
    start_script: Callable[..., subprocess.Popen[str]],
) -> None:
    # Given drivers with boards of their own: two end by themselves, two are ended by a signal; none shuts down
    ends = {"return": None, "raise": None, "interrupt": signal.SIGINT, "kill": signal.SIGKILL}
    namespaces = {end: f"life-{end}-{uuid.uuid4().hex}" for end in ends}
    drivers = {
        end: start_script(DRIVER, "wait" if signum else end, namespaces[end]) for end, signum in ends.items()
    }

    # When each has used its board and ends in its way
    pids: dict[str, list[int]] = {}
    for end, signum in ends.items():
        stdout = drivers[end].stdout
        assert stdout is not None
        line = await asyncio.to_thread(stdout.readline)
        assert line.startswith("["), drivers[end].communicate()[1]
        pids[end] = json.loads(line)
        if signum is not None:
            assert all(alive(pid) for pid in pids[end])
            drivers[end].send_signal(signum)
    codes = {end: await asyncio.to_thread(driver.wait, 100) for end, driver in drivers.items()}
    assert codes["return"] == 0
    assert codes["kill"] == -signal.SIGKILL

    # Then worker, router and shard of each are gone soon
    deadline = time.monotonic() + 60
    left: dict[str, Any] = dict.fromkeys(ends)
    while left and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        found = {end: ([pid for pid in pids[end] if alive(pid)], actors_of(namespaces[end])) for end in ends}
        left = {end: rest for end, rest in found.items() if any(rest)}
    assert left == {}


async def test_a_detached_board_goes_on_without_its_driver_and_serves_the_next_one(run_script: Any) -> None:
    # Given a detached board whose driver has left
    namespace = f"detached-{uuid.uuid4().hex}"
    pids = json.loads(await run_script(DRIVER, "detached", namespace))

    # When a new driver without agents of its own joins it and publishes
    flock = Flock(namespace=namespace)
    try:
        await flock.publish(Word(text="b"))
        await flock.run_until_idle(timeout=60)

        # Then what was there is there, and the same processes do the work
        assert [s.text for s in await flock.store.get_by_type(Shout)] == [str(pids[0])] * 2
        await flock.shutdown()
        assert all(alive(pid) for pid in pids)
    finally:
        # And whoever wants to ends it
        await Flock(namespace=namespace, no_output=True).shutdown(end_board=True)
        assert not actors_of(namespace)
