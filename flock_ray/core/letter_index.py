"""Open dead letters of a shard by time: pages for readers, without copying or walking all of them.

The letters themselves are durable state of their slots. This is an index over them for reading only: it is built
when somebody asks first, and each question then only looks at what is new.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from flock_ray.core.state import Letter, Slot
from flock_ray.core.wire import Envelope

CHUNK = 5_000
"""Letters looked at between two looks at the event loop."""

MAX_PAGE = 1_000

Place = tuple[int, bytes]
"""(time of the failure, id): the order of letters on the whole board."""

START: Place = (0, b"")


class LetterQuery(msgspec.Struct, array_like=True, frozen=True):
    """Which open letters."""

    queue: str | None = None
    agent: str | None = None
    error_type: str | None = None
    workflow: str | None = None
    since_us: int = 0
    before_us: int = 0
    """Only those that failed before; 0: all."""
    after: Place = START
    """Behind this one."""
    limit: int = 100
    end: tuple[int, tuple[bytes, ...]] | None = None
    """(time, letters of that very time): only those older, or among them. None: all."""

    def selects(self, letter: Letter) -> bool:
        """Say whether a letter is meant, its time aside."""
        return (
            (self.queue is None or letter.queue == self.queue)
            and (self.agent is None or letter.agent == self.agent)
            and (self.error_type is None or letter.error_type == self.error_type)
            and (self.workflow is None or letter.envelope.correlation_id == self.workflow)
        )

    def is_behind(self, place: Place) -> bool:
        """Say whether a place, and so all later ones, is too late."""
        if self.before_us and place[0] >= self.before_us:
            return True
        return self.end is not None and place[0] > self.end[0]


class LetterRow(msgspec.Struct, array_like=True, frozen=True):
    """An open letter and where it is kept."""

    slot: int
    letter: Letter

    @property
    def place(self) -> Place:
        """Its place in the order of letters."""
        return self.letter.at_us, self.letter.envelope.id


class LetterRows(msgspec.Struct, array_like=True, frozen=True):
    """A part of an answer."""

    rows: list[LetterRow]
    seen: Place | None
    """Everything up to here was looked at; None: everything there is."""


class LetterOrder(msgspec.Struct, array_like=True, frozen=True):
    """What somebody wants done with an open letter."""

    kind: Literal["redrive", "edit", "discard", "put"]
    """`put` only stores `new`, which an `edit` at another shard will refer to."""
    slot: int
    letter: bytes
    inputs: tuple[Envelope, ...] = ()
    """For a redrive: its inputs, edited ones in place of those that they replace."""
    old: bytes = b""
    new: Envelope | None = None
    by: str = ""
    reason: str = ""


encode = msgspec.msgpack.Encoder().encode
decode_query = msgspec.msgpack.Decoder(LetterQuery).decode
decode_rows = msgspec.msgpack.Decoder(LetterRows).decode
decode_orders = msgspec.msgpack.Decoder(list[LetterOrder]).decode


class LetterIndex:
    """The places of a shard's open letters, oldest first; some that are not open any more may be among them."""

    __slots__ = ("_newest", "_places", "_slots")

    def __init__(self, slots: Mapping[int, Slot]) -> None:
        """Index the letters of these slots; nothing is read yet."""
        self._slots = slots
        self._places: list[tuple[int, bytes, int]] = []
        """(time, id, slot)."""
        self._newest: dict[int, int] = {}
        """By slot: the time of the newest letter that is indexed."""

    def __len__(self) -> int:
        """Count the open letters."""
        return sum(len(slot.letters) for slot in self._slots.values())

    def catch_up(self) -> Iterator[None]:
        """Index what is new; yields where there is time for something else. One at a time."""
        runs, found = [], 0
        for slot in self._slots.values():
            if slot.letters and (run := self._new_of(slot)):
                runs.append(run)
                found += len(run)
                if found > CHUNK:
                    found = 0
                    yield
        merged: list[tuple[int, bytes, int]] = []
        for place in heapq.merge(*runs):
            merged.append(place)
            if len(merged) % CHUNK == 0:
                yield
        behind = self._places and merged and merged[0] < self._places[-1]
        self._places += merged
        for time_us, _, index in merged:  # not before: who is cancelled on the way has indexed nothing
            self._newest[index] = time_us
        if behind:
            self._places.sort()  # two runs: one pass
        if len(self._places) > 2 * len(self) + CHUNK:
            self._places = [p for p in self._places if p[1] in self._slots[p[2]].letters]

    def _new_of(self, slot: Slot) -> list[tuple[int, bytes, int]]:
        """Return the places of a slot's letters that are not indexed, in order: a slot's newest are at its end."""
        newest = self._newest.get(slot.index, -1)
        run = []
        for letter in slot.letters.newest_first():
            if letter.at_us < newest:
                break
            place = (letter.at_us, letter.envelope.id, slot.index)
            if letter.at_us > newest or not self._has(place):
                run.append(place)
        run.sort()
        return run

    def _has(self, place: tuple[int, bytes, int]) -> bool:
        at = bisect_left(self._places, place)
        return at < len(self._places) and self._places[at] == place

    def rows(self, query: LetterQuery) -> LetterRows:
        """Return letters that a query selects, oldest first; looks at no more than `CHUNK`."""
        after = max(query.after, (query.since_us, b""))
        at = bisect_right(self._places, (*after, len(self._slots) + 2**16))
        limit = max(1, min(query.limit, MAX_PAGE))
        rows: list[LetterRow] = []
        for time_us, key, slot in self._places[at : at + CHUNK]:
            if query.is_behind((time_us, key)):
                return LetterRows(rows, None)
            letter = self._slots[slot].letters.get(key)
            among = query.end is None or time_us < query.end[0] or key in query.end[1]
            if letter is not None and among and query.selects(letter):
                rows.append(LetterRow(slot, letter))
                if len(rows) == limit:
                    return LetterRows(rows, (time_us, key))
        if at + CHUNK >= len(self._places):
            return LetterRows(rows, None)
        return LetterRows(rows, self._places[at + CHUNK - 1][:2])

    def end(self) -> tuple[int, list[bytes]]:
        """Return the time of the newest letter and the letters of that very time; (0, []) when there are none."""
        if not self._places:
            return 0, []
        newest = self._places[-1][0]
        first = bisect_left(self._places, (newest, b"", 0))
        return newest, [key for _, key, _ in self._places[first:]]

    def find(self, ids: list[bytes]) -> list[LetterRow]:
        """Return those of these letters that are open."""
        wanted = [(slot, key) for key in ids for slot in self._slots.values() if key in slot.letters]
        return [LetterRow(slot.index, slot.letters[key]) for slot, key in wanted]
