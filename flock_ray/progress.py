"""How far the fan-outs of a workflow are: asked for, and shown on the terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.asking import workflow_id
from flock_ray.core.scatter_status import ScatterRow

if TYPE_CHECKING:
    from rich.console import Console

    from flock_ray.artifact import Artifact
    from flock_ray.board import Board

__all__ = ["FanOutProgress", "Progress", "ProgressReading"]

_rows = msgspec.msgpack.Decoder(list[ScatterRow]).decode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REFRESH_S = 0.5


@dataclass(frozen=True, slots=True)
class FanOutProgress:
    """How far one fan-out is."""

    agent: str
    """The fan-out."""
    total: int | None
    """Its chunks; None: it is still being cut."""
    done: int
    """Chunks of which nothing runs or waits any more."""
    failed: int
    """Chunks of which a run failed; a fan-in may do without them, or wait until they are redriven."""
    state: str
    """`cutting`, `running`, `waiting` (for dead letters to be redriven) or `finished`."""
    started: datetime
    depth: int = 0
    """Fan-outs around it."""
    fan_ins: tuple[tuple[str, int], ...] = ()
    """(agent, chunks that have delivered) of the fan-ins that are not over."""
    eta: timedelta | None = None
    """About how long the rest takes, if it goes on like this; None: nobody knows yet. Zero when it is finished."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the fan-outs of a workflow are: the numbers are those of the outermost ones together."""

    workflow: str
    total: int | None
    """Chunks; None: something is still being cut."""
    done: int
    failed: int
    eta: timedelta | None
    fan_outs: tuple[FanOutProgress, ...]
    """All of them, nested ones too, the oldest first."""

    def __str__(self) -> str:
        """Say it in one line."""
        total = "?" if self.total is None else self.total
        failed = f", {self.failed} failed" if self.failed else ""
        left = "" if self.eta is None or not self.eta else f", about {self.eta.total_seconds():.3g} s left"
        return f"{self.done}/{total} chunks{failed}{left}"


class ProgressReading:
    """The methods of `Flock` that tell how far fan-outs are."""

    async def _ready_board(self) -> Board:
        raise NotImplementedError  # Flock's

    async def progress(self, workflow: Artifact | str) -> Progress:
        """Tell how far the fan-outs of a workflow are.

        A workflow that has settled leaves memory some time: then nothing is told of it any more.

        Args:
            workflow: A correlation id, or an artifact of the workflow.
        """
        board = await self._ready_board()
        return await read_progress(board, workflow_id(workflow))

    @contextlib.asynccontextmanager
    async def print_progress(
        self, workflow: Artifact | str, *, console: Console | None = None
    ) -> AsyncIterator[None]:
        """Show on the terminal how far the fan-outs of a workflow are, during a block; lines if it is no terminal.

        Args:
            workflow: A correlation id, or an artifact of the workflow.
            console: Where to; None: standard output.
        """
        from rich.console import Console as RichConsole

        board = await self._ready_board()
        console = console or RichConsole()
        show = _bars if console.is_terminal else _lines
        async with show(board, workflow_id(workflow), console):
            yield


async def read_progress(board: Board, workflow: str) -> Progress:
    """Ask all shards how far the fan-outs of a workflow are."""
    rows = [row for blob in await board.each("scatters", workflow) for row in _rows(blob)]
    now_us = board.clock.now_us()
    views = tuple(_view(row, now_us) for row in sorted(rows, key=lambda row: (row.opened_us, row.id)))
    outer = [view for view in views if not view.depth]
    etas = [view.eta for view in outer]
    return Progress(
        workflow,
        None if any(view.total is None for view in outer) else sum(view.total or 0 for view in outer),
        sum(view.done for view in outer),
        sum(view.failed for view in outer),
        None if None in etas else max((eta for eta in etas if eta is not None), default=timedelta(0)),
        views,
    )


def _view(row: ScatterRow, now_us: int) -> FanOutProgress:
    total = None if row.total < 0 else row.total
    state = (
        "cutting" if total is None else "waiting" if row.waiting else "finished" if row.done_us else "running"
    )
    eta = timedelta(0) if state == "finished" else None
    if state == "running" and total is not None and row.done:
        spent_us = max(0, now_us - row.opened_us)
        eta = timedelta(microseconds=spent_us * (total - row.done) // row.done)
    return FanOutProgress(
        row.agent, total, row.done, row.failed, state, _EPOCH + timedelta(microseconds=row.opened_us), row.depth,
        tuple(row.fan_ins), eta,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _lines(board: Board, workflow: str, console: Console) -> AsyncIterator[None]:
    """Print a line for every event about a fan-out."""

    async def follow() -> None:
        async for event in board.event_stream({}, kinds=["scatter", "fan_in"], workflow=workflow):
            console.print(
                f"[{event.agent}] {event.kind}: {event.detail}", markup=False, highlight=False, soft_wrap=True
            )

    async with _beside(follow):
        yield
        await asyncio.sleep(0.05)  # what has just happened is on its way


@contextlib.asynccontextmanager
async def _bars(board: Board, workflow: str, console: Console) -> AsyncIterator[None]:
    """Show a bar for every outermost fan-out."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=console) as bars:
        tasks: dict[tuple[str, datetime], Any] = {}

        async def refresh() -> None:
            for view in (await read_progress(board, workflow)).fan_outs:
                if view.depth:
                    continue
                key = (view.agent, view.started)
                if key not in tasks:
                    tasks[key] = bars.add_task(view.agent, total=view.total, note="")
                note = f"{view.failed} failed" if view.failed else ""
                bars.update(tasks[key], total=view.total, completed=view.done, note=note)

        async def follow() -> None:
            while True:
                await refresh()
                await asyncio.sleep(REFRESH_S)

        async with _beside(follow):
            yield
        await refresh()


@contextlib.asynccontextmanager
async def _beside(work: Callable[[], Any]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
