from __future__ import annotations

import contextlib
import os
import signal
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
        flock = Flock(**{"max_workers": 2, **options})
        made.append(flock)
        return flock

    yield make
    for flock in reversed(made):
        await flock.shutdown(flush_batches=False)


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python source as a script with a Ray of its own; what is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, *args: str) -> subprocess.Popen[str]:
        path = tmp_path / f"driver_{len(started)}.py"
        path.write_text(textwrap.dedent(source))
        env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, str(path), *args],
            env={**env, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
