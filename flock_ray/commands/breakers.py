"""`flock breakers`: the circuit breakers of a board that runs."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flock_ray.board import Board
    from flock_ray.breakers import Breakers

    Work = Callable[[Breakers, argparse.Namespace], Awaitable[None]]


def add_commands(breakers: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of `flock breakers`."""
    verbs = breakers.add_subparsers(metavar="COMMAND", required=True)
    _verb(verbs, "list", "list the circuit breakers of all agents", _list)
    for name, text in (
        ("open", "let no run of an agent start until its breaker is closed; inputs wait"),
        ("close", "let runs of an agent start again"),
    ):
        parser = _verb(verbs, name, text, _open if name == "open" else _close)
        parser.add_argument("agent", metavar="AGENT", help="name of the agent")
        parser.add_argument(
            "--by", metavar="WHO", help="who and why, for events and audit log; default: the user's name"
        )


def _verb(verbs: Any, name: str, text: str, work: Work) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text)
    parser.add_argument("board", metavar="BOARD", help="namespace of a board on a running Ray")
    parser.set_defaults(command=lambda options: asyncio.run(_run(work, options)))
    return parser


async def _run(work: Work, options: argparse.Namespace) -> int:
    from flock_ray.breakers import Breakers
    from flock_ray.commands.letters import joined_board

    async with joined_board(options.board) as board:

        async def ready() -> Board:
            return board

        await work(Breakers(ready), options)
    return 0


async def _list(breakers: Breakers, _: argparse.Namespace) -> None:
    found = await breakers.list()
    for view in found:
        print(view)
    print(f"{len(found)} circuit breakers")


async def _open(breakers: Breakers, options: argparse.Namespace) -> None:
    print(await breakers.open(options.agent, by=_who(options)))


async def _close(breakers: Breakers, options: argparse.Namespace) -> None:
    print(await breakers.close(options.agent, by=_who(options)))


def _who(options: argparse.Namespace) -> str:
    if options.by is not None:
        return str(options.by)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
