"""The hook `around_evaluate`, and the order of all hooks of a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from flock_ray.engines.component import AgentComponent, EvalInputs, EvalResult
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.components.board import Answer, Ask, Replies, detail, kinds, run_one


class Tells(AgentComponent):
    log: Any

    async def on_initialize(self, agent: Any, ctx: Any) -> None:
        self.log.append(f"{self.name} on_initialize")

    async def on_pre_consume(self, agent: Any, ctx: Any, inputs: Any) -> Any:
        self.log.append(f"{self.name} on_pre_consume")
        return inputs

    async def on_pre_evaluate(self, agent: Any, ctx: Any, inputs: EvalInputs) -> EvalInputs:
        self.log.append(f"{self.name} on_pre_evaluate")
        return inputs

    async def around_evaluate(
        self,
        agent: Any,
        ctx: Any,
        inputs: Any,
        output_group: Any,
        proceed: Callable[[], Awaitable[EvalResult]],
    ) -> EvalResult:
        self.log.append(f"{self.name} around (")
        result = await proceed()
        self.log.append(f"{self.name} around )")
        return result

    async def on_post_evaluate(self, agent: Any, ctx: Any, inputs: Any, result: EvalResult) -> EvalResult:
        self.log.append(f"{self.name} on_post_evaluate")
        return result

    async def on_post_publish(self, agent: Any, ctx: Any, artifact: Any) -> None:
        self.log.append(f"{self.name} on_post_publish")

    async def on_error(self, agent: Any, ctx: Any, error: BaseException) -> None:
        self.log.append(f"{self.name} on_error")

    async def on_terminate(self, agent: Any, ctx: Any) -> None:
        self.log.append(f"{self.name} on_terminate")


class TellingEngine(Tells, Replies):
    async def evaluate(self, agent: Any, ctx: Any, inputs: EvalInputs, output_group: Any) -> Any:
        self.log.append(f"{self.name} evaluate")
        return await super().evaluate(agent, ctx, inputs, output_group)


def order_of(*, reply: Any = None) -> list[str]:
    log: list[str] = []

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer)
            agent.with_engines(TellingEngine(name="engine", log=log, reply=reply))
            agent.with_utilities(
                Tells(name="late", priority=1, log=log), Tells(name="early", priority=0, log=log)
            )
            agent.calls(lambda _: log.append("calls"))
            await flock.publish(Ask(text="x"))
            await flock.run_until_idle()

    run_virtual(scenario())
    return log


def test_hooks_come_in_upstreams_order_and_around_encloses_the_engines() -> None:
    assert order_of() == [
        "early on_initialize", "late on_initialize", "engine on_initialize",
        "early on_pre_consume", "late on_pre_consume",
        "early on_pre_evaluate", "late on_pre_evaluate",
        "early around (", "late around (",
        "engine on_pre_evaluate", "engine evaluate", "engine on_post_evaluate",
        "late around )", "early around )",
        "early on_post_evaluate", "late on_post_evaluate",
        "early on_post_publish", "late on_post_publish", "calls",
        "early on_terminate", "late on_terminate", "engine on_terminate",
    ]  # fmt: skip


def test_after_an_error_come_on_error_and_on_terminate_of_utilities_then_engines() -> None:
    def fail(_: EvalInputs) -> None:
        raise ValueError("no")

    assert order_of(reply=fail)[-6:] == [
        "early on_error", "late on_error", "engine on_error",
        "early on_terminate", "late on_terminate", "engine on_terminate",
    ]  # fmt: skip


class Instead(AgentComponent):
    answer: Any

    async def around_evaluate(self, *arguments: Any) -> Any:
        return self.answer


def test_a_component_may_answer_in_place_of_the_engines() -> None:
    engine = Replies()
    texts, log = run_one(Instead(answer=Answer(text="from a component")), engine=engine)

    assert (texts, engine.seen) == (["from a component"], [])
    assert "activation.completed" in kinds(log)


def test_what_a_component_answers_has_to_fit_the_contract() -> None:
    texts, log = run_one(Instead(answer=Ask(text="not declared")))

    assert texts == []
    assert detail(log, "activation.failed").startswith("OutputContractError")


def test_a_function_is_enclosed_too_and_may_leave_outputs_out() -> None:
    log: list[str] = []

    async def scenario() -> list[Any]:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer).publishes(Ask)
            agent.runs(lambda ask: (Answer(text=ask.text), None)).with_utilities(Tells(name="u", log=log))
            await flock.publish(Ask(text="x"))
            await flock.run_until_idle()
            return list(await flock.store.get_by_type(Answer))

    assert run_virtual(scenario()) == [Answer(text="x")]
    assert log[2:6] == ["u on_pre_evaluate", "u around (", "u around )", "u on_post_evaluate"]


def test_around_runs_once_around_all_candidates_of_best_of() -> None:
    log: list[str] = []
    engine = Replies()

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer).with_engines(engine)
            agent.with_utilities(Tells(name="u", log=log)).best_of(3, score=lambda result: 1.0)
            await flock.publish(Ask(text="x"))
            await flock.run_until_idle()

    run_virtual(scenario())
    assert len(engine.seen) == 3
    assert log.count("u around (") == 1
