"""The application of the tests on a real Ray: the test and the script that is killed both import it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from flock_ray import Flock, FlockApplication, SQLitePersistence, WorkflowContext
from tests.integration.models import Done, Job


async def work(job: Job) -> Done:
    with open(f"{job.gate}.started", "a") as log:  # noqa: ASYNC230  # a byte
        log.write("x")
    while not Path(job.gate).exists():  # noqa: ASYNC110, ASYNC240  # a test opens the gate
        await asyncio.sleep(0.02)
    return Done(n=job.n, pid=0)


def open_application(folder: str, **options: Any) -> tuple[Flock, FlockApplication]:
    flock = Flock(namespace="jobs", persistence=SQLitePersistence(folder), max_workers=1, **options)
    flock.agent("worker").consumes(Job).publishes(Done).runs(work)
    return flock, FlockApplication(flock, input_type=Job, output_types=(Done,), required_output_types=(Done,))


async def start_and_wait(folder: str, gate: str) -> None:
    """The process that is killed: it has started a workflow, says so, and waits for its result."""
    _, app = open_application(folder)
    async with app.stream(Job(n=7, gate=gate), context=WorkflowContext("job-7"), timeout=300) as workflow:
        print("started", flush=True)
        await workflow.result()
