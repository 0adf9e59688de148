"""The machine a figure comes from: processor, versions and load; and how samples are summed up."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

REPOSITORY = Path(__file__).resolve().parent.parent
_SPIN = """
import time
wall, cpu = time.perf_counter(), time.process_time()
while time.perf_counter() - wall < 0.5:
    sum(range(1000))
print((time.perf_counter() - wall) / (time.process_time() - cpu))
"""


class Percentiles(TypedDict):
    """Summary of samples, in the samples' own unit."""

    p50: float
    p99: float
    mean: float
    samples: int


def median(values: list[float]) -> float:
    return statistics.median(values)


def percentiles(values: list[float]) -> Percentiles:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "p50": ordered[last // 2],
        "p99": ordered[round(last * 0.99)],
        "mean": statistics.fmean(ordered),
        "samples": len(ordered),
    }


def cores() -> int:
    return len(os.sched_getaffinity(0))


def spin_load() -> float:
    """Return wall over CPU time of a busy loop on every core at once: 1.0 is quiet, 2.0 half taken.

    One loop alone would find a free core and call a half-loaded machine quiet.
    """
    spins = [
        subprocess.Popen([sys.executable, "-S", "-c", _SPIN], stdout=subprocess.PIPE, text=True)
        for _ in range(cores())
    ]
    return statistics.fmean(float(spin.communicate(timeout=60)[0]) for spin in spins)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def describe() -> dict[str, Any]:
    """Return what a reader needs to compare two results; nothing that names the host."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("ray", "pydantic", "msgspec", "uvloop", "flock-ray")},
        "git_commit": _git("rev-parse", "--verify", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--", ":!bench/results")),
    }
