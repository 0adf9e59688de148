from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.core.specs import BatchSpec, FanOutRange, JoinSpec, ScheduleSpec, normalize_fan_out
from flock_ray.errors import ConfigurationError

SECOND = timedelta(seconds=1)


def by_id(model: Any) -> Any:
    return model.id


# --- join ---------------------------------------------------------------------------------------


def test_join_by_time_and_by_count() -> None:
    timed, counted = JoinSpec(by_id, 5 * SECOND), JoinSpec(by=by_id, within=10)
    assert (timed.within_us, timed.within_count) == (5_000_000, 0)
    assert (counted.within_us, counted.within_count) == (0, 10)
    assert JoinSpec(by_id).within == timedelta(minutes=1)


@pytest.mark.parametrize(
    ("within", "expected"),
    [(3, 3), (2.5, timedelta(seconds=2.5)), (1e-6, timedelta(microseconds=1)), (SECOND, SECOND)],
)
def test_dict_join_takes_counts_seconds_and_timedeltas(within: Any, expected: Any) -> None:
    assert JoinSpec.coerce({"by": by_id, "within": within}) == JoinSpec(by_id, expected)


def test_join_coerce_keeps_a_spec_and_fills_the_default() -> None:
    spec = JoinSpec(by_id, 3)
    assert JoinSpec.coerce(spec) is spec
    assert JoinSpec.coerce({"by": by_id}) == JoinSpec(by_id, timedelta(minutes=1))


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ({}, r"lacks 'by': write join=\{"),
        ({"by": by_id, "window": 3}, r"does not know 'window': write join=\{"),
        ({"by": "id"}, "give a function"),
        ({"by": by_id, "within": 0}, "number of artifacts from 1"),
        ({"by": by_id, "within": -1.0}, "give a duration above zero"),
        ({"by": by_id, "within": float("inf")}, "give a duration that ends"),
        ({"by": by_id, "within": float("nan")}, "give a duration that ends"),
        ({"by": by_id, "within": True}, "number of artifacts from 1"),
        ({"by": by_id, "within": "5s"}, "give a timedelta"),
        ({"by": by_id, "within": None}, "give a timedelta"),
        ({"by": by_id, "within": timedelta(0)}, "give a duration above zero"),
        ("id", "neither a spec nor a dict: write join="),
        (None, "neither a spec nor a dict"),
    ],
)
def test_wrong_joins_say_what_to_do(value: Any, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        JoinSpec.coerce(value)


def test_a_float_window_outside_the_dict_form_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigurationError, match=r"timedelta\(seconds=5\)"):
        JoinSpec(by_id, 5.0)  # type: ignore[arg-type]  # what users do


# --- batch --------------------------------------------------------------------------------------


def test_w11_dict_batch_works() -> None:
    assert BatchSpec.coerce({"size": 10, "timeout": 5.0}) == BatchSpec(10, 5 * SECOND)
    assert BatchSpec.coerce({"size": 10}) == BatchSpec(size=10)
    assert BatchSpec.coerce({"timeout": 5}) == BatchSpec(timeout=5 * SECOND)
    assert BatchSpec.coerce({"timeout": SECOND, "size": None}) == BatchSpec(timeout=SECOND)


