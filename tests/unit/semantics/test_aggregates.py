"""Aggregates as users meet them: what is decided, when, and what one sees of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from pydantic import BaseModel

from flock_ray import (
    Aggregated,
    AggregationStrategy,
    Context,
    DeadLetterQueue,
    SessionWindow,
    SlidingWindow,
    TumblingWindow,
    WorkflowError,
    flock_type,
)
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.engines.component import AgentComponent
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual

S = AggregationStrategy
MINUTE = timedelta(minutes=1)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@flock_type(name="agg.Ask")
class Ask(BaseModel):
    n: int = 0


@flock_type(name="agg.Vote")
class Vote(BaseModel):
    ok: bool | None = None
    color: Color = Color.RED
    order: list[str] = []
    weight: float = 1.0
    group: str = "a"
    at: datetime | None = None


@flock_type(name="agg.Result")
class Result(BaseModel):
    ok: bool | None = None
    color: Color | None = None
    order: list[str] = []
    tally: dict[str, float] = {}
    group: str | None = None
    ballots: int = 0
    abstentions: int = 0
    missing: int = 0
    reason: str = ""
    revision: int = 0


@flock_type(name="agg.Sure")
class Sure(BaseModel):
    ok: bool


@flock_type(name="agg.Span")
class Span(BaseModel):
    window_start: datetime
    window_end: datetime
    groups: list[str]


async def kinds(flock: VirtualFlock, family: str = "aggregate") -> list[str]:
    assert flock.local is not None
    (shard,) = flock.local.shards
    assert shard is not None
    events, _ = shard.core.events.read(0, 10_000, kinds=frozenset({family}))
    return [event.kind.partition(".")[2] for event in events]


def results(
    votes: list[Vote], into: type[BaseModel] = Result, wait: timedelta = timedelta(0), **options: Any
) -> list[Any]:
    """Publish votes as one workflow, and return what an agent made of them."""

    async def main() -> list[Any]:
        async with VirtualFlock() as flock:
            flock.agent("judge").aggregates(Vote, into=into, **options)
            await flock.publish_many(votes)
            await flock.run_until_idle()
            await asyncio.sleep(wait.total_seconds())
            await flock.run_until_idle()
            assert not await flock.store.get_by_type(WorkflowError)
            return await flock.store.get_by_type(into)

    return run_virtual(main())


def test_a_vote_of_an_enum_comes_back_as_one() -> None:
    (result,) = results([Vote(color=c) for c in (Color.BLUE, Color.RED, Color.BLUE)], strategy=S.MAJORITY_VOTE,
                        field="color")  # fmt: skip
    assert (Color.BLUE, {'"blue"': 2, '"red"': 1}) == (result.color, result.tally)


def test_a_vote_by_function_needs_a_mapping() -> None:
    (result,) = results([Vote(group=g) for g in "aab"], strategy=S.MAJORITY_VOTE, field=lambda v: v.group.upper(),
                        mapping={"group": lambda a: a.value, "reason": lambda a: f"{a.ballots} voted"})  # fmt: skip
    assert ("A", "3 voted") == (result.group, result.reason)


def test_weights_may_be_a_field() -> None:
    votes = [Vote(ok=True, weight=0.4), Vote(ok=True, weight=0.3), Vote(ok=False, weight=1.5)]
    (result,) = results(votes, strategy=S.WEIGHTED_VOTE, field="ok", weights="weight")
    assert (False, {"true": 0.7, "false": 1.5}) == (result.ok, result.tally)


def test_rankings_give_an_order() -> None:
    votes = [Vote(order=list(order)) for order in ("abc", "bca", "bac")]
    (result,) = results(votes, strategy=S.RANK, field="order")
    assert (["b", "a", "c"], {"a": 3, "b": 5, "c": 1}) == (result.order, result.tally)


def test_merge_makes_the_result_of_the_list() -> None:
    merge = S.MERGE(lambda votes: Result(group="".join(v.group for v in votes)))
    assert ["xyz"] == [r.group for r in results([Vote(group=g) for g in "xyz"], strategy=merge)]


def test_a_function_breaks_a_tie() -> None:
    def pick(aggregated: Aggregated) -> Any:
        return sorted(aggregated.tied, key=lambda color: color.value)[0]

    votes = [Vote(color=Color.RED), Vote(color=Color.BLUE)]
    (result,) = results(votes, strategy=S.MAJORITY_VOTE, field="color", tie=pick)
    assert Color.BLUE is result.color


def test_a_tie_between_inputs_is_broken_by_a_function_of_the_inputs() -> None:
    votes = [Vote(group="x"), Vote(group="y")]
    options: dict[str, Any] = {"strategy": S.MAX_BY, "score": "weight"}
    assert ["x"] == [r.group for r in results(votes, **options)]
    assert ["y"] == [r.group for r in results(votes, tie=lambda a: a.tied[-1], **options)]


def test_without_an_outcome_nothing_is_published_unless_the_result_has_a_place_for_none() -> None:
    votes = [Vote(ok=True), Vote(ok=False)]
    options: dict[str, Any] = {"strategy": S.UNANIMOUS, "field": "ok"}
    assert [None] == [r.ok for r in results(votes, **options)]
    assert [] == results(votes, into=Sure, **options)


def test_what_inputs_agree_on_is_taken_over_and_what_they_do_not_is_none_or_an_error() -> None:
    assert ["a"] == [r.group for r in results([Vote(), Vote()])]
    assert [None] == [r.group for r in results([Vote(), Vote(group="b")])]

    class Strict(BaseModel):
        group: str

    async def main() -> list[WorkflowError]:
        async with VirtualFlock() as flock:
            flock.agent("judge").aggregates(Vote, into=Strict)
            await flock.publish_many([Vote(), Vote(group="b")])
            await flock.run_until_idle()
            return await flock.store.get_by_type(WorkflowError)

    (error,) = run_virtual(main())
    assert "OutputContractError" == error.error_type
    assert "group them with by='group'" in error.error_message


def test_a_ballot_function_that_raises_refuses_the_artifact_visibly() -> None:
    async def main() -> tuple[list[str], list[str], str]:
        async with VirtualFlock() as flock:
            flock.agent("judge").aggregates(
                Vote, into=Result, strategy=S.MAX_BY, score=lambda v: 1 / v.weight, trigger_on_count=2
            )
            bad, *_ = await flock.publish_many([Vote(weight=0), Vote(), Vote(weight=2)])
            await flock.run_until_idle()
            made = [r.reason for r in await flock.store.get_by_type(Result)]
            return made, await kinds(flock, "match"), str(await flock.why(bad))

    made, refused, why = run_virtual(main())
    assert (["count"], ["refused"]) == (made, refused)
    assert "NO  ballot: ZeroDivisionError" in why


def test_why_and_the_status_say_what_a_group_has_and_waits_for() -> None:
    async def main() -> tuple[str, str, tuple[str, ...]]:
        async with VirtualFlock() as flock:
            flock.agent("judge").aggregates(
                Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok", trigger_on_count=5, timeout=MINUTE
            )
            first, *_ = await flock.publish_many([Vote(ok=True), Vote(ok=None), Vote(ok=False)])
            await flock.run_until_idle()
            status = await flock.workflow_status(first)
            why = str(await flock.why(first))
            return status.state, why, status.waiting_for

    state, why, waiting = run_virtual(main())
    assert "waiting" == state
    wanted = "has 3 (true: 1, false: 1, 1 abstain), waits for 2 more of 5 or its timeout"
    assert (f"judge/agg.Vote~aggregate: holds 3, {wanted}",) == waiting
    assert wanted in why
    assert "ok  ballot: true" in why


def test_an_early_decision_cancels_model_calls_that_are_on_their_way() -> None:
    async def main() -> tuple[list[Result], ScriptedModel, list[str]]:
        calls = 0

        async def answer(_: Any) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            await asyncio.sleep(calls)
            return {"ok": True}

        model = ScriptedModel(answer)
        async with VirtualFlock(language_model=model) as flock:
            flock.agent("chair").consumes(Ask).publishes(Sure, fan_out=5).runs(
                lambda ask: [Sure(ok=True) for _ in range(5)]
            )
            flock.agent("reviewer").consumes(Sure).publishes(Vote).max_concurrency(5)
            flock.agent("judge").aggregates(
                Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok", trigger_on_count=5
            )
            await flock.publish(Ask())
            await flock.run_until_idle()
            return await flock.store.get_by_type(Result), model, await kinds(flock, "activation")

    (result,), model, events = run_virtual(main())
    assert (True, "early", 2) == (result.ok, result.reason, result.missing)
    assert (5, 2) == (len(model.requests), model.cancelled)
    assert 2 == events.count("withdrawn")


def test_early_false_waits_for_every_vote() -> None:
    votes = [Vote(ok=True)] * 3
    (result,) = results(votes, strategy=S.MAJORITY_VOTE, field="ok", trigger_on_count=3, early=False)
    assert ("count", 3) == (result.reason, result.ballots)


def test_a_group_that_gets_too_little_is_an_error_or_is_let_go() -> None:
    def run(on_timeout: str, votes: int) -> tuple[int, list[str], list[str]]:
        async def main() -> tuple[int, list[str], list[str]]:
            async with VirtualFlock() as flock:
                flock.agent("judge").aggregates(
                    Vote,
                    into=Result,
                    trigger_on_count=3,
                    min_count=2,
                    timeout=MINUTE,
                    on_timeout=on_timeout,  # type: ignore[arg-type]
                )
                await flock.publish_many([Vote()] * votes)
                await asyncio.sleep(100)
                errors = [e.error_type for e in await flock.store.get_by_type(WorkflowError)]
                return len(await flock.store.get_by_type(Result)), errors, await kinds(flock)

        return run_virtual(main())

    failed = (0, ["AggregateIncompleteError"], ["failed"])
    assert (1, [], ["decided"]) == run("partial", 2)
    assert failed == run("partial", 1)
    assert failed == run("fail", 2)
    assert (0, [], ["discarded"]) == run("discard", 2)


def test_a_dead_letter_of_a_group_runs_on_what_there_is_when_it_is_redriven() -> None:
    async def main() -> list[Result]:
        async with VirtualFlock() as flock:
            flock.agent("judge").retry(max_attempts=1, dead_letter=DeadLetterQueue("open")).aggregates(
                Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok", trigger_on_count=3, timeout=MINUTE,
                on_timeout="fail",
            )  # fmt: skip
            await flock.publish_many([Vote(ok=False), Vote(ok=True)])
            await asyncio.sleep(100)
            (letter,) = (await flock.dead_letters.list()).letters
            await flock.dead_letters.redrive(letter.id, by="ann")
            await flock.run_until_idle()
            return await flock.store.get_by_type(Result)

    (result,) = run_virtual(main())
    assert (False, "direct", 2) == (result.ok, result.reason, result.ballots)


def test_late_votes_are_events_and_correct_the_result_when_that_is_asked_for() -> None:
    def run(on_late: str) -> tuple[list[tuple[bool | None, int]], list[str]]:
        async def late(ask: Ask) -> Vote:
            await asyncio.sleep(120)
            return Vote(ok=False)

        async def main() -> tuple[list[tuple[bool | None, int]], list[str]]:
            async with VirtualFlock() as flock:
                for name in ("slow", "slower"):
                    flock.agent(name).consumes(Ask).publishes(Vote).runs(late)
                flock.agent("judge").aggregates(
                    Vote,
                    into=Result,
                    strategy=S.MAJORITY_VOTE,
                    field="ok",
                    timeout=MINUTE,
                    early=False,
                    on_late=on_late,  # type: ignore[arg-type]
                )
                await flock.publish_many([Ask(), Vote(ok=True)])
                await flock.run_until_idle()
                made = [(r.ok, r.revision) for r in await flock.store.get_by_type(Result)]
                return made, await kinds(flock)

        return run_virtual(main())

    assert ([(True, 0)], ["decided", "late", "late"]) == run("event")
    # One against one stays as it is, as ties go to the first; two against one do not.
    assert ([(True, 0), (False, 1)], ["decided", "late", "corrected"]) == run("correct")


def test_rounds_begin_anew_after_each_decision() -> None:
    made = results([Vote(group=g) for g in "aabb"], trigger_on_count=2, repeat=True)
    assert ["a", "b"] == [r.group for r in made]


def test_groups_by_key_meet_over_workflows() -> None:
    async def main() -> list[tuple[str | None, int]]:
        async with VirtualFlock() as flock:
            flock.agent("judge").aggregates(Vote, into=Result, by="group", trigger_on_count=2)
            for group in "abba":
                await flock.publish(Vote(group=group))
            await flock.run_until_idle()
            return [(r.group, r.ballots) for r in await flock.store.get_by_type(Result)]

    assert [("a", 2), ("b", 2)] == sorted(run_virtual(main()))


def test_keys_within_a_workflow_are_decided_when_nothing_more_comes() -> None:
    made = results([Vote(group=g) for g in "abba"], by="group", scope="workflow")
    assert [("a", "quiet"), ("b", "quiet")] == sorted((r.group, r.reason) for r in made)


def test_a_function_gets_the_inputs_and_the_decision() -> None:
    def judge(ctx: Context, votes: list[Vote]) -> Result:
        assert ctx.aggregated is not None
        return Result(ok=ctx.aggregated.value, ballots=len(votes), reason=ctx.aggregated.reason)

    async def main() -> list[Result]:
        async with VirtualFlock() as flock:
            flock.agent("judge").aggregates(
                Vote, into=Result, strategy=S.QUORUM(2), field="ok", trigger_on_count=9
            ).runs(judge)
            await flock.publish_many([Vote(ok=False), Vote(ok=True), Vote(ok=False)])
            await flock.run_until_idle()
            return await flock.store.get_by_type(Result)

    (result,) = run_virtual(main())
    assert (False, 3, "early") == (result.ok, result.ballots, result.reason)


def test_an_agent_that_is_invoked_decides_on_what_it_gets() -> None:
    async def main() -> list[Any]:
        async with VirtualFlock() as flock:
            judge = flock.agent("judge").aggregates(Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok")
            return [a.model() for a in await flock.invoke(judge, Vote(ok=False))]

    (result,) = run_virtual(main())
    assert (False, "direct") == (result.ok, result.reason)


class Censor(AgentComponent):
    """Nobody may see groups."""

    async def on_pre_consume(self, agent: Any, ctx: Context, inputs: list[Any]) -> list[Any]:
        return [a.model_copy(update={"payload": {**a.payload, "group": "***"}}) for a in inputs]


def test_what_components_hide_of_the_inputs_is_not_in_the_result() -> None:
    async def main() -> list[Result]:
        async with VirtualFlock() as flock:
            flock.agent("judge").aggregates(Vote, into=Result).with_utilities(Censor())
            await flock.publish_many([Vote(group="secret")])
            await flock.run_until_idle()
            return await flock.store.get_by_type(Result)

    assert ["***"] == [r.group for r in run_virtual(main())]


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def spans(seconds: list[int], wait: timedelta = 10 * MINUTE, **options: Any) -> list[tuple[int, int, str]]:
    """Publish readings at these times, each in a workflow of its own, and return the windows."""

    async def main() -> list[tuple[int, int, str]]:
        async with VirtualFlock() as flock:
            flock.agent("judge").aggregates(
                Vote, into=Span, event_time="at", mapping={"groups": "group"}, **options
            )
            for number, second in enumerate(seconds):
                await flock.publish(Vote(at=NOON + timedelta(seconds=second), group=str(number)))
            await flock.run_until_idle()
            await asyncio.sleep(wait.total_seconds())
            await flock.run_until_idle()
            made = await flock.store.get_by_type(Span)

            def from_noon(at: datetime) -> int:
                return int((at - NOON).total_seconds())

            return [(from_noon(s.window_start), from_noon(s.window_end), "".join(s.groups)) for s in made]

    return run_virtual(main())


def test_windows_are_decided_when_event_time_has_passed_them_and_the_rest_after_a_pause() -> None:
    window, late = TumblingWindow(MINUTE), timedelta(seconds=10)
    options: dict[str, Any] = {"window": window, "allowed_lateness": late, "timeout": MINUTE}
    assert [(0, 60, "01"), (60, 120, "2")] == spans([5, 50, 65], **options)
    assert [(0, 60, "013"), (60, 120, "24")] == spans([5, 50, 65, 40, 75, 30], **options)
    assert [(0, 60, "0")] == spans([5, 70], **{**options, "timeout": None}, wait=MINUTE)


def test_sliding_windows_share_inputs() -> None:
    window = SlidingWindow(MINUTE, timedelta(seconds=30))
    assert [(-30, 30, "0"), (0, 60, "01"), (30, 90, "1")] == spans([5, 45], window=window, timeout=MINUTE)


def test_sessions_end_with_a_pause() -> None:
    window = SessionWindow(MINUTE)
    assert [(0, 110, "01"), (200, 260, "2")] == spans([0, 50, 200], window=window, timeout=MINUTE)


def test_a_group_goes_on_collecting_after_a_restart_and_decides_once() -> None:
    def declared(flock: VirtualFlock) -> VirtualFlock:
        flock.agent("judge").aggregates(
            Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok", trigger_on_count=5
        )
        return flock

    async def main() -> tuple[list[Result], list[str]]:
        keep = MemoryPersistence()
        async with declared(VirtualFlock(persistence=keep)) as flock:
            await flock.publish_many([Vote(ok=True), Vote(ok=True)], correlation_id="w")
            await flock.run_until_idle()
        async with declared(VirtualFlock(persistence=keep)) as flock:
            await flock.publish_many([Vote(ok=True)], correlation_id="w")
            await flock.run_until_idle()
        async with declared(VirtualFlock(persistence=keep)) as flock:
            await flock.publish_many([Vote(ok=False)] * 5, correlation_id="w")
            await flock.run_until_idle()
            return await flock.store.get_by_type(Result), await kinds(flock)

    made, events = run_virtual(main())
    assert [(True, "early", {"true": 3})] == [(r.ok, r.reason, r.tally) for r in made]
    assert ["late"] * 5 == events
