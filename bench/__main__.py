"""`python -m bench [names...] [--quick]`: ours beside the toy, judged, and kept in `bench/results/`."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.machine import REPOSITORY, describe
from bench.report import judge, table
from bench.runner import Job, run_here, run_job

NAMES = (
    "match_cost", "startup", "chain", "slow_async", "model_calls", "overload", "crowded", "fan_out", "board_size",
    "large", "durable", "recovery", "naive", "year", "toy", "early_decisions",
)  # fmt: skip
"""In the order they run; `toy` alone is for working on the toy."""
SHARDS = (1, 2, 4)
BACKENDS = ("memory", "sqlite", "postgres", "redis")


def _jobs(names: list[str], *, quick: bool) -> list[Job]:
    jobs: list[Job] = []
    for name in NAMES:
        if name not in names:
            continue
        if name == "durable":
            jobs += [Job("durable", {"quick": quick, "backend": b}, f"durable-{b}") for b in BACKENDS]
            continue
        if name == "large":
            jobs += [Job("large", {"quick": quick, "backend": b}, f"large-{b}") for b in BACKENDS[:2]]
            continue
        if name == "recovery":
            # A million artifacts on a busy machine.
            jobs += [
                Job("recovery", {"quick": quick, "backend": b}, f"recovery-{b}", 1800.0) for b in BACKENDS[1:]
            ]
            continue
        if name not in ("chain", "toy"):
            jobs.append(Job(name, {"quick": quick}, name))
            continue
        for shards in SHARDS:
            # Toy and ours alternate, so that both meet the same weather on a shared machine.
            jobs.append(Job("toy", {"quick": quick, "shards": shards}, f"toy-{shards}"))
            if shards == 1:
                jobs.append(Job("toy", {"quick": quick, "shards": 1, "push": True}, "toy-pushed"))
            if name == "chain":
                jobs.append(Job("flock_chain", {"quick": quick, "shards": shards}, f"chain-{shards}"))
    return jobs


def _save(results: dict[str, Any], rows: list[dict[str, str]], *, quick: bool) -> Path:
    now = datetime.now(UTC)
    machine = describe()
    folder = REPOSITORY / "bench" / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{now:%Y-%m-%d-%H%M}-{machine['cores']}cores{'-quick' * quick}.json"
    report = {"at": now.isoformat(timespec="seconds"), "quick": quick, "machine": machine}
    path.write_text(json.dumps({**report, "rows": rows, "results": results}, indent=2) + "\n")
    return path


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument(
        "--quick", action="store_true", help="fewer items: for checking the benches themselves"
    )
    parser.add_argument("--no-save", action="store_true", help="write no file to bench/results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return options


def main() -> int:
    """Run the measurements; return 1 when a target is missed or a measurement failed."""
    options = _parse()
    if options.child:
        run_here(options.child, options.arguments, options.output)
        return 0
    results: dict[str, dict[str, Any]] = {}
    names = options.names or [name for name in NAMES if name != "toy"]
    for job in _jobs(names, quick=options.quick):
        print(f"{job.label} ...", file=sys.stderr, flush=True)
        results[job.label] = run_job(job)
    rows = judge(results)
    print(table(rows))
    if not options.no_save:
        path = _save(results, [row._asdict() for row in rows], quick=options.quick)
        print(f"\n{path.relative_to(REPOSITORY)}")
    return 1 if any(row.verdict in ("FAIL", "ERROR") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
