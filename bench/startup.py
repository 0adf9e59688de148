"""Cold start: a fresh process without a cluster, from `Flock()` to the first result."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from bench.machine import REPOSITORY, median


def child() -> None:
    """Print one JSON line of seconds; runs in the fresh process."""
    import asyncio

    begun = time.perf_counter()
    from flock_ray import Flock

    imported = time.perf_counter()
    from bench.chain_types import A, B, first

    async def start() -> dict[str, float]:
        called = time.perf_counter()
        flock = Flock()
        flock.agent("a1").consumes(A).publishes(B).runs(first)
        artifact = await flock.publish(A(n=1))
        accepted = time.perf_counter()
        await flock.run_until_idle(timeout=60)
        results = await flock.store.get_by_type(B, correlation_id=str(artifact.correlation_id))
        finished = time.perf_counter()
        if [result.n for result in results] != [2]:
            raise RuntimeError(f"expected one result of 2, got {results!r}")
        await flock.shutdown()
        return {
            "import_s": imported - begun,
            "accepted_s": accepted - called,
            "first_result_s": finished - called,
            "shutdown_s": time.perf_counter() - finished,
        }

    print(json.dumps(asyncio.run(start())), flush=True)


def _run_child() -> dict[str, float]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "from bench.startup import child; child()"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    seconds: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**seconds, "process_s": time.perf_counter() - started}


def run(*, quick: bool) -> dict[str, Any]:
    """Measure fresh processes one after the other."""
    runs = [_run_child() for _ in range(1 if quick else 3)]
    return {"runs": runs} | {name: median([seconds[name] for seconds in runs]) for name in runs[0]}
