"""Windows on event time: which windows an event is in, and which are over. Pure; times are integers.

A window is over when the watermark has reached its end. The watermark of a group is its newest event time less the
allowed lateness, and it never goes back: what comes for windows that are over is late.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from flock_ray.core.ballots import WindowRule

T = TypeVar("T")


class Pane(NamedTuple, Generic[T]):
    """A window that is over, with what was in it, in the order in which it came."""

    from_us: int
    until_us: int
    """Its end, which is not in it."""
    things: list[T]


class Panes(Generic[T]):
    """The open windows of one group. Rebuilt from the things that are still in one, and the watermark."""

    __slots__ = ("_numbers", "_open", "_rule", "_sessions", "watermark_us")

    def __init__(self, rule: WindowRule, watermark_us: int = 0, things: Iterable[tuple[int, T]] = ()) -> None:
        """Start with what is known of the group.

        Args:
            rule: How time is cut.
            watermark_us: Windows that end here or before are over.
            things: (event time, thing) in the order in which they came.
        """
        self._rule = rule
        self.watermark_us = watermark_us
        self._open: dict[int, list[T]] = {}
        """By begin: tumbling and sliding windows that hold something."""
        self._sessions: list[tuple[int, int, list[tuple[int, T]]]] = []
        """(begin, end, numbered things), by begin; no two of them touch."""
        self._numbers = 0
        for at_us, thing in things:
            if rule.kind == "session":
                self._put_into_session(at_us, thing, is_held=True)
            else:
                self._put(at_us, thing)

    def add(self, at_us: int, thing: T) -> bool:
        """Put a thing into its windows, and let the watermark follow; False: all of them are over, it is late."""
        if not self._put(at_us, thing):
            return False
        self.watermark_us = max(self.watermark_us, at_us - self._rule.lateness_us)
        return True

    def _put(self, at_us: int, thing: T) -> bool:
        if self._rule.kind == "session":
            return self._put_into_session(at_us, thing)
        starts = [s for s in starts_of(self._rule, at_us) if s + self._rule.size_us > self.watermark_us]
        for start in starts:
            self._open.setdefault(start, []).append(thing)
        return bool(starts)

    def _put_into_session(self, at_us: int, thing: T, *, is_held: bool = False) -> bool:
        begin, end = at_us, at_us + self._rule.size_us
        touching = [s for s in self._sessions if s[0] < end and begin < s[1]]
        if not touching and end <= self.watermark_us and not is_held:
            return False
        self._numbers += 1
        things = [(self._numbers, thing)]
        for session in touching:
            begin, end = min(begin, session[0]), max(end, session[1])
            things += session[2]
            self._sessions.remove(session)
        things.sort(key=lambda entry: entry[0])
        place = sum(1 for session in self._sessions if session[0] < begin)
        self._sessions.insert(place, (begin, end, things))
        return True

    def take_over(self) -> list[Pane[T]]:
        """Take out the windows that are over, the one that ended first, first."""
        return self._take(self.watermark_us)

    def take_all(self) -> list[Pane[T]]:
        """Take out all windows: nothing more is waited for, and what comes for them is late."""
        ends = [start + self._rule.size_us for start in self._open] + [s[1] for s in self._sessions]
        self.watermark_us = max([self.watermark_us, *ends])
        return self._take(self.watermark_us)

    def _take(self, until_us: int) -> list[Pane[T]]:
        size_us = self._rule.size_us
        over = [Pane(start, start + size_us, self._open.pop(start)) for start in list(self._open)
                if start + size_us <= until_us]  # fmt: skip
        over += [
            Pane(begin, end, [thing for _, thing in things])
            for begin, end, things in self._sessions if end <= until_us
        ]  # fmt: skip
        self._sessions = [session for session in self._sessions if session[1] > until_us]
        return sorted(over, key=lambda pane: (pane.until_us, pane.from_us))

    def held(self) -> set[int]:
        """Return the identities (`id`) of all things in open windows."""
        found = {id(thing) for things in self._open.values() for thing in things}
        return found | {id(thing) for _, _, things in self._sessions for _, thing in things}

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(begin, end, number of things) of the open windows, by begin."""
        found = [(start, start + self._rule.size_us, len(things)) for start, things in self._open.items()]
        return sorted(found + [(begin, end, len(things)) for begin, end, things in self._sessions])


def starts_of(rule: WindowRule, at_us: int) -> list[int]:
    """Return the begins of the tumbling or sliding windows that an event time lies in, ascending."""
    slide_us = rule.slide_us or rule.size_us
    last = at_us - at_us % slide_us
    return list(
        range(last - (rule.size_us - 1 - at_us % slide_us) // slide_us * slide_us, last + 1, slide_us)
    )
