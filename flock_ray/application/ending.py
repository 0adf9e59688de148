"""Ending a workflow: the end is recorded first, once for all processes; then what is left of it is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

from flock_ray.application.follower import Follower
from flock_ray.application.ledger import Ledger, moment
from flock_ray.application.observation import MAX_NAMED, Verdict, artifact_key
from flock_ray.application.records import WorkflowEnded
from flock_ray.application.types import (
    FailureCode,
    WorkflowContext,
    WorkflowFailure,
    WorkflowResult,
    WorkflowStatus,
)
from flock_ray.errors import FlockError

MIN_GRACE_S = 0.1
"""A cancellation is given at least so long to reach the board."""


async def close(
    ledger: Ledger,
    context: WorkflowContext,
    follower: Follower,
    verdict: Verdict,
    grace_s: float,
    *,
    turn: bool,
) -> WorkflowResult:
    """End a workflow and return its result: that of whoever ended it first.

    Args:
        ledger: The board.
        context: The workflow's.
        follower: What was seen of it.
        verdict: How it ends.
        grace_s: How long the board is given to cancel what is left.
        turn: Add it to the log of its session if it succeeded.
    """
    found = verdict.diagnostics
    record = await _record(ledger, follower, verdict)
    try:
        if turn and verdict.status is WorkflowStatus.SUCCEEDED:
            # Before the end: a crash in between repeats both, and the next turn never misses this one.
            await ledger.add_turn(context, follower.observed.outputs)
        kept = await ledger.end(context.workflow_id, record)
    except FlockError as error:
        found["unrecorded"] = type(error).__name__
        kept = record
    result = result_of(context.workflow_id, follower, verdict)
    if kept != record:
        follower.ended = kept
        result = await recorded(ledger, context.workflow_id, follower)
    if kept.stop:
        await stop(ledger, context.workflow_id, grace_s, found)
    return result


async def _record(ledger: Ledger, follower: Follower, verdict: Verdict) -> WorkflowEnded:
    found = verdict.diagnostics
    if follower.flushed:
        found["flushed_batches"] = follower.flushed
    left = False
    try:
        status = follower.status if follower.settled else await follower.refresh()
        left = status is not None and bool(status.open or status.waiting or status.delayed)
        if status is not None and status.waiting:
            found["incomplete"] = list(status.waiting_for)[:MAX_NAMED]
        if status is not None and status.open:
            found["open_activations"] = status.open
    except FlockError:
        left = True
    failure = verdict.failure
    return WorkflowEnded(
        at=moment(ledger.now_us()),
        status=verdict.status.value,
        failure=None if failure is None else failure.code.value,
        agent=None if failure is None else failure.agent,
        condition_met=verdict.condition_met,
        outputs=[str(event.artifact.id) for event in follower.observed.outputs],
        diagnostics=dict(found),
        stop=left,
    )


async def stop(ledger: Ledger, workflow_id: str, grace_s: float, found: dict[str, Any]) -> None:
    """Cancel what is left on the board, so that nothing of a workflow that is over runs or waits."""
    try:
        async with asyncio.timeout(max(grace_s, MIN_GRACE_S)):
            await ledger.flock.cancel(workflow_id)
    except (FlockError, TimeoutError) as error:
        found["teardown_failed"] = type(error).__name__


async def stop_what_is_left(ledger: Ledger, workflow_id: str, grace_s: float) -> None:
    """Cancel a workflow whose end is recorded, if something of it still runs or waits."""
    status = await ledger.status(workflow_id)
    if status is not None and (status.open or status.waiting or status.delayed):
        await stop(ledger, workflow_id, grace_s, {})


async def recorded(ledger: Ledger, workflow_id: str, follower: Follower) -> WorkflowResult:
    """Return the result that is on the board, which another process may have written.

    Raises:
        StoreUnavailableError: The board does not answer; retryable.
    """
    record = follower.ended
    assert record is not None
    known = {str(event.artifact.id): event.artifact for event in follower.observed.outputs}
    missing = [artifact_key(key) for key in record.outputs if key not in known]
    known.update({str(a.id): a for a in await ledger.artifacts(workflow_id, missing)})
    artifacts = [known[key] for key in record.outputs if key in known]
    events = tuple(follower.observed.event(number, artifact) for number, artifact in enumerate(artifacts))
    failure = (
        None if record.failure is None else WorkflowFailure.of(FailureCode(record.failure), record.agent)
    )
    found = dict(record.diagnostics)
    if len(events) < len(record.outputs):
        found["erased_outputs"] = len(record.outputs) - len(events)
    return WorkflowResult(
        workflow_id, WorkflowStatus(record.status), events, failure, record.condition_met, found
    )


def result_of(workflow_id: str, follower: Follower, verdict: Verdict) -> WorkflowResult:
    """Return a verdict as a result with what was observed."""
    outputs = tuple(follower.observed.outputs)
    return WorkflowResult(
        workflow_id, verdict.status, outputs, verdict.failure, verdict.condition_met, verdict.diagnostics
    )
