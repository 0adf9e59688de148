"""What becomes of an exception that ended a run: text is kept of it, never the object; and another attempt, maybe."""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from flock_ray import errors
from flock_ray.core.error_filters import leaves
from flock_ray.core.wire import ErrorInfo, RetryAsk
from flock_ray.errors import FlockError, NoEngineError, safe_error_text

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.retries import RetryPolicy
    from flock_ray.core.wire import Task
    from flock_ray.engines.outputs import Note

__all__ = [
    "MAX_ASKED_S",
    "Failing",
    "Verdict",
    "asked_s",
    "describe",
    "error_of",
    "is_retryable_name",
    "no_engine",
    "retry_ask",
]

MAX_TRACEBACK_BYTES = 8 * 1024
"""Longest traceback that is journaled, in UTF-8 bytes; its end is kept, where the error is."""

MAX_ASKED_S = 3600.0
"""Longest wait that a server may ask for, in seconds."""

_CUT = "[...]\n"


def describe(error: BaseException, *, traced: bool = True) -> ErrorInfo:
    """Turn any exception into data, also one whose constructor or `__str__` is broken; `traced`: with its traceback."""
    name, message = safe_error_text(error)
    return ErrorInfo(name, message, _bounded_traceback(error) if traced else "", _is_retryable(error))


def is_retryable_name(exc_type: str) -> bool:
    """Tell whether errors of a type may pass by themselves; unknown names may not."""
    cls = getattr(errors, exc_type, None)
    return isinstance(cls, type) and issubclass(cls, FlockError) and cls.retryable


def no_engine(agent: str) -> NoEngineError:
    """Make the error of an agent that declares nothing that could run."""
    return NoEngineError(
        f"Agent {agent!r} has nothing to run: give it .runs(fn), .with_engines(...), or a model with "
        'Flock("...") or FLOCK_MODEL.',
        agent=agent,
    )


def error_of(info: ErrorInfo) -> BaseException:
    """Make an exception of the kind that a failure names, for those who ask what it was; never raises."""
    cls = getattr(errors, info.type, None) or getattr(builtins, info.type, None)
    if isinstance(cls, type) and issubclass(cls, Exception):
        try:
            return cls(info.message)
        except Exception:  # a built-in one that wants more than a message
            pass
    unknown: type[Exception] = type(info.type, (Exception,), {})
    return unknown(info.message)


def asked_s(error: BaseException) -> float | None:
    """Return how long a server asks to wait, in seconds, at most an hour; None: it does not ask.

    That is `retry_after_s` or `retry_after` of the error, or the header of the response that it holds; of an exception
    group, the longest.
    """
    found = [seconds for leaf in leaves(error) for seconds in _asked(leaf)]
    return min(max(found), MAX_ASKED_S) if found else None


class Verdict(NamedTuple):
    """What a failed attempt means."""

    retry: RetryAsk | None = None
    trips: bool = True
    """The agent's circuit breaker counts it."""
    needs_artifact: bool = True
    """It may have to be published as a WorkflowError.

    Not when there are dead letters, and not when the shard is certain to try again: making and matching an artifact
    that nobody gets would only add to an outage."""
    notes: Sequence[Note] = ()
    buries: bool = False
    """It may become a dead letter now."""


_PLAIN_VERDICT, _FINAL_VERDICT = Verdict(), Verdict(needs_artifact=False, buries=True)


