"""Records of calls: with the run, journaled, added up."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import SQLitePersistence, flock_type
from flock_ray.core.model_calls import MAX_CALLS, ModelCall, merged
from flock_ray.core.recovery import Recovery, snapshot_slot
from flock_ray.core.rows import Loaded, Snapshot
from flock_ray.core.shard import ShardCore
from flock_ray.core.usage import MAX_ROWS, UsageRow, added, book, rows_of
from flock_ray.engines.records import (
    RecordingModel,
    RunRecords,
    collecting,
    current_records,
    redacted,
)
from flock_ray.errors import ConfigurationError, ModelRequestError
from flock_ray.model import Caller, ModelReply, ModelRequest, Usage
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual


def declare(flock: VirtualFlock) -> tuple[type[Any], type[Any]]:
    @flock_type(name="Question")
    class Question(BaseModel):
        text: str

    @flock_type(name="Reply")
    class Reply(BaseModel):
        text: str

    flock.agent("oracle").description("Answers.").consumes(Question).publishes(Reply)
    return Question, Reply


def reply(request: ModelRequest) -> Any:
    if "bad" in str(request.messages):
        return ModelRequestError("no")
    usage = Usage(input_tokens=100, output_tokens=10, cached_tokens=40, cost_usd=0.25)
    return ModelReply(text='{"text": "yes"}', usage=usage, latency_s=2.0, model=request.model)


def test_usage_is_added_up_by_agent_and_model_failed_attempts_too() -> None:
    async def test() -> None:
        flock = VirtualFlock(language_model=ScriptedModel(reply))
        question, _ = declare(flock)
        first = await flock.publish(question(text="a"))
        await flock.publish(question(text="b"))
        failing = await flock.publish(question(text="bad"))
        await flock.run_until_idle()

        (row,) = await flock.usage()
        assert (row.agent, row.model, row.calls, row.failed) == ("oracle", "test/scripted", 3, 1)
        assert (row.input_tokens, row.output_tokens, row.cached_tokens, row.cost_usd) == (200, 20, 80, 0.5)
        (one,) = await flock.usage(workflow=first)
        assert (one.calls, one.cost_usd, one.mean_latency_s) == (1, 0.25, 2.0)
        (bad,) = await flock.usage(workflow=failing)
        assert (bad.calls, bad.failed) == (1, 1)
        assert await flock.usage(agent="nobody") == await flock.usage(model="x") == []
        assert len(await flock.usage(since=timedelta(hours=1))) == 1
        assert await flock.usage(since=timedelta(hours=-2)) == []
        with pytest.raises(ConfigurationError):
            await flock.usage(workflow=first, since=timedelta(hours=1))
        await flock.shutdown()

    run_virtual(test())


def test_an_attempt_that_times_out_is_counted_with_its_calls() -> None:
    async def test() -> None:
        def slow(request: ModelRequest) -> Any:
            return reply(request) if request.caller.attempt > 5 else asyncio.sleep(1000)

        flock = VirtualFlock(language_model=ScriptedModel(slow))
        question, _ = declare(flock)
        flock.get_agent("oracle").timeout(timedelta(seconds=5))
        await flock.publish(question(text="a"))
        await flock.run_until_idle()

        (row,) = await flock.usage()
        assert (row.calls, row.failed) == (1, 1)
        await flock.shutdown()

    run_virtual(test())


async def test_usage_survives_its_board(tmp_path: Path) -> None:
    for round_ in (1, 2):
        flock = VirtualFlock(
            language_model=ScriptedModel(reply), persistence=SQLitePersistence(tmp_path), namespace="kept"
        )
        question, _ = declare(flock)
        workflow = await flock.publish(question(text=f"{round_}"), correlation_id="w")
        await flock.run_until_idle()
        (row,) = await flock.usage()
        assert row.calls == round_
        (row,) = await flock.usage(workflow=workflow)
        assert row.calls == round_
        await flock.shutdown()


def test_usage_is_in_the_snapshot_of_its_slot() -> None:
    # Without it the sums would last until the journal is cut.
    core = ShardCore(range(4), durable=True)
    calls = (ModelCall(model="m", input_tokens=5, cost_usd=0.5),)
    book(core.slots[1].usage, rows_of("oracle", calls, 0))

    again = ShardCore(range(4), durable=True)
    Recovery(Loaded([Snapshot(1, 1, snapshot_slot(core, 1))], [], 1, 0)).rebuild(again, 1)

    assert again.slots[1].usage == core.slots[1].usage != {}


async def test_records_go_to_the_attempt_that_runs() -> None:
    model = RecordingModel(ScriptedModel(lambda _: "hi"), now_us=lambda: 5)
    asked = ModelRequest(model="m", messages=[], caller=Caller(tenant="t"))

    async def attempt() -> tuple[ModelCall, ...]:
        with collecting() as records:
            await asyncio.gather(model.complete(asked), model.complete(asked))
            return records.calls()

    both = await asyncio.gather(attempt(), attempt())

    assert [len(calls) for calls in both] == [2, 2]
    assert both[0][0].tenant == "t" and both[0][0].started_us == 5
    await model.complete(asked)  # outside of an attempt: nobody keeps it
    assert current_records().calls() == ()


async def test_text_is_kept_only_when_asked_for_and_without_secrets() -> None:
    asked = ModelRequest(
        model="m", messages=[{"role": "user", "content": "my key sk-abcdefghijklmnop1234 and card 4111"}]
    )
    for capture in ("none", "full"):
        model = RecordingModel(
            ScriptedModel(lambda _: "card 4111"), now_us=lambda: 0, capture=capture, redact=[r"\b4111\b"]
        )
        with collecting() as records:
            await model.complete(asked)
        (call,) = records.calls()
        if capture == "none":
            assert call.prompt == call.answer == ""
        else:
            assert "my key [redacted] and card [redacted]" in call.prompt
            assert call.answer == "card [redacted]"


def test_records_of_a_run_are_bounded_and_nothing_is_lost_in_the_sum() -> None:
    records = RunRecords()
    for _ in range(MAX_CALLS * 3):
        records.model_call(ModelCall("m", input_tokens=2, cost_usd=0.5))

    calls = records.calls()
    assert len(calls) == MAX_CALLS + 1
    assert sum(call.count for call in calls) == MAX_CALLS * 3
    assert sum(call.input_tokens for call in calls) == MAX_CALLS * 6
    assert merged(calls)[0].cost_usd == MAX_CALLS * 1.5


def test_calls_without_a_price_are_added_up_apart() -> None:
    priced = [ModelCall("m", cost_usd=0.5), ModelCall("m", cost_usd=0.25)]
    unpriced = [ModelCall("m"), ModelCall("m")]
    sums = merged([priced[0], unpriced[0], priced[1], unpriced[1]])
    assert [(one.count, one.cost_usd) for one in sums] == [(2, 0.75), (2, None)]


def test_captured_text_of_a_run_is_bounded() -> None:
    records = RunRecords()
    for _ in range(100):
        records.model_call(ModelCall("m", prompt="x" * 60_000))

    assert sum(len(call.prompt) for call in records.calls()) <= 1_048_576
    assert len(redacted("y" * 1_000_000)) < 70_000


def test_a_book_stays_bounded_and_keeps_every_sum() -> None:
    hours = 5000
    known: dict[Any, UsageRow] = {}
    for hour in range(hours):
        book(known, rows_of(f"agent-{hour % 7}", [ModelCall("m", cost_usd=1.0)], hour * 3_600_000_000))
        assert len(known) <= MAX_ROWS

    assert sum(row.calls for row in known.values()) == hours
    assert sum(row.cost_usd for row in added(known.values())) == pytest.approx(hours)
    newest = max(row.from_us for row in known.values())
    assert newest == (hours - 1) * 3_600_000_000


def test_what_almost_looks_like_tokens_costs_no_more_than_other_text() -> None:
    # Each `-eyJ` began a search to the end of the text: a hostile prompt held up its worker for minutes.
    assert redacted("-eyJaaaaaaaa" * 5_000).startswith("-eyJ")


def test_a_book_with_too_many_names_stays_bounded_and_keeps_every_sum() -> None:
    known: dict[Any, UsageRow] = {}
    for tenant in range(3 * MAX_ROWS):
        row = UsageRow("agent", "m", tenant=f"tenant-{tenant}", calls=1)
        book(known, [row])
        assert len(known) <= MAX_ROWS + 1

    assert sum(row.calls for row in known.values()) == 3 * MAX_ROWS
