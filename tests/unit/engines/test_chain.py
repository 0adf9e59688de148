from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.core.definition import OutputGroup, OutputSpec
from flock_ray.core.ids import output_id
from flock_ray.engines.component import (
    AgentComponent,
    AgentComponentConfig,
    EngineComponent,
    EvalInputs,
    EvalResult,
)
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from tests.unit.engines.conftest import Host

TASK_ID = b"t" * 16


class Idea(BaseModel):
    text: str = ""


class Draft(BaseModel):
    text: str = ""


class Review(BaseModel):
    text: str = ""


class Other(BaseModel):
    pass


class Writes(EngineComponent):
    """Returns whatever its function makes of (inputs, group)."""

    make: Any

    async def evaluate(self, agent: Any, ctx: Any, inputs: EvalInputs, output_group: OutputGroup) -> Any:
        await asyncio.sleep(0)
        return self.make(inputs, output_group)


class Recorder(AgentComponent):
    """Notes every hook in a list that all share."""

    log: Any

    async def on_initialize(self, agent: Any, ctx: Any) -> None:
        self.log.append(f"{self.name}.initialize")

    async def on_pre_consume(self, agent: Any, ctx: Any, inputs: list[Artifact]) -> list[Artifact]:
        self.log.append(f"{self.name}.pre_consume")
        return inputs

    async def on_pre_evaluate(self, agent: Any, ctx: Any, inputs: EvalInputs) -> EvalInputs:
        self.log.append(f"{self.name}.pre_evaluate")
        return inputs

    async def on_post_evaluate(
        self, agent: Any, ctx: Any, inputs: EvalInputs, result: EvalResult
    ) -> EvalResult:
        self.log.append(f"{self.name}.post_evaluate")
        return result

    async def on_post_publish(self, agent: Any, ctx: Any, artifact: Artifact) -> None:
        self.log.append(f"{self.name}.post_publish {artifact.type}")

    async def on_error(self, agent: Any, ctx: Any, error: BaseException) -> None:
        self.log.append(f"{self.name}.error {error}")

    async def on_terminate(self, agent: Any, ctx: Any) -> None:
        self.log.append(f"{self.name}.terminate")


class RecordingEngine(Recorder, Writes):
    async def evaluate(self, agent: Any, ctx: Any, inputs: EvalInputs, output_group: OutputGroup) -> Any:
        self.log.append(f"{self.name}.evaluate")
        return await super().evaluate(agent, ctx, inputs, output_group)


def fail(*arguments: Any) -> NoReturn:
    raise ValueError("no idea")


async def run(host: Host, *publishes: Any, **fields: Any) -> Any:
    runner = host.runner(*publishes, consumes=[Idea], **fields)
    assert runner.is_async
    return await runner.run_async(host.task(Idea(text="i")))


@pytest.mark.parametrize(
    "made",
    [Draft(text="d"), [Draft(text="d")], EvalResult.from_object(Draft(text="d"))],
)
async def test_an_engine_may_return_a_model_a_list_or_a_result(host: Host, made: Any) -> None:
    completion = await run(host, Draft, engines=[Writes(make=lambda inputs, group: made)])

    assert host.models(completion) == [Draft(text="d")]
    assert completion.outputs[0].envelope.id == output_id(TASK_ID, 0)
    assert completion.outputs[0].envelope.produced_by == "a"


@pytest.mark.parametrize("nothing", [None, EvalResult.empty(), EvalResult.with_state({"k": 1})])
async def test_an_engine_may_publish_nothing(host: Host, nothing: Any) -> None:
    completion = await run(host, Draft, engines=[Writes(make=lambda inputs, group: nothing)])

    assert (completion.outputs, completion.error) == ((), None)


async def test_an_engine_that_forgets_its_outputs_breaks_the_contract(host: Host) -> None:
    completion = await run(host, Draft, engines=[Writes(make=lambda inputs, group: [])])

    assert completion.error.type == "OutputContractError"


async def test_artifacts_made_by_hand_are_validated(host: Host) -> None:
    def by_hand(payload: dict[str, Any]) -> Any:
        artifact = Artifact(type="Draft", payload=payload, produced_by="e")
        return Writes(make=lambda inputs, group: EvalResult(artifacts=[artifact]))

    assert host.models(await run(host, Draft, engines=[by_hand({"text": "x"})])) == [Draft(text="x")]
    broken = await run(host, Draft, engines=[by_hand({"text": []})])
    assert broken.error.type == "ArtifactSchemaError"


