"""The agents of the review, and what each consumes and publishes.

    ReviewRequest ─ splitter ─ SourceFile ─┬─ complexity  ─ ComplexityReport  ─┐
                                           ├─ risks       ─ RiskReport        ─┤
                                           ├─ docs        ─ DocsReport        ─┤ joined by path
                                           └─ duplication ─ DuplicationReport ─┘
                        reviewer ─ FileReview ─ (all of them) ─ summariser ─ TreeReport

Nobody wires this graph: it follows from the types.
"""

from __future__ import annotations

import os
from datetime import timedelta

from examples.review.analysers import (
    analyse_complexity,
    analyse_docs,
    analyse_duplication,
    analyse_risks,
)
from examples.review.summary import join_reports, summarise
from examples.review.tree import read_source
from examples.review.types import (
    ComplexityReport,
    DocsReport,
    DuplicationReport,
    FileReport,
    FileReview,
    ReviewRequest,
    RiskReport,
    SourceFile,
    TreeReport,
)
from flock_ray import BatchSpec, Flock, JoinSpec

FILES_PER_REQUEST = 40
"""Enough to make messages worth their while, few enough to keep each one small."""

JOIN_WITHIN = timedelta(minutes=5)


def build(flock: Flock, *, file_count: int, timeout: timedelta) -> None:
    """Declare all agents on `flock`.

    Args:
        flock: Where the review runs.
        file_count: How many files are asked for: the summariser waits for that many.
        timeout: When to sum up what there is, should some reviews never come.
    """
    (
        flock.agent("splitter")
        .description("reads the files of a request")
        .consumes(ReviewRequest)
        .publishes(SourceFile, fan_out=(1, FILES_PER_REQUEST))
        .runs(split)
    )
    flock.agent("complexity").consumes(SourceFile).publishes(ComplexityReport).runs(analyse_complexity)
    flock.agent("risks").consumes(SourceFile).publishes(RiskReport).runs(analyse_risks)
    flock.agent("docs").consumes(SourceFile).publishes(DocsReport).runs(analyse_docs)
    flock.agent("duplication").consumes(SourceFile).publishes(DuplicationReport).runs(analyse_duplication)
    (
        flock.agent("reviewer")
        .description("joins the four reports on a file")
        .consumes(
            ComplexityReport,
            RiskReport,
            DocsReport,
            DuplicationReport,
            join=JoinSpec(by=path_of, within=JOIN_WITHIN),
        )
        .publishes(FileReview)
        .runs(join_reports)
    )
    (
        flock.agent("summariser")
        .description("counts and ranks, by rules")
        .consumes(FileReview, batch=BatchSpec(size=file_count, timeout=timeout))
        .publishes(TreeReport)
        .runs(summarise)
    )


def split(request: ReviewRequest) -> list[SourceFile]:
    """Read the files that a request names: one SourceFile for each, whatever is in it.

    Raises:
        FileNotFoundError: The tree is not on the machine that this agent runs on.
    """
    if not os.path.isdir(request.root):
        raise FileNotFoundError(
            f"{request.root} is not on this machine: share the folder with all nodes, "
            "or send it along with `ray job submit --working-dir`"
        )
    return [read_source(request.root, path) for path in request.paths]


def path_of(report: FileReport) -> str:
    """The key of the join: reports on one file belong together."""
    return report.path
