"""When triggers are due, compared with a scan of every minute that a zone's clocks show."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from flock_ray.core.triggers import Cron, Daily, Interval, Once, Trigger, check_cron, latest_until, next_after
from flock_ray.errors import ConfigurationError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = 60_000_000
DAY = 24 * 60 * MINUTE
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # each step of it scans days of minutes
ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia",
    "Africa/Casablanca", "Asia/Kolkata", "America/Sao_Paulo", "Asia/Beirut", "Antarctica/Troll", "Europe/Dublin",
    "Asia/Tehran", "Pacific/Kwajalein", "America/Caracas", "Asia/Pyongyang",
]  # fmt: skip
NAMES = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def at(zone: str, *parts: int, fold: int = 0) -> int:
    return us(datetime(*parts, tzinfo=ZoneInfo(zone), fold=fold))  # type: ignore[misc,arg-type]  # year, month, ...


def shown(zone: str, moment: int) -> datetime:
    return (EPOCH + timedelta(microseconds=moment)).astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)


# -- an independent implementation: look at every minute ------------------------------------------


@cache
def field(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for item in text.split(","):
        base, _, step = item.partition("/")
        first, _, last = base.partition("-")
        start = low if base == "*" else NAMES.get(first) if first in NAMES else int(first)
        end = high if base == "*" else int(last) if last else high if step else start
        assert start is not None and end is not None
        found |= set(range(start, end + 1, int(step or 1)))
    return found


def holds(expression: str, local: datetime) -> bool:
    minute, hour, day, month, weekday = expression.split()
    if local.minute not in field(minute, 0, 59) or local.hour not in field(hour, 0, 23):
        return False
    if local.month not in field(month, 1, 12):
        return False
    by_day = local.day in field(day, 1, 31)
    by_weekday = local.isoweekday() % 7 in {d % 7 for d in field(weekday, 0, 7)}
    if day != "*" and weekday != "*":
        return by_day or by_weekday
    return by_day and by_weekday


def scanned(trigger: Cron | Daily, begin: int, end: int) -> list[int]:
    """Return when a trigger is due between two whole minutes, both included."""

    def due(local: datetime) -> bool:
        if isinstance(trigger, Cron):
            return holds(trigger.expression, local)
        return (local.hour * 60 + local.minute) * MINUTE == trigger.of_day_us

    start = begin - 2 * DAY
    top = shown(trigger.tz, start)
    found = []
    for moment in range(start + MINUTE, end + 1, MINUTE):
        local = shown(trigger.tz, moment)
        fires = False
        while top < local:
            top += timedelta(minutes=1)
            fires = fires or due(top)
        if fires and moment >= begin:
            found.append(moment)
    return found


@cache
def changes(zone: str) -> list[int]:
    """Return the days on which a zone's clocks are changed."""
    found, moment = [], us(datetime(1985, 1, 1, tzinfo=UTC))
    while moment < us(datetime(2037, 1, 1, tzinfo=UTC)):
        if shown(zone, moment + DAY) - shown(zone, moment) != timedelta(days=1):
            found.append(moment)
        moment += DAY
    return found or [us(datetime(2024, 2, 28, tzinfo=UTC))]


NUMBERS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 6)}


@st.composite
def fields(draw: st.DrawFn, name: str) -> str:
    low, high = NUMBERS[name]
    kind = draw(st.sampled_from(["*", "one", "range", "list", "step"]))
    number = st.integers(low, high)
    if kind == "one":
        return str(draw(number))
    if kind == "range":
        first = draw(number)
        return f"{first}-{draw(st.integers(first, high))}"
    if kind == "list":
        return ",".join(str(n) for n in draw(st.lists(number, min_size=1, max_size=4)))
    return f"*/{draw(st.integers(1, 20))}" if kind == "step" else "*"


@st.composite
def triggers(draw: st.DrawFn) -> Cron | Daily:
    zone = draw(st.sampled_from(ZONES))
    if draw(st.booleans()):
        # Mostly when clocks are changed, where the time of day is all that matters.
        minutes = (
            st.sampled_from(range(10, 4 * 60, 20)) if draw(st.integers(0, 3)) else st.integers(0, 24 * 60 - 1)
        )
        return Daily(draw(minutes) * MINUTE, zone)
    names = ["minute", "hour", "day", "month", "weekday"]
    month = draw(st.sampled_from(["*", "*", "*", "1-12", "*/1"]))
    parts = [month if name == "month" else draw(fields(name)) for name in names]
    return Cron(" ".join(parts), zone)


