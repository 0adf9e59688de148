from __future__ import annotations

import gc
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

from tests.ray_coverage import SAVE_INTERVAL

# Ray reads these when it is imported, so they must be set before any test module is.
# Every Ray of this run, here or in a child process, shares the run's own token.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray processes start about three times slower when nothing compiled is kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# CI looks at the same examples every time; elsewhere new ones are tried. Load must not fail a test.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

_TESTS = Path(__file__).parent
_ORDER = ("unit", "simulation", "integration", "e2e", "chaos", "bench")


def _kind(item: pytest.Item) -> str | None:
    folder = item.path.relative_to(_TESTS).parts[0]
    return folder if folder in _ORDER else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder, and run the fast kinds first."""
    for item in items:
        if kind := _kind(item):
            item.add_marker(kind)
    items.sort(key=lambda item: _ORDER.index(_kind(item) or "unit"))


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through all modules and tests again and again: a quarter of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Start the one local Ray of the test run; the value is its namespace."""
    import ray
    from ray._private.node import Node

    namespace = f"tests-{secrets.token_hex(4)}"
    # Nobody gets what it collects, from the files of hundreds of processes by the end of a run.
    with mock.patch.object(Node, "start_log_monitor"):
        ray.init(
            num_cpus=8,
            include_dashboard=False,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
        )
    yield namespace
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        time.sleep(2 * SAVE_INTERVAL)  # let the workers write what they have executed
    ray.shutdown()
