"""Notes of the running attempt, from whatever works for it: they go to the event log with its outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from flock_ray.engines.outputs import MAX_NOTE_CHARS, MAX_NOTES, Note

__all__ = ["note", "noting"]

_current: ContextVar[list[Note] | None] = ContextVar("flock_ray_run_notes", default=None)


@contextlib.contextmanager
def noting(notes: list[Note]) -> Iterator[None]:
    """Collect what `note` is told in this block, and in the tasks that it starts.

    Args:
        notes: Where to.
    """
    token = _current.set(notes)
    try:
        yield
    finally:
        _current.reset(token)


def note(kind: str, detail: str) -> None:
    """Note something about the running attempt; nothing outside of one, and no more than the log takes.

    Args:
        kind: An event kind, such as "mcp.unreachable".
        detail: What happened, without secrets.
    """
    notes = _current.get()
    # One more than the log takes: it then says that notes were cut.
    if notes is not None and len(notes) <= MAX_NOTES:
        notes.append((kind, detail[:MAX_NOTE_CHARS]))