@settings(max_examples=40, deadline=None, phases=WITHOUT_SHRINKING)
@given(st.data())
def test_what_is_due_is_what_a_scan_of_every_minute_finds(data: st.DataObject) -> None:
    trigger = data.draw(triggers())
    change = data.draw(st.sampled_from(changes(trigger.tz)))
    begin = change - data.draw(st.integers(0, 36)) * 60 * MINUTE
    end = begin + 2 * DAY
    expected = scanned(trigger, begin, end)

    found, moment = [], begin - 1
    while (due := next_after(trigger, moment)) is not None and due <= end:
        found.append(due)
        moment = due

    assert found == expected
    for moment in data.draw(st.lists(st.integers(begin, end), max_size=5)):
        before = [due for due in expected if due <= moment]
        latest = latest_until(trigger, moment)
        assert latest == before[-1] if before else latest is None or latest < begin


@settings(max_examples=100, deadline=None)
@given(triggers(), st.integers(us(datetime(1985, 1, 1, tzinfo=UTC)), us(datetime(2036, 1, 1, tzinfo=UTC))))
def test_the_latest_time_before_the_next_one_is_the_one_before_it(trigger: Cron | Daily, moment: int) -> None:
    due = next_after(trigger, moment)
    if due is None:
        return
    assert due > moment
    assert latest_until(trigger, due) == due
    before = latest_until(trigger, due - 1)
    assert before is None or before <= moment


def test_a_local_time_that_is_skipped_is_due_at_the_first_moment_after_it() -> None:
    trigger = Cron("30 2 * * *", "Europe/Berlin")

    due = next_after(trigger, at("Europe/Berlin", 2026, 3, 28, 12))

    assert due is not None
    assert due == at("Europe/Berlin", 2026, 3, 29, 3)  # clocks go from 2:00 to 3:00
    assert next_after(trigger, due) == at("Europe/Berlin", 2026, 3, 30, 2, 30)


def test_a_local_time_that_is_there_twice_is_due_the_first_time_only() -> None:
    trigger = Daily(150 * MINUTE, "Europe/Berlin")

    due = next_after(trigger, at("Europe/Berlin", 2026, 10, 24, 12))

    assert due is not None
    assert due == at("Europe/Berlin", 2026, 10, 25, 2, 30, fold=0)
    assert next_after(trigger, due) == at("Europe/Berlin", 2026, 10, 26, 2, 30)
    assert latest_until(trigger, at("Europe/Berlin", 2026, 10, 25, 2, 10, fold=1)) == due


def test_several_skipped_times_are_due_once() -> None:
    trigger = Cron("*/15 2,3 * * *", "Europe/Berlin")

    due = next_after(trigger, at("Europe/Berlin", 2026, 3, 29, 1, 59))

    assert due is not None
    assert due == at("Europe/Berlin", 2026, 3, 29, 3)
    assert next_after(trigger, due) == at("Europe/Berlin", 2026, 3, 29, 3, 15)


def test_a_day_that_a_zone_skips_is_due_at_its_end() -> None:
    trigger = Daily(9 * 60 * MINUTE, "Pacific/Apia")  # 30 December 2011 was not there

    due = next_after(trigger, at("Pacific/Apia", 2011, 12, 29, 12))

    assert due is not None
    assert due == at("Pacific/Apia", 2011, 12, 31, 0)
    assert next_after(trigger, due) == at("Pacific/Apia", 2011, 12, 31, 9)


def test_the_29th_of_february_is_due_in_leap_years() -> None:
    trigger, due, years = Cron("0 12 29 2 *", "UTC"), us(datetime(1999, 1, 1, tzinfo=UTC)), []
    for _ in range(4):
        due = next_after(trigger, due) or 0
        years.append(shown("UTC", due).date())

    assert years == [date(2000, 2, 29), date(2004, 2, 29), date(2008, 2, 29), date(2012, 2, 29)]
    assert next_after(trigger, us(datetime(2096, 3, 1, tzinfo=UTC))) == at("UTC", 2104, 2, 29, 12)


