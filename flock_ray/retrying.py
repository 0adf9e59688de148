"""The part of an agent's builder that says what becomes of attempts that fail, or that take too long."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from flock_ray.agent_checks import duration_s
from flock_ray.core.error_filters import ErrorFilter, error_filter
from flock_ray.core.retries import (
    DEFAULT_ATTEMPTS,
    NEVER_RETRIED,
    ExponentialBackoff,
    RetryBudget,
    RetryPolicy,
    RetryStrategy,
    check_attempts,
)
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.core.definition import AgentDefinition

__all__ = ["Retrying", "retry_policy"]


class Retrying:
    """The part of an agent's builder that knows retries, dead letters and timeouts."""

    _definition: AgentDefinition

    def retry(
        self,
        strategy: RetryStrategy | None = None,
        *,
        max_attempts: int | None = None,
        on: Any = None,
        dead_letter: Any = None,
        budget: RetryBudget | None = None,
    ) -> AgentBuilder:
        """Try a run again when it fails with an error that may pass, and say where it goes when it fails for good.

        Attempts are counted in the journal: they survive the worker, the shard and the program. An error that the
        same input meets again (a wrong key, an answer that fits no schema, a payload that is too large) is never tried
        again. A second call replaces everything that the first one said.

        Args:
            strategy: How long to wait: `ExponentialBackoff`, `FixedDelay`, `LinearBackoff` or any `RetryStrategy`.
                None: `ExponentialBackoff()`.
            max_attempts: Attempts in all, the first one included; None: what the strategy says, or 3.
            on: After which errors: exception classes, names of them, or a predicate of the exception. None: errors
                that may pass by themselves: ours that are `retryable`, ConnectionError and TimeoutError.
            dead_letter: A `DeadLetterQueue`, or the name of one, for runs that failed for good; None: their error is
                published as a `WorkflowError`.
            budget: How many of the agent's attempts may be retries; None: all of them.
        """
        at = f"agent {self._definition.name!r}: retry()"
        policy = retry_policy(strategy, max_attempts=max_attempts, on=on, budget=budget, at=at)
        letters = _dead_letters(dead_letter, at)
        self._definition.retry, self._definition.dead_letter = policy, letters
        return self._changed()

    def timeout(self, limit: timedelta | None = None, *, idle: timedelta | None = None) -> AgentBuilder:
        """Limit the time of one attempt, or the time in which it shows no sign of life. Both fail the attempt.

        Args:
            limit: From its start to its end; None: no limit.
            idle: Since its start, `ctx.heartbeat()`, a piece of a streamed answer or an answer of a model; None: no
                limit.
        """
        at = f"agent {self._definition.name!r}: timeout()"
        limit_s = None if limit is None else duration_s(limit, "limit", at)
        idle_s = None if idle is None else duration_s(idle, "idle", at)
        self._definition.timeout_s, self._definition.idle_timeout_s = limit_s, idle_s
        return self._changed()

    def _changed(self) -> AgentBuilder:
        """Tell the flock, and return the builder; the builder does."""
        raise NotImplementedError  # AgentBuilder's


def retry_policy(
    strategy: object,
    *,
    max_attempts: int | None = None,
    on: Any = None,
    budget: object = None,
    at: str,
) -> RetryPolicy:
    """Check and return what `.retry()` says of attempts."""
    if strategy is None:
        strategy = ExponentialBackoff(max_attempts=DEFAULT_ATTEMPTS)
    if isinstance(strategy, type) or not callable(getattr(strategy, "delay", None)):
        raise ConfigurationError(
            f"{at} strategy={strategy!r} has no method delay(attempt, error): give ExponentialBackoff(...), "
            "FixedDelay(...), LinearBackoff(...) or an object of your own; attempts alone: retry(max_attempts=3)"
        )
    if max_attempts is None:
        max_attempts = getattr(strategy, "max_attempts", None)
        if max_attempts is None:
            raise ConfigurationError(
                f"{at} {type(strategy).__name__} has no max_attempts: give the attribute, or retry(max_attempts=...)"
            )
    check_attempts(f"{at} retry", max_attempts)
    if budget is not None and not isinstance(budget, RetryBudget):
        raise ConfigurationError(
            f"{at} budget={budget!r} is no RetryBudget: write budget=RetryBudget(ratio=0.2)"
        )
    errors = None if on is None else error_filter(on, at)
    if errors is not None:
        _refuse_final(errors, at)
    return RetryPolicy(cast("RetryStrategy", strategy), max_attempts, errors, budget)


def _refuse_final(errors: ErrorFilter, at: str) -> None:
    final = next((cls for cls in errors.classes if issubclass(cls, NEVER_RETRIED)), None)
    if final is not None:
        raise ConfigurationError(
            f"{at} on= names {final.__name__}, which is never tried again: the same input would meet it again"
        )


def _dead_letters(given: Any, at: str) -> Any:
    """Return where dead letters go; a name stands for a queue of that name."""
    if given is None:
        return None
    from flock_ray.dead_letters import DeadLetterQueue

    if isinstance(given, str):
        return DeadLetterQueue(given)
    if not isinstance(given, DeadLetterQueue):
        raise ConfigurationError(
            f"{at} dead_letter={given!r} is neither a DeadLetterQueue nor the name of one: write "
            'dead_letter=DeadLetterQueue("failed_artifacts")'
        )
    return given
