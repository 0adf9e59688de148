"""The event log of a shard."""

from __future__ import annotations

from flock_ray.core.events import EventLog
from flock_ray.core.wire import Completion, ErrorInfo


def filled(count: int, limit: int = 10) -> EventLog:
    log = EventLog(limit)
    for number in range(count):
        log.note(
            number, "a.one" if number % 2 else "b.two", correlation_id=f"w{number % 4}", detail=str(number)
        )
    return log


def details(log: EventLog, after: int = 0, limit: int = 100, **options: object) -> list[str]:
    return [event.detail for event in log.read(after, limit, **options)[0]]  # type: ignore[arg-type]  # numbers and names


def test_reading_goes_on_from_the_position_it_returned_also_when_nothing_fitted() -> None:
    log = filled(6)
    first, position = log.read(0, 2)
    rest, end = log.read(position, 100)
    assert [event.detail for event in first + rest] == ["0", "1", "2", "3", "4", "5"]
    assert [event.seq for event in rest] == [3, 4, 5, 6]
    assert log.read(end, 100) == ([], end)
    assert log.read(0, 100, kinds=frozenset({"nothing"})) == ([], end)


def test_kinds_families_and_workflows_select() -> None:
    log = filled(8)
    assert details(log, kinds=frozenset({"a.one"})) == ["1", "3", "5", "7"]
    assert details(log, kinds=frozenset({"b"}), correlation_id="w2") == ["2", "6"]


def test_the_log_is_bounded_and_a_late_reader_is_told_how_much_it_missed() -> None:
    log = filled(1000, limit=10)
    assert len(log.read(0, 10_000)[0]) <= 20
    gap, first = log.read(5, 2)[0]
    assert gap.kind == "gap"
    # Whoever reads for the first time gets what is kept, without a complaint.
    assert log.read(0, 1)[0][0].kind != "gap"
    assert gap.detail.startswith(f"{int(first.detail) - 5} events")
    # The gap is reported once.
    assert log.read(gap.seq, 1)[0] == [first]


def test_completions_are_bounded_too_and_name_agent_workflow_and_error() -> None:
    log = EventLog(10)
    failed = Completion(b"a" * 16, 1, 0, error=ErrorInfo("ValueError", "no"))
    for _ in range(1000):
        log.completed(1, "agent", "w", failed)
    event = log.read(log.head - 1, 1, correlation_id="w")[0][0]
    assert (event.kind, event.agent, event.detail) == ("activation.failed", "agent", "ValueError: no")
    assert len(log.read(0, 10_000)[0]) <= 20
