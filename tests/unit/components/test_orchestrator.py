"""Components of a flock: which hooks are called, where, and what becomes of artifacts."""

from __future__ import annotations

import asyncio
import logging
import pickle
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from flock_ray.artifact import Artifact
from flock_ray.components import orchestrator as upstream_path
from flock_ray.components.orchestrator import (
    Deferral,
    OrchestratorComponent,
    OrchestratorComponentConfig,
    ScheduleDecision,
)
from flock_ray.components.orchestrator.gate import ComponentGate
from flock_ray.engines.component import AgentComponent
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.components.board import Answer, Ask, detail, events, kinds


class Reply(BaseModel):
    text: str = ""


class Decides(OrchestratorComponent):
    """Answers on_before_schedule with what a function says; keeps whom it was asked about."""

    decide: Any
    asked: Any = None

    async def on_before_schedule(
        self, orchestrator: Any, artifact: Artifact, agent: Any, subscription: Any
    ) -> Any:
        if self.asked is not None:
            self.asked.append((artifact.payload["text"], agent.name, subscription.id))
        return self.decide(orchestrator, artifact, agent)


class Looks(OrchestratorComponent):
    """Answers on_artifact_published with what a function says."""

    look: Any

    async def on_artifact_published(self, orchestrator: Any, artifact: Artifact) -> Any:
        return self.look(artifact)


def declared(*components: OrchestratorComponent) -> VirtualFlock:
    """Ask -> first -> Answer -> second -> Reply."""
    flock = VirtualFlock()
    flock.agent("first").consumes(Ask).publishes(Answer).runs(lambda ask: Answer(text=ask.text))
    flock.agent("second").consumes(Answer).publishes(Reply).runs(lambda answer: Reply(text=answer.text))
    for component in components:
        assert flock.add_component(component) is flock
    return flock


async def texts(flock: VirtualFlock, cls: Any) -> list[str]:
    return [model.text for model in await flock.store.get_by_type(cls)]


def run(*components: OrchestratorComponent, asks: Any = ("x",)) -> dict[str, Any]:
    """Publish asks; what became of them."""

    async def scenario() -> dict[str, Any]:
        async with declared(*components) as flock:
            published = [await flock.publish(Ask(text=text)) for text in asks]
            await flock.run_until_idle()
            return {
                "asks": await texts(flock, Ask), "answers": await texts(flock, Answer),
                "replies": await texts(flock, Reply), "events": await events(flock),
                "why": str(await flock.why(published[0])),
            }  # fmt: skip

    return run_virtual(scenario())


def test_it_is_asked_wherever_artifacts_are_matched_also_about_outputs_of_agents() -> None:
    asked: list[Any] = []
    found = run(Decides(decide=lambda *_: ScheduleDecision.CONTINUE, asked=asked))

    assert found["replies"] == ["x"]
    assert {(text, agent) for text, agent, _ in asked} == {("x", "first"), ("x", "second")}


def test_skip_keeps_an_artifact_from_a_subscription_and_why_says_so() -> None:
    def no_first(_: Any, artifact: Artifact, agent: Any) -> ScheduleDecision:
        return ScheduleDecision.SKIP if agent.name == "first" else ScheduleDecision.CONTINUE

    found = run(Decides(name="quiet hours", decide=no_first))

    assert (found["asks"], found["answers"]) == (["x"], [])
    assert "quiet hours.on_before_schedule" in found["why"]
    assert "match.refused" not in kinds(found["events"])


@pytest.mark.parametrize(
    ("component", "delay_s"),
    [
        (Decides(decide=lambda *_: ScheduleDecision.DEFER), 1),
        (
            Decides(
                decide=lambda *_: ScheduleDecision.DEFER,
                config=OrchestratorComponentConfig(defer_for=timedelta(minutes=5)),
            ),
            300,
        ),
        (Decides(decide=lambda *_: Deferral(timedelta(hours=3))), 3 * 3600),
    ],
)
def test_defer_delays_and_does_not_drop(component: Decides, delay_s: int) -> None:
    """Regression: upstream's DEFER is its SKIP; nothing ever offers the artifact again."""

    async def scenario() -> tuple[list[str], float, list[str]]:
        async with VirtualFlock() as flock:
            flock.agent("first").consumes(Ask).publishes(Answer).runs(lambda ask: Answer(text=ask.text))
            flock.add_component(component)
            await flock.publish(Ask(text="x"))
            await flock.run_until_idle()
            early = await texts(flock, Answer)
            started = asyncio.get_running_loop().time()
            await flock.run_until_idle(include_timers=True)
            return early, asyncio.get_running_loop().time() - started, await texts(flock, Answer)

    early, took_s, late = run_virtual(scenario())
    assert (early, late) == ([], ["x"])
    assert took_s == pytest.approx(delay_s, abs=0.1)


