from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from examples.review.measure import STAGES, RunFacts, Tracker, percentile
from examples.review.progress import Bars, Lines, View, choose_view

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Seen:
    type: str
    id: int
    payload: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime = START


def seen(kind: str, number: int, *, path: str = "a.py", after_s: float = 0) -> Seen:
    return Seen(kind, number, {"path": path}, START + timedelta(seconds=after_s))


def test_artifacts_are_counted_by_type_and_each_once() -> None:
    tracker = Tracker(2)

    for artifact in (seen("SourceFile", 1), seen("SourceFile", 2, path="b.py"), seen("SourceFile", 1)):
        tracker.observe(artifact)
    tracker.observe(seen("examples.review.types.FileReview", 3))

    assert {"SourceFile": 2, "FileReview": 1} == dict(tracker.counts)
    assert not tracker.is_complete


def test_latency_is_from_read_to_joined_for_each_file() -> None:
    tracker = Tracker(3)
    for number, (path, read, joined) in enumerate([("a", 0, 2), ("b", 1, 1.5), ("c", 5, 4)]):
        tracker.observe(seen("FileReview", 100 + number, path=path, after_s=joined))
        tracker.observe(seen("SourceFile", number, path=path, after_s=read))
    tracker.observe(seen("SourceFile", 50, path="unfinished"))

    # The clock of another machine may be behind: a negative time is no time.
    assert [0.0, 0.5, 2.0] == tracker.latencies_s()


def test_the_tree_report_ends_the_review() -> None:
    tracker = Tracker(0)

    tracker.observe(Seen("TreeReport", 1))

    assert tracker.is_complete


def test_errors_are_kept_in_one_printable_line() -> None:
    tracker = Tracker(1)

    tracker.observe(
        Seen(
            "WorkflowError",
            1,
            {"failed_agent": "risks", "error_type": "ValueError", "error_message": "bad\n\x1b[31mred"},
        )
    )
    tracker.observe(Seen("WorkflowError", 2, {}))

    assert ["risks: ValueError: bad  [31mred", "an agent: error:"] == tracker.errors


@pytest.mark.parametrize(
    ("expected", "values", "share"),
    [
        (0, [], 0.5),
        (7, [7], 0.95),
        (2, [1, 2, 3, 4], 0.5),
        (2, [1, 2, 3], 0.5),
        (95, list(range(1, 101)), 0.95),
        (1, [1, 2], 0.0),
    ],
)
def test_percentiles_are_values_that_occurred(expected: float, values: list[float], share: float) -> None:
    assert expected == percentile(values, share)


def test_rates_are_per_second_of_work_and_survive_no_time() -> None:
    facts = RunFacts("/x", 4, START, 9.0, 2.0, {"SourceFile": 4, "FileReview": 4}, 0.1, 0.2)

    assert (4, 8, 2.0, 4.0) == (facts.files, facts.artifacts, facts.files_per_s, facts.artifacts_per_s)
    assert 0 == RunFacts("/x", 0, START, 0.0, 0.0, {}, 0.0, 0.0).files_per_s


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    out = io.StringIO()
    now = 0.0
    tracker = Tracker(2)
    with Lines(Console(file=out, width=100), every_s=2.0, clock=lambda: now) as view:
        for number, kind in enumerate(("SourceFile", *STAGES)):
            tracker.observe(seen(kind, number))
            now += 0.5
            view.update(tracker)
        tracker.observe(Seen("TreeReport", 99))
        view.update(tracker)

    assert [
        "read 2/2, analysed 0/2, joined 0/2",
        "read 2/2, analysed 1/2, joined 1/2",
    ] == out.getvalue().splitlines()


def test_bars_show_every_stage() -> None:
    out = io.StringIO()
    tracker = Tracker(1)
    console = Console(file=out, force_terminal=True, width=100)
    with Bars(console, 1) as view:
        for number, kind in enumerate(STAGES):
            tracker.observe(seen(kind, number))
            view.update(tracker)
            view.update(tracker)

    last = out.getvalue()
    assert all(label in last for label in STAGES.values())
    assert "1/1" in last


@pytest.mark.parametrize(
    ("expected", "terminal", "quiet"),
    [(Bars, True, False), (Lines, False, False), (View, True, True), (View, False, True)],
)
def test_the_view_fits_where_it_is_shown(expected: type[View], terminal: bool, quiet: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)

    assert expected is type(choose_view(console, total=1, quiet=quiet))
