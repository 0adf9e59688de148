"""Waits for a model's limits: the decisions of `core.model_limits` on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from flock_ray.core.model_limits import ModelLimiter, Observed, Rates, Ticket
from flock_ray.errors import RateLimitError
from flock_ray.gateway.settings import ModelLimits

__all__ = ["Limits", "Turn"]

MAX_IDLE_LIMITERS = 1000
SLACK_S = 0.001
"""Timers may fire a little early: wake up when a turn is surely due."""


class _Gate:
    """One limiter with the calls that wait for it."""

    def __init__(self, name: str, rates: Rates, monotonic: Callable[[], float], max_waiting: int) -> None:
        self.name = name
        self.limiter = ModelLimiter(rates, max_waiting=max_waiting)
        self._monotonic = monotonic
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, ticket: Ticket, patience_s: float | None) -> None:
        now = self._monotonic()
        if not self.limiter.enqueue(ticket):
            raise RateLimitError(
                f"{self.limiter.waiting} calls wait for {self.name} already. Wait, or lower max_concurrency.",
                retry_after_s=max(1.0, self.limiter.wait_s(now) or 1.0),
            )
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self.pump()
        wait = None if future.done() else self.limiter.wait_s(now)
        if patience_s is not None and wait is not None and wait > patience_s:
            # Nobody starts before this call gives up: say so at once.
            self._leave(ticket)
            raise self._refusal(wait)
        try:
            async with asyncio.timeout(patience_s):
                await future
        except TimeoutError:
            if future.done() and not future.cancelled():
                return
            self._leave(ticket)
            raise self._refusal(self.limiter.wait_s(self._monotonic()) or 1.0) from None
        except BaseException:
            if future.done() and not future.cancelled():
                self.leave(ticket, None)
            else:
                self._leave(ticket)
            raise

    def _leave(self, ticket: Ticket) -> None:
        self._waiting.pop(ticket, None)
        self.limiter.cancel(ticket)
        self.pump()

    def _refusal(self, wait_s: float) -> RateLimitError:
        return RateLimitError(
            f"The limit of {self.name} is reached, and the call may not wait long enough. Try again in "
            f"{wait_s:.3g} s, raise the limit, or lower max_concurrency.",
            retry_after_s=wait_s,
        )

    def leave(self, ticket: Ticket, tokens: int | None) -> None:
        self.limiter.finish(ticket, self._monotonic(), tokens=tokens)
        self.pump()

    def pump(self) -> None:
        """Start whose turn it is, and come back when the next one is due."""
        now = self._monotonic()
        for ticket in self.limiter.admit(now):
            future = self._waiting.pop(ticket)
            if future.done():  # its caller was cancelled at this very moment
                self.limiter.finish(ticket, now)
            else:
                future.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait = self.limiter.wait_s(now)
        if wait is not None:
            self._timer = asyncio.get_running_loop().call_later(wait + SLACK_S, self.pump)


class Turn:
    """A call that may run now; ended with `end`, always."""

    def __init__(self, passed: list[tuple[_Gate, Ticket]], monotonic: Callable[[], float]) -> None:
        """Hold what was passed."""
        self._passed = passed
        self._monotonic = monotonic

    def end(self, tokens: int | None) -> None:
        """Let others have the turn; `tokens` is what was used, None: not known."""
        for gate, ticket in self._passed:
            gate.leave(ticket, tokens)
        self._passed = []

    def answered(self, requests: Observed, tokens: Observed) -> None:
        """Take what the provider told with its answer."""
        now = self._monotonic()
        for gate, ticket in self._passed:
            gate.limiter.succeeded(ticket)
        if self._passed:
            # What a provider tells is about the model that was called, not about all of its models.
            self._passed[-1][0].limiter.observe(requests, tokens, now)

    def refused(self, retry_after_s: float | None) -> float:
        """Take a refusal (429); returns the seconds until calls start again."""
        if not self._passed:
            return retry_after_s or 1.0
        gate, ticket = self._passed[-1]
        wait = gate.limiter.refused(ticket, self._monotonic(), retry_after_s)
        gate.pump()
        return wait


class Limits:
    """All limiters of a gateway: configured ones, and one per model that learns from its provider."""

    def __init__(self, *, monotonic: Callable[[], float], max_waiting: int = 20_000) -> None:
        """Start with none.

        Args:
            monotonic: A clock in seconds that never goes back.
            max_waiting: Calls that may wait for one limit.
        """
        self._monotonic = monotonic
        self._max_waiting = max_waiting
        self._gates: dict[str, _Gate] = {}

    async def turn(
        self,
        model: str,
        limits: list[tuple[str, ModelLimits]],
        *,
        tenant: str,
        agent: str,
        tokens: int,
        patience_s: float | None,
    ) -> Turn:
        """Wait until a call may run under all of its limits.

        Args:
            model: Which one.
            limits: What was configured for it, the widest first, with the names that share it.
            tenant: For whom.
            agent: By whom.
            tokens: How many it will use, about.
            patience_s: Seconds to wait at most; None: no limit.

        Raises:
            RateLimitError: It would take longer, or too many wait.
        """
        rates = {name: limit.rates for name, limit in limits}
        own = f"model {model}"
        names: dict[str, Rates] = {f"models[{name!r}]": rate for name, rate in rates.items()}
        names[own] = Rates()
        started = self._monotonic()
        passed: list[tuple[_Gate, Ticket]] = []
        try:
            for name, rate in names.items():
                left = None if patience_s is None else max(0.0, patience_s - (self._monotonic() - started))
                gate, ticket = self._gate(name, rate), Ticket(tenant, agent, tokens)
                await gate.enter(ticket, left)
                passed.append((gate, ticket))
        except BaseException:
            for gate, ticket in passed:
                gate.leave(ticket, 0)
            raise
        return Turn(passed, self._monotonic)

    def waiting(self) -> Mapping[str, int]:
        """Return how many calls wait, by limit."""
        return {name: gate.limiter.waiting for name, gate in self._gates.items() if gate.limiter.waiting}

    def _gate(self, name: str, rates: Rates) -> _Gate:
        gate = self._gates.get(name)
        if gate is None:
            if len(self._gates) >= MAX_IDLE_LIMITERS:
                self._gates = {n: g for n, g in self._gates.items() if not g.limiter.idle}
            gate = self._gates[name] = _Gate(name, rates, self._monotonic, self._max_waiting)
        return gate
