"""A circuit breaker per model: one that keeps failing is not asked for a while, so that calls fail at once or go on
to a fallback. Volatile: a gateway that starts again begins closed. The rules are `core.breakers`'.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from flock_ray.core.breakers import Breaker, State
from flock_ray.core.wire import BreakerSpec
from flock_ray.errors import ModelAnswerError, ModelError, ModelRequestError, RateLimitError
from flock_ray.gateway.settings import ModelBreaker, full_name

__all__ = ["ModelBreakers", "OnBreaker", "is_resting"]

logger = logging.getLogger(__name__)

OnBreaker = Callable[[State, str], None]
"""Takes the state that a breaker has now, and the model and why."""

MAX_BREAKERS = 1_000
FULL_RETRY_S = 1.0
"""When to come again, if all attempts of a half-open breaker are on their way."""


class ModelBreakers:
    """The breakers of one gateway, by model."""

    def __init__(self, *, monotonic: Callable[[], float], tell: OnBreaker | None = None) -> None:
        """Start with none.

        Args:
            monotonic: A clock in seconds that never goes back.
            tell: Hears of every change; None: only the log does.
        """
        self._monotonic = monotonic
        self._tell = tell
        self._known: dict[str, Breaker] = {}

    def enter(self, model: str, settings: ModelBreaker) -> Passage:
        """Let a try begin; to be ended with `Passage.ended`, always.

        Raises:
            ModelError: The breaker is open; `retry_after_s` says when it lets calls try again. Retryable.
        """
        name, spec = full_name(model), settings.spec()
        breaker = self._known.get(name)
        if breaker is None:
            if len(self._known) >= MAX_BREAKERS:
                self._known = {n: b for n, b in self._known.items() if b != Breaker()}
            breaker = self._known[name] = Breaker()
        now_us = self.now_us()
        if breaker.allowance(spec, now_us) <= 0:
            raise _resting(name, breaker, settings, now_us)
        before = breaker.state
        probe = breaker.admit(spec, now_us)
        if breaker.state != before:
            self.changed(name, breaker, f"{settings.half_open_attempts} calls may try")
        return Passage(self, name, breaker, spec, probe)

    def now_us(self) -> int:
        """Return the time for breakers."""
        return round(self._monotonic() * 1e6)

    def changed(self, model: str, breaker: Breaker, detail: str) -> None:
        """Tell that a breaker changed."""
        log = logger.warning if breaker.state == "open" else logger.info
        log("circuit breaker of %s is %s: %s", model, breaker.state, detail)
        if self._tell is not None:
            self._tell(breaker.state, f"{model}: {detail}")

    def states(self) -> dict[str, str]:
        """Return the state of every model's breaker."""
        return {name: breaker.state for name, breaker in sorted(self._known.items())}


class Passage:
    """One try that a breaker let through."""

    __slots__ = ("_breaker", "_breakers", "_model", "_probe", "_spec")

    def __init__(
        self, breakers: ModelBreakers, model: str, breaker: Breaker, spec: BreakerSpec, probe: int
    ) -> None:
        """Hold what was let through."""
        self._breakers, self._model, self._breaker, self._spec = breakers, model, breaker, spec
        self._probe = probe

    def ended(self, error: BaseException | None, *, asked: bool = True, late: bool = False) -> None:
        """Take the outcome.

        Args:
            error: What was raised; None: the model answered.
            asked: The provider was called.
            late: The call had used up its time, so that a cancel means the model was silent.
        """
        failed = _verdict(error, late) if asked else None
        reason = self._breaker.reason(self._spec, failed=failed)
        if self._breaker.ended(self._spec, self._breakers.now_us(), probe=self._probe, failed=failed):
            self._breakers.changed(self._model, self._breaker, reason)


def is_resting(error: BaseException) -> bool:
    """Say whether an error only says that a breaker is open: trying again at once is no use."""
    return getattr(error, "resting", False) is True


def _verdict(error: BaseException | None, late: bool) -> bool | None:
    """Say whether a try speaks against the model; None: it says nothing."""
    if error is None or isinstance(error, ModelAnswerError):
        return False  # it answered, whatever it said
    if isinstance(error, asyncio.CancelledError):
        return True if late else None
    # 429 has limits of its own; a request that is refused would be by any model.
    if not isinstance(error, ModelError) or isinstance(error, RateLimitError | ModelRequestError):
        return None
    return True


def _resting(model: str, breaker: Breaker, settings: ModelBreaker, now_us: int) -> ModelError:
    left_s = max(0.001, (breaker.until_us - now_us) / 1e6) if breaker.state == "open" else FULL_RETRY_S
    why = (
        f"it failed {settings.failure_threshold} times in a row"
        if breaker.state == "open"
        else "it failed, and a call finds out whether it works again"
    )
    error = ModelError(
        f"{model} is not asked for another {left_s:.3g} s: {why} (circuit breaker). Wait, or name a fallback."
    )
    error.retry_after_s = left_s  # type: ignore[attr-defined]  # what retries wait at least
    error.resting = True  # type: ignore[attr-defined]  # the gateway does not try again
    return error