class Failing:
    """What one agent declares about failed attempts, as its runner asks it."""

    def __init__(self, definition: AgentDefinition, draw: Callable[[], float]) -> None:
        """Take what the agent declares; `draw` gives random numbers from 0 to below 1."""
        self._policy: RetryPolicy | None = definition.retry
        self._limits = definition.limits
        self._is_buried = definition.dead_letter is not None
        self._keeps_traces = bool(getattr(definition.dead_letter, "include_trace", False))
        self._draw = draw

    def look_at(self, task: Task, error: BaseException) -> tuple[ErrorInfo, Verdict]:
        """Describe what was raised, and decide what it means.

        Where it was raised is only found for those who will see it: it costs more than all the rest.
        """
        info = describe(error, traced=False)
        verdict = self.judge(task, info, error)
        if self._keeps_traces or verdict.retry is None or verdict.needs_artifact or verdict.buries:
            info = msgspec.structs.replace(info, traceback=_bounded_traceback(error))
        return info, verdict

    def judge(self, task: Task, info: ErrorInfo, error: BaseException | None = None) -> Verdict:
        """Decide what a failed attempt means.

        Args:
            task: The attempt.
            info: Its failure.
            error: What was raised; None: only `info` is known.
        """
        policy, limits = self._policy, self._limits
        if policy is None and limits is None:
            return _FINAL_VERDICT if self._is_buried else _PLAIN_VERDICT
        error = error_of(info) if error is None else error
        ask: RetryAsk | None = None
        notes: list[Note] = []
        trips = True if limits is None else limits.trips(error)
        if policy is not None:
            number = task.failures + 1
            ask, notes = retry_ask(policy, error, retryable=info.retryable, attempt=number, draw=self._draw)
            if ask is not None and policy.budget is None and number < policy.max_attempts:
                return Verdict(ask, trips, False, notes)
        return Verdict(ask, trips, not self._is_buried, notes, self._is_buried)


def retry_ask(
    policy: RetryPolicy, error: BaseException, *, retryable: bool, attempt: int, draw: Callable[[], float]
) -> tuple[RetryAsk | None, list[Note]]:
    """Decide whether the worker asks for another attempt, and after what time.

    Args:
        policy: What the agent declares.
        error: What ended the attempt.
        retryable: Whether it says of itself that it may pass.
        attempt: Number of the attempt, from 1.
        draw: Gives random numbers from 0 to below 1.

    Returns:
        What to ask of the shard, None: nothing; and notes about user code that raised, which counts as a no.
    """
    asker = "retry(on=...)"
    try:
        if not policy.wants(error, retryable=retryable):
            return None, []
        asker = f"{type(policy.strategy).__name__}.delay()"
        after_us = policy.delay_us(attempt, error, draw=draw, asked_s=asked_s(error))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as raised:
        kind, text = safe_error_text(raised)
        return None, [("retry.undecided", f"{asker} raised {kind}: {text}; the run is not tried again")]
    return (None if after_us is None else RetryAsk(after_us)), []


def _asked(error: BaseException) -> Iterator[float]:
    """Yield what one error says about waiting; errors of other people's libraries may be anything."""
    for name in ("retry_after_s", "retry_after"):
        yield from _seconds(_attribute(error, name))
    headers = _attribute(_attribute(error, "response"), "headers")
    if isinstance(headers, Mapping):
        try:
            text = headers.get("retry-after") or headers.get("Retry-After")
        except Exception:  # a mapping of somebody else: it says nothing then
            return
        if isinstance(text, str) and text.strip().isdecimal():
            yield from _seconds(int(text[:12]))


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name, None)
    except Exception:  # a property may raise anything
        return None


def _seconds(value: object) -> Iterator[float]:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:  # NaN is not
        yield float(min(value, MAX_ASKED_S))


def _is_retryable(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_retryable(leaf) for leaf in leaves(error))
    if isinstance(error, FlockError):
        return error.retryable
    return isinstance(error, (ConnectionError, TimeoutError))


def _bounded_traceback(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as broken:
        # Formatting calls user code: __str__, __notes__, __cause__ may be properties that raise.
        text = (
            "".join(traceback.format_tb(error.__traceback__)) + f"<not printable: {type(broken).__name__}>\n"
        )
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= MAX_TRACEBACK_BYTES:
        return data.decode()
    return _CUT + data[len(_CUT) - MAX_TRACEBACK_BYTES :].decode("utf-8", "ignore")
