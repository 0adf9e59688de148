"""What one sees of schedules, and what one can do with them: `flock.schedules`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.core.ids import shard_of
from flock_ray.core.schedules import ScheduleRow, home_of_schedule
from flock_ray.errors import ConfigurationError
from flock_ray.triggers import moment_us

if TYPE_CHECKING:
    from flock_ray.board import Board

__all__ = ["ScheduleView", "Schedules"]

MAX_BY = 1000

_rows = msgspec.msgpack.Decoder(list[ScheduleRow]).decode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule of a board."""

    name: str
    agent: str
    """Who gets its ticks."""
    spec: dict[str, Any]
    """What was declared: `cron`, `interval_s`, `at`, `tz`, `max_repeats`."""
    misfire: str
    next_fire: datetime | None
    """Without its jitter; None: it is over."""
    last_fire: datetime | None
    """None: it has not fired."""
    iteration: int
    """How often it has fired by itself."""
    missed: int
    """Times that were skipped; more than 1,000 at once count as some."""
    paused: bool
    paused_by: str
    """`board` when the board did: a shard's machine lacks its time zone."""
    listens: bool
    """The agent is there for it; False: it does not fire."""


class Schedules:
    """The schedules of a board."""

    def __init__(self, board: Callable[[], Awaitable[Board]], forget: Callable[[str], None]) -> None:
        """Ask the board that `board` returns; `forget` takes a declaration back."""
        self._board = board
        self._forget = forget

    async def list(self) -> list[ScheduleView]:
        """Return all schedules by name, those that are over included.

        Raises:
            StoreUnavailableError: A shard does not answer; retryable.
        """
        board = await self._board()
        rows = [row for blob in await board.each("schedules") for row in _rows(blob)]
        return sorted((_view(row) for row in rows), key=lambda view: view.name)

    async def get(self, name: str) -> ScheduleView:
        """Return one schedule.

        Raises:
            ConfigurationError: There is none of that name.
        """
        board = await self._board()
        blob = await board.ask_shard(shard_of(home_of_schedule(name), board.num_shards), "schedules")
        for row in _rows(blob):
            if row.schedule.info.name == name:
                return _view(row)
        raise await self._unknown(name)

    async def pause(self, name: str, *, by: str = "") -> None:
        """Fire it no more until it is resumed; durable and safe to repeat. `by` says who wants it.

        Raises:
            ConfigurationError: There is none of that name.
        """
        await self._order("pause", name, by)

    async def resume(self, name: str, *, by: str = "") -> None:
        """Let it fire again; what it missed is up to its `misfire`.

        Raises:
            ConfigurationError: There is none of that name.
        """
        await self._order("resume", name, by)

    async def trigger(self, name: str, *, by: str = "") -> None:
        """Fire it now, on top of what it does by itself, also when it is paused or over.

        Raises:
            ConfigurationError: There is none of that name, or its agent is not there.
        """
        await self._order("trigger", name, by)

    async def backfill(self, name: str, start: datetime, end: datetime, *, by: str = "") -> int:
        """Fire it for the times of a range that has passed, also from before it was declared.

        Each time fires once, however often it is asked for; one that it has fired by itself fires again. `fire_time`
        (and the window, for a sliding one) are those of then. Its limits (`max_repeats`, `start`, `end`) don't matter.

        Args:
            name: Which schedule.
            start: First moment of the range, aware.
            end: End of the range, exclusively, aware; what is not over yet is left out.
            by: Who wants it.

        Returns:
            How many times fired now.

        Raises:
            ConfigurationError: There is none of that name, its agent is not there, the range makes no sense or has
                more than 1,000 times.
        """
        start_us, end_us = moment_us(start, "backfill(start=)"), moment_us(end, "backfill(end=)")
        if end_us <= start_us:
            raise ConfigurationError(f"backfill: it ends at {end} before it starts at {start}; swap them.")
        answer = await self._ask(name, by, "backfill_schedule", name, start_us, end_us, by)
        if answer == "full":
            raise ConfigurationError(
                f"Schedule {name!r} has more than 1,000 times between {start} and {end}: backfill it in parts."
            )
        return int(answer)

    async def remove(self, name: str, *, by: str = "") -> None:
        """Forget it. A program that declares it brings it back when it starts again.

        Raises:
            ConfigurationError: There is none of that name.
        """
        await self._order("remove", name, by)
        self._forget(name)

    async def _order(self, action: str, name: str, by: str) -> None:
        await self._ask(name, by, "order_schedule", action, name, by)

    async def _ask(self, name: str, by: str, method: str, *args: Any) -> str:
        """Have the home of a schedule do something; returns what it answers unless that is a refusal."""
        said: object = by
        if not isinstance(said, str) or len(said) > MAX_BY:
            raise ConfigurationError(f"by= is a text of at most {MAX_BY:,} characters.")
        board = await self._board()
        shard = shard_of(home_of_schedule(name), board.num_shards)
        answer: str = await board.ask_shard(shard, method, *args)
        if answer == "gone":
            raise await self._unknown(name)
        if answer == "deaf":
            raise ConfigurationError(
                f"Schedule {name!r} can't fire: its agent is not on the board, or takes no ticks any more. Deploy it."
            )
        return answer

    async def _unknown(self, name: str) -> ConfigurationError:
        known = ", ".join(view.name for view in (await self.list())[:20]) or "none"
        return ConfigurationError(f"There is no schedule {name!r} on this board; there are: {known}.")


def _view(row: ScheduleRow) -> ScheduleView:
    schedule = row.schedule
    info = schedule.info
    return ScheduleView(
        info.name, info.agent, msgspec.json.decode(info.described, type=dict[str, Any]), info.misfire,
        _time(schedule.next_us), _time(schedule.last_us), schedule.iteration, schedule.missed, schedule.paused,
        schedule.paused_by, row.listens,
    )  # fmt: skip


def _time(us: int) -> datetime | None:
    return _EPOCH + timedelta(microseconds=us) if us else None
