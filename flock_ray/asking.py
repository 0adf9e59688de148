"""Answers to "why?": where an artifact went, what a workflow does, what an agent waits for."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flock_ray.artifact import Artifact
from flock_ray.board import Board
from flock_ray.breakers import limit_notes
from flock_ray.errors import ArtifactNotFoundError, ConfigurationError
from flock_ray.provenance import how_made

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder

__all__ = ["SubscriptionAnswer", "Why", "WorkflowStatus", "explain", "workflow_status"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class WorkflowStatus:
    """What a workflow does."""

    correlation_id: str
    state: str
    """active, waiting (in gates or for a time), completed, failed, cancelled or not_found.

    Failed: nothing runs or waits any more and there was an error. A dead letter that was redriven is no error any more;
    one that was discarded is."""
    artifact_count: int = 0
    error_count: int = 0
    """WorkflowErrors, and dead letters that nobody has redriven."""
    open: int = 0
    """Activations that run or are ready."""
    waiting: int = 0
    """Inputs in gates."""
    delayed: int = 0
    """Inputs that wait for a time."""
    waiting_for: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    """Artifacts by type."""
    started_at: datetime | None = None
    last_activity_at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the status under upstream's keys and ours, in JSON terms."""
        return {
            "correlation_id": self.correlation_id,
            "state": self.state,
            "has_pending_work": bool(self.open or self.waiting or self.delayed),
            "artifact_count": self.artifact_count,
            "error_count": self.error_count,
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "last_activity_at": self.last_activity_at.isoformat() if self.last_activity_at else None,
            "waiting_for": list(self.waiting_for),
        }


def workflow_id(workflow: Artifact | str | None) -> str:
    """Return the correlation id that names a workflow.

    Raises:
        ConfigurationError: The artifact has none, as before it is published.
    """
    name = workflow.correlation_id if isinstance(workflow, Artifact) else workflow
    if not name:
        raise ConfigurationError("Which workflow? Pass a correlation id, or an artifact that was published.")
    return name


async def workflow_status(board: Board, correlation_id: str) -> WorkflowStatus:
    """Ask all shards about a workflow."""
    part = await board.status(correlation_id)
    if part is None:
        return WorkflowStatus(correlation_id, "not_found")
    if part.cancelled:
        state = "cancelled"
    elif part.open:
        state = "active"
    elif part.waiting or part.delayed:
        state = "waiting"
    else:
        state = "failed" if part.errors else "completed"
    return WorkflowStatus(
        correlation_id,
        state,
        part.artifacts,
        part.errors,
        part.open,
        part.waiting,
        part.delayed,
        tuple(part.waiting_for),
        part.counts,
        _EPOCH + timedelta(microseconds=part.created_us) if part.created_us else None,
        _EPOCH + timedelta(microseconds=part.updated_us) if part.updated_us else None,
    )


