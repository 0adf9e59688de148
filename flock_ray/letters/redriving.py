"""Redriving many dead letters: paced, each once, and only those that are open at the beginning."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec

from flock_ray.core.ids import shard_of
from flock_ray.core.letter_index import LetterOrder, LetterQuery, LetterRow
from flock_ray.errors import ConfigurationError, StoreUnavailableError
from flock_ray.letters.calls import LetterBoard, inputs_of, redrive_order

__all__ = ["RedriveReport", "check_rate", "redrive_all"]

MAX_BATCH = 100
"""Letters between two looks at the clock."""

STEP_S = 0.1
"""A rate is kept in steps of this length, as long as the board keeps up."""

MIN_WAIT_S = 1e-6
"""Less than this is what floats make of none."""

CATCH_UP_S = 1.0
"""What a slow step held up is made up for in the next ones, but no more than this much at once."""

MAX_RATE = 1_000_000.0

PATIENCE_S = 60.0
"""How long a walk waits for a shard that is away: it has no effect twice to be afraid of."""

MAX_NAMED = 100

T = TypeVar("T")


@dataclass(slots=True)
class RedriveReport:
    """What became of the letters that were open when it began."""

    matched: int = 0
    """Letters that the filters select."""
    redriven: int = 0
    """Redriven by this call; 0 in a dry run."""
    gone: int = 0
    """Redriven or discarded by somebody else meanwhile; also by this call, if its answer was lost with a shard."""
    cancelled: int = 0
    """Of workflows that were cancelled: these stay."""
    incomplete: int = 0
    """With an input that is not on the board any more: these stay."""
    unable: tuple[uuid.UUID, ...] = ()
    """Ids of the letters that stay; at most 100."""
    dry_run: bool = False

    def _stays(self, row: LetterRow) -> None:
        if len(self.unable) < MAX_NAMED:
            self.unable = (*self.unable, uuid.UUID(bytes=row.letter.envelope.id))


def check_rate(rate: object) -> None:
    """Refuse a rate that makes no sense."""
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= MAX_RATE:
        raise ConfigurationError(f"redrive_all(rate={rate!r}): give letters per second, above 0, or None.")


class Pace:
    """How many letters may go now, so that it is so many a second: steps that take long are followed by larger ones."""

    __slots__ = ("_from_s", "_rate", "_step")

    def __init__(self, rate: float, now_s: float) -> None:
        """Begin: the first step is due at once."""
        self._rate = rate
        self._step = min(MAX_BATCH, max(1, math.ceil(rate * STEP_S)))
        self._from_s = now_s - self._step / rate
        """What was due up to here has gone."""

    def wait_s(self, now_s: float) -> float:
        """Return how long it is until a step is due; 0 when it is."""
        wait_s = self._from_s + self._step / self._rate - now_s
        return wait_s if wait_s > MIN_WAIT_S else 0.0

    def due(self, now_s: float) -> int:
        """Return how many may go now, at least one: call when a step is due."""
        self._from_s = max(self._from_s, now_s - max(CATCH_UP_S, self._step / self._rate))
        # A step that is due is due in full, whatever a float makes of it.
        return min(MAX_BATCH, max(self._step, int((now_s - self._from_s) * self._rate)))

    def took(self, count: int) -> None:
        """Note that so many go."""
        self._from_s += count / self._rate


async def _due(pace: Pace) -> int:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(pace.wait_s(loop.time()))
    return pace.due(loop.time())


async def redrive_all(
    board: LetterBoard, query: LetterQuery, *, rate: float | None, dry_run: bool, by: str
) -> RedriveReport:
    """Redrive the letters that are open now and that a query selects; see `DeadLetters.redrive_all`."""
    report = RedriveReport(dry_run=dry_run)
    ends = await _patiently(board.ends)
    pace = None if rate is None or dry_run else Pace(rate, asyncio.get_running_loop().time())
    after = query.after
    while True:
        size = MAX_BATCH if pace is None else await _due(pace)
        asked = msgspec.structs.replace(query, after=after, limit=1_000 if dry_run else size)
        rows = await _patiently(partial(board.page, asked, ends))
        report.matched += len(rows)
        if rows and not dry_run:
            if pace is not None:
                pace.took(len(rows))
            await _redrive(board, rows, by, report)
        if len(rows) < asked.limit:
            return report
        after = rows[-1].place


async def _redrive(board: LetterBoard, rows: list[LetterRow], by: str, report: RedriveReport) -> None:
    """Redrive some letters; those that were edited meanwhile are looked at again."""
    while rows:
        found = await _patiently(partial(board.fetch, [key for row in rows for key in inputs_of(row)]))
        by_shard: dict[int, list[tuple[LetterRow, LetterOrder]]] = {}
        place = 0
        for row in rows:
            inputs = found[place : place + len(row.letter.inputs)]
            place += len(row.letter.inputs)
            order = redrive_order(row, inputs, by)
            if order is None:
                report.incomplete += 1
                report._stays(row)
                continue
            by_shard.setdefault(shard_of(row.slot, board.num_shards), []).append((row, order))
        asked = list(by_shard.values())
        answers = await asyncio.gather(
            *(_patiently(partial(board.order, [order for _, order in part])) for part in asked)
        )
        edited: list[LetterRow] = []
        for part, told in zip(asked, answers, strict=True):
            for (row, _), answer in zip(part, told, strict=True):
                edited += _count(report, row, answer)
        again = [await _patiently(partial(board.find, row.letter.envelope.id)) for row in edited]
        report.gone += sum(row is None for row in again)
        rows = [row for row in again if row is not None]


def _count(report: RedriveReport, row: LetterRow, answer: str) -> list[LetterRow]:
    """Count an answer; returns the letter if it has to be tried again."""
    if answer == "ok":
        report.redriven += 1
    elif answer == "gone":
        report.gone += 1
    elif answer == "cancelled":
        report.cancelled += 1
        report._stays(row)
    else:
        return [row]
    return []


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call while a shard is away: a letter that was redriven is gone, so nothing is done twice.

    Raises:
        StoreUnavailableError: It stayed away.
    """
    loop = asyncio.get_running_loop()
    deadline, pause_s = loop.time() + PATIENCE_S, 0.1
    while True:
        try:
            return await call()
        except StoreUnavailableError:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2.0, 2 * pause_s)
