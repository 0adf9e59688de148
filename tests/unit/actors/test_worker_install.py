"""What a worker takes as the board's agents."""

from __future__ import annotations

import asyncio
from typing import Any

from flock_ray.actors.worker import Worker
from flock_ray.testing import VirtualClock, run_virtual
from flock_ray.testing.local import InlineExecutor, LocalCodec


def test_a_version_without_code_is_not_taken_for_a_board_without_agents() -> None:
    """A router that had come back brought it, and failures that agents consume were matched with nobody."""
    nobody: Any = None

    async def main() -> tuple[int, int]:
        worker = Worker(
            "shared:1", clock=VirtualClock(), monotonic=lambda: asyncio.get_running_loop().time(), peers=nobody,
            codec=LocalCodec(), executor=InlineExecutor,
        )  # fmt: skip
        installed = await worker.install(2, {})
        version, _ = await worker.packages()
        worker.close()
        return installed, version

    assert run_virtual(main()) == (0, 0)
