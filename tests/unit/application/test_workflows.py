"""Workflows of an application: outputs, results, failures, deadlines, cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flock_ray import Until
from flock_ray.application import (
    ApplicationNotRunning,
    CapacityExceeded,
    CompletionPolicy,
    FailureCode,
    InvalidWorkflowInput,
    WorkflowFailedError,
    WorkflowIdConflict,
    WorkflowStatus,
)
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.application.declared import Answer, Part, Question, Runs, application, ask, called, flock_with


def test_a_workflow_gives_its_outputs_and_one_result() -> None:
    async def main() -> None:
        async with application(required_output_types=(Answer,)) as app:
            result = await app.run(ask("why", parts=2), context=called("w"))

            assert result.ok and result.status is WorkflowStatus.SUCCEEDED and result.failure is None
            assert result.values(Answer) == [Answer(text="why 0"), Answer(text="why 1")]
            assert [event.sequence for event in result.outputs] == [0, 1]
            assert {event.artifact.correlation_id for event in result.outputs} == {"w"}
            assert result.condition_met is None
            result.raise_for_status()
            assert app.active_workflows == 0

    run_virtual(main())


def test_outputs_come_while_the_workflow_runs() -> None:
    async def main() -> list[tuple[int, str]]:
        flock = VirtualFlock()

        async def split(question: Question) -> list[Part]:
            return [Part(text=question.text, number=n) for n in range(3)]

        async def answer(part: Part) -> Answer:
            await asyncio.sleep(10 * part.number)
            return Answer(text=str(part.number))

        flock.agent("split").consumes(Question).publishes(Part, fan_out=(1, 9)).runs(split)
        flock.agent("answer").consumes(Part).publishes(Answer).runs(answer)
        seen = []
        async with application(flock) as app, app.stream(ask(), context=called("w")) as workflow:
            async for event in workflow:
                assert isinstance(event.value, Answer)
                seen.append((round(asyncio.get_running_loop().time()), event.value.text))
            assert (await workflow.result()).ok
        return seen

    assert run_virtual(main()) == [(0, "0"), (10, "1"), (20, "2")]


def test_a_mapping_is_taken_as_input_and_a_wrong_one_refused_without_quoting_it() -> None:
    async def main() -> None:
        async with application() as app:
            assert (await app.run({"text": "a"}, context=called("w"))).ok
            for bad in (
                {"text": 1, "seconds": "hidden"},
                7,
                Answer(text="x").model_copy(update={"text": None}),
            ):
                with pytest.raises(InvalidWorkflowInput) as refused:
                    await app.run(bad, context=called("v"))  # type: ignore[arg-type]
                assert "hidden" not in str(refused.value)
            for timeout in (0, -1, 3601, float("nan")):
                with pytest.raises(InvalidWorkflowInput, match="timeout"):
                    await app.run(ask(), context=called("v"), timeout=timeout)
            with pytest.raises(InvalidWorkflowInput, match="flock:"):
                await app.run(ask(), context=called("flock:session:1"))
            with pytest.raises(InvalidWorkflowInput, match="attributes"):
                await app.run(ask(), context=called("v", attributes={"a": "x" * 20_000}))
            assert app.active_workflows == 0

    run_virtual(main())


@pytest.mark.parametrize("bad", ["", "  ", "a\nb", "a\x00", "x" * 257, None])
def test_ids_that_would_break_logs_or_headers_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidWorkflowInput, match="workflow_id"):
        called(bad)


def test_a_failed_agent_fails_the_workflow_with_fixed_text() -> None:
    async def main() -> None:
        async with application() as app:
            result = await app.run(ask("fail"), context=called("w"))

            assert result.status is WorkflowStatus.FAILED and not result.ok
            assert result.failure is not None
            assert (result.failure.code, result.failure.agent) == (FailureCode.AGENT_FAILED, "answerer")
            assert "secret" not in str(result.failure)
            assert result.diagnostics["failed_agents"] == ["answerer"]
            with pytest.raises(WorkflowFailedError, match="agent_failed") as raised:
                result.raise_for_status()
            assert raised.value.result is result

    run_virtual(main())


def two_branches(runs: Runs) -> VirtualFlock:
    """`quick` fails at once, or answers; `slow` answers after a minute."""
    flock = VirtualFlock()

    async def quick(question: Question) -> Answer:
        if question.text == "fail":
            raise ValueError
        return Answer(text="quick")

    async def slow(question: Question) -> Answer:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            runs.stopped.append(question.text)
            raise
        return Answer(text="slow")

    flock.agent("quick").consumes(Question).publishes(Answer).runs(quick)
    flock.agent("slow").consumes(Question).publishes(Answer).runs(slow)
    return flock


@pytest.mark.parametrize(
    ("policy", "text", "status", "answers", "took", "stopped"),
    [
        (CompletionPolicy(), "fail", "failed", [], 0, ["fail"]),
        (CompletionPolicy(on_error="continue"), "fail", "failed", ["slow"], 60, []),
        (CompletionPolicy(until=Until.exists(Answer)), "x", "succeeded", ["quick"], 0, ["x"]),
        (
            CompletionPolicy(until=Until.exists(Answer), on_condition="drain"),
            "x", "succeeded", ["quick", "slow"], 60, [],
        ),
        (CompletionPolicy(until=Until.artifact_count(Answer).at_least(3)), "x", "failed", ["quick", "slow"], 60, []),
        (CompletionPolicy(until=Until.workflow_error(), on_error="continue"), "fail", "failed", [], 0, ["fail"]),
        (
            CompletionPolicy(until=Until.any_field(Answer, field="text", predicate=lambda t: t == "slow")),
            "x", "succeeded", ["quick", "slow"], 60, [],
        ),
        (CompletionPolicy(until=~Until.none(Answer)), "x", "succeeded", ["quick"], 0, ["x"]),
    ],
)  # fmt: skip
def test_a_workflow_is_over_when_its_policy_says_so(
    policy: CompletionPolicy, text: str, status: str, answers: list[str], took: int, stopped: list[str]
) -> None:
    async def main() -> None:
        runs = Runs()
        flock = two_branches(runs)
        async with application(flock, completion=policy) as app:
            result = await app.run(ask(text), context=called("w"))

            assert (result.status, [a.text for a in result.values(Answer)]) == (status, answers)
            assert round(asyncio.get_running_loop().time()) == took
            await asyncio.sleep(1)
            assert runs.stopped == stopped
            if policy.until is not None:
                met = status == "succeeded" or text == "fail"
                assert result.condition_met is met
                if not met:
                    assert result.failure is not None
                    assert result.failure.code is FailureCode.CONDITION_NOT_MET
            assert (await flock.workflow_status("w")).open == 0
        await flock.shutdown()

    run_virtual(main())


def test_a_deadline_cancels_what_runs() -> None:
    async def main() -> None:
        runs = Runs()
        flock = flock_with(runs)
        async with application(flock) as app:
            result = await app.run(ask("long", seconds=1000), context=called("w"), timeout=30)

            assert (result.status, result.failure) == (WorkflowStatus.TIMED_OUT, None)
            assert asyncio.get_running_loop().time() == pytest.approx(30, abs=1)
            assert result.diagnostics["open_activations"] == 1
            await asyncio.sleep(1)
            assert runs.stopped == ["long"]
            assert (await flock.workflow_status("w")).state == "cancelled"
        await flock.shutdown()

    run_virtual(main())


def test_a_timed_out_workflow_gives_what_came_in_time() -> None:
    async def main() -> None:
        async with application(two_branches(Runs())) as app:
            result = await app.run(ask(), context=called("w"), timeout=10)
            assert (result.status, result.values(Answer)) == (
                WorkflowStatus.TIMED_OUT,
                [Answer(text="quick")],
            )

    run_virtual(main())


@pytest.mark.parametrize("how", ["cancel", "leave", "task"])
def test_a_caller_cancels_by_saying_so_by_leaving_and_by_being_cancelled(how: str) -> None:
    async def main() -> None:
        runs = Runs()
        flock = flock_with(runs)
        async with application(flock) as app:
            if how == "task":
                call = asyncio.ensure_future(app.run(ask("x", seconds=1000), context=called("w")))
                await asyncio.sleep(5)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            else:
                async with app.stream(ask("x", seconds=1000), context=called("w")) as workflow:
                    await asyncio.sleep(5)
                    if how == "cancel":
                        workflow.cancel()
                        assert (await workflow.result()).status is WorkflowStatus.CANCELLED
            await asyncio.sleep(1)
            assert runs.stopped == ["x"] and app.active_workflows == 0
            again = await app.run(ask("x", seconds=1000), context=called("w"))
            assert again.status is WorkflowStatus.CANCELLED  # the end is for good
            assert asyncio.get_running_loop().time() < 10
        await flock.shutdown()

    run_virtual(main())


def test_a_workflow_that_an_operator_cancels_on_the_board_is_cancelled() -> None:
    async def main() -> None:
        flock = flock_with()
        async with application(flock) as app, app.stream(ask(seconds=99), context=called("w")) as workflow:
            await asyncio.sleep(1)
            await flock.cancel("w")
            assert (await workflow.result()).status is WorkflowStatus.CANCELLED
            assert asyncio.get_running_loop().time() < 5
        await flock.shutdown()

    run_virtual(main())


def test_a_missing_required_output_and_too_many_outputs_fail() -> None:
    async def main() -> None:
        async with application(required_output_types=(Answer,), max_outputs=3) as app:
            none = await app.run(ask("nothing"), context=called("none"))
            enough = await app.run(ask(parts=3), context=called("enough"))
            many = await app.run(ask(parts=4), context=called("many"))

            assert none.failure is not None and none.failure.code is FailureCode.REQUIRED_OUTPUT_MISSING
            assert none.diagnostics["missing_outputs"] == ["app.Answer"]
            assert enough.ok
            assert many.failure is not None and many.failure.code is FailureCode.OUTPUT_LIMIT_EXCEEDED
            assert len(many.outputs) == 3

    run_virtual(main())


def test_a_loop_that_the_guard_stops_fails_the_workflow() -> None:
    async def main() -> None:
        flock = VirtualFlock(max_agent_iterations=5)
        flock.agent("start").consumes(Question).publishes(Answer).runs(lambda q: Answer(text="go"))
        looping = flock.agent("loop").consumes(Answer).publishes(Answer).prevent_self_trigger(False)
        looping.runs(lambda a: Answer(text="on"))
        async with application(flock) as app:
            result = await app.run(ask(), context=called("w"))
            assert result.failure is not None
            assert (result.failure.code, result.failure.agent) == (
                FailureCode.ITERATION_LIMIT_EXCEEDED,
                "loop",
            )
            assert result.diagnostics["iteration_limit"] == ["loop"]

    run_virtual(main())


def test_many_workflows_at_once_do_not_see_each_other() -> None:
    async def main() -> None:
        async with application(flock_with(shards=3)) as app:
            calls = [
                app.run(ask(f"q{n}", seconds=n % 7, parts=1 + n % 3), context=called(f"w{n}"))
                for n in range(200)
            ]
            results = await asyncio.gather(*calls)
            for n, result in enumerate(results):
                assert [a.text for a in result.values(Answer)] == [f"q{n} {i}" for i in range(1 + n % 3)]

    run_virtual(main())


def test_admission_refuses_and_says_when_to_come_again() -> None:
    async def main() -> None:
        async with application(max_active_workflows=2) as app:
            busy = [
                asyncio.ensure_future(app.run(ask(seconds=10), context=called(f"w{n}"))) for n in range(2)
            ]
            await asyncio.sleep(1)
            with pytest.raises(CapacityExceeded) as refused:
                await app.run(ask(), context=called("w2"))
            assert refused.value.retry_after_s > 0 and refused.value.retryable
            attached = await app.run(ask(seconds=10), context=called("w1"))  # takes no place of its own
            assert attached.ok and all(r.ok for r in await asyncio.gather(*busy))
            assert (await app.run(ask(), context=called("w2"))).ok

    run_virtual(main())


def test_an_application_that_drains_ends_what_runs_and_takes_nothing_new() -> None:
    async def main() -> None:
        app = application()
        accepting = [app.accepting]
        await app.start()
        accepting.append(app.accepting)
        running = asyncio.ensure_future(app.run(ask(seconds=5), context=called("w")))
        late = asyncio.ensure_future(app.run(ask(seconds=500), context=called("late")))
        await asyncio.sleep(1)
        app.begin_drain()
        assert [*accepting, app.accepting] == [False, True, False]
        with pytest.raises(ApplicationNotRunning):
            await app.run(ask(), context=called("v"))
        await app.shutdown(grace=10)
        assert (await running).ok
        assert (await late).status is WorkflowStatus.CANCELLED  # the memory board ends with it
        await app.shutdown()
        with pytest.raises(ApplicationNotRunning):
            await app.start()

    run_virtual(main())


def test_a_used_id_is_for_the_same_input_of_the_same_caller() -> None:
    async def main() -> None:
        runs = Runs()
        async with application(flock_with(runs)) as app:
            first = await app.run(ask("a"), context=called("w", principal_id="p"))
            again = await app.run(ask("a"), context=called("w", principal_id="p"))
            assert again == first and runs.answered == ["a"]
            for value, context in (
                (ask("b"), called("w", principal_id="p")),
                (ask("a"), called("w", principal_id="q")),
                (ask("a"), called("w")),
                (ask("a"), called("w", principal_id="p", session_id="s")),
            ):
                with pytest.raises(WorkflowIdConflict):
                    await app.run(value, context=context)
            assert runs.answered == ["a"]

    run_virtual(main())


def test_two_calls_at_once_with_one_id_share_the_workflow() -> None:
    async def main() -> None:
        runs = Runs()
        async with application(flock_with(runs)) as app:
            calls = [app.run(ask("a", seconds=3), context=called("w")) for _ in range(5)]
            other = app.run(ask("b"), context=called("w"))
            *results, refused = await asyncio.gather(*calls, other, return_exceptions=True)
            assert len({r.outputs[0].artifact.id for r in results}) == 1  # type: ignore[union-attr]
            assert isinstance(refused, WorkflowIdConflict) and runs.answered == ["a"]

    run_virtual(main())


def test_a_stream_goes_on_behind_the_output_that_the_caller_has() -> None:
    async def main() -> None:
        async with application() as app:
            await app.run(ask(parts=5), context=called("w"))
            async with app.stream(ask(parts=5), context=called("w"), after=2) as workflow:
                assert workflow.attached
                assert [event.sequence async for event in workflow] == [3, 4]
                assert len((await workflow.result()).outputs) == 5

    run_virtual(main())


def test_a_stream_that_is_detached_leaves_the_workflow_running() -> None:
    async def main() -> None:
        runs = Runs()
        async with application(flock_with(runs)) as app:
            async with app.stream(ask("a", seconds=5), context=called("w")) as workflow:
                workflow.detach()
            assert app.active_workflows == 1
            await asyncio.sleep(10)
            assert app.active_workflows == 0 and runs.answered == ["a"]
            assert (await app.run(ask("a", seconds=5), context=called("w"))).ok

    run_virtual(main())