def test_none_keeps_an_artifact_from_all_agents_of_the_flock_and_it_is_stored() -> None:
    found = run(
        Looks(look=lambda artifact: artifact if artifact.payload["text"] == "ok" else None), asks=("no", "ok")
    )

    assert (found["asks"], found["replies"]) == (["no", "ok"], ["ok"])
    assert "Looks.on_artifact_published" in found["why"]


@pytest.mark.parametrize(
    ("component", "problem"),
    [
        (
            Looks(look=lambda a: a.model_copy(update={"payload": {"text": "other"}})),
            "returned something else",
        ),
        (Looks(look=lambda a: "yes"), "returned something else"),
        (Decides(decide=lambda *_: 1 / 0), "ZeroDivisionError"),
        (Decides(decide=lambda *_: True), "return a ScheduleDecision"),
        (Decides(decide=lambda *_: Deferral(timedelta(0))), "longer than nothing"),
        (Decides(decide=lambda flock, *_: flock.store), "asked for the orchestrator's 'store'"),
    ],
)
def test_a_hook_that_fails_refuses_the_match_with_an_event(component: Any, problem: str) -> None:
    found = run(component)

    assert found["asks"] == ["x"] and found["answers"] == []
    assert problem in detail(found["events"], "match.refused")


def test_a_hook_that_changes_the_payload_in_place_is_refused_too() -> None:
    def scribble(artifact: Artifact) -> Artifact:
        artifact.payload["text"] = "scribbled"
        return artifact

    found = run(Looks(look=scribble))

    assert found["replies"] == []
    assert "returned something else" in detail(found["events"], "match.refused")


class Waits(OrchestratorComponent):
    async def on_before_schedule(self, *_: Any) -> ScheduleDecision:
        await asyncio.sleep(1)
        return ScheduleDecision.CONTINUE


class NotAsync(OrchestratorComponent):
    def on_before_schedule(self, *_: Any) -> ScheduleDecision:  # type: ignore[override]  # as a user may write it
        return ScheduleDecision.CONTINUE


def test_a_hook_of_matching_may_not_wait_but_need_not_be_async() -> None:
    assert "waits for something" in detail(run(Waits())["events"], "match.refused")
    assert run(NotAsync())["replies"] == ["x"]


def test_components_are_asked_by_priority_until_one_says_no() -> None:
    log: list[str] = []

    def says(name: str, decision: ScheduleDecision) -> Any:
        def decide(*_: Any) -> ScheduleDecision:
            log.append(name)
            return decision

        return decide

    first = Decides(decide=says("first", ScheduleDecision.SKIP), priority=1)
    second = Decides(decide=says("second", ScheduleDecision.CONTINUE), priority=2)
    off = Decides(
        decide=says("off", ScheduleDecision.SKIP), config=OrchestratorComponentConfig(enabled=False)
    )

    async def scenario() -> list[str]:
        async with declared(second, off, first) as flock:
            await flock.publish(Ask(text="x"))
            await flock.run_until_idle()
        return log

    assert run_virtual(scenario()) == ["first"]


def test_it_is_the_last_condition_so_private_artifacts_of_others_are_not_shown_to_it() -> None:
    from flock_ray.core.visibility import only_for

    asked: list[Any] = []

    async def scenario() -> None:
        async with declared(Decides(decide=lambda *_: ScheduleDecision.CONTINUE, asked=asked)) as flock:
            await flock.publish(Ask(text="secret"), visibility=only_for("somebody else"))
            await flock.run_until_idle()

    run_virtual(scenario())
    assert asked == []


def test_a_component_added_later_counts_from_then_on() -> None:
    async def scenario() -> list[str]:
        async with declared() as flock:
            await flock.publish(Ask(text="before"))
            await flock.run_until_idle()
            flock.add_component(Decides(decide=lambda *_: ScheduleDecision.SKIP))
            await flock.publish(Ask(text="after"))
            await flock.run_until_idle()
            return await texts(flock, Answer)

    assert run_virtual(scenario()) == ["before"]


