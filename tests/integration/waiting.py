"""Waiting for what has to happen beside the work that a test sees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], Awaitable[bool]], *, timeout_s: float = 60) -> None:
    """Look again until something is so."""
    async with asyncio.timeout(timeout_s):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.05)
