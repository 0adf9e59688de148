"""What a subscription, an output or a schedule may ask for, checked when it is declared.

Every mistake is a `ConfigurationError` that says what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, TypeAlias, TypeVar

from flock_ray.errors import ConfigurationError

__all__ = [
    "BatchSpec",
    "FanOutRange",
    "FanOutSpec",
    "JoinSpec",
    "ScheduleSpec",
    "normalize_fan_out",
]

SpecT = TypeVar("SpecT")

DEFAULT_JOIN_WINDOW = timedelta(minutes=1)

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class JoinSpec:
    """Wait for one artifact of each consumed type with the same key."""

    by: Callable[[Any], Any]
    """Gives the key of a model."""
    within: timedelta | int = DEFAULT_JOIN_WINDOW
    """How long a group waits for its rest, or for how many further artifacts."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not callable(self.by):
            raise ConfigurationError(
                f"JoinSpec(by={self.by!r}) is not callable: give a function, as in by=lambda x: x.order_id."
            )
        if isinstance(self.within, timedelta):
            _check_duration(self.within, "JoinSpec(within=...)")
        else:
            _check_count(
                self.within,
                "JoinSpec(within=...)",
                "a timedelta, or a number of artifacts from 1 (seconds: within=timedelta(seconds=5))",
            )

    @property
    def within_us(self) -> int:
        """The window in microseconds; 0 when it is a count."""
        return self.within // _MICROSECOND if isinstance(self.within, timedelta) else 0

    @property
    def within_count(self) -> int:
        """The window as a number of artifacts; 0 when it is a time."""
        return 0 if isinstance(self.within, timedelta) else self.within

    @classmethod
    def coerce(cls, value: JoinSpec | Mapping[str, Any]) -> JoinSpec:
        """Accept the dict form `{"by": function, "within": ...}`.

        In it, `within` is a timedelta, an int (a count) or a float (seconds); one minute if left out.

        Raises:
            ConfigurationError: Neither form, or a key is unknown or missing.
        """
        if isinstance(value, JoinSpec):
            return value
        fields = _dict_form(value, "join", required=("by",), optional=("within",))
        if isinstance(fields.get("within"), float):
            fields["within"] = _seconds(fields["within"], 'join={"within": ...}')
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """Collect artifacts, and run once for all of them: when full, or when the time is over."""

    size: int | None = None
    """How many make a full batch; None: only the timeout decides."""
    timeout: timedelta | None = None
    """Since the batch's first artifact; None: only the size decides."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.size is None and self.timeout is None:
            raise ConfigurationError(
                "A batch needs an end: give BatchSpec(size=10), BatchSpec(timeout=timedelta(seconds=5)) "
                "or both."
            )
        if self.size is not None:
            _check_count(self.size, "BatchSpec(size=...)", "a whole number from 1")
        if self.timeout is not None:
            _check_duration(self.timeout, "BatchSpec(timeout=...)")

    @property
    def timeout_us(self) -> int:
        """The timeout in microseconds; 0 when there is none."""
        return 0 if self.timeout is None else self.timeout // _MICROSECOND

    @classmethod
    def coerce(cls, value: BatchSpec | Mapping[str, Any]) -> BatchSpec:
        """Accept the dict form `{"size": 10, "timeout": 5.0}`.

        In it, `timeout` is a timedelta or a number of seconds.

        Raises:
            ConfigurationError: Neither form, or a key is unknown, or both are missing.
        """
        if isinstance(value, BatchSpec):
            return value
        fields = _dict_form(value, "batch", required=(), optional=("size", "timeout"))
        timeout = fields.get("timeout")
        if isinstance(timeout, int | float) and not isinstance(timeout, bool):
            fields["timeout"] = _seconds(timeout, 'batch={"timeout": ...}')
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """When a timer fires: exactly one of `interval`, `at` and `cron`."""

    interval: timedelta | None = None
    """Every so often, the first time at once (or after `after`)."""
    at: time | datetime | None = None
    """A time: daily, in UTC unless it carries a zone. A datetime, aware: once."""
    cron: str | None = None
    """Five fields (minute, hour, day of month, month, day of week), in UTC."""
    after: timedelta | None = None
    """Delay before the first time; None is none."""
    max_repeats: int | None = None
    """How often it fires at most; None: without limit."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        given = [name for name in ("interval", "at", "cron") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"A schedule needs exactly one of interval (every=), at and cron; this one has "
                f"{' and '.join(given) or 'none'}. Write .schedule(every=timedelta(minutes=5)), for instance."
            )
        if self.interval is not None:
            _check_duration(self.interval, "ScheduleSpec(interval=...)")
        if self.at is not None:
            _check_at(self.at)
        if self.cron is not None:
            check_cron_fields(self.cron)
        if self.after is not None:
            _check_duration(self.after, "ScheduleSpec(after=...)", allow_zero=True)
        if self.max_repeats is not None:
            _check_count(self.max_repeats, "ScheduleSpec(max_repeats=...)", "a whole number from 1")

    def describe(self) -> dict[str, Any]:
        """Return what was declared as plain JSON values, durations in seconds."""
        fields: dict[str, Any] = {
            "interval_s": None if self.interval is None else self.interval.total_seconds(),
            "at": None if self.at is None else self.at.isoformat(),
            "cron": self.cron,
            "after_s": None if self.after is None else self.after.total_seconds(),
            "max_repeats": self.max_repeats,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class FanOutRange:
    """How many artifacts of one type a run publishes: from `min` to `max`, both included."""

    min: int
    max: int

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_count(self.min, "FanOutRange(min=...)", "a whole number from 1")
        _check_count(self.max, "FanOutRange(max=...)", "a whole number from 1")
        if self.max < self.min:
            raise ConfigurationError(
                f"FanOutRange(min={self.min}, max={self.max}) is empty: max must be at least min. Swap them."
            )

    @property
    def is_fixed(self) -> bool:
        """Whether there is only one possible number."""
        return self.min == self.max


FanOutSpec: TypeAlias = int | tuple[int, int] | FanOutRange
"""An exact number, a pair (min, max), or a range."""


def normalize_fan_out(value: FanOutSpec | None) -> FanOutRange | None:
    """Turn any form of `fan_out=` into a range.

    Args:
        value: None and 1 mean no fan-out; another number is exact; a pair is (min, max).

    Returns:
        The range, or None when there is no fan-out.

    Raises:
        ConfigurationError: Not one of these forms, or numbers that make no sense.
    """
    if value is None or isinstance(value, FanOutRange):
        return value
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ConfigurationError(
                f"fan_out={value!r} has {len(value)} numbers: write fan_out=(min, max), as in fan_out=(2, 5)."
            )
        return FanOutRange(*value)
    _check_count(value, "fan_out=...", "a whole number from 1, or a pair (min, max)")
    return None if value == 1 else FanOutRange(value, value)


def _check_count(value: object, what: str, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{what} is {value!r}: give {wanted}.")


def _check_duration(value: object, what: str, *, allow_zero: bool = False) -> None:
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{what} is {value!r}: give a timedelta, as in timedelta(seconds=5).")
    if value < timedelta(0) or (value == timedelta(0) and not allow_zero):
        least = "from zero up" if allow_zero else "above zero"
        raise ConfigurationError(f"{what} is {value}: give a duration {least}.")


def _seconds(value: float, what: str) -> timedelta:
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError):
        raise ConfigurationError(f"{what} is {value!r} seconds: give a duration that ends.") from None


def _dict_form(
    value: object, what: str, *, required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, Any]:
    """Check the keys of a dict form and return a copy of it."""
    allowed = (*required, *optional)
    form = "{" + ", ".join(f'"{key}": ...' for key in allowed) + "}"
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{what}={value!r} is neither a spec nor a dict: write {what}={form}.")
    fields = {str(key): item for key, item in value.items()}
    unknown = sorted(fields.keys() - set(allowed))
    missing = [key for key in required if key not in fields]
    if unknown or missing:
        problem = f"does not know {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise ConfigurationError(f"The dict given as {what}= {problem}: write {what}={form}.")
    return fields


def _check_at(value: object) -> None:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigurationError(
                f"ScheduleSpec(at={value!r}) is naive: give it a time zone, as in "
                "datetime(2026, 1, 31, 9, tzinfo=UTC)."
            )
    elif not isinstance(value, time):
        raise ConfigurationError(
            f"ScheduleSpec(at={value!r}) is neither a time (daily) nor a datetime (once): "
            "write at=time(9, 30)."
        )


_CRON_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


def check_cron_fields(value: object) -> None:
    """Refuse what no cron would run; upstream ran a bad expression every minute."""
    parts = value.split() if isinstance(value, str) else []
    if len(parts) != len(_CRON_FIELDS):
        raise ConfigurationError(
            f'cron={value!r} does not have five fields: write cron="0 9 * * 1-5" '
            "(minute, hour, day of month, month, day of week)."
        )
    for part, (name, low, high, names) in zip(parts, _CRON_FIELDS, strict=True):
        if not all(_is_cron_item(item, low, high, names) for item in part.lower().split(",")):
            words = f" or {names[0]} to {names[-1]}" if names else ""
            raise ConfigurationError(
                f"cron={value!r} has {part!r} as {name}: use *, numbers from {low} to {high}{words}, "
                "ranges (1-5), steps (*/15) and lists (1,3)."
            )


def expand_cron(expression: str) -> list[frozenset[int]]:
    """Return the numbers of each field of a checked expression; Sunday is 0."""
    fields = []
    for part, (_, low, high, names) in zip(expression.lower().split(), _CRON_FIELDS, strict=True):
        numbers: set[int] = set()
        for item in part.split(","):
            base, _, step = item.partition("/")
            first, _, last = base.partition("-")
            begin = low if base == "*" else _cron_number(first, names) or 0
            end = high if base == "*" or (step and not last) else begin
            if last:
                end = 7 if last == "sun" else _cron_number(last, names) or 0
            numbers.update(range(begin, end + 1, int(step or 1)))
        # Sunday is 7, too; a * must not name it twice, as steps would count it.
        whole = part.startswith("*") and high == 7
        fields.append(
            frozenset(n % 7 for n in numbers if not whole or n < 7) if high == 7 else frozenset(numbers)
        )
    return fields


def _is_cron_item(item: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    base, slash, step = item.partition("/")
    if slash and not (step.isascii() and step.isdigit() and int(step) > 0):
        return False
    if base == "*":
        return True
    first, dash, last = base.partition("-")
    if dash and last == "sun":
        last = "7"  # so that fri-sun is a range
    numbers = [_cron_number(text, names) for text in ((first, last) if dash else (first,))]
    known = [number for number in numbers if number is not None and low <= number <= high]
    return len(known) == len(numbers) and known == sorted(known)


def _cron_number(text: str, names: tuple[str, ...]) -> int | None:
    if text in names:
        # Months count from 1, days of the week from 0.
        return names.index(text) + (1 if len(names) == 12 else 0)
    return int(text) if text.isascii() and text.isdigit() else None
