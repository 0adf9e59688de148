from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flock_ray import Flock


@pytest.fixture
async def new_flock(ray_cluster: str) -> AsyncIterator[Callable[..., Flock]]:
    """Make Flocks with boards of their own on the shared Ray; all are shut down, the newest first."""
    made: list[Flock] = []

    def make(**options: Any) -> Flock:
        flock = Flock(**{"max_workers": 1, **options})
        made.append(flock)
        return flock

    yield make
    for flock in reversed(made):
        await flock.shutdown(flush_batches=False)


@pytest.fixture
def start_script(ray_cluster: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python source as a script, a second driver on the shared Ray."""
    import ray

    started: list[subprocess.Popen[str]] = []

    def start(source: str, *args: str) -> subprocess.Popen[str]:
        path = tmp_path / f"driver_{len(started)}.py"
        path.write_text(textwrap.dedent(source))
        process = subprocess.Popen(
            [sys.executable, str(path), *args],
            env={
                **os.environ,
                "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_script(start_script: Callable[..., subprocess.Popen[str]]) -> Callable[..., Any]:
    """Run such a script to its end and return its output; it has to end well."""

    async def run(source: str, *args: str) -> str:
        process = start_script(source, *args)
        out, err = await asyncio.to_thread(process.communicate, timeout=100)
        assert process.returncode == 0, f"{out}\n{err}"
        return str(out)

    return run