class Lives(OrchestratorComponent):
    log: Any
    fails: bool = False

    async def on_initialize(self, orchestrator: Any) -> None:
        self.log.append(f"{self.name} on_initialize")
        await orchestrator.publish(Ask(text="from on_initialize"))

    async def on_orchestrator_idle(self, orchestrator: Any) -> None:
        self.log.append(f"{self.name} on_orchestrator_idle")
        await orchestrator.run_until_idle()
        if self.fails:
            raise ValueError("idle hook")

    async def on_shutdown(self, orchestrator: Any) -> None:
        self.log.append(f"{self.name} on_shutdown {await orchestrator.store.count(Reply)}")


def test_life_cycle_hooks_come_once_by_priority_and_can_use_the_flock() -> None:
    log: list[str] = []

    async def scenario() -> None:
        flock = declared(Lives(name="b", priority=2, log=log), Lives(name="a", priority=1, log=log))
        await asyncio.gather(*(flock.publish(Ask(text="x")) for _ in range(3)))
        await flock.run_until_idle()
        await flock.shutdown()
        await flock.shutdown()

    run_virtual(scenario())
    assert log == [
        "a on_initialize", "b on_initialize", "a on_orchestrator_idle", "b on_orchestrator_idle",
        "a on_shutdown 5", "b on_shutdown 5",
    ]  # fmt: skip


def test_who_publishes_first_waits_for_on_initialize() -> None:
    log: list[str] = []

    class Slow(OrchestratorComponent):
        async def on_initialize(self, orchestrator: Any) -> None:
            await asyncio.sleep(5)
            log.append("initialized")

    async def publish(flock: VirtualFlock) -> None:
        await flock.publish(Ask(text="x"))
        log.append("published")

    async def scenario() -> None:
        flock = declared(Slow())
        await asyncio.gather(publish(flock), publish(flock))
        await flock.shutdown()

    run_virtual(scenario())
    assert log == ["initialized", "published", "published"]


def test_an_error_of_on_initialize_goes_to_the_caller_and_it_is_called_again() -> None:
    calls: list[int] = []

    class Flaky(OrchestratorComponent):
        async def on_initialize(self, orchestrator: Any) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise OSError("not yet")

    async def scenario() -> None:
        flock = declared(Flaky())
        with pytest.raises(OSError, match="not yet"):
            await flock.publish(Ask(text="x"))
        await flock.publish(Ask(text="x"))
        await flock.publish(Ask(text="x"))
        await flock.shutdown()

    run_virtual(scenario())
    assert len(calls) == 2


def test_an_error_of_an_idle_hook_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    async def scenario() -> None:
        async with declared(Lives(name="a", fails=True, log=log), Lives(name="b", log=log)) as flock:
            await flock.run_until_idle()

    with caplog.at_level(logging.ERROR, logger="flock_ray"):
        run_virtual(scenario())
    assert "b on_orchestrator_idle" in log
    assert "a.on_orchestrator_idle failed: ValueError: idle hook" in caplog.text


class Collects(OrchestratorComponent):
    async def on_collect_artifacts(self, *_: Any) -> Any: ...


@pytest.mark.parametrize(
    ("component", "instead"),
    [(Collects(), "join="), (AgentComponent(), "with_utilities"), (Waits, "instances")],
)
def test_what_can_not_be_called_is_refused_with_what_to_use_instead(component: Any, instead: str) -> None:
    flock = declared()
    with pytest.raises(ConfigurationError, match=instead):
        flock.add_component(component)
    assert flock._components == ()


def test_upstreams_built_in_components_say_what_became_of_them() -> None:
    with pytest.raises(ConfigurationError, match="max_agent_iterations"):
        upstream_path.CircuitBreakerComponent  # noqa: B018
    with pytest.raises(AttributeError):
        upstream_path.nothing  # noqa: B018


def test_the_gate_travels_without_what_it_remembers_and_remembers_little() -> None:
    gate = ComponentGate.of([NotAsync(), Waits(config=OrchestratorComponentConfig(enabled=False))])
    assert gate is not None and len(gate.components) == 1
    assert type(pickle.loads(pickle.dumps(gate)).components[0]) is NotAsync
    assert ComponentGate.of([OrchestratorComponent()]) is None


def test_on_artifact_published_is_called_once_for_an_artifact_with_several_takers() -> None:
    seen: list[str] = []

    def look(artifact: Artifact) -> Artifact:
        seen.append(artifact.payload["text"])
        return artifact

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            for name in ("one", "two", "three"):
                flock.agent(name).consumes(Ask).runs(lambda ask: None)
            flock.add_component(Looks(look=look))
            await flock.publish(Ask(text="x"))
            await flock.run_until_idle()

    run_virtual(scenario())
    assert seen == ["x"]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        OrchestratorComponentConfig(defer_for=timedelta(0))


