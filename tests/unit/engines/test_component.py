from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.core.definition import AgentDefinition, OutputGroup
from flock_ray.core.registry import type_registry, upcaster
from flock_ray.core.visibility import AgentIdentity
from flock_ray.engines.component import (
    AgentComponentConfig,
    EngineComponent,
    EvalInputs,
    EvalResult,
    as_result,
)
from flock_ray.engines.context import Context
from flock_ray.errors import ArtifactSchemaError, OutputContractError

AGENT = AgentDefinition("thinker")


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    text: str


class Either(BaseModel):
    text: str


@pytest.fixture(autouse=True)
def types() -> Any:
    with type_registry.isolated():
        type_registry.register(Question)
        type_registry.register(Answer)
        yield


def of(*models: BaseModel) -> EvalInputs:
    return EvalInputs(artifacts=[Artifact.from_model(model) for model in models])


def context(**fields: Any) -> Context:
    import uuid

    return Context(AgentIdentity(name="thinker"), "wf", "00", uuid.UUID(int=1), 1, **fields)


def test_inputs_are_read_by_type() -> None:
    inputs = of(Question(text="a"), Answer(text="b"), Question(text="c"))

    assert inputs.first_as(Answer) == Answer(text="b")
    assert inputs.all_as(Question) == [Question(text="a"), Question(text="c")]
    assert of(Question(text="a")).first_as(Answer) is None
    assert of(Question(text="a")).all_as(Answer) == []


def test_a_class_that_is_not_registered_reads_every_input() -> None:
    inputs = of(Question(text="a"), Answer(text="b"))

    assert inputs.all_as(Either) == [Either(text="a"), Either(text="b")]
    assert inputs.first_as(Either) == Either(text="a")
    assert "Either" not in type_registry


def test_inputs_from_upstreams_data_are_found_by_module_and_class() -> None:
    artifact = Artifact(type=f"{Question.__module__}.Question", payload={"text": "old"})

    assert EvalInputs(artifacts=[artifact]).all_as(Question) == [Question(text="old")]


def test_old_versions_are_brought_up_to_date() -> None:
    class Note(BaseModel):
        body: str

    type_registry.register(Note, version=2)
    upcaster(Note, from_version=1)(lambda old: {"body": old["text"]})

    artifact = Artifact(type="Note", payload={"text": "hi"}, version=1)

    assert EvalInputs(artifacts=[artifact]).first_as(Note) == Note(body="hi")


def test_an_input_that_does_not_fit_says_so() -> None:
    with pytest.raises(ArtifactSchemaError):
        EvalInputs(artifacts=[Artifact(type="Question", payload={})]).first_as(Question)


def test_results_are_made_of_models() -> None:
    result = EvalResult.from_objects(
        Answer(text="a"), Answer(text="b"), agent=AGENT, state={"k": 1}, metrics={"tokens": 3}
    )

    assert [artifact.model() for artifact in result.artifacts] == [Answer(text="a"), Answer(text="b")]
    assert {artifact.produced_by for artifact in result.artifacts} == {"thinker"}
    assert (result.state, result.metrics) == ({"k": 1}, {"tokens": 3})
    assert EvalResult.from_object(Answer(text="a")).artifacts[0].type == "Answer"


def test_errors_are_kept() -> None:
    """Upstream discards what is given as errors=."""
    result = EvalResult.from_object(Answer(text="a"), errors=["slow", ValueError("odd")])

    assert result.errors == ["slow", "ValueError: odd"]
    assert EvalResult.empty(errors=["e"]).errors == ["e"]
    assert EvalResult.with_state({}, errors=["e"]).errors == ["e"]
    assert result.notes() == [("engine.error", "slow"), ("engine.error", "ValueError: odd")]


def test_metrics_and_logs_are_noted() -> None:
    result = EvalResult(logs=["thought"], metrics={"cost": 0.5, "odd": object})

    assert result.notes() == [
        ("engine.log", "thought"),
        ("engine.metrics", '{"cost":0.5,"odd":"<class \'object\'>"}'),
    ]


def test_an_empty_result_is_empty_on_purpose_until_something_is_added() -> None:
    assert EvalResult.empty().declined
    assert EvalResult.with_state({"k": 1}).declined
    assert EvalResult.with_state({"k": 1}).state == {"k": 1}
    assert not EvalResult.from_objects().declined
    result = EvalResult.empty()
    result.artifacts.append(Artifact.from_model(Answer(text="a")))
    assert not result.declined


def test_what_engines_return_is_wrapped() -> None:
    artifact = Artifact(type="Answer", payload={"text": "x"})
    result = EvalResult.empty()

    assert as_result(result, AGENT) is result
    assert as_result(None, AGENT).declined
    assert [a.model() for a in as_result(Answer(text="a"), AGENT).artifacts] == [Answer(text="a")]
    assert as_result([Answer(text="a"), artifact], AGENT).artifacts[1] is artifact
    assert not as_result([], AGENT).declined
    with pytest.raises(OutputContractError, match="'thinker' returned a str"):
        as_result("text", AGENT)


async def test_an_engine_needs_evaluate() -> None:
    with pytest.raises(NotImplementedError, match="evaluate"):
        await EngineComponent().evaluate(AGENT, context(), of(), OutputGroup(()))


def test_the_context_is_given_as_the_engine_limits_it() -> None:
    history = [
        Artifact.from_model(model) for model in (Question(text="1"), Answer(text="2"), Answer(text="3"))
    ]
    ctx = context(artifacts=history)

    assert EngineComponent().get_conversation_context(ctx) == []
    assert EngineComponent(enable_context=True).get_conversation_context(ctx) == history
    assert EngineComponent(enable_context=True).get_conversation_context(ctx, 1) == history[2:]
    assert EngineComponent(enable_context=True).get_conversation_context(ctx, 0) == []
    limited = EngineComponent(enable_context=True, context_max_artifacts=2)
    assert limited.get_conversation_context(ctx) == history[1:]
    without = EngineComponent(enable_context=True, context_exclude_types={"Answer"})
    assert without.get_conversation_context(ctx) == history[:1]
    assert limited.should_use_context(of())


def test_configs_get_fields() -> None:
    made: Any = AgentComponentConfig.with_fields(heat=(float, 0.5))

    assert (made().heat, made(heat=1).heat, made().enabled) == (0.5, 1.0, True)


def test_a_context_is_frozen_and_gives_variables() -> None:
    ctx = context(state={"k": 1})

    assert (ctx.get_variable("k"), ctx.get_variable("x"), ctx.get_variable("x", 2)) == (1, None, 2)
    with pytest.raises(AttributeError):
        ctx.attempt = 2  # type: ignore[misc]  # what the test is about
