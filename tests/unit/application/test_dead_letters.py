"""Workflows of an application whose agents have a dead letter queue."""

from __future__ import annotations

from flock_ray.application import FailureCode, WorkflowStatus
from flock_ray.testing import run_virtual
from tests.unit.application.declared import application, ask, called, flock_with


def test_a_dead_letter_fails_the_workflow_as_an_error_does() -> None:
    async def main() -> None:
        flock = flock_with()
        flock.get_agent("answerer").retry(max_attempts=1, dead_letter="unanswered")
        async with application(flock) as app:
            result = await app.run(ask("fail"), context=called("w"))

            assert result.status is WorkflowStatus.FAILED
            assert result.failure is not None
            assert (result.failure.code, result.failure.agent) == (FailureCode.AGENT_FAILED, "answerer")
            assert result.diagnostics["failed_agents"] == ["answerer"]
            assert await flock.dead_letters.count(workflow="w") == 1

    run_virtual(main())
