"""What is kept of an exception that ended a run: text, never the object."""

from __future__ import annotations

import traceback

from flock_ray import errors
from flock_ray.core.wire import ErrorInfo
from flock_ray.errors import FlockError, safe_error_text

__all__ = ["describe", "is_retryable_name"]

MAX_TRACEBACK_BYTES = 8 * 1024
"""Longest traceback that is journaled, in UTF-8 bytes; its end is kept, where the error is."""

_CUT = "[...]\n"


def describe(error: BaseException) -> ErrorInfo:
    """Turn any exception into data, also one whose constructor or `__str__` is broken."""
    name, message = safe_error_text(error)
    return ErrorInfo(name, message, _bounded_traceback(error), _is_retryable(error))


def is_retryable_name(exc_type: str) -> bool:
    """Tell whether errors of a type may pass by themselves; unknown names may not."""
    cls = getattr(errors, exc_type, None)
    return isinstance(cls, type) and issubclass(cls, FlockError) and cls.retryable


def _is_retryable(error: BaseException) -> bool:
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
