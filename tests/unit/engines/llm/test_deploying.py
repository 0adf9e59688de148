from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import LiteLLMEngine, flock_type
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual


@flock_type(name="llm_deploying.Question")
class Question(BaseModel):
    text: str


@flock_type(name="llm_deploying.Answer")
class Answer(BaseModel):
    text: str


def look(text: str) -> str:
    """Look it up."""
    return text


def look_elsewhere(text: str) -> str:
    """Look it up elsewhere."""
    return text


Declare = Callable[[Any], Any]


@pytest.mark.parametrize(
    "change",
    [
        lambda agent: agent.description("Answers briefly."),
        lambda agent: agent.with_tools([look_elsewhere]),
        lambda agent: agent.best_of(3, lambda result: 1.0),
        lambda agent: agent.best_of(2, lambda result: 1.0, good_enough=0.5),
        lambda agent: agent.with_engines(LiteLLMEngine(temperature=0.5)),
    ],
    ids=["description", "tool", "best_of", "good_enough", "engine"],
)
def test_what_a_model_is_told_is_deployed_again_after_an_edit(change: Declare) -> None:
    assert _deployed(lambda agent: agent) == _deployed(lambda agent: agent)
    assert _deployed(change) != _deployed(lambda agent: agent)


def _deployed(change: Declare) -> str:
    from flock_ray.core.matching import MatchTable
    from flock_ray.deployment import fingerprint

    flock = VirtualFlock(language_model=ScriptedModel())
    agent = (
        flock.agent("answerer")
        .description("Answers.")
        .consumes(Question)
        .publishes(Answer)
        .with_tools([look])
    )
    change(agent.best_of(2, lambda result: 1.0))
    definition = flock._definitions()[0]
    return fingerprint(definition, MatchTable(0, (definition,), flock._registry).spec)


def test_the_model_of_the_flock_goes_with_the_agent() -> None:
    model = ScriptedModel(Answer(text="42"))

    async def scenario() -> None:
        async with VirtualFlock("some/model", language_model=model) as flock:
            flock.agent("answerer").consumes(Question).publishes(Answer)
            await flock.publish(Question(text="?"))
            await flock.run_until_idle()

    run_virtual(scenario())
    assert [request.model for request in model.requests] == ["some/model"]


def test_best_of_asks_at_the_same_time_and_stops_when_one_is_good_enough() -> None:
    answers = iter([Answer(text="x"), RuntimeError("cut"), Answer(text="xxxx"), Answer(text="xx")])
    model = ScriptedModel(lambda request: next(answers), delay_s=5.0)

    def length(result: Any) -> float:
        return float(len(result.artifacts[0].payload["text"]))

    async def scenario() -> list[Answer]:
        async with VirtualFlock(language_model=model) as flock:
            flock.agent("answerer").consumes(Question).publishes(Answer).best_of(4, length, good_enough=4)
            await flock.publish(Question(text="?"))
            await flock.run_until_idle()
            return await flock.store.get_by_type(Answer)

    assert run_virtual(scenario()) == [Answer(text="xxxx")]
    assert model.most_running == 4
