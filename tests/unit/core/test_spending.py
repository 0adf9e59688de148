"""Calls of attempts without a result, and of nobody's run: counted once, and found again by a recovery."""

from __future__ import annotations

import msgspec
import pytest

from flock_ray.core import spending
from flock_ray.core.ids import slot_of
from flock_ray.core.model_calls import ModelCall
from flock_ray.core.records import Record, decode_record, encode_record
from flock_ray.core.shard import ShardCore
from flock_ray.core.wire import GrantBatch, Task
from tests.unit.core.permits import permit
from tests.unit.core.test_shard import ALL, SINGLE, core_with, done, posting, taken

CALL = ModelCall("m/x", input_tokens=100, output_tokens=10, cost_usd=0.5)


def lost(core: ShardCore) -> Task:
    """Lose the worker of a published activation."""
    core.publish(posting("a", SINGLE), 1)
    [task] = taken(core)
    core.worker_lost("worker", 2)
    return task


def told(core: ShardCore, now_us: int = 3) -> list[bool]:
    """Do what a host does: find out what lost attempts have asked, and say so."""
    found, core.lost_attempts = core.lost_attempts, []
    return [
        core.spent(one.slot, one.agent, one.workflow, (CALL,), now_us, lost=(one.activation, one.attempt))
        for one in found
    ]


def calls(core: ShardCore) -> int:
    return sum(row.calls for slot in core.slots.values() for row in slot.usage.values())


def of_workflow(core: ShardCore, name: str = "w") -> int:
    return sum(row.calls for row in core.slots[slot_of(name)].workflows[name].usage or ())


def again(core: ShardCore) -> Task:
    core.dispatch.grant(GrantBatch(2, 1000.0, [permit("one", "other", 9, 9)]), 4)
    [task] = taken(core)
    return task


def test_calls_of_an_attempt_whose_worker_died_are_counted_beside_those_of_the_next() -> None:
    core = core_with(SINGLE)
    first = lost(core)
    assert [(one.activation, one.attempt) for one in core.lost_attempts] == [(first.id, first.attempt)]
    assert told(core) == [True]

    assert core.complete(msgspec.structs.replace(done(again(core)), calls=(CALL,)), 5)

    assert calls(core) == of_workflow(core) == 2


def test_a_result_that_comes_after_all_does_not_count_its_calls_again() -> None:
    core = core_with(SINGLE)
    first = lost(core)
    told(core)
    again(core)

    assert core.complete(msgspec.structs.replace(done(first), calls=(CALL,)), 5)

    assert calls(core) == 1


def test_what_is_told_after_the_result_came_after_all_is_not_counted_again() -> None:
    core = core_with(SINGLE)
    first = lost(core)
    again(core)
    assert core.complete(msgspec.structs.replace(done(first), calls=(CALL,)), 5)

    assert told(core) == [True, True]

    # One call of the result, and one of the other attempt, which was stopped.
    assert calls(core) == 2


def test_the_same_told_twice_counts_once() -> None:
    core = core_with(SINGLE)
    lost(core)
    [one] = core.lost_attempts
    told(core)
    core.lost_attempts = [one]

    assert told(core) == [True]

    assert calls(core) == 1


def test_calls_of_a_cancelled_workflow_are_counted() -> None:
    core = core_with(SINGLE)
    core.publish(posting("a", SINGLE), 1)
    taken(core)
    core.cancel("w", 2)

    assert told(core) == [True]

    assert calls(core) == of_workflow(core) == 1


def test_what_was_never_handed_out_is_not_asked_about() -> None:
    core = core_with(SINGLE)
    core.publish(posting("a", SINGLE), 1)
    core.cancel("w", 2)

    assert core.lost_attempts == []


def test_calls_of_no_run_belong_to_no_workflow_and_a_foreign_slot_is_refused() -> None:
    core = ShardCore([7])

    assert core.spent(7, "external", "", (CALL,), 1)
    assert not core.spent(8, "external", "", (CALL,), 1)

    assert calls(core) == 1
    assert core.slots[7].workflows == {}


def test_a_replay_counts_the_same() -> None:
    core = core_with(SINGLE)
    log = core.records  # nobody takes them out
    first = lost(core)
    told(core)
    core.complete(msgspec.structs.replace(done(first), calls=(CALL,)), 5)
    core.spent(slot_of("w"), "external", "", (CALL, CALL), 6)

    copy = ShardCore(ALL)
    for record in log:
        read: Record = decode_record(encode_record(record))
        copy.replay(read)

    assert [slot.usage for slot in copy.slots.values()] == [slot.usage for slot in core.slots.values()]
    assert of_workflow(copy) == of_workflow(core) == 1
    assert calls(copy) == 3


def test_attempts_that_nobody_asks_about_take_no_memory_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "MAX_LOST", 20)
    core = core_with(SINGLE)
    for number in range(50):
        core.publish(posting(str(number), SINGLE, f"w{number}"), 1)
        taken(core)
        core.cancel(f"w{number}", 2)
        core.dispatch.grant(GrantBatch(2 + number, 1000.0, [permit("one", "worker", 9, 9)]), 2)
    assert len(core.lost_attempts) == len(core._fates) == 20