async def test_each_engine_gets_what_the_one_before_made(host: Host) -> None:
    def first(inputs: EvalInputs, group: OutputGroup) -> EvalResult:
        idea = inputs.artifacts[0].model(host.registry)
        assert idea == Idea(text="i")
        return EvalResult.from_object(
            Draft(text="d"), state={"a": 1, "b": 1}, metrics={"x": 1}, errors=["first"]
        )

    def second(inputs: EvalInputs, group: OutputGroup) -> EvalResult:
        assert [a.type for a in inputs.artifacts] == ["Draft"]
        assert inputs.state == {"a": 1, "b": 1}
        return EvalResult.with_state({"b": 2}, metrics={"y": 2}, errors=["second"])

    def third(inputs: EvalInputs, group: OutputGroup) -> Review:
        assert [a.type for a in inputs.artifacts] == ["Draft"]
        assert inputs.state == {"a": 1, "b": 2}
        return Review(text="r")

    completion = await run(host, Review, engines=[Writes(make=m) for m in (first, second, third)])

    assert host.models(completion) == [Review(text="r")]
    assert completion.notes == (
        ("engine.error", "first"),
        ("engine.error", "second"),
        ("engine.metrics", '{"x":1,"y":2}'),
    )


async def test_a_last_engine_that_only_changes_state_leaves_the_outputs(host: Host) -> None:
    writes = Writes(make=lambda inputs, group: Draft(text="d"))
    counts = Writes(make=lambda inputs, group: EvalResult.with_state({"n": 1}))
    refuses = Writes(make=lambda inputs, group: EvalResult.empty())

    assert host.models(await run(host, Draft, engines=[writes, counts])) == [Draft(text="d")]
    assert host.models(await run(host, Draft, engines=[writes, refuses])) == []


async def test_engines_are_called_once_per_output_group(host: Host) -> None:
    asked: list[list[str]] = []

    def make(inputs: EvalInputs, group: OutputGroup) -> Any:
        asked.append([spec.type.__name__ for spec in group.outputs])
        return [Draft(text=str(len(asked))), Draft(), Review(text=str(len(asked)))]

    completion = await run(host, OutputSpec(Draft, count=2), Review, engines=[Writes(make=make)])

    assert asked == [["Draft"], ["Review"]]
    assert host.models(completion) == [Draft(text="1"), Draft(), Review(text="2")]
    assert [p.envelope.id for p in completion.outputs] == [output_id(TASK_ID, n) for n in range(3)]
    assert {kind for kind, _ in completion.notes} == {"output.ignored"}


async def test_an_engine_without_declared_outputs_runs_once(host: Host) -> None:
    groups: list[OutputGroup] = []
    engine = Writes(make=lambda inputs, group: groups.append(group))

    completion = await run(host, engines=[engine])

    assert (completion.error, [group.outputs for group in groups]) == (None, [()])


async def test_a_type_that_is_not_declared_fails_the_run(host: Host) -> None:
    completion = await run(host, Draft, engines=[Writes(make=lambda inputs, group: Other())])

    assert "returned a Other, which it does not declare" in completion.error.message


async def test_hooks_run_in_upstreams_order(host: Host) -> None:
    log: list[str] = []
    engine = RecordingEngine(name="e", log=log, make=lambda inputs, group: Draft())
    utilities = [Recorder(name="late", priority=5, log=log), Recorder(name="early", log=log)]

    completion = await run(
        host, Draft, engines=[engine], utilities=utilities, calls=lambda made: log.append("calls")
    )

    assert completion.error is None
    assert log == [
        "early.initialize", "late.initialize", "e.initialize",
        "early.pre_consume", "late.pre_consume",
        "early.pre_evaluate", "late.pre_evaluate",
        "e.pre_evaluate", "e.evaluate", "e.post_evaluate",
        "early.post_evaluate", "late.post_evaluate",
        "early.post_publish Draft", "late.post_publish Draft",
        "calls",
        "early.terminate", "late.terminate", "e.terminate",
    ]  # fmt: skip


async def test_hooks_see_the_error_and_the_end_of_a_failed_run(host: Host) -> None:
    log: list[str] = []
    engine = RecordingEngine(name="e", log=log, make=fail)

    completion = await run(host, Draft, engines=[engine], utilities=[Recorder(name="u", log=log)])

    assert completion.error.message == "no idea"
    assert log[-4:] == ["u.error no idea", "e.error no idea", "u.terminate", "e.terminate"]


async def test_a_cancelled_run_is_still_cleaned_up(host: Host) -> None:
    log: list[str] = []
    waiting = asyncio.Event()

    class Waits(EngineComponent):
        async def evaluate(self, *arguments: Any) -> Any:
            waiting.set()
            await asyncio.Event().wait()

    runner = host.runner(Draft, consumes=[Idea], engines=[Waits()], utilities=[Recorder(name="u", log=log)])
    run = asyncio.create_task(runner.run_async(host.task(Idea())))
    await waiting.wait()
    run.cancel()

    with pytest.raises(asyncio.CancelledError):
        await run
    assert log[-1] == "u.terminate"
    assert not any("error" in line for line in log)


async def test_components_are_known_by_their_methods(host: Host) -> None:
    """Components of other libraries need no base class, and hooks need not be async."""
    log: list[str] = []

    class Plain:
        def on_pre_consume(self, agent: Any, ctx: Any, inputs: Any) -> None:
            log.append(f"{agent.name} {ctx.attempt} {len(inputs)}")

    completion = await run(host, Draft, engines=[Writes(make=lambda i, g: Draft())], utilities=[Plain()])

    assert host.models(completion) == [Draft()]
    assert log == ["a 3 1"]


