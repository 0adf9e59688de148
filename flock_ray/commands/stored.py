"""`flock verify` and `flock audit verify`: what a stored board says about itself."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.ports import Persistence

EXIT_VIOLATED = 1
SHOWN = 50
"""Violations printed; the rest is counted."""


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    verify = commands.add_parser("verify", help="check the guarantees over a stored board; changes nothing")
    _where(verify)
    verify.add_argument("--history", metavar="FILE", help="what publishers were told: Flock(history=FILE)")
    verify.set_defaults(command=_verify)
    audit = commands.add_parser("audit", help="the audit log of a board in PostgreSQL")
    verbs = audit.add_subparsers(metavar="COMMAND", required=True)
    chain = verbs.add_parser("verify", help="find any change, removal or reorder in the audit log")
    _where(chain)
    chain.add_argument("--schema", default="flock", help="schema of the board's tables; default: flock")
    chain.set_defaults(command=_verify_audit)


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the persistence; - for the one in FLOCK_PERSISTENCE")
    parser.add_argument("--board", metavar="NAME", help="default: FLOCK_NAMESPACE, else `default`")


def _board_and_url(options: argparse.Namespace) -> tuple[str, str]:
    from flock_ray.config import load_settings
    from flock_ray.opening import DEFAULT_BOARD

    settings = load_settings()
    url = options.url
    if url == "-":  # a password belongs into no command line
        if settings.persistence is None:
            raise ConfigurationError("- reads FLOCK_PERSISTENCE, which is not set: set it to a URL.")
        url = settings.persistence.get_secret_value()
    return options.board or settings.namespace or DEFAULT_BOARD, url


def _persistence(url: str) -> Persistence:
    from flock_ray.persistence import persistence_from_url

    return persistence_from_url(url)


def _verify(options: argparse.Namespace) -> int:
    from flock_ray.verifying import verify_board

    board, url = _board_and_url(options)
    verdict = asyncio.run(verify_board(_persistence(url), board, history=options.history))
    for violation in verdict.violations[:SHOWN]:
        print(f"{violation.guarantee} violated: {violation.subject}: {violation.explanation}")
    if len(verdict.violations) > SHOWN:
        print(f"... and {len(verdict.violations) - SHOWN} more")
    told = f", {verdict.acknowledged} acknowledged" if options.history is not None else ""
    print(
        f"board {board!r}: {verdict.artifacts} artifacts, {verdict.activations} activations{told}: "
        f"{len(verdict.violations)} violations"
    )
    return 0 if verdict.ok else EXIT_VIOLATED


def _verify_audit(options: argparse.Namespace) -> int:
    from flock_ray.adapters.postgres import PostgresPersistence

    board, url = _board_and_url(options)
    if not url.startswith(("postgres://", "postgresql://")):
        raise ConfigurationError("Only PostgreSQL keeps an audit log: give a postgresql:// URL.")
    report = asyncio.run(PostgresPersistence(url, schema=options.schema).verify_audit(board))
    for shard, problem in report.problems[:SHOWN]:
        print(f"shard {shard}, entry {problem.number}: {problem.text}")
    print(f"board {board!r}: {report.entries} audit entries, {len(report.problems)} problems")
    return 0 if report.sound else EXIT_VIOLATED
