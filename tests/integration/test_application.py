"""An application on a real Ray and a real store: its process dies, and the next one attaches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flock_ray import WorkflowContext
from flock_ray.application import WorkflowIdConflict, WorkflowStatus
from tests.integration.application_models import open_application
from tests.integration.models import Done, Job

pytestmark = pytest.mark.timeout(180)

DRIVER = """
import asyncio, sys
from tests.integration.application_models import start_and_wait
asyncio.run(start_and_wait(*sys.argv[1:]))
"""


async def test_an_application_whose_process_was_killed_is_followed_by_one_that_attaches(
    start_script: Callable[..., Any], tmp_path: Path
) -> None:
    # Given a workflow whose agent runs, and whose application's process, board and all, is killed
    folder, gate = tmp_path / "board", tmp_path / "gate"
    driver = start_script(DRIVER, str(folder), str(gate))
    assert await asyncio.to_thread(driver.stdout.readline) == "started\n", driver.stderr.read()
    started = Path(f"{gate}.started")
    async with asyncio.timeout(60):
        while not started.exists():  # noqa: ASYNC110, ASYNC240  # another process writes it
            await asyncio.sleep(0.02)
    driver.kill()
    await asyncio.to_thread(driver.wait)

    # When another process runs the application and calls with the same id and input
    flock, app = open_application(str(folder))
    context = WorkflowContext("job-7")
    async with app:
        async with app.stream(Job(n=7, gate=str(gate)), context=context) as workflow:
            assert workflow.attached
            gate.touch()
            values = [event.value async for event in workflow]
            result = await workflow.result()

        # Then there is one workflow with one result, and other inputs are refused
        assert values == [Done(n=7, pid=0)] and result.ok
        assert await flock.store.count(Job) == 1 and await flock.store.count(Done) == 1
        assert await app.run(Job(n=7, gate=str(gate)), context=context) == result
        with pytest.raises(WorkflowIdConflict):
            await app.run(Job(n=8), context=context)

        # And a deadline cancels what runs on a worker
        late = await app.run(
            Job(n=9, gate=str(tmp_path / "never")), context=WorkflowContext("job-9"), timeout=2
        )
        assert late.status is WorkflowStatus.TIMED_OUT and late.diagnostics["open_activations"] == 1
        assert (await flock.workflow_status("job-9")).open == 0
    await flock.shutdown(flush_batches=False)
