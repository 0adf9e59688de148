"""`flock pause`, `resume`, `halt` and `cancel`: hold back, or give up, work of a board that runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flock_ray.commands.joining import by_whom, on_board, who

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flock_ray.board import Board
    from flock_ray.core.pauses import Kind

    Work = Callable[[Board, argparse.Namespace], Awaitable[None]]


def add_commands(
    pause: argparse.ArgumentParser,
    resume: argparse.ArgumentParser,
    halt: argparse.ArgumentParser,
    cancel: argparse.ArgumentParser,
) -> None:
    """Fill the parsers of the four commands."""
    for parser, work in ((pause, _pause), (resume, _resume), (halt, _halt), (cancel, _cancel)):
        _on_board(parser, work)
    for parser in (pause, resume):
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--agent", metavar="NAME", help="an agent")
        which.add_argument("--workflow", metavar="ID", help="a workflow, by its correlation id")
        which.add_argument(
            "--type", metavar="NAME", help="runs with an input of this type, by its registered name"
        )
    for parser in (pause, resume, halt):
        by_whom(parser)
        parser.add_argument(
            "--timeout", metavar="S", type=float, default=30.0, help="seconds to wait for shards; default: 30"
        )
    for parser in (pause, halt):
        parser.add_argument("--reason", metavar="TEXT", default="", help="why")
    cancel.add_argument("workflow", metavar="WORKFLOW", help="its correlation id")


def _on_board(parser: argparse.ArgumentParser, work: Work) -> None:
    async def run(ready: Callable[[], Awaitable[Board]], options: argparse.Namespace) -> None:
        await work(await ready(), options)

    on_board(parser, run)


async def _pause(board: Board, options: argparse.Namespace) -> None:
    from flock_ray.pausing import pause_on

    place = _place(options)
    if place is None:  # nothing is named: say what is paused
        await _show(board)
        return
    await pause_on(board, *place, by=who(options), reason=options.reason, timeout=options.timeout)
    await _show(board)


async def _resume(board: Board, options: argparse.Namespace) -> None:
    from flock_ray.pausing import resume_on

    await resume_on(board, *(_place(options) or ("board", "")), by=who(options), timeout=options.timeout)
    await _show(board)


async def _halt(board: Board, options: argparse.Namespace) -> None:
    from flock_ray.pausing import pause_on

    await pause_on(board, "board", "", by=who(options), reason=options.reason, timeout=options.timeout)
    await _show(board)


async def _cancel(board: Board, options: argparse.Namespace) -> None:
    from flock_ray.pausing import cancel_workflow

    count = await cancel_workflow(board, options.workflow)
    print(f"workflow {options.workflow!r}: {count} activations were open")


async def _show(board: Board) -> None:
    from flock_ray.pausing import paused_on

    views = await paused_on(board)
    for view in views:
        print(view)
    print(f"{len(views)} pauses")


def _place(options: argparse.Namespace) -> tuple[Kind, str] | None:
    if options.agent is not None:
        return "agent", options.agent
    if options.workflow is not None:
        return "workflow", options.workflow
    return None if options.type is None else ("type", options.type)
