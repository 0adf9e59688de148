"""Keeps sinks fed with what runs stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from flock_ray.core.texts import TextQuery
from flock_ray.sinks import SinkFactory, SinkRouter
from flock_ray.terminal import Terminal
from flock_ray.token_streams import ends_of_texts, text_stream

if TYPE_CHECKING:
    from flock_ray.board import Board
    from flock_ray.streaming import Cursor

__all__ = ["feed", "printed"]

GRACE_S = 0.2
"""How long a shard must have nothing new before the last words are taken to have arrived; workers send every 0.05 s."""


async def feed(board: Board, query: TextQuery, make_sink: SinkFactory, cursor: Cursor) -> None:
    """Give what runs stream to sinks, until cancelled."""
    router = SinkRouter(make_sink)
    try:
        async for piece in text_stream(board, query, cursor):
            await router.put(piece)
    finally:
        await router.close()


@contextlib.asynccontextmanager
async def followed(board: Board, query: TextQuery, make_sink: SinkFactory) -> AsyncIterator[None]:
    """Feed sinks with what runs stream during a block, and with what is still on its way at its end."""
    cursor = await ends_of_texts(board)
    router = SinkRouter(make_sink)
    over = asyncio.Event()

    async def follow() -> None:
        stream = text_stream(board, query, cursor)
        ending = asyncio.ensure_future(over.wait())
        try:
            while True:
                coming = asyncio.ensure_future(anext(stream))
                # Only a wait is given up, never a piece that is being shown: the cursor is behind that already.
                await asyncio.wait([coming, ending], return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                    return
                await router.put(coming.result())
        finally:
            ending.cancel()
            await stream.aclose()

    following = asyncio.ensure_future(follow())
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(following, return_exceptions=True)
        if not following.cancelled() and following.exception() is None and not board.closed:
            async for piece in text_stream(board, query, cursor, wait_s=GRACE_S):
                await router.put(piece)
        await router.close()
    following.result()


@contextlib.asynccontextmanager
async def printed(board: Board, query: TextQuery, terminal: Terminal) -> AsyncIterator[None]:
    """Show what runs stream during a block."""
    with terminal:
        async with followed(board, query, terminal.sink):
            yield
