"""Declaring fan-outs and fan-ins: what makes no sense is refused, with what to write instead."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import FanInStrategy, FanOutStrategy, Flock, flock_type
from flock_ray.core.definition import AgentDefinition
from flock_ray.deployment import CloudpickleCodec, package
from flock_ray.errors import ConfigurationError


@flock_type(name="declared.Data")
class Data(BaseModel):
    items: list[int]


@flock_type(name="declared.Chunk")
class Chunk(BaseModel):
    items: list[int]


@flock_type(name="declared.Done")
class Done(BaseModel):
    n: int


@flock_type(name="declared.Total")
class Total(BaseModel):
    parts: list[Done] = []


SIZE = {"chunk_size": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "strategy BY_SIZE needs chunk_size="),
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1"),
        ({**SIZE, "count": 3}, "count= does not belong to strategy BY_SIZE"),
        ({"strategy": FanOutStrategy.BY_COUNT}, "needs count="),
        ({"strategy": FanOutStrategy.BY_KEY}, "needs key="),
        ({"strategy": FanOutStrategy.BY_KEY, "key": 3}, "needs key to be a function"),
        ({"strategy": FanOutStrategy.BY_WEIGHT, "weight": len}, "needs max_weight="),
        ({"strategy": FanOutStrategy.BY_WEIGHT, "weight": len, "max_weight": 0}, "max_weight must be a number above 0"),
        ({"strategy": FanOutStrategy.CUSTOM}, "needs split="),
        ({"strategy": FanOutStrategy.CUSTOM, "split": list, "field": "x"}, "split= makes the chunks itself"),
        ({"strategy": "by_moon", **SIZE}, "strategy must be one of FanOutStrategy.BY_SIZE"),
    ],
)  # fmt: skip
def test_a_fan_out_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Flock().agent("a").consumes(Data).fan_out(Chunk, **options)


async def async_merge(_: list[Done]) -> Total:
    return Total()


async def async_split(_: Data) -> list[Chunk]:
    return []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "strategy MERGE needs merge_fn="),
        ({"strategy": FanInStrategy.REDUCE, "merge_fn": Total}, "say how these are merged further: combine="),
        ({"strategy": FanInStrategy.FIRST_SUCCESS}, "the first Done is no Total"),
        ({"merge_fn": Total, "combine": Total}, "combine= belongs to strategy REDUCE"),
        ({"merge_fn": Total, "min_fraction": 0}, "min_fraction must be a number above 0, up to 1"),
        ({"merge_fn": Total, "min_fraction": 1.5}, "min_fraction must be a number above 0, up to 1"),
        ({"merge_fn": Total, "on_failure": "cry"}, "on_failure must be one of 'fail', 'partial', 'wait'"),
        ({"merge_fn": Total, "timeout": 5}, "timeout must be a timedelta"),
        ({"merge_fn": Total, "timeout": timedelta(0)}, "timeout must be longer than nothing"),
        ({"merge_fn": Total, "width": 1}, "width must be a whole number of at least 2"),
        ({"merge_fn": Total, "closes": ""}, "takes the fan-out's name as text"),
        ({"merge_fn": 3}, "needs merge_fn to be a function"),
    ],
)  # fmt: skip
def test_a_fan_in_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Flock().agent("a").fan_in(Done, into=Total, **options)


def test_what_is_collected_needs_one_field_for_it() -> None:
    Flock().agent("a").fan_in(Done, into=Total, strategy=FanInStrategy.COLLECT)
    with pytest.raises(
        ConfigurationError, match=r"Data.items has no default: give it one field list\[Done\]"
    ):
        Flock().agent("a").fan_in(Done, into=Data, strategy=FanInStrategy.COLLECT)


def test_a_splitting_function_is_not_async() -> None:
    with pytest.raises(ConfigurationError, match="split= is called without await"):
        Flock().agent("a").fan_out(Chunk, strategy=FanOutStrategy.CUSTOM, split=async_split)  # type: ignore[arg-type]


def test_an_agent_does_one_thing() -> None:
    flock = Flock()
    both = flock.agent("both").consumes(Data).fan_out(Chunk, chunk_size=2)
    with pytest.raises(ConfigurationError, match="make it two agents"):
        both.fan_in(Done, into=Total, merge_fn=Total)
    with pytest.raises(ConfigurationError, match="runs a function already"):
        both.runs(lambda data: None)
    with pytest.raises(ConfigurationError, match="leave publishes"):
        flock.agent("publishing").publishes(Chunk).fan_out(Chunk, chunk_size=2)


def definitions(flock: Flock) -> list[AgentDefinition]:
    return flock._definitions()


def closes(flock: Flock, name: str) -> tuple[str, ...]:
    [definition] = [d for d in definitions(flock) if d.name == name]
    rule = definition.subscriptions[0].fan_in
    assert rule is not None
    return rule.closes


def test_a_fan_in_finds_its_fan_out() -> None:
    flock = Flock()
    flock.agent("cut").consumes(Data).fan_out(Chunk, chunk_size=2)
    flock.agent("work").consumes(Chunk).publishes(Done).runs(lambda chunk: Done(n=1))
    flock.agent("sum").fan_in(Done, into=Total, merge_fn=lambda parts: Total(parts=parts))
    assert closes(flock, "sum") == ("cut",)


@flock_type(name="declared.Inner")
class Inner(BaseModel):
    items: list[int]


@flock_type(name="declared.InnerDone")
class InnerDone(BaseModel):
    n: int


def test_nested_fan_ins_close_their_own_level() -> None:
    flock = Flock()
    flock.agent("outer").consumes(Data).fan_out(Chunk, chunk_size=2)
    flock.agent("inner").consumes(Chunk).fan_out(Inner, chunk_size=1)
    flock.agent("work").consumes(Inner).publishes(InnerDone).runs(lambda i: InnerDone(n=1))
    flock.agent("close-inner").fan_in(InnerDone, into=Done, merge_fn=lambda parts: Done(n=len(parts)))
    flock.agent("close-outer").fan_in(Done, into=Total, merge_fn=lambda parts: Total(parts=parts))
    assert closes(flock, "close-inner") == ("inner",)
    assert closes(flock, "close-outer") == ("outer",)


def test_a_fan_in_without_a_fan_out_is_refused() -> None:
    flock = Flock()
    flock.agent("sum").fan_in(Done, into=Total, merge_fn=Total)
    with pytest.raises(ConfigurationError, match="gets Done, which comes from no fan-out"):
        definitions(flock)
    named = Flock()
    named.agent("sum").fan_in(Done, into=Total, merge_fn=Total, closes="elsewhere")
    assert closes(named, "sum") == ("elsewhere",)
    named.agent("elsewhere").consumes(Data).publishes(Done).runs(lambda data: Done(n=1))
    with pytest.raises(ConfigurationError, match="closes='elsewhere' is no fan-out"):
        definitions(named)


def test_what_only_the_whole_shows_is_refused_at_the_deploy() -> None:
    flock = Flock()
    flock.agent("cut").consumes(Done).fan_out(Chunk, chunk_size=2)
    with pytest.raises(
        ConfigurationError, match=r"agent 'cut': fan_out\(\) Done has no list, table, text or Path"
    ):
        definitions(flock)
    batch = Flock()
    batch.agent("cut").consumes(Data, batch={"size": 2}).fan_out(Chunk, chunk_size=2)
    with pytest.raises(ConfigurationError, match="cuts one input at a time"):
        definitions(batch)
    calls = Flock()
    calls.agent("cut").consumes(Data).fan_out(Chunk, chunk_size=2).calls(print)
    with pytest.raises(ConfigurationError, match="don't go with fan_out"):
        definitions(calls)


def test_a_change_of_the_declaration_is_deployed_again() -> None:
    def fingerprint(size: int, add: int) -> str:
        flock = Flock()
        flock.agent("cut").consumes(Data).fan_out(
            Chunk, chunk_size=size, build=lambda items, index, source: Chunk(items=[n + add for n in items])
        )
        [definition] = definitions(flock)
        return package(definition, flock._registry, CloudpickleCodec(), "me").fingerprint

    assert fingerprint(2, 1) == fingerprint(2, 1)
    assert fingerprint(2, 1) != fingerprint(3, 1)
