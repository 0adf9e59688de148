"""What a micro-batch changed, collected for the store's rows while records are applied."""

from __future__ import annotations

from collections.abc import Sequence

from flock_ray.core.ids import attempt_of
from flock_ray.core.rows import ActivationRow, Decision, StoreBatch, WorkflowRow
from flock_ray.core.state import MATCH_AGENT, Activation, Workflow
from flock_ray.core.wire import Completion, Envelope, ErrorInfo


class Changes:
    """Rows of the batch that is being applied; a memory board keeps none."""

    __slots__ = ("artifacts", "decisions", "ended", "heads", "touched")

    def __init__(self) -> None:
        """Start empty."""
        self.clear()

    def clear(self) -> None:
        """Forget what was collected."""
        self.heads: list[int] = []
        """Position of the newest artifact before each record."""
        self.artifacts: list[tuple[int, Envelope]] = []
        self.ended: list[ActivationRow] = []
        self.touched: dict[int, Workflow] = {}
        """By identity: workflows whose state may have changed."""
        self.decisions: list[Decision] = []

    def touch(self, workflow: Workflow) -> None:
        """Note that a workflow's row must be written again."""
        self.touched[id(workflow)] = workflow

    def end(
        self,
        activation: Activation,
        now_us: int,
        status: str,
        completion: Completion | None = None,
        error: ErrorInfo | None = None,
    ) -> None:
        """Note that an activation ended: with a completion, by giving up or by a cancel."""
        if activation.agent == MATCH_AGENT:
            return
        outputs: Sequence[bytes] = ()
        run_us = attempt = 0
        if completion is not None:
            outputs = [posting.envelope.id for posting in completion.outputs]
            run_us, attempt, error = completion.run_us, attempt_of(completion.attempt), completion.error
        self.ended.append(
            ActivationRow(
                activation.id, activation.agent, activation.subscription, activation.slot,
                activation.correlation_id, tuple([e.id for e in activation.inputs]), tuple(outputs),
                activation.created_us, now_us, run_us, attempt, status,
                "" if error is None else error.type, "" if error is None else error.message,
                () if completion is None else completion.calls,
            )
        )  # fmt: skip

    def batch(self, lsn: int, at_us: int, frame: bytes) -> StoreBatch:
        """Return everything as one batch and start anew."""
        made = StoreBatch(
            lsn, at_us, frame, self.artifacts, self.ended,
            [workflow_row(workflow) for workflow in self.touched.values()], self.decisions,
        )  # fmt: skip
        self.clear()
        return made


def workflow_row(workflow: Workflow) -> WorkflowRow:
    """Return the state of a workflow as it is stored."""
    return WorkflowRow(
        workflow.slot, workflow.id, workflow.created_us, workflow.updated_us, workflow.open, workflow.waiting,
        workflow.delayed, workflow.errors, workflow.cancelled, dict(workflow.counts), dict(workflow.iterations or {}),
        tuple(sorted(workflow.flags or ())), tuple(workflow.usage or ()),
        tuple((sub, key, known) for (sub, key), known in (workflow.decided or {}).items()),
    )  # fmt: skip


def workflow_from(row: WorkflowRow) -> Workflow:
    """Return a settled workflow as it was when it left memory; its artifacts stay in the store."""
    return Workflow(
        row.id, row.slot, row.created_us, row.updated_us, errors=row.errors, cancelled=row.cancelled,
        counts=dict(row.counts), iterations=dict(row.iterations) or None, flags=set(row.flags) or None,
        usage=list(row.usage) or None,
        decided={(sub, key): known for sub, key, known in row.decided} or None,
    )  # fmt: skip
