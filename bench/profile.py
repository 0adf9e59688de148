"""Where our chain's time goes: `python -m bench.profile [--items N] [--batch N] [--top N]`.

CPU per item by process always; functions too, where the processes write cProfile statistics: the driver here,
shards and workers when the framework honours FLOCK_PROFILE_DIR (one file per process, written when it ends).
cProfile makes Python code about twice as slow, so read shares here and rates in `python -m bench chain`.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import tempfile
from pathlib import Path
from typing import Any

from bench.machine import REPOSITORY
from bench.runner import prepare_environment


async def _drive(
    items: int, batch: int, driver: cProfile.Profile | None, persistence: Any, shards: int
) -> dict[str, Any]:
    # Imported late: RAY_AUTH_* must be in the environment before anything imports Ray.
    from bench.chain_types import add_chain
    from bench.flock_chain import drive
    from bench.processes import CpuMeter
    from flock_ray import Flock

    async with Flock(shards=shards, persistence=persistence) as flock:
        add_chain(flock)
        await drive(flock, 1_000, batch)
        meter = CpuMeter()
        if driver is not None:
            driver.enable()
        seconds, _ = await drive(flock, items, batch)
        if driver is not None:
            driver.disable()
        return {"items_per_s": items / seconds, "cpu_us_per_item": meter.microseconds_per(items)}


def _show(path: Path, top: int) -> None:
    print(f"\n== {path.stem}")
    stats = pstats.Stats(str(path))
    stats.strip_dirs().sort_stats("tottime").print_stats(top)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--top", type=int, default=25, help="functions shown per process")
    parser.add_argument(
        "--cpu-only", action="store_true", help="no cProfile: CPU per item by process, undistorted"
    )
    parser.add_argument("--backend", default="memory", help="memory, sqlite, postgres or redis")
    options = parser.parse_args()
    prepare_environment(os.environ)
    os.chdir(REPOSITORY)
    from bench.durable import opened

    with (
        tempfile.TemporaryDirectory(prefix="flock-profile-") as folder,
        opened(options.backend) as (persistence, _),
    ):
        driver = None
        if not options.cpu_only:
            os.environ["FLOCK_PROFILE_DIR"] = folder
            driver = cProfile.Profile()
        result = asyncio.run(_drive(options.items, options.batch, driver, persistence, options.shards))
        if driver is not None:
            driver.dump_stats(Path(folder, "driver.prof"))
        print(f"{result['items_per_s']:.0f} items/s; microseconds of CPU per item:")
        for role, cost in result["cpu_us_per_item"].items():
            print(f"  {role:<20} {cost:8.1f}")
        for path in sorted(Path(folder).iterdir()):
            _show(path, options.top)


if __name__ == "__main__":
    main()