async def test_hooks_may_change_what_passes(host: Host) -> None:
    class Changes(AgentComponent):
        async def on_pre_evaluate(self, agent: Any, ctx: Any, inputs: EvalInputs) -> EvalInputs:
            inputs.artifacts[0].payload["text"] += "!"
            return inputs

        async def on_post_evaluate(self, agent: Any, ctx: Any, inputs: Any, result: EvalResult) -> EvalResult:
            result.artifacts[0].payload["text"] += "?"
            return result

    def make(inputs: EvalInputs, group: OutputGroup) -> Draft:
        idea = inputs.artifacts[0].model(host.registry)
        assert isinstance(idea, Idea)
        return Draft(text=idea.text)

    def function(idea: Idea) -> Draft:
        return Draft(text=idea.text)

    by_engine = await run(host, Draft, engines=[Writes(make=make)], utilities=[Changes()])
    by_function = await run(host, Draft, function=function, utilities=[Changes()])

    assert host.models(by_engine) == host.models(by_function) == [Draft(text="i!?")]


async def test_a_function_with_utilities_keeps_its_ways_of_returning(host: Host) -> None:
    log: list[str] = []
    utilities = [Recorder(name="u", log=log)]

    chosen = await run(host, Draft, Review, function=lambda idea: (None, Review()), utilities=utilities)
    nothing = await run(host, Draft, function=lambda idea: None, utilities=utilities)

    assert host.models(chosen) == [Review()]
    assert host.models(nothing) == []


async def test_a_disabled_component_is_skipped(host: Host) -> None:
    log: list[str] = []
    off = AgentComponentConfig(enabled=False)
    engines = [Writes(make=lambda i, g: Draft()), Writes(make=fail, config=off)]

    completion = await run(host, Draft, engines=engines, utilities=[Recorder(name="u", log=log, config=off)])

    assert completion.error is None
    assert log == []


@pytest.mark.parametrize(
    "hook",
    [
        "on_initialize",
        "on_pre_consume",
        "on_pre_evaluate",
        "on_post_evaluate",
        "on_post_publish",
        "on_terminate",
    ],
)
async def test_a_hook_that_raises_fails_the_run(host: Host, hook: str) -> None:
    utility = type("Broken", (), {hook: fail})()

    completion = await run(host, Draft, engines=[Writes(make=lambda i, g: Draft())], utilities=[utility])

    assert completion.error.message == "no idea"
    assert len(completion.outputs) == 1
    assert completion.outputs[0].envelope.type == "WorkflowError"


async def test_a_hook_that_raises_about_an_error_hides_nothing(host: Host) -> None:
    log: list[str] = []

    def broken(*arguments: Any) -> NoReturn:
        raise ConfigurationError("the hook is broken")

    utility = type("Broken", (), {"on_error": broken, "on_terminate": broken})()

    completion = await run(
        host, Draft, engines=[Writes(make=fail)], utilities=[utility, Recorder(name="u", log=log)]
    )

    assert completion.error.message == "no idea"
    assert completion.notes == (
        ("hook.failed", "Broken.on_error: ConfigurationError: the hook is broken"),
        ("hook.failed", "Broken.on_terminate: ConfigurationError: the hook is broken"),
    )
    assert log[-2:] == ["u.error no idea", "u.terminate"]


async def test_best_of_runs_the_whole_chain_for_each_candidate(host: Host) -> None:
    texts = iter(["aa", "bbbb", "c"])

    def first(inputs: EvalInputs, group: OutputGroup) -> EvalResult:
        inputs.state["seen"] = inputs.state.get("seen", 0) + 1
        assert inputs.state["seen"] == 1, "candidates share their state"
        text = next(texts)
        if text == "c":
            raise ValueError("c")
        return EvalResult.from_object(Draft(text=text))

    def second(inputs: EvalInputs, group: OutputGroup) -> Review:
        draft = inputs.artifacts[0].model(host.registry)
        assert isinstance(draft, Draft)
        return Review(text=draft.text + "+")

    def score(result: EvalResult) -> float:
        return len(result.artifacts[0].payload["text"])

    completion = await run(
        host, Review, engines=[Writes(make=first), Writes(make=second)], best_of=(3, score)
    )

    assert host.models(completion) == [Review(text="bbbb+")]
    assert completion.notes == (("best_of.failed", "ValueError: c"),)


async def test_best_of_scores_functions_with_utilities(host: Host) -> None:
    texts = ["a", "ccc", "bb"]
    utilities = [Recorder(name="u", log=[])]

    completion = await run(
        host, Draft, function=lambda idea: Draft(text=texts.pop()), utilities=utilities,
        best_of=(3, lambda result: len(result.artifacts[0].payload["text"])),
    )  # fmt: skip

    assert host.models(completion) == [Draft(text="ccc")]
