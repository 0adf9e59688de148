from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from flock_ray.components import CacheComponent, GuardComponent, GuardComponentConfig, GuardVerdict
from flock_ray.core.definition import OutputGroup, OutputSpec
from flock_ray.engines.component import AgentComponent, EvalInputs, EvalResult
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.components.board import AGENT, Answer, Ask, Replies, artifact, context, kinds, run_one

GROUP = OutputGroup(outputs=(OutputSpec(Answer),))


def test_the_same_input_is_answered_without_the_engine() -> None:
    engine, cache = Replies(), CacheComponent()
    texts, log = run_one(cache, engine=engine, times=3)

    assert texts == ["re: hello"] * 3
    assert len(engine.seen) == 1
    assert (cache.statistics()["hits"], cache.statistics()["misses"]) == (2, 1)
    published = [
        event.artifact_ids for event in log if event.kind == "artifact.published" and event.agent == "a"
    ]
    assert len(set(published)) == 3


def test_answers_are_forgotten_after_their_time() -> None:
    engine = Replies(takes_s=60)

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer).with_engines(engine)
            agent.with_utilities(CacheComponent(ttl=timedelta(seconds=5)))
            for pause_s in (4.0, 2.0, 0.0):
                await flock.publish(Ask(text="x"))
                await flock.run_until_idle()
                await asyncio.sleep(pause_s)

    run_virtual(scenario())
    assert len(engine.seen) == 2


async def answered(cache: CacheComponent, inputs: EvalInputs, *, agent: Any = AGENT, **run: Any) -> bool:
    """Whether the cache had an answer."""
    called = False

    async def proceed() -> EvalResult:
        nonlocal called
        called = True
        return EvalResult.from_object(Answer(text="x"))

    await cache.around_evaluate(agent, context(**run), inputs, GROUP, proceed)
    return not called


def asked(text: str = "x", *, tags: Any = (), state: Any = None) -> EvalInputs:
    made = artifact(Ask(text=text)).model_copy(update={"tags": tags})
    return EvalInputs(artifacts=[made], state=state or {})


@pytest.mark.parametrize(
    "other",
    [asked("y"), asked(tags={"t"}), asked(state={"k": 1}), EvalInputs(artifacts=asked().artifacts * 2)],
)
async def test_other_inputs_tags_and_state_are_another_question(other: EvalInputs) -> None:
    cache = CacheComponent()

    assert not await answered(cache, asked())
    assert await answered(cache, asked())
    assert not await answered(cache, other)


async def test_the_context_and_the_agents_engines_are_part_of_the_question() -> None:
    from flock_ray.core.definition import AgentDefinition

    cache = CacheComponent()
    assert not await answered(cache, asked())
    assert not await answered(cache, asked(), artifacts=[artifact(Ask(text="seen"))])
    one = AgentDefinition("b", engines=[Replies(takes_s=1)])
    two = AgentDefinition("b", engines=[Replies(takes_s=2)])
    assert not await answered(cache, asked(), agent=one)
    assert not await answered(cache, asked(), agent=two)
    assert await answered(cache, asked(), agent=one)


async def test_a_state_without_json_form_is_not_cached() -> None:
    cache = CacheComponent()

    assert not await answered(cache, asked(state={"k": object()}))
    assert not await answered(cache, asked(state={"k": object()}))


async def test_the_cache_is_bounded_by_entries_and_bytes_and_drops_the_least_used() -> None:
    cache = CacheComponent(max_entries=2)
    for text in ("1", "2", "1", "3"):
        await answered(cache, asked(text))

    assert await answered(cache, asked("1"))
    assert not await answered(cache, asked("2"))
    assert cache.statistics()["entries"] == 2
    small = CacheComponent(max_bytes=600)
    for text in map(str, range(50)):
        await answered(small, asked(text))
    assert 0 < small.statistics()["bytes"] <= 600
    assert small.statistics()["entries"] == 1


