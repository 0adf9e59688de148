"""An event loop whose time jumps to the next timer as soon as nothing else is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

START_US = 1_767_225_600_000_000
"""Virtual time starts at 2026-01-01T00:00:00Z, so that runs repeat."""


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timeout, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.held = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or (self.held and timeout > 0):
            return super().select(None)  # no timer that could go off: only real I/O can go on
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now_s += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop for tests: `asyncio.sleep`, timeouts and `call_later` pass without waiting.

    For code that waits on timers and other coroutines. With real sockets or threads time may jump
    past their answers, unless they are waited for in `hold()`.
    """

    def __init__(self) -> None:
        """Start at virtual second 0."""
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # A timer that is due within this is due: otherwise rounding could stop a jump just before it.
        self._clock_resolution = 1e-6

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Stop the clock while something outside of this loop, such as a thread, is waited for.

        It must wake the loop when it is done (`call_soon_threadsafe`).
        """
        self._jumping.held += 1
        try:
            yield
        finally:
            self._jumping.held -= 1

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._jumping.now_s

    def present_us(self) -> int:
        """Return what `flock_ray.now()` shows on this loop, in microseconds since the Unix epoch."""
        return START_US + round(self._jumping.now_s * 1e6)


class VirtualClock:
    """Wall time that follows the running loop's time; virtual on a `VirtualTimeLoop`."""

    def __init__(self, start_us: int = START_US) -> None:
        """Start at a wall time, in microseconds since the Unix epoch."""
        self._start_us = start_us
        self._zero_s: float | None = None

    def now_us(self) -> int:
        """Return microseconds since the Unix epoch."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._zero_s is None:
            # On a virtual loop a second board goes on where the first one is, and not at the beginning of time.
            self._zero_s = 0.0 if isinstance(loop, VirtualTimeLoop) else now
        return self._start_us + round((now - self._zero_s) * 1e6)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a fresh `VirtualTimeLoop`; the twin of `asyncio.run`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
