"""What all commands about a board that runs have in common: how they join it, and who gives an order."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.board import Board

__all__ = ["Run", "by_whom", "joined_board", "on_board", "verb", "who"]

Run = Callable[["Callable[[], Awaitable[Board]]", argparse.Namespace], Awaitable["int | None"]]
"""A command: gets what returns the board, and returns an exit code; None is 0."""


def on_board(parser: argparse.ArgumentParser, run: Run, *, code: bool = False) -> None:
    """Have a parser take the name of a board, and a command run on it.

    Args:
        parser: Of the command.
        run: What it does.
        code: It needs the agents' code, and with it the types of artifacts.
    """
    parser.add_argument("board", metavar="BOARD", help="namespace of a board on a running Ray")
    parser.set_defaults(command=lambda options: asyncio.run(_joined(run, options, code)))


def verb(verbs: Any, name: str, text: str, run: Run, *, code: bool = False) -> argparse.ArgumentParser:
    """Add a command of a group, such as `flock dlq list`; see `on_board`."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text)
    on_board(parser, run, code=code)
    return parser


def by_whom(parser: argparse.ArgumentParser) -> None:
    """Let a command say who gives the order."""
    parser.add_argument(
        "--by", metavar="WHO", help="who and why, for events and audit log; default: the user's name"
    )


def who(options: argparse.Namespace) -> str:
    """Return who gives the order."""
    if options.by is not None:
        return str(options.by)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


async def _joined(run: Run, options: argparse.Namespace, code: bool) -> int:
    async with joined_board(options.board, code=code) as board:

        async def ready() -> Board:
            return board

        return await run(ready, options) or 0


@asynccontextmanager
async def joined_board(namespace: str, *, code: bool = False) -> AsyncIterator[Board]:
    """Join a board on a running Ray; starts neither.

    Args:
        namespace: Name of the board.
        code: Load the agents, and with them the types of artifacts.

    Raises:
        ConfigurationError: There is no such Ray or board, or an agent's modules can't be imported here.
    """
    from flock_ray.actors.bootstrap import ensure_ray, join_board
    from flock_ray.actors.clock import SystemClock
    from flock_ray.actors.payloads import RayPayloads
    from flock_ray.board import Board
    from flock_ray.config import load_ray_config
    from flock_ray.core.registry import type_registry
    from flock_ray.deployment import CloudpickleCodec

    config = load_ray_config()
    if not (config.address or os.environ.get("RAY_ADDRESS")):
        config = config.model_copy(update={"address": "auto"})
    try:
        ensure_ray(config)
    except ConnectionError as error:
        raise ConfigurationError(
            f"No running Ray was found to look for the board {namespace!r}: set RAY_ADDRESS."
        ) from error
    found = await join_board(namespace)
    if found is None:
        raise ConfigurationError(f"No board {namespace!r} runs on this Ray: check the name.")
    board = Board(
        found.links, owner=uuid.uuid4().hex, registry=type_registry, codec=CloudpickleCodec(), clock=SystemClock(),
        monotonic=time.monotonic, max_payload_bytes=found.plan.max_payload_bytes, publish_timeout_s=30.0,
        payloads=RayPayloads(namespace), inline_payload_bytes=found.plan.inline_payload_bytes,
    )  # fmt: skip
    try:
        if code:
            if "" not in sys.path:
                sys.path.insert(0, "")  # a console script does not look in the current directory
            try:
                await board.deploy([])
            except (ImportError, AttributeError) as error:
                raise ConfigurationError(
                    f"The board's agents can't be loaded here: {error}. Run it where their modules can be imported."
                ) from error
        yield board
    finally:
        board.let_go()
