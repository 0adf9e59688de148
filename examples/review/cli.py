"""The command line of the review: options, the run, and how it ends."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from examples.review.agents import FILES_PER_REQUEST, build
from examples.review.editor import declare_editor, edited, who_sums_up
from examples.review.measure import RunFacts, Tracker, percentile
from examples.review.progress import View, choose_view
from examples.review.report import text_report, timing_line, write_reports
from examples.review.tree import DEFAULT_GLOBS, Listing, encode_path, list_tree
from examples.review.types import ReviewRequest, TreeReport
from flock_ray import Flock, FlockError, Gap, Until

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

REPOSITORY = Path(__file__).resolve().parents[2]
LINKED_FOLDERS = frozenset({"flock_ray/actors", "flock_ray/serve"})
"""Links of this repository to folders at its root; Ray's upload of it turns them into copies."""
ERROR_GRACE_S = 5.0
"""How long to go on after an agent failed and nothing new comes."""
PARTIAL_SUMMARY_S = 10.0
"""How long a summary of what there is may take."""
CATCH_UP_S = 5.0
"""How long the progress may lag behind a finished review."""
PLAIN_WIDTH = 110


@dataclass(frozen=True)
class Result:
    """How a run ended: with a report, or with what went wrong."""

    report: TreeReport | None
    facts: RunFacts
    errors: list[str]


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.review", description=__doc__)
    parser.add_argument("--input", type=Path, default=REPOSITORY, metavar="PATH", help="tree to review")
    parser.add_argument("--out", type=Path, default=Path("build/review"), metavar="DIR", help="for reports")
    parser.add_argument("--max-files", type=_positive, metavar="N", help="review only the first N files")
    parser.add_argument("--shards", type=_positive, metavar="N", help="shards of the blackboard")
    parser.add_argument("--timeout", type=_positive, default=600, metavar="S", help="give up after S seconds")
    parser.add_argument("--quiet", action="store_true", help="print one line at the end")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Review a tree; returns the exit code."""
    options = parse_options(argv)
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    try:
        skip = LINKED_FOLDERS if options.input.resolve() == REPOSITORY else frozenset[str]()
        listing = list_tree(options.input, max_files=options.max_files, skip=skip)
    except (OSError, RuntimeError) as error:  # Path.resolve raises the latter for a loop of links
        reason = getattr(error, "strerror", None) or error
        return _complain(console, f"can't read {options.input}: {reason}", EXIT_USAGE)
    if not listing.paths:
        patterns = ", ".join(DEFAULT_GLOBS)
        return _complain(console, f"no file in {options.input} is one of {patterns}", EXIT_USAGE)
    try:
        result = asyncio.run(_review(options, listing, console))
        return _finish(options, result, console)
    except KeyboardInterrupt:
        return _complain(console, "interrupted: nothing was written", EXIT_INTERRUPTED)
    except (FlockError, OSError) as error:
        return _complain(console, f"{type(error).__name__}: {error}", EXIT_FAILED)


def _complain(console: Console, message: str, code: int) -> int:
    console.print(Text(message, style="bold red"))
    return code


async def _review(options: argparse.Namespace, listing: Listing, console: Console) -> Result:
    total = len(listing.paths)
    flock = Flock(shards=options.shards)
    if not options.quiet:
        console.print(Text(f"Reviewing {encode_path(str(listing.root))}: {total:,} files", style="bold"))
        console.print(Text(f"Summary: {who_sums_up(flock)}. Starting the flock...", style="dim"))
    tracker = Tracker(total)
    started_at, begin = datetime.now(UTC), time.monotonic()
    try:
        with choose_view(console, total=total, quiet=options.quiet) as view:
            run = _Run(flock, listing, tracker, view, timedelta(seconds=options.timeout))
            report = await run.to_the_end()
    finally:
        await flock.shutdown(flush_batches=False)
    latencies = tracker.latencies_s()
    facts = RunFacts(
        root=encode_path(str(listing.root)),
        listed=total,
        started_at=started_at,
        setup_s=run.working_since - begin,
        work_s=run.working_until - run.working_since,
        counts=dict(tracker.counts),
        latency_p50_s=percentile(latencies, 0.50),
        latency_p95_s=percentile(latencies, 0.95),
        left_out=listing.left_out(),
    )
    return Result(report, facts, tracker.errors)


class _Run:
    """One review on one flock, from the first request to the tree report."""

    def __init__(
        self, flock: Flock, listing: Listing, tracker: Tracker, view: View, timeout: timedelta
    ) -> None:
        self.flock = flock
        self.listing = listing
        self.tracker = tracker
        self.view = view
        self.timeout = timeout
        self.workflow = f"review-{uuid.uuid4()}"
        self.working_since = self.working_until = self._news_at = time.monotonic()

    async def to_the_end(self) -> TreeReport | None:
        """Publish the requests and wait for the report; None if it never came."""
        build(self.flock, file_count=len(self.listing.paths), timeout=self.timeout)
        declare_editor(self.flock)
        await self.flock.start()
        self.working_since = self._news_at = time.monotonic()
        watching = asyncio.create_task(self._watch())
        try:
            for paths in self.listing.slices(FILES_PER_REQUEST):
                request = ReviewRequest(
                    root=os.fspath(self.listing.root), globs=list(DEFAULT_GLOBS), paths=list(paths)
                )
                await self.flock.publish(request, correlation_id=self.workflow)
            if not await self._wait(watching):
                await self._sum_up_what_there_is()
            self.working_until = time.monotonic()
            await asyncio.wait({watching}, timeout=CATCH_UP_S)
        finally:
            await _stop(watching)
        reports = await self.flock.store.get_by_type(TreeReport, correlation_id=self.workflow)
        return await edited(self.flock, reports[-1], self.workflow) if reports else None

    async def _watch(self) -> None:
        """Follow the workflow from its first artifact to the tree report."""
        async for artifact in self.flock.stream(self.workflow):
            if isinstance(artifact, Gap):
                continue
            self.tracker.observe(artifact)
            self._news_at = time.monotonic()
            self.view.update(self.tracker)
            if self.tracker.is_complete:
                return

    async def _wait(self, watching: asyncio.Task[None]) -> bool:
        """Wait for the report; False when the time is up, or agents failed and nothing more comes."""
        done = Until.exists(TreeReport, correlation_id=self.workflow)
        ending = asyncio.create_task(self.flock.run_until(done, timeout=self.timeout))
        try:
            while not ending.done():
                await asyncio.wait({ending}, timeout=0.2)
                if watching.done():
                    watching.result()
                if self.tracker.errors and time.monotonic() - self._news_at > ERROR_GRACE_S:
                    return False
            return ending.result()
        finally:
            await _stop(ending)

    async def _sum_up_what_there_is(self) -> None:
        """Run the summariser on the reviews that came, without the ones that never will."""
        if await self.flock.flush_batches():
            done = Until.exists(TreeReport, correlation_id=self.workflow)
            await self.flock.run_until(done, timeout=timedelta(seconds=PARTIAL_SUMMARY_S))


async def _stop(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _finish(options: argparse.Namespace, result: Result, console: Console) -> int:
    """Print and write what there is; returns the exit code."""
    for error in result.errors:
        console.print(Text(f"failed: {error}", style="bold red"))
    facts, total = result.facts, result.facts.listed
    why = "an agent failed" if result.errors else f"not done after {options.timeout} s"
    if result.report is None:
        message = f"no report: {why}; {facts.files} of {total} files were reviewed"
        return _complain(console, message, EXIT_FAILED)
    page = write_reports(options.out, result.report, facts)
    if not options.quiet:
        console.print(text_report(result.report, facts))
    console.print(Text(timing_line(facts)))
    console.print(Text(f"Report: {page}", style="bold"))
    if result.report.totals.files < total:
        message = f"incomplete: {why}; the report is about {result.report.totals.files} of {total} files"
        return _complain(console, message, EXIT_FAILED)
    return EXIT_FAILED if result.errors else 0
