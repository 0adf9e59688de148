"""The base of every error that flock_ray raises, and errors of anybody as text."""

from __future__ import annotations

from typing import Any, ClassVar

MAX_ERROR_TEXT_BYTES = 8 * 1024
"""Longest error message that is journaled or sent, in UTF-8 bytes."""

_MAX_TYPE_NAME_BYTES = 256


def _rebuild(cls: type[FlockError], args: tuple[Any, ...], state: dict[str, Any]) -> FlockError:
    """Remake an error without its constructor, whose keyword-only arguments pickle cannot pass."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class FlockError(Exception):
    """The base of every error that flock_ray raises on purpose."""

    code: ClassVar[str] = "flock_error"
    """Stable machine-readable name, part of the HTTP API."""
    retryable: ClassVar[bool] = False
    """Whether the same call, unchanged, may succeed later."""
    http_status: ClassVar[int] = 500
    text: ClassVar[str] = "flock_ray failed. Look at the log for what happened before."
    """The message of an error raised without one: what happened, and what to do next."""

    def __init__(self, message: str = "") -> None:
        """Make the error; `message` ends in what to do next, and is the class's own when empty."""
        super().__init__(message or self.text)

    def __str__(self) -> str:
        """Return the message, also where a built-in base class would format it otherwise."""
        return str(self.args[0]) if self.args else self.text

    def __reduce__(self) -> Any:
        """Survive pickle, cloudpickle and copy with every attribute."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def safe_error_text(exc: BaseException) -> tuple[str, str]:
    """Turn any exception into text that can be journaled and sent.

    Works for exceptions whose `__str__` raises or returns nonsense. Lone surrogates are
    escaped, so both texts encode to UTF-8.

    Args:
        exc: The exception, ours or anybody's.

    Returns:
        The name of its type, and its message of at most 8 KiB; never empty.
    """
    name = _bounded(type(exc).__name__, _MAX_TYPE_NAME_BYTES)
    try:
        text = str(exc) or repr(exc)
    except Exception as broken:
        reason = type(broken).__name__
        text = f"<the message of this {name} cannot be read: its __str__ raised {reason}>"
    return name, _bounded(text or name, MAX_ERROR_TEXT_BYTES)


def _bounded(text: str, limit_bytes: int) -> str:
    """Cut a text to so many UTF-8 bytes, saying how much is gone."""
    # A str subclass may override anything: go through the plain type.
    data = str.encode(text, "utf-8", "backslashreplace")
    if len(data) <= limit_bytes:
        return data.decode()
    note = f"... [{len(data)} bytes, cut]"
    return data[: limit_bytes - len(note)].decode("utf-8", "ignore") + note
