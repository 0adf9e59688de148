"""When a schedule is due: pure functions of a trigger and a time.

Cron and daily triggers name local times. A local time that a zone skips is due at the first moment after it; one
that a zone has twice is due the first time. So every local time is due at most once, at the first moment at which
the zone's clocks show it or something later.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

__all__ = [
    "Cron",
    "Daily",
    "Interval",
    "Once",
    "Sliding",
    "Trigger",
    "check_cron",
    "latest_until",
    "next_after",
    "zone_of",
]

_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_SECOND_US = 1_000_000
_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_DAYS = 4
"""More than any zone has ever skipped or repeated, in days."""
_MAX_DAYS = 366 * 9
"""A 29th of February comes within eight years."""


class Cron(msgspec.Struct, array_like=True, tag="cron", frozen=True):
    """Local times that five fields describe."""

    expression: str
    tz: str = "UTC"


class Interval(msgspec.Struct, array_like=True, tag="every", frozen=True):
    """Every so often, counted from an anchor that the schedule keeps."""

    us: int


class Daily(msgspec.Struct, array_like=True, tag="daily", frozen=True):
    """A local time of every day."""

    of_day_us: int
    """Since midnight, as clocks show it."""
    tz: str = "UTC"


class Once(msgspec.Struct, array_like=True, tag="once", frozen=True):
    """One moment."""

    at_us: int


class Sliding(msgspec.Struct, array_like=True, tag="slide", frozen=True):
    """Every so often, at whole multiples of it since 1970; each time is about what came in the window before."""

    us: int
    window_us: int
    lag_us: int = 0
    """Fires so much after the end of the window."""


Trigger = Cron | Interval | Daily | Once | Sliding


def next_after(trigger: Trigger, after_us: int, anchor_us: int = 0) -> int | None:
    """Return the first time after a moment at which a trigger is due; None: never again.

    Args:
        trigger: What is due.
        after_us: The moment.
        anchor_us: From when an interval counts; it is due then, too.
    """
    if isinstance(trigger, Once):
        return trigger.at_us if trigger.at_us > after_us else None
    if isinstance(trigger, Interval):
        if after_us < anchor_us:
            return anchor_us
        return anchor_us + ((after_us - anchor_us) // trigger.us + 1) * trigger.us
    if isinstance(trigger, Sliding):
        return (after_us // trigger.us + 1) * trigger.us
    try:
        return _next_local(trigger, after_us)
    except (OverflowError, ValueError):  # beyond the year 9999
        return None


def latest_until(trigger: Trigger, until_us: int, anchor_us: int = 0) -> int | None:
    """Return the last time up to a moment, that one included, at which a trigger was due; None: never before."""
    if isinstance(trigger, Once):
        return trigger.at_us if trigger.at_us <= until_us else None
    if isinstance(trigger, Interval):
        if until_us < anchor_us:
            return None
        return anchor_us + (until_us - anchor_us) // trigger.us * trigger.us
    if isinstance(trigger, Sliding):
        return until_us // trigger.us * trigger.us
    zone = zone_of(trigger.tz)
    local = _local(until_us, zone)
    if isinstance(trigger, Daily):
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
        for day in range(_DAYS, -_DAYS, -1):
            due_us = _reached(midnight + day * _DAY + trigger.of_day_us * _US, zone)
            if due_us <= until_us:
                return due_us
        return None
    found = _cron_step(trigger.expression, local.replace(second=0, microsecond=0) + _MINUTE, back=True)
    if found is None:
        return None
    latest = _reached(found, zone)
    # Where clocks have gone back, later local times than the one they show were there already.
    while (later := _next_local(trigger, latest)) is not None and later <= until_us:
        latest = later
    return latest


def zone_of(key: str) -> ZoneInfo:
    """Return a time zone.

    Raises:
        ConfigurationError: This machine knows none of that name.
    """
    try:
        return _zone(key)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigurationError(
            f'There is no time zone {key!r} here: write a name such as "Europe/Berlin" or "UTC". On a machine '
            "without time zones, install the package tzdata."
        ) from error


def check_cron(trigger: Cron) -> None:
    """Refuse an expression that no cron would run, or that never is due.

    Raises:
        ConfigurationError: It says what to write.
    """
    from croniter import croniter

    from flock_ray.core.specs import check_cron_fields

    check_cron_fields(trigger.expression)
    zone_of(trigger.tz)
    if not croniter.is_valid(trigger.expression):
        raise ConfigurationError(
            f'cron={trigger.expression!r} makes no sense: write "0 9 * * 1-5", for instance.'
        )
    if _cron_step(trigger.expression, _EPOCH + timedelta(days=365 * 50), back=False) is None:
        raise ConfigurationError(f"cron={trigger.expression!r} is never due: no month has such a day.")


def _next_local(trigger: Cron | Daily, after_us: int) -> int | None:
    zone = zone_of(trigger.tz)
    # What clocks show now, and everything before it, was due by now.
    local = _local(after_us, zone)
    if isinstance(trigger, Daily):
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
        for day in range(_DAYS + 1):
            due_us = _reached(midnight + day * _DAY + trigger.of_day_us * _US, zone)
            if due_us > after_us:
                return due_us
        return None
    at: datetime | None = local.replace(second=0, microsecond=0)
    while at is not None and (at := _cron_step(trigger.expression, at, back=False)) is not None:
        due_us = _reached(at, zone)
        if due_us > after_us:
            return due_us
    return None


def _cron_step(expression: str, start: datetime, *, back: bool) -> datetime | None:
    """Return the next (or last) local time of an expression strictly after (or before) one; None: there is none.

    By hand, as croniter takes a millisecond for it and a shard may have thousands of schedules.
    """
    fields = _fields(expression)
    day, minute, step = start.date(), start.hour * 60 + start.minute, -1 if back else 1
    last = day.toordinal() + step * _MAX_DAYS
    if fields.holds(day):
        place = bisect_left(fields.minutes, minute) - 1 if back else bisect_right(fields.minutes, minute)
        if 0 <= place < len(fields.minutes):
            return _at(day, fields.minutes[place])
    ordinal = day.toordinal() + step
    while (ordinal - last) * step <= 0:
        day = date.fromordinal(ordinal)  # ValueError: beyond the calendar
        if day.month not in fields.months:
            first = day.replace(day=1).toordinal()
            ordinal = first - 1 if back else first + monthrange(day.year, day.month)[1]
            continue
        if fields.holds(day):
            return _at(day, fields.minutes[-1 if back else 0])
        ordinal += step
    return None


def _at(day: date, minute: int) -> datetime:
    return datetime(day.year, day.month, day.day, minute // 60, minute % 60)


class _Fields(NamedTuple):
    minutes: tuple[int, ...]
    """Of the day, ascending."""
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    either: bool
    """Both kinds of days are limited: one of them is enough."""

    def holds(self, day: date) -> bool:
        by_day, by_weekday = day.day in self.days, day.toordinal() % 7 in self.weekdays
        return day.month in self.months and (by_day or by_weekday if self.either else by_day and by_weekday)


@lru_cache(maxsize=10_000)
def _fields(expression: str) -> _Fields:
    from flock_ray.core.specs import expand_cron

    minutes, hours, days, months, weekdays = expand_cron(expression)
    _, _, day, _, weekday = expression.split()
    return _Fields(
        tuple(60 * hour + minute for hour in sorted(hours) for minute in sorted(minutes)),
        days, months, weekdays, day != "*" and weekday != "*",
    )  # fmt: skip


def _local(us: int, zone: ZoneInfo) -> datetime:
    """Return what clocks of a zone show at a moment."""
    return (_EPOCH_UTC + us * _US).astimezone(zone).replace(tzinfo=None, fold=0)


def _reached(local: datetime, zone: ZoneInfo) -> int:
    """Return the first moment at which clocks of a zone show a local time or something later."""
    due_us = (local.replace(tzinfo=zone, fold=0) - _EPOCH_UTC) // _US
    if _local(due_us, zone) == local:
        return due_us
    # It is skipped. Clocks are set at whole seconds; before that they show less than it, and after it more.
    low = (local.replace(tzinfo=zone, fold=1) - _EPOCH_UTC) // _US // _SECOND_US
    high = due_us // _SECOND_US + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _local(middle * _SECOND_US, zone) >= local:
            high = middle
        else:
            low = middle
    return high * _SECOND_US


@lru_cache(maxsize=1000)
def _zone(key: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo

    return ZoneInfo(key)
