"""When a schedule fires: `CronTrigger`, `IntervalTrigger`, `DailyTrigger`, `OnceTrigger`, `SlidingWindowTrigger`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from flock_ray.core import triggers as core
from flock_ray.errors import ConfigurationError

__all__ = [
    "CronTrigger",
    "DailyTrigger",
    "IntervalTrigger",
    "OnceTrigger",
    "SlidingWindowTrigger",
    "Trigger",
    "microseconds",
    "moment_us",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
MAX_INTERVAL = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """Local times that a cron expression describes.

    A local time that the zone skips fires at the first moment after it, and one that it has twice fires the first
    time: never twice, never not at all.
    """

    expression: str
    """Five fields: minute, hour, day of month, month, day of week. *, numbers, names, ranges, steps, lists."""
    tz: str = "UTC"
    """Name of a time zone, such as "Europe/Berlin"."""

    def __post_init__(self) -> None:
        """Refuse what no cron would run, or what is never due."""
        object.__setattr__(self, "tz", _zone_name(self.tz, "CronTrigger(tz=...)"))
        core.check_cron(core.Cron(self.expression, self.tz))

    def spec(self) -> core.Trigger:
        """Return what a shard must know."""
        return core.Cron(" ".join(self.expression.split()), self.tz)

    def describe(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"cron": self.expression, "tz": self.tz}


@dataclass(frozen=True, slots=True)
class IntervalTrigger:
    """Every so often, counted from the first time; daylight saving does not matter."""

    every: timedelta

    def __post_init__(self) -> None:
        """Refuse what is no duration above zero."""
        every: object = self.every
        if not isinstance(every, timedelta) or not timedelta(0) < every <= MAX_INTERVAL:
            raise ConfigurationError(
                f"IntervalTrigger(every={self.every!r}): give a duration above zero and below 100 years, as in "
                "IntervalTrigger(timedelta(minutes=5))."
            )

    def spec(self) -> core.Trigger:
        """Return what a shard must know."""
        return core.Interval(self.every // _MICROSECOND)

    def describe(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"interval_s": self.every.total_seconds()}


@dataclass(frozen=True, slots=True)
class DailyTrigger:
    """Every day at a local time."""

    at: time
    """May carry its zone; then `tz` is left out."""
    tz: str | None = None
    """Name of a time zone; None: that of `at`, or UTC."""

    def __post_init__(self) -> None:
        """Refuse what is no time, or of an unknown zone."""
        if not isinstance(self.at, time):
            raise ConfigurationError(
                f"DailyTrigger({self.at!r}): give a time, as in DailyTrigger(time(9, 30))."
            )
        if self.at.tzinfo is not None and self.tz is not None:
            raise ConfigurationError(
                "DailyTrigger: the time has a zone, and tz= names one; give one of them."
            )
        zone = self.tz if self.at.tzinfo is None else _key_of(self.at.tzinfo)
        object.__setattr__(self, "tz", _zone_name(zone or "UTC", "DailyTrigger(tz=...)"))
        object.__setattr__(self, "at", self.at.replace(tzinfo=None))

    def spec(self) -> core.Trigger:
        """Return what a shard must know."""
        since_midnight = datetime.combine(_EPOCH.date(), self.at) - datetime(1970, 1, 1)
        return core.Daily(since_midnight // _MICROSECOND, self.tz or "UTC")

    def describe(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"at": self.at.isoformat(), "tz": self.tz}


@dataclass(frozen=True, slots=True)
class OnceTrigger:
    """One moment; one that has passed when the schedule is declared is missed."""

    at: datetime

    def __post_init__(self) -> None:
        """Refuse a time without a zone."""
        moment_us(self.at, "OnceTrigger(at=...)")

    def spec(self) -> core.Trigger:
        """Return what a shard must know."""
        return core.Once(moment_us(self.at, "OnceTrigger(at=...)"))

    def describe(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"at": self.at.isoformat()}


@dataclass(frozen=True, slots=True)
class SlidingWindowTrigger:
    """Every `slide`, about what came in the `window` before: windows overlap if they are longer than the slide.

    It fires at whole multiples of the slide since 1970-01-01 00:00 UTC, first at the first of them that is not before
    the declaration (or `start=`): every 15 minutes is at :00, :15, :30 and :45, whenever the program was started. The
    tick, and what is published, carry the window's bounds; what has been created from its begin on and before its end
    is the context of the agent that the schedule names (see `WindowContextProvider`).
    """

    window: timedelta
    """How far back each window reaches."""
    slide: timedelta
    """From one window to the next."""
    lag: timedelta = timedelta(0)
    """Fire so much after the end of the window, for what is still on its way then; `fire_time` stays its end."""

    def __post_init__(self) -> None:
        """Refuse what are no durations above zero."""
        for name, value in (("window", self.window), ("slide", self.slide)):
            given: object = value
            if not isinstance(given, timedelta) or not timedelta(0) < given <= MAX_INTERVAL:
                raise ConfigurationError(
                    f"SlidingWindowTrigger({name}={value!r}): give a duration above zero and below 100 years, as in "
                    "SlidingWindowTrigger(window=timedelta(hours=1), slide=timedelta(minutes=15))."
                )
        microseconds(self.lag, "SlidingWindowTrigger(lag=...)")

    def spec(self) -> core.Trigger:
        """Return what a shard must know."""
        lag_us = microseconds(self.lag, "SlidingWindowTrigger(lag=...)")
        return core.Sliding(self.slide // _MICROSECOND, self.window // _MICROSECOND, lag_us)

    def describe(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        seconds = {"window_s": self.window.total_seconds(), "slide_s": self.slide.total_seconds()}
        return seconds | ({"lag_s": self.lag.total_seconds()} if self.lag else {})


Trigger = CronTrigger | IntervalTrigger | DailyTrigger | OnceTrigger | SlidingWindowTrigger


def moment_us(value: object, what: str) -> int:
    """Return a moment in microseconds since 1970.

    Raises:
        ConfigurationError: It is no datetime, has no zone, or is before 1970.
    """
    if not isinstance(value, datetime) or value.tzinfo is None or value <= _EPOCH:
        raise ConfigurationError(
            f"{what} is {value!r}: give a datetime with a time zone, as in datetime(2030, 1, 31, 9, tzinfo=UTC)."
        )
    return (value - _EPOCH) // _MICROSECOND


def microseconds(value: object, what: str) -> int:
    """Return a duration from zero up in microseconds.

    Raises:
        ConfigurationError: It is none.
    """
    if not isinstance(value, timedelta) or not timedelta(0) <= value <= MAX_INTERVAL:
        raise ConfigurationError(f"{what} is {value!r}: give a duration, as in timedelta(minutes=5).")
    return value // _MICROSECOND


def _zone_name(value: object, what: str) -> str:
    name = _key_of(value) if isinstance(value, tzinfo) else value
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f'{what} is {value!r}: give the name of a time zone, such as "Europe/Berlin".'
        )
    core.zone_of(name)
    return name


def _key_of(zone: tzinfo) -> str:
    if isinstance(zone, ZoneInfo) and zone.key:
        return zone.key
    if isinstance(zone, timezone) and not zone.utcoffset(None):
        return "UTC"
    raise ConfigurationError(
        f'The time zone {zone!r} has no name: take ZoneInfo("Europe/Berlin"), for instance.'
    )
