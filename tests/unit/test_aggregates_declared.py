"""What `.aggregates()` takes, and what it refuses with a word of advice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import (
    Aggregated,
    AggregationStrategy,
    Flock,
    SessionWindow,
    SlidingWindow,
    TumblingWindow,
)
from flock_ray.agent import AgentBuilder
from flock_ray.core.check import Finding
from flock_ray.core.registry import TypeRegistry
from flock_ray.errors import ConfigurationError

S = AggregationStrategy
MINUTE = timedelta(minutes=1)


class Color(Enum):
    RED = "red"


class Vote(BaseModel):
    ok: bool
    color: Color = Color.RED
    order: list[str] = []
    weight: float = 1.0
    at: datetime | None = None
    text: str = ""


class Result(BaseModel):
    ok: bool | None = None


class Texts(BaseModel):
    texts: list[str]


def agent() -> AgentBuilder:
    return AgentBuilder("judge", registry=TypeRegistry())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "majority"}, "is none: write strategy=AggregationStrategy"),
    ({"strategy": S.MAJORITY_VOTE}, 'needs what is voted about: field="is_safe"'),
    ({"strategy": S.COLLECT_ALL, "field": "ok"}, "counts no votes"),
    ({"strategy": S.MAJORITY_VOTE, "field": "nope"}, "is no field of Vote; it has ok, color"),
    ({"strategy": S.MAJORITY_VOTE, "field": 3}, "must be the name of a field or a function"),
    ({"strategy": S.QUORUM, "field": "ok"}, r"AggregationStrategy\.QUORUM\(3\)"),
    ({"strategy": S.MERGE}, "MERGE needs its function"),
    ({"strategy": S.MAX_BY}, "needs what to compare"),
    ({"strategy": S.COLLECT_ALL, "score": "weight"}, "compares no scores"),
    ({"strategy": S.WEIGHTED_VOTE, "field": "ok"}, "WEIGHTED_VOTE needs weights="),
    ({"strategy": S.MAJORITY_VOTE, "field": "ok", "weights": "weight"}, "knows no weights"),
    ({"strategy": S.WEIGHTED_VOTE, "field": "ok", "weights": {"a": -1}}, "numbers from 0 to 1e9"),
    ({"strategy": S.WEIGHTED_VOTE, "field": "ok", "weights": {}}, "names no agent"),
    ({"trigger_on_count": 0}, "whole number of at least 1"),
    ({"trigger_on_count": 10**6}, "at most 100,000"),
    ({"trigger_on_count": 2, "min_count": 3}, "min_count=3 is more than trigger_on_count=2"),
    ({"strategy": S.QUORUM(3), "field": "ok", "trigger_on_count": 2}, "can't be reached"),
    ({"timeout": 30}, "must be a timedelta"),
    ({"timeout": timedelta(0)}, "longer than nothing"),
    ({"on_timeout": "fail"}, "needs timeout="),
    ({"on_timeout": "panic", "timeout": MINUTE}, "must be one of 'partial', 'fail', 'discard'"),
    ({"tie": "last"}, "tie must be one of"),
    ({"on_late": "count"}, "on_late must be one of"),
    ({"on_late": "correct", "repeat": True}, "decided once"),
    ({"on_late": "correct", "by": "ok", "timeout": MINUTE}, "needs groups by workflow"),
    ({"repeat": True, "early": True}, "contradict each other"),
    ({"by": "ok"}, "nobody knows when it is complete"),
    ({"scope": "everywhere"}, "scope must be one of"),
    ({"event_time": "at"}, "need a window"),
    ({"window": MINUTE}, "window=.* is none"),
    ({"window": TumblingWindow(MINUTE), "trigger_on_count": 2}, "ends by time"),
    ({"window": TumblingWindow(MINUTE), "min_count": 2}, "decided on what they hold"),
    ({"mapping": {"nope": "ok"}}, "'nope', which is no field of Result; it has ok"),
    ({"mapping": {"ok": "nope"}}, "'nope', which is no field of Vote"),
    ({"mapping": {"ok": "text"}}, "neither one nor a list of them fits"),
    ({"build": 3}, "a function of an Aggregated"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_makes_no_sense_is_refused_with_what_to_write_instead(
    options: dict[str, Any], message: str
) -> None:
    builder = agent()
    with pytest.raises(ConfigurationError, match=message):
        builder.aggregates(Vote, into=Result, **options)
    assert not builder.definition.subscriptions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S.QUORUM(0), "a whole number from 1"),
        (lambda: S.FIRST_N("two"), "a whole number from 1"),
        (lambda: S.MERGE("text"), "needs a function"),
        (lambda: S.MAX_BY(1), "takes no argument"),
        (lambda: TumblingWindow(timedelta(0)), "above zero"),
        (lambda: SlidingWindow(MINUTE, 2 * MINUTE), "leaves gaps"),
        (lambda: SlidingWindow(timedelta(days=1), timedelta(seconds=1)), "choose a longer slide"),
        (lambda: SessionWindow(5), "give a timedelta above zero"),  # type: ignore[arg-type]  # that is the point
    ],
)
def test_strategies_and_windows_check_their_own_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_vote_that_the_result_cannot_hold_is_refused() -> None:
    class Wrong(BaseModel):
        ok: list[int]

    with pytest.raises(
        ConfigurationError,
        match=r"Wrong\.ok \(list\[int\]\) can't hold what is voted about: Vote\.ok is bool",
    ):
        agent().aggregates(Vote, into=Wrong, strategy=S.MAJORITY_VOTE, field="ok")


def test_an_agent_aggregates_once() -> None:
    builder = agent()
    builder.aggregates(Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok")
    with pytest.raises(ConfigurationError, match="aggregates already"):
        builder.aggregates(Vote, into=Texts)


def test_what_else_an_agent_consumes_needs_something_that_runs() -> None:
    builder = agent().consumes(Texts)
    builder.aggregates(Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok")
    with pytest.raises(ConfigurationError, match="declare another agent for that"):
        builder.definition_checked()


def test_a_field_that_only_a_model_could_write_is_refused_without_one() -> None:
    class Digest(BaseModel):
        texts: list[str]
        summary: str

    flock = Flock()
    flock.agent("editor").aggregates(Vote, into=Digest)
    with pytest.raises(
        ConfigurationError, match=r"Digest\.summary can't be taken from Vote: give build= or mapping="
    ):
        flock._definitions()
    with_model = Flock("openai/any")
    with_model.agent("editor").aggregates(Vote, into=Digest)
    assert ["AggregateFacts"] == [type(u).__name__ for u in with_model._definitions()[0].utilities]


def test_a_function_gets_the_list_of_inputs() -> None:
    def judge(votes: list[Vote]) -> Result:
        return Result(ok=len(votes) > 1)

    def wrong(vote: Vote) -> Result:
        return Result(ok=vote.ok)

    assert agent().aggregates(Vote, into=Result).runs(judge).definition_checked().function is judge
    with pytest.raises(ConfigurationError, match=r"aggregates\(Vote\) gives it list\[Vote\]"):
        agent().aggregates(Vote, into=Result).runs(wrong)


def test_the_id_of_the_subscription_does_not_depend_on_how_it_decides() -> None:
    builders = [agent(), agent()]
    builders[0].aggregates(Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok")
    builders[1].aggregates(Vote, into=Result, strategy=S.QUORUM(2), field="color", timeout=MINUTE)
    assert {"judge/Vote~aggregate"} == {b.definition.subscriptions[0].id for b in builders}


def found(flock: Flock, **options: Any) -> list[Finding]:
    return [f for f in flock.check(**options) if f.agent == "judge"]


def test_check_warns_of_groups_that_may_wait_for_ever_or_are_decided_at_once() -> None:
    def voter(text: Texts) -> Vote:
        return Vote(ok=True)

    flock = Flock()
    flock.agent("voter").consumes(Texts).publishes(Vote).runs(voter)
    flock.agent("judge").aggregates(
        Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok", trigger_on_count=3
    )
    assert ["WaitsForAll", "NobodyConsumes"] == [f.code for f in found(flock, published=[Texts])]

    flock = Flock()
    flock.agent("judge").aggregates(Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok")
    assert ["DecidesAtOnce", "NobodyConsumes"] == [f.code for f in found(flock, published=[Vote])]

    flock = Flock()
    flock.agent("judge").aggregates(Vote, into=Texts, window=TumblingWindow(MINUTE))
    assert ["WindowsStayOpen", "NobodyConsumes"] == [f.code for f in found(flock, published=[Vote])]


def test_strategies_print_as_they_are_written() -> None:
    assert ("MAJORITY_VOTE", "QUORUM(3)") == (str(S.MAJORITY_VOTE), str(S.QUORUM(3)))
    assert Aggregated().tally == {}
