"""What of a workflow its caller sees, and what becomes of what waits when it is over."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from flock_ray import AfterVisibility, PrivateVisibility, TenantVisibility, WorkflowError
from flock_ray.application import FailureCode
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.application.declared import Answer, Part, Question, application, ask, called, flock_with


def test_only_what_the_caller_may_see_is_an_output() -> None:
    async def main() -> None:
        flock = VirtualFlock()
        tenant = lambda answer: TenantVisibility(tenant_id=answer.text)  # noqa: E731
        flock.agent("mine").consumes(Question).publishes(Answer, visibility=tenant).runs(
            lambda q: Answer(text="ada")
        )
        flock.agent("others").consumes(Question).publishes(Answer, visibility=tenant).runs(
            lambda q: Answer(text="bob")
        )
        flock.agent("inner").consumes(Question).publishes(
            Answer, visibility=PrivateVisibility(agents={"x"})
        ).runs(lambda q: Answer(text="inner"))
        async with application(flock) as app:
            ada = await app.run(ask(), context=called("a", principal_id="ada"))
            nobody = await app.run(ask(), context=called("n"))
            await flock.publish(Answer(text="from outside"), correlation_id="a")
            assert [a.text for a in ada.values(Answer)] == ["ada"] and nobody.outputs == ()
        await flock.shutdown()

    run_virtual(main())


def test_a_policy_of_ones_own_gets_the_context_and_a_broken_one_fails_the_workflow() -> None:
    async def main() -> None:
        def policy(artifact: Any, context: Any) -> bool:
            return bool(context.attributes["show"] == "yes")

        async with application(access_policy=policy) as app:
            shown = await app.run(ask(), context=called("a", attributes={"show": "yes"}))
            hidden = await app.run(ask(), context=called("b", attributes={"show": "no"}))
            broken = await app.run(ask(), context=called("c"))
            assert len(shown.outputs) == 1 and hidden.outputs == () and hidden.ok
            assert broken.failure is not None and broken.failure.code is FailureCode.INTERNAL_ERROR

    run_virtual(main())


def test_a_partial_batch_runs_when_nothing_else_of_its_workflow_does() -> None:
    async def main() -> None:
        flock = VirtualFlock(shards=2)
        flock.agent("split").consumes(Question).publishes(Part, fan_out=(1, 9)).runs(
            lambda q: [Part(text=q.text, number=n) for n in range(q.parts)]
        )
        flock.agent("sum").consumes(Part, batch={"size": 4}, scope="workflow").publishes(Answer).runs(
            lambda parts: Answer(text=",".join(f"{p.text}{p.number}" for p in parts))
        )
        async with application(flock, required_output_types=(Answer,)) as app:
            # Of another workflow, on the same board and not of the application: it goes on waiting.
            await flock.publish(Part(text="x", number=0), correlation_id="other")
            results = await asyncio.gather(
                *(app.run(ask(f"q{n}", parts=n), context=called(f"w{n}")) for n in range(1, 7))
            )
            answers = [[a.text for a in result.values(Answer)] for result in results]
            assert answers[0] == ["q10"] and answers[5] == ["q60,q61,q62,q63", "q64,q65"]
            assert all(r.ok for r in results)
            assert [r.diagnostics.get("flushed_batches", 0) for r in results] == [1, 1, 1, 0, 1, 1]
            assert (await flock.workflow_status("other")).waiting == 1
        await flock.shutdown(flush_batches=False)

    run_virtual(main())


def test_an_incomplete_gate_is_reported_and_left_empty() -> None:
    async def main() -> None:
        flock = flock_with()
        flock.agent("pair").consumes(Answer, Part).publishes(Part).runs(lambda a, p: p)
        async with application(flock) as app:
            result = await app.run(ask(), context=called("w"))
            assert result.ok
            [line] = result.diagnostics["incomplete"]
            assert "pair" in line and "app.Part" in line
            assert (await flock.workflow_status("w")).waiting == 0
        await flock.shutdown()

    run_virtual(main())


def test_a_delayed_delivery_is_waited_for() -> None:
    async def main() -> None:
        flock = VirtualFlock()
        later = AfterVisibility(ttl=timedelta(minutes=5))
        flock.agent("first").consumes(Question).publishes(Part, visibility=later).runs(
            lambda q: Part(text=q.text, number=1)
        )
        flock.agent("second").consumes(Part).publishes(Answer).runs(lambda p: Answer(text="late"))
        policy = lambda artifact, context: True  # noqa: E731
        async with application(flock, access_policy=policy) as app:
            result = await app.run(ask(), context=called("w"))
            assert [a.text for a in result.values(Answer)] == ["late"]
            assert asyncio.get_running_loop().time() == pytest.approx(300, abs=1)
        await flock.shutdown()

    run_virtual(main())


def test_a_stream_has_to_be_entered() -> None:
    async def main() -> None:
        async with application() as app:
            stream = app.stream(ask(), context=called("w"))
            with pytest.raises(ConfigurationError, match="async with"):
                await stream.result()

    run_virtual(main())


def test_an_error_artifact_is_never_an_output() -> None:
    with pytest.raises(ValueError, match="internal"):
        run_virtual(application(output_types=(Answer, WorkflowError)).start())
