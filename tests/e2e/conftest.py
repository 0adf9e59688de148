from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120

AsAUser = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def as_a_user(ray_cluster: str) -> AsAUser:
    """Run Python in a process of its own, as a user does, on the Ray of the test run."""
    import ray

    settings = {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "FLOCK_MAX_WORKERS": "1",  # the test cluster has more logical CPUs than the machine
    }
    # RAY_AUTH_MODE and RAY_AUTH_TOKEN of the run are in os.environ.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLOCK_")} | settings

    def run(*args: str, cwd: Path = REPOSITORY, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *args],
            env=environment,
            cwd=cwd,
            input=typed,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    return run