def test_batch_in_microseconds() -> None:
    assert BatchSpec(timeout=timedelta(seconds=1.5)).timeout_us == 1_500_000
    assert BatchSpec(size=3).timeout_us == 0
    spec = BatchSpec(size=3)
    assert BatchSpec.coerce(spec) is spec


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ({}, "needs an end: give BatchSpec"),
        ({"size": None, "timeout": None}, "needs an end"),
        ({"size": 0}, "whole number from 1"),
        ({"size": 2.0}, "whole number from 1"),
        ({"size": True}, "whole number from 1"),
        ({"size": 5, "timeout": 0}, "duration above zero"),
        ({"size": 5, "timeout": -1.5}, "duration above zero"),
        ({"size": 5, "timeout": True}, "give a timedelta"),
        ({"size": 5, "timeout": float("nan")}, "duration that ends"),
        ({"size": 5, "wait": 1}, r"does not know 'wait': write batch=\{"),
        (10, "neither a spec nor a dict: write batch="),
    ],
)
def test_wrong_batches_say_what_to_do(value: Any, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        BatchSpec.coerce(value)


# --- schedule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "described"),
    [
        (
            ScheduleSpec(interval=SECOND, after=timedelta(0), max_repeats=3),
            {"interval_s": 1.0, "after_s": 0.0, "max_repeats": 3},
        ),
        (ScheduleSpec(at=time(9, 30)), {"at": "09:30:00"}),
        (ScheduleSpec(at=datetime(2026, 1, 31, 9, tzinfo=UTC)), {"at": "2026-01-31T09:00:00+00:00"}),
        (ScheduleSpec(cron="0 9 * * 1-5"), {"cron": "0 9 * * 1-5"}),
    ],
)
def test_schedules_describe_themselves_in_json(spec: ScheduleSpec, described: dict[str, Any]) -> None:
    assert spec.describe() == described
    assert json.loads(json.dumps(described)) == described
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({}, r"exactly one of .* this one has none"),
        ({"interval": SECOND, "cron": "* * * * *"}, "this one has interval and cron"),
        ({"after": SECOND}, "exactly one of"),
        ({"interval": timedelta(0)}, "duration above zero"),
        ({"interval": -SECOND}, "duration above zero"),
        ({"interval": 5}, "give a timedelta"),
        ({"interval": SECOND, "after": -SECOND}, "duration from zero up"),
        ({"interval": SECOND, "max_repeats": 0}, "whole number from 1"),
        ({"at": datetime(2026, 1, 31, 9)}, "is naive: give it a time zone"),
        ({"at": "09:30"}, r"write at=time\(9, 30\)"),
        ({"cron": 5}, "does not have five fields"),
    ],
)
def test_wrong_schedules_say_what_to_do(fields: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        ScheduleSpec(**fields)


@pytest.mark.parametrize(
    "cron",
    [
        "* * * * *",
        "*/15 0-23/2 1,15 JAN-dec mon-FRI",
        "0 9 * * 1-5",
        "59 23 31 12 7",
        "0 0 * * fri-sun",
        "0 0 * * 0,6",
        "5/10 * * * *",
    ],
)
def test_good_cron_expressions(cron: str) -> None:
    assert ScheduleSpec(cron=cron).cron == cron


@pytest.mark.parametrize(
    ("cron", "advice"),
    [
        ("every minute", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("", "five fields"),
        ("60 * * * *", "'60' as minute"),
        ("* 24 * * *", "'24' as hour"),
        ("* * 0 * *", "'0' as day of month"),
        ("* * * 13 *", "'13' as month"),
        ("* * * * 8", "'8' as day of week"),
        ("* * * mon *", "'mon' as month.*jan to dec"),
        ("5-1 * * * *", "'5-1' as minute"),
        ("*/0 * * * *", "as minute"),
        ("*/ * * * *", "as minute"),
        ("1,,2 * * * *", "as minute"),
        ("-5 * * * *", "as minute"),
        ("1-2-3 * * * *", "as minute"),
        ("\u0661 * * * *", "as minute"),
        ("+1 * * * *", "as minute"),
    ],
)
def test_a_bad_cron_expression_is_refused_and_not_run_every_minute(cron: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        ScheduleSpec(cron=cron)


@given(st.text(st.sampled_from("0123456789*/-, monsu"), max_size=24))
def test_what_is_accepted_as_cron_is_accepted_by_croniter(text: str) -> None:
    from croniter import croniter

    try:
        ScheduleSpec(cron=text)
    except ConfigurationError:
        return
    assert croniter.is_valid(text)


@given(st.tuples(*(st.integers(0, 6) for _ in range(5))), st.integers(1, 9))
def test_plain_and_stepped_numbers_are_accepted(numbers: tuple[int, ...], step: int) -> None:
    minute, hour, day, month, weekday = numbers
    ScheduleSpec(cron=f"{minute}-59/{step} {hour} {day + 1} {month + 1} {weekday}")


# --- fan-out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (1, None),
        (3, FanOutRange(3, 3)),
        ((2, 5), FanOutRange(2, 5)),
        (FanOutRange(1, 4), FanOutRange(1, 4)),
    ],
)
def test_fan_out_forms(value: Any, expected: FanOutRange | None) -> None:
    assert normalize_fan_out(value) == expected


def test_fan_out_fixed() -> None:
    assert FanOutRange(3, 3).is_fixed
    assert not FanOutRange(min=1, max=3).is_fixed


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (0, "whole number from 1, or a pair"),
        (-2, "whole number from 1"),
        (True, "whole number from 1"),
        (2.0, "whole number from 1"),
        ("3", "whole number from 1"),
        ((5, 2), "Swap them"),
        ((0, 2), r"FanOutRange\(min=\.\.\.\) is 0"),
        ((1, 2, 3), r"write fan_out=\(min, max\)"),
        ((), r"write fan_out=\(min, max\)"),
    ],
)
def test_wrong_fan_outs_say_what_to_do(value: Any, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        normalize_fan_out(value)