async def test_results_with_errors_and_failures_are_not_kept() -> None:
    cache = CacheComponent()

    async def partial() -> EvalResult:
        return EvalResult.from_object(Answer(), errors=["half of it"])

    async def fails() -> EvalResult:
        raise ValueError("no")

    await cache.around_evaluate(AGENT, context(), asked(), GROUP, partial)
    with pytest.raises(ValueError, match="no"):
        await cache.around_evaluate(AGENT, context(), asked(), GROUP, fails)
    assert cache.statistics()["entries"] == 0


async def test_nobody_can_change_what_is_kept() -> None:
    cache = CacheComponent()
    state = {"list": [1]}

    async def proceed() -> EvalResult:
        return EvalResult.from_object(Answer(text="kept"), state=state)

    async def ask() -> EvalResult:
        return await cache.around_evaluate(AGENT, context(), asked(), GROUP, proceed)

    first = await ask()
    first.artifacts[0].payload["text"] = "changed"
    state["list"].append(2)
    second = await ask()
    second.artifacts[0].payload["text"] = "changed"
    second.state["list"].append(3)

    third = await ask()
    assert (third.artifacts[0].payload["text"], third.state) == ("kept", {"list": [1]})


@pytest.mark.parametrize("made", [EvalResult.empty(), EvalResult.with_state({"k": 1})])
async def test_a_kept_nothing_is_still_a_nothing_on_purpose(made: EvalResult) -> None:
    cache = CacheComponent()

    async def proceed() -> EvalResult:
        return made

    await cache.around_evaluate(AGENT, context(), asked(), GROUP, proceed)
    again = await cache.around_evaluate(AGENT, context(), asked(), GROUP, proceed)

    assert again is not made
    assert (again.declined, again.is_state_only) == (made.declined, made.is_state_only)


def test_a_function_that_leaves_an_output_out_is_answered_the_same_way_twice() -> None:
    calls: list[str] = []

    def answer(ask: Ask) -> tuple[Answer, None]:
        calls.append(ask.text)
        return Answer(text=ask.text), None

    async def scenario() -> list[Any]:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer).publishes(Ask)
            agent.runs(answer).with_utilities(CacheComponent())
            for _ in range(2):
                await flock.publish(Ask(text="x"))
                await flock.run_until_idle()
            return list(await flock.store.get_by_type(Answer))

    assert run_virtual(scenario()) == [Answer(text="x")] * 2
    assert calls == ["x"]


class Shouts(AgentComponent):
    async def on_post_evaluate(self, agent: Any, ctx: Any, inputs: Any, result: EvalResult) -> EvalResult:
        loud = [a.model_copy(update={"payload": {"text": a.payload["text"] + "!"}}) for a in result.artifacts]
        return result.model_copy(update={"artifacts": loud})


@pytest.mark.parametrize("priority", [-1, 1])
def test_hooks_change_a_kept_answer_once(priority: int) -> None:
    assert run_one(CacheComponent(), Shouts(priority=priority), times=3)[0] == ["re: hello!"] * 3


class Refuses(GuardComponent):
    async def scan_output(self, text: str) -> GuardVerdict:
        return GuardVerdict(safe=False)


def test_a_guard_looks_at_kept_answers_too() -> None:
    config = GuardComponentConfig(scan_input=False, scan_output=True)
    _, log = run_one(CacheComponent(), Refuses(config=config), times=2)

    assert kinds(log).count("guard.flagged") == 2


def test_a_cache_travels_empty() -> None:
    cache = CacheComponent()
    run_one(cache)
    assert cache.statistics()["entries"] == 1

    sent: CacheComponent = pickle.loads(pickle.dumps(cache))

    assert sent.statistics() == {"hits": 0, "misses": 0, "entries": 0, "bytes": 0}
    assert sent.ttl == cache.ttl


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        CacheComponent(ttl=timedelta(0))
    with pytest.raises(ValidationError):
        CacheComponent(max_entries=0)
