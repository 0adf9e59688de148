"""Show how far the review is: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from examples.review.measure import STAGES, Tracker

PLAIN_EVERY_S = 2.0


class View:
    """Shows a tracker, as a context manager around the run; this one shows nothing."""

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing, also when the run failed."""

    def update(self, tracker: Tracker) -> None:
        """Show the present state; called after every artifact."""


class Bars(View):
    """One bar for each stage, redrawn in place."""

    def __init__(self, console: Console, total: int) -> None:
        self._progress = Progress(
            TextColumn("  {task.description:<16}"),
            BarColumn(bar_width=40, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._bars: dict[str, TaskID] = {
            kind: self._progress.add_task(label, total=total, start=False) for kind, label in STAGES.items()
        }
        self._shown: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, tracker: Tracker) -> None:
        """Move the bars of the stages that got further."""
        for kind, bar in self._bars.items():
            count = tracker.counts[kind]
            if count == self._shown.get(kind, 0):
                continue
            if kind not in self._shown:
                self._progress.start_task(bar)
            self._shown[kind] = count
            self._progress.update(bar, completed=count)


class Lines(View):
    """One line every few seconds, for logs and pipes."""

    def __init__(
        self, console: Console, *, every_s: float = PLAIN_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._every_s = every_s
        self._clock = clock
        self._next_at = clock() + every_s

    def update(self, tracker: Tracker) -> None:
        """Print a line when it is time for one, and one when all is done."""
        if self._clock() < self._next_at and not tracker.is_complete:
            return
        self._next_at = self._clock() + self._every_s
        analysed = min(tracker.counts[kind] for kind in STAGES if kind.endswith("Report"))
        self._console.print(
            f"read {tracker.counts['SourceFile']}/{tracker.total}, "
            f"analysed {analysed}/{tracker.total}, "
            f"joined {tracker.counts['FileReview']}/{tracker.total}",
            markup=False,
            highlight=False,
        )


def choose_view(console: Console, *, total: int, quiet: bool) -> View:
    """Pick bars for a terminal, lines for anything else."""
    if quiet:
        return View()
    return Bars(console, total) if console.is_terminal else Lines(console)
