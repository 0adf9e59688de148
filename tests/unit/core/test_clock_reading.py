"""Which predicates read the clock, as far as their code shows."""

from __future__ import annotations

import datetime as dt
import time as clock
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from functools import partial
from typing import Any

import pytest

import flock_ray
from flock_ray import now
from flock_ray.core.clock_reading import clock_read_by

anything: Any = object()


def old(doc: Any) -> bool:
    return bool(datetime.now() - doc.created_at > timedelta(days=30))


class Old:
    def __call__(self, doc: Any) -> bool:
        return old(doc)

    def method(self, doc: Any) -> bool:
        return bool(date.today() > doc.day)


def closed_over() -> Callable[[Any], bool]:
    present = datetime.now
    return lambda doc: bool(present() > doc.at)


@pytest.mark.parametrize(
    ("predicate", "name"),
    [
        (lambda d: (datetime.now() - d.created_at) > timedelta(days=30), "datetime.now"),
        (lambda d: dt.datetime.utcnow() > d.at, "dt.datetime.utcnow"),
        (lambda d: clock.time() > d.at, "clock.time"),
        (lambda d: now() > d.at, "now"),
        (lambda d: flock_ray.now() > d.at, "flock_ray.now"),
        (lambda d: any(at > clock.time_ns() for at in d.times), "clock.time_ns"),
        (lambda d: anything.now() > d.at, "anything.now"),
        (lambda d: old(d), "datetime.now"),
        (partial(old), "datetime.now"),
        (Old(), "datetime.now"),
        (Old().method, "date.today"),
    ],
)
def test_a_predicate_that_reads_the_clock_is_found_out(predicate: Callable[[Any], Any], name: str) -> None:
    assert clock_read_by(predicate) == name


@pytest.mark.parametrize(
    "predicate",
    [
        lambda d: d.time > 3,
        lambda d: d.now,
        lambda d: d.today() > 3,
        lambda d: d.at < time(9),
        lambda d: datetime(2020, 1, 1) > d.at,
        lambda d: 1 // d.key > 0,
        lambda time: time.time > 3,
        str,
    ],
)
def test_fields_of_these_names_and_fixed_times_are_no_clock(predicate: Callable[[Any], Any]) -> None:
    assert clock_read_by(predicate) is None


def test_a_function_that_calls_itself_is_looked_into_once() -> None:
    assert clock_read_by(recursive) is None


def recursive(doc: Any) -> bool:
    return recursive(doc)
