"""An event loop in a thread of its own.

Connections to tool servers live here and not on the loop of user code: that one may be blocked for a while,
or have virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

__all__ = ["LoopThread"]


class LoopThread:
    """Starts with the first coroutine it is given."""

    def __init__(self, name: str) -> None:
        """Start nothing yet; `name` is that of the thread."""
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def is_running(self) -> bool:
        """Whether the thread was started and not stopped."""
        return self._loop is not None and not self._stopped

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something there and wait for it here; cancelling the caller cancels it.

        Raises:
            RuntimeError: The loop was stopped.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        except BaseException:
            coroutine.close()
            raise
        # A loop with virtual time must not jump past the answer.
        hold = getattr(asyncio.get_running_loop(), "hold", contextlib.nullcontext)
        with hold():
            return await asyncio.wrap_future(future)

    def stop(self, last: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Run one more coroutine, and end the thread. Blocks; must not be called on that loop.

        Args:
            last: Cleans up.
            timeout_s: How long all of it may take, in seconds; then the thread is left to itself.
        """
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or self._stopped:
                last.close()
                self._stopped = True
                return
            self._stopped = True
        future = asyncio.run_coroutine_threadsafe(last, loop)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
        thread.join(timeout_s)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._stopped:
                raise RuntimeError("the worker is shutting down")
            if self._loop is None:
                # Not what the policy would make: uvloop has subprocesses only in the main thread.
                self._loop = asyncio.SelectorEventLoop()
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    def _serve(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