@dataclass(frozen=True, slots=True)
class SubscriptionAnswer:
    """What one subscription made of an artifact."""

    subscription: str
    matched: bool
    conditions: tuple[tuple[str, bool, str], ...]
    """(condition, passed, value or error), every one evaluated."""
    state: str
    """not matched, candidate, waiting, delayed, ready, running or done."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Why:
    """An explanation; `str()` of it is meant to be read."""

    subject: str
    answers: tuple[SubscriptionAnswer, ...] = ()
    made: tuple[tuple[uuid.UUID, str, str], ...] = ()
    """(id, type, agent) of artifacts made from it."""
    notes: tuple[str, ...] = ()
    how: tuple[str, ...] = ()
    """Which prompts (by hash), models, repairs and tools led to it, as far as the event log still knows."""

    def __str__(self) -> str:
        """Explain in lines."""
        lines = [self.subject]
        for answer in self.answers:
            lines.append(
                f"  {answer.subscription}: {answer.state}" + (f" ({answer.detail})" if answer.detail else "")
            )
            lines += [
                f"    {'ok ' if ok else 'NO '} {name}: {value}" for name, ok, value in answer.conditions
            ]
        lines += [f"  by: {line}" for line in self.how]
        lines += [f"  made: {type_name} {key} by {agent}" for key, type_name, agent in self.made]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


async def explain(board: Board, subject: Artifact | uuid.UUID | AgentBuilder | str) -> Why:
    """Explain an artifact (or its id), or an agent (or its name).

    Raises:
        ArtifactNotFoundError: No such artifact is on the board (any more).
    """
    if isinstance(subject, Artifact):
        subject = subject.id
    if isinstance(subject, uuid.UUID):
        return await _explain_artifact(board, subject)
    name = subject if isinstance(subject, str) else subject.name
    return await _explain_agent(board, name)


async def _explain_artifact(board: Board, key: uuid.UUID) -> Why:
    fates = await board.fates(key.bytes)
    envelope = next((fate.envelope for fate in fates if fate.envelope is not None), None)
    waits = tuple(fate.approval for fate in fates if fate.approval)
    if envelope is None and waits:
        name, agent, workflow = next(fate.approval_of for fate in fates if fate.approval)
        return Why(f"{name} {key} by {agent} in workflow {workflow} is not published yet", notes=waits)
    if envelope is None:
        raise ArtifactNotFoundError(
            f"No artifact {key} is on this board: was it evicted, or is the id of another board?"
        )
    waiting = {sub: text for fate in fates for sub, text in (*fate.waiting, *fate.held_back)}
    delayed = {sub: due for fate in fates for sub, due in fate.delayed}
    again = {sub: due for fate in fates for sub, due in fate.candidates}
    ready = {sub for fate in fates for sub in fate.ready}
    running = {sub for fate in fates for sub in fate.running}
    answers = []
    for subscription, checks in (await board.edge.explain(envelope)).items():
        matched = all(check.passed for check in checks)
        state, detail = ("done", "") if matched else ("not matched", "")
        if subscription in running:
            state = "running"
        elif subscription in ready:
            state, detail = "ready", "waits for a permit"
        elif subscription in waiting:
            state, detail = "waiting", waiting[subscription]
        elif subscription in delayed:
            state, detail = "delayed", f"until {_EPOCH + timedelta(microseconds=delayed[subscription])}"
        elif subscription in again:
            state, detail = (
                "candidate",
                f"asked again at {_EPOCH + timedelta(microseconds=again[subscription])}",
            )
        conditions = tuple((c.condition, c.passed, c.error or c.value) for c in checks)
        answers.append(SubscriptionAnswer(subscription, matched, conditions, state, detail))
    made = tuple((uuid.UUID(bytes=i), t, by) for fate in fates for i, t, by in fate.children)
    notes = waits if answers else (f"nobody consumes {envelope.type}", *waits)
    title = f"{envelope.type} {key} by {envelope.produced_by} in workflow {envelope.correlation_id}"
    return Why(title, tuple(answers), made, notes, await how_made(board, envelope))


async def _explain_agent(board: Board, name: str) -> Why:
    from flock_ray.pausing import paused_on

    pools = await board.ask_router("pools")
    stats = await board.each("stats")
    ready = sum(shard["ready"].get(name, 0) for shard in stats)
    definition = board.edge.table.definitions.get(name)
    if definition is None:
        return Why(f"agent {name}", notes=("no such agent is deployed on this board",))
    pool = f"agent-{name}" if definition.pool is not None else "shared"
    counts = {sub.id: [t.__name__ for t in sub.types] for sub in definition.subscriptions}
    notes = [f"{sub}: consumes {' + '.join(types)}" for sub, types in counts.items()]
    notes.append(f"{ready} activations wait for a permit")
    again = {name: sum(shard["candidates"].get(name, 0) for shard in stats) for name in counts}
    notes += [f"{name}: {count} artifacts may match later" for name, count in again.items() if count]
    view = pools.get(pool)
    notes += await limit_notes(board, name)
    notes += [str(v) for v in await paused_on(board) if (v.kind, v.name) in (("board", ""), ("agent", name))]
    if view is not None:
        notes.append(
            f"pool {pool}: {len(view['workers'])} workers, {view['starting']} starting, {view['running']} running"
        )
        if view["error"]:
            notes.append(f"last trouble starting a worker: {view['error']}")
    return Why(f"agent {name}", notes=tuple(notes))
