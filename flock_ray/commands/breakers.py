"""`flock breakers`: the circuit breakers of a board that runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from flock_ray.commands.joining import by_whom, verb, who

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
        by_whom(parser)


def _verb(verbs: Any, name: str, text: str, work: Work) -> argparse.ArgumentParser:
    async def run(ready: Callable[[], Awaitable[Board]], options: argparse.Namespace) -> None:
        from flock_ray.breakers import Breakers

        await work(Breakers(ready), options)

    return verb(verbs, name, text, run)


async def _list(breakers: Breakers, _: argparse.Namespace) -> None:
    found = await breakers.list()
    for view in found:
        print(view)
    print(f"{len(found)} circuit breakers")


async def _open(breakers: Breakers, options: argparse.Namespace) -> None:
    print(await breakers.open(options.agent, by=who(options)))


async def _close(breakers: Breakers, options: argparse.Namespace) -> None:
    print(await breakers.close(options.agent, by=who(options)))