class Starts(OrchestratorComponent):
    """Answers on_before_agent_schedule with what a function says; keeps what it saw of beginning runs."""

    decide: Any
    log: Any

    async def on_before_agent_schedule(self, orchestrator: Any, agent: Any, artifacts: list[Artifact]) -> Any:
        await asyncio.sleep(1)
        self.log.append((f"{self.name} before", agent.name))
        return self.decide(orchestrator, agent, artifacts)

    async def on_agent_scheduled(
        self, orchestrator: Any, agent: Any, artifacts: list[Artifact], task: Any
    ) -> None:
        assert task is asyncio.current_task()
        self.log.append((f"{self.name} scheduled", [artifact.payload["text"] for artifact in artifacts]))


def test_components_see_and_change_what_a_run_begins_with_by_priority_and_before_utilities() -> None:
    log: list[Any] = []

    class Utility(AgentComponent):
        async def on_initialize(self, agent: Any, ctx: Any) -> None:
            log.append(("utility", agent.name))

    def louder(_: Any, agent: Any, artifacts: list[Artifact]) -> list[Artifact]:
        return [a.model_copy(update={"payload": {"text": a.payload["text"] + "!"}}) for a in artifacts]

    async def scenario() -> list[Any]:
        flock = VirtualFlock()
        flock.agent("first").consumes(Ask).publishes(Answer).with_utilities(Utility()).runs(
            lambda ask: Answer(text=ask.text)
        )
        flock.add_component(Starts(name="b", decide=lambda _, agent, given: given, log=log, priority=2))
        flock.add_component(Starts(name="a", decide=louder, log=log, priority=1))
        await flock.publish(Ask(text="hello"))
        await flock.run_until_idle()
        found = [answer.text for answer in await flock.store.get_by_type(Answer)]
        log.append(await flock.invoke("first", Ask(text="direct")))
        await flock.shutdown()
        return found

    assert run_virtual(scenario()) == ["hello!"]
    assert log[:-2] == [
        ("a before", "first"), ("b before", "first"), ("a scheduled", ["hello!"]), ("b scheduled", ["hello!"]),
        ("utility", "first"),
    ]  # fmt: skip
    # invoke asks nobody
    assert log[-2] == ("utility", "first")


def test_none_ends_the_run_without_outputs_and_says_by_whom() -> None:
    log: list[Any] = []

    def decide(_: Any, agent: Any, artifacts: list[Artifact]) -> Any:
        return None if artifacts[0].payload["text"] == "spam" else artifacts

    async def scenario() -> tuple[list[str], list[str], Any]:
        flock = declared(Starts(name="filter", decide=decide, log=log))
        spam = await flock.publish(Ask(text="spam"))
        await flock.publish(Ask(text="ham"))
        await flock.run_until_idle()
        answers = [answer.text for answer in await flock.store.get_by_type(Answer)]
        skipped = [e.detail for e in await events(flock) if e.kind == "activation.skipped"]
        status = await flock.workflow_status(spam)
        await flock.shutdown()
        return answers, skipped, status

    answers, skipped, status = run_virtual(scenario())
    assert answers == ["ham"]
    assert skipped == ["filter.on_before_agent_schedule returned None"]
    assert status.state == "completed"
    assert [entry for entry in log if entry[0].endswith("scheduled")] == [
        ("filter scheduled", ["ham"]), ("filter scheduled", ["ham"]),
    ]  # fmt: skip


@pytest.mark.parametrize("answer", ["text", [1]])
def test_something_else_than_artifacts_fails_the_run_in_one_sentence(answer: Any) -> None:
    async def scenario() -> list[str]:
        flock = declared(Starts(name="odd", decide=lambda *_: answer, log=[]))
        await flock.publish(Ask(text="x"))
        await flock.run_until_idle()
        errors = await flock.store.list_by_type("WorkflowError")
        await flock.shutdown()
        return [error.payload["error_message"] for error in errors]

    [message] = run_virtual(scenario())
    assert "return the list of artifacts" in message


def test_a_hook_of_a_beginning_run_gets_no_flock() -> None:
    async def scenario() -> list[str]:
        flock = declared(Starts(name="curious", decide=lambda flock, *_: flock.store, log=[]))
        await flock.publish(Ask(text="x"))
        await flock.run_until_idle()
        errors = await flock.store.list_by_type("WorkflowError")
        await flock.shutdown()
        return [error.payload["error_message"] for error in errors]

    [message] = run_virtual(scenario())
    assert "there is no flock" in message
