"""`flock verify` and `flock audit verify`: what a stored board says about itself."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.adapters.audit_trail import AuditReport
    from flock_ray.core.audit import AuditHead
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
    audit = commands.add_parser("audit", help="the audit log of a stored board")
    verbs = audit.add_subparsers(metavar="COMMAND", required=True)
    chain = verbs.add_parser("verify", help="find any change, removal or reorder in the audit log")
    _where(chain)
    chain.add_argument(
        "--schema", default="flock", help="in PostgreSQL: schema of the tables; default: flock"
    )
    chain.add_argument(
        "--heads",
        metavar="FILE",
        help="compare with the ends of the logs that FILE holds from the last time; it is written anew when all is"
        " sound. Keep it where nobody of the store can write",
    )
    chain.set_defaults(command=_verify_audit)


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url",
        metavar="URL",
        help="of the persistence, or a folder of SQLite boards; - for the one in FLOCK_PERSISTENCE",
    )
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

    if "://" not in url and Path(url).is_dir():
        from flock_ray.adapters.sqlite import SQLitePersistence

        return SQLitePersistence(url)
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
    board, url = _board_and_url(options)
    persistence: Any = _persistence(url)
    if persistence.mode == "postgres":
        from flock_ray.adapters.postgres import PostgresPersistence

        persistence = PostgresPersistence(url, schema=options.schema)
    noted = {} if options.heads is None else _read_heads(Path(options.heads), board)
    report: AuditReport = asyncio.run(persistence.verify_audit(board, noted=noted))
    for shard, problem in report.problems[:SHOWN]:
        print(f"shard {shard}, entry {problem.number}: {problem.text}")
    print(f"board {board!r}: {report.entries} audit entries, {len(report.problems)} problems")
    if options.heads is not None and report.sound:
        _write_heads(Path(options.heads), report)
    return 0 if report.sound else EXIT_VIOLATED


def _read_heads(file: Path, board: str) -> dict[int, AuditHead]:
    """Return the heads that an earlier verification noted; none when there is no file yet."""
    from flock_ray.core.audit import AuditHead

    if not file.exists():
        return {}
    try:
        noted = json.loads(file.read_text())
        heads = {
            int(shard): AuditHead(count, bytes.fromhex(hash_))
            for shard, (count, hash_) in noted["heads"].items()
        }
        owner = noted["board"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"--heads {file} can't be read ({error}): give a file that this command wrote, or a new name."
        ) from None
    if owner != board:
        raise ConfigurationError(f"--heads {file} is of board {owner!r}, not {board!r}: give another file.")
    return heads


def _write_heads(file: Path, report: AuditReport) -> None:
    heads = {str(shard): [head.count, head.hash.hex()] for shard, head in report.heads.items()}
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(json.dumps({"board": report.board, "heads": heads}) + "\n")
    fresh.replace(file)
