"""Tells workflows that something happened to them: one reader of the board's events for all of them.

Events are hints and may be lost with their shard; what they tell of is read from the board. So a hint too many
costs a look, and a lost one delays an output until the workflow falls quiet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from flock_ray.board import Board
from flock_ray.errors import BoardClosedError, StoreUnavailableError

logger = logging.getLogger("flock_ray")

KINDS = ("artifact.published", "match.due", "workflow.cancelled")

RETRY_S = 0.5
"""Pause before a shard that did not answer is asked again."""


class Listener(Protocol):
    """Somebody who follows a workflow."""

    def wake(self) -> None:
        """Look again."""
        ...


class Feed:
    """Reads the events of all shards and wakes the workflows that they are about."""

    def __init__(self, board: Board, listeners: Mapping[str, Listener]) -> None:
        """Wake `listeners`, by correlation id; the mapping may change meanwhile."""
        self._board = board
        self._listeners = listeners
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin with what happens from now on."""
        heads = await self._heads()
        self._task = asyncio.ensure_future(self._run(heads))

    async def _heads(self) -> dict[int, int]:
        return {shard: stats["events"] for shard, stats in enumerate(await self._board.each("stats"))}

    async def _run(self, cursor: dict[int, int]) -> None:
        while True:
            try:
                async for event in self._board.event_stream(cursor, kinds=KINDS, workflow=None):
                    if event.kind == "gap":
                        self._wake_all()
                    elif (listener := self._listeners.get(event.correlation_id)) is not None:
                        listener.wake()
            except StoreUnavailableError:
                pass  # a shard restarts: its events begin anew, and those in between are gone
            except BoardClosedError:
                self._wake_all()  # they hear of it themselves
                return
            except Exception as error:  # without hints outputs come late; without this task nobody would know
                logger.warning(
                    "the board's events can't be read, it is tried again: %s", type(error).__name__
                )
                await asyncio.sleep(10 * RETRY_S)
            await asyncio.sleep(RETRY_S)
            self._wake_all()

    def _wake_all(self) -> None:
        for listener in list(self._listeners.values()):
            listener.wake()

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
