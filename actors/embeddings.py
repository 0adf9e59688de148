"""The way of an edge's embedders to the model gateways of its board: a thread with an event loop of its own.

Embedders block, in whatever thread an edge runs them, and that thread may be one whose event loop others need.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context

from flock_ray.actors.model_link import ModelLink
from flock_ray.errors import ModelError
from flock_ray.model import Model, ModelReply, ModelRequest

__all__ = ["GatewayEmbeddings"]


class GatewayEmbeddings:
    """Carries requests to embed to gateways. Safe to use from several threads; starts at the first request."""

    def __init__(self, link: Callable[[], ModelLink], recorded: Callable[[ModelLink], Model]) -> None:
        """Start nothing.

        Args:
            link: Makes a way to the gateways.
            recorded: Has its calls recorded with the run that makes them.
        """
        self._make, self._recorded = link, recorded
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._model: Model | None = None
        self._closed = False

    def ask(self, requests: Sequence[ModelRequest]) -> list[ModelReply]:
        """Return the answers, in order; see `Embeddings`."""
        done: Future[list[ModelReply]] = Future()
        # Calls are recorded with the run that embeds, which the context of this thread knows.
        context = copy_context()
        with self._lock:
            if self._closed:
                raise ModelError("This flock is shutting down: nothing is embedded any more.")
            loop, model = self._started()
        loop.call_soon_threadsafe(_begin, loop, model, requests, done, context=context)
        return done.result()

    def close(self) -> None:
        """End the thread; who still waits gets an error. Idempotent."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(_end, loop)

    def _started(self) -> tuple[asyncio.AbstractEventLoop, Model]:
        if self._loop is None or self._model is None:
            self._loop, link = asyncio.new_event_loop(), self._make()
            self._model = self._recorded(link)
            threading.Thread(
                target=_run, args=(self._loop, link), name="flock-embeddings", daemon=True
            ).start()
        return self._loop, self._model


def _run(loop: asyncio.AbstractEventLoop, link: ModelLink) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(link.begin)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _begin(
    loop: asyncio.AbstractEventLoop, model: Model, requests: Sequence[ModelRequest], done: Future[list[ModelReply]]
) -> None:  # fmt: skip
    async def run() -> None:
        try:
            replies = await asyncio.gather(*(model.complete(request) for request in requests))
        except asyncio.CancelledError:
            done.set_exception(ModelError("This flock is shutting down: nothing is embedded any more."))
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(list(replies))

    task = loop.create_task(run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Task[None]] = set()
"""The event loop keeps no hold on them."""


def _end(loop: asyncio.AbstractEventLoop) -> None:
    async def stop() -> None:
        others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        loop.stop()

    task = loop.create_task(stop())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