@given(st.integers(1, 10**9), st.integers(0, 10**15), st.integers(0, 10**15))
def test_intervals_count_from_their_anchor(every: int, anchor: int, moment: int) -> None:
    trigger: Trigger = Interval(every)
    due, latest = next_after(trigger, moment, anchor), latest_until(trigger, moment, anchor)

    assert due is not None and due > moment and (due - anchor) % every == 0 and due >= anchor
    assert due - every <= moment or due == anchor
    assert latest is None if moment < anchor else latest == due - every


def test_once_is_due_once() -> None:
    assert next_after(Once(5), 4) == 5 == latest_until(Once(5), 5)
    assert next_after(Once(5), 5) is None is latest_until(Once(5), 4)


def test_the_end_of_time_is_never() -> None:
    last = us(datetime(9999, 12, 31, 23, 59, tzinfo=UTC))

    assert next_after(Daily(60 * MINUTE), last) is None
    assert next_after(Cron("0 0 * * *"), last) is None


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("every day", "five fields"),
        ("0 25 * * *", "as hour"),
        ("0 9 * * * *", "five fields"),
        ("@daily", "five fields"),
        ("0 9 31 2 *", "never due"),
        ("R 9 * * *", "as minute"),
    ],
)
def test_expressions_that_are_never_due_are_refused(expression: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_cron(Cron(expression))


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "", "CEST+1:00x"])
def test_zones_that_are_not_known_are_refused(zone: str) -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        check_cron(Cron("0 9 * * *", zone))


def test_a_time_with_microseconds_is_exact() -> None:
    moment = time(9, 0, 0, 250_000)
    trigger = Daily((9 * 60 * 60 * 1_000_000) + moment.microsecond)

    assert next_after(trigger, us(datetime(2026, 1, 1, 9, tzinfo=UTC))) == us(
        datetime(2026, 1, 1, 9, 0, 0, 250_000, tzinfo=UTC)
    )


@settings(max_examples=300, deadline=None)
@given(triggers(), st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1)))
def test_croniter_finds_the_same_times_in_a_zone_without_changes(
    trigger: Cron | Daily, moment: datetime
) -> None:
    if not isinstance(trigger, Cron):
        return
    # Written out, because croniter reads "1-1" as every day.
    minute, hour, day, month, weekday = trigger.expression.split()
    ranges = [(minute, 0, 59), (hour, 0, 23), (day, 1, 31), (month, 1, 12), (weekday, 0, 6)]
    written = " ".join("*" if f == "*" else ",".join(map(str, sorted(field(f, a, b)))) for f, a, b in ranges)
    start = moment.replace(microsecond=0)
    expected = croniter(written, start).get_next(datetime)

    assert next_after(Cron(trigger.expression), us(start.replace(tzinfo=UTC))) == us(
        expected.replace(tzinfo=UTC)
    )


# -- another independent implementation: croniter's own iteration ----------------------------------


CRONS = [
    "0 9 * * *", "*/15 * * * *", "0 0 29 2 *", "0 0 31 * *", "0 12 1 */3 *", "5 4 * * 1-5", "0 0 13 * fri",
    "59 23 31 12 *", "10,40 8-10 1-7 * *",
]  # fmt: skip


@pytest.mark.parametrize("expression", CRONS)
@pytest.mark.parametrize("year", [2024, 2096])
def test_what_is_due_over_the_years_is_what_croniter_finds(expression: str, year: int) -> None:
    """Over leap days, and the year 2100, which has none."""
    begin = datetime(year, 1, 31, 23, 59, tzinfo=UTC)
    other = croniter(expression, begin)

    moment = us(begin)
    for _ in range(40):
        due = next_after(Cron(expression), moment)
        assert due is not None
        assert EPOCH + timedelta(microseconds=due) == other.get_next(datetime)
        assert latest_until(Cron(expression), due) == due
        moment = due


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
def test_times_that_no_change_of_clocks_touches_are_what_croniter_finds_in_a_zone(zone: str) -> None:
    """Where clocks are changed the two differ on purpose; at noon they never are."""
    begin = datetime(2023, 3, 20, tzinfo=ZoneInfo(zone))
    other = croniter("0 12 * * *", begin)

    moment = us(begin)
    for _ in range(40):
        due = next_after(Cron("0 12 * * *", zone), moment)
        assert due is not None
        assert due == us(other.get_next(datetime))
        moment = due
