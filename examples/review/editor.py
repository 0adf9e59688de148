"""With a model, an editor rewrites what the rules say about a tree: the headline and the advice.

Numbers stay the rules': they are counted from the files. Without a model, or when it fails, so do the
headline and the advice, and the report says which of these it was.
"""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, Field

from examples.review.types import RULE_BASED, TreeReport
from flock_ray import Flock, Until, WorkflowError, flock_type

EDIT_WITHIN = timedelta(minutes=3)

ABOUT = (
    "Edits the report of a code review for the team that owns the code. Says what matters most and where to begin. "
    "States only what the report says, and no number that is not in it."
)


@flock_type
class Editorial(BaseModel):
    """What a reader sees first."""

    headline: str = Field(max_length=400, description="The state of the code, in one or two sentences.")
    advice: list[str] = Field(
        min_length=1,
        max_length=6,
        description="What to do next, most urgent first; each names a file or function.",
    )


def who_sums_up(flock: Flock) -> str:
    """Say who writes the summary."""
    return RULE_BASED if flock.model is None else f"summary by {flock.model}, numbers by rules"


def declare_editor(flock: Flock) -> None:
    """Add the editor, if the flock has a model."""
    if flock.model is not None:
        flock.agent("editor").description(ABOUT).consumes(TreeReport).publishes(Editorial)


async def edited(flock: Flock, report: TreeReport, workflow: str) -> TreeReport:
    """Return the report with the editor's words; with the rules' own when there is no editor, or it fails."""
    if flock.model is None:
        return report
    failed = Until.workflow_error(workflow)
    if not await flock.run_until(
        Until.exists(Editorial, correlation_id=workflow) | failed, timeout=EDIT_WITHIN
    ):
        return _by_rules(report, flock.model, "it took too long")
    found = await flock.store.get_by_type(Editorial, correlation_id=workflow)
    if not found:
        errors = await flock.store.get_by_type(WorkflowError, correlation_id=workflow)
        reasons = [error.error_type for error in errors if error.failed_agent == "editor"]
        return _by_rules(report, flock.model, reasons[0] if reasons else "it did not answer")
    words = found[-1]
    return report.model_copy(
        update={"headline": words.headline, "advice": words.advice, "summariser": who_sums_up(flock)}
    )


def _by_rules(report: TreeReport, model: str, why: str) -> TreeReport:
    return report.model_copy(update={"summariser": f"rule-based summary, {model} failed: {why}"})
