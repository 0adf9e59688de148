"""`flock dlq`: the dead letters of a board that runs."""

from __future__ import annotations

import argparse
import json
import re
import sys
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flock_ray.commands.joining import by_whom, verb, who
from flock_ray.errors import ConfigurationError, FlockError

if TYPE_CHECKING:
    from flock_ray.board import Board
    from flock_ray.dead_letters import DeadLetters
    from flock_ray.letters.views import DeadLetterDetails, OpenLetter

EXIT_NOT_DONE = 1
"""A letter was not open any more, or some could not be redriven."""
DEFAULT_SHOWN = 50

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Work = Callable[["DeadLetters", argparse.Namespace], Awaitable[int]]


def add_commands(dlq: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of `flock dlq`."""
    verbs = dlq.add_subparsers(metavar="COMMAND", required=True)
    shown = _verb(verbs, "list", "list open dead letters, oldest first", _list)
    _filters(shown)
    shown.add_argument("--limit", type=int, default=DEFAULT_SHOWN, metavar="N", help="default: %(default)s")
    shown.add_argument("--cursor", metavar="CURSOR", help="go on behind a former list")
    shown.add_argument("--json", action="store_true", help="one JSON object per line")
    show = _verb(verbs, "show", "show a dead letter: inputs, attempts, history", _show)
    _letter(show)
    show.add_argument("--json", action="store_true", help="one JSON object")
    edit = _verb(verbs, "edit", "have a redrive use another payload in place of an input's", _edit, code=True)
    _letter(edit)
    edit.add_argument("payload", metavar="FILE", help="JSON of the whole new payload; - for standard input")
    edit.add_argument("--input", metavar="ID", help="which input, if there are several")
    by_whom(edit)
    redrive = _verb(verbs, "redrive", "run dead letters again, each once", _redrive)
    redrive.add_argument("letters", metavar="LETTER", nargs="*", help="ids; or --all")
    redrive.add_argument("--all", action="store_true", help="all that the filters select")
    _filters(redrive)
    redrive.add_argument("--rate", type=float, metavar="N", help="letters per second, with --all")
    redrive.add_argument("--dry-run", action="store_true", help="only count, with --all")
    by_whom(redrive)
    discard = _verb(verbs, "discard", "give dead letters up", _discard)
    discard.add_argument("letters", metavar="LETTER", nargs="+", help="ids")
    discard.add_argument("--reason", default="", help="for the history")
    by_whom(discard)


def _verb(verbs: Any, name: str, text: str, work: Work, *, code: bool = False) -> argparse.ArgumentParser:
    async def run(ready: Callable[[], Awaitable[Board]], options: argparse.Namespace) -> int:
        from flock_ray.core.registry import type_registry
        from flock_ray.dead_letters import DeadLetters

        return await work(DeadLetters(ready, type_registry), options)

    return verb(verbs, name, text, run, code=code)


def _letter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("letter", metavar="LETTER", help="id of the dead letter")


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queue", metavar="NAME")
    parser.add_argument("--agent", metavar="NAME")
    parser.add_argument("--error", metavar="CLASS", help="class of the last attempt's error")
    parser.add_argument("--workflow", metavar="ID")
    parser.add_argument(
        "--since", type=_moment, metavar="WHEN", help="2h, 30m, 7d ago, or an ISO time with a zone"
    )
    parser.add_argument("--before", type=_moment, metavar="WHEN")


def _moment(text: str) -> datetime | timedelta:
    """Read a time, or how long ago it was."""
    if found := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return timedelta(**{_UNITS[found.group(2)]: int(found.group(1))})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 2h, or 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: write {text}Z for UTC")
    return moment


def _selector(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "queue": options.queue, "agent": options.agent, "error_type": options.error,
        "workflow": options.workflow, "since": options.since, "before": options.before,
    }  # fmt: skip


# -- commands ------------------------------------------------------------------------------------


async def _list(letters: DeadLetters, options: argparse.Namespace) -> int:
    page = await letters.list(**_selector(options), limit=options.limit, cursor=options.cursor)
    if options.json:
        for letter in page:
            print(json.dumps(_entry(letter)))
        return 0
    rows = [("ID", "QUEUE", "AGENT", "ERROR", "FAILED", "WORKFLOW")]
    rows += [
        (str(x.id), x.queue, x.agent, x.error_type, _time(x.failed_at), x.workflow) for x in page
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(_plain(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    total = await letters.count(**_selector(options))
    print(f"{len(page)} of {total} dead letters")
    if page.cursor is not None:
        print(f"the next ones: --cursor {page.cursor}")
    return 0


async def _show(letters: DeadLetters, options: argparse.Namespace) -> int:
    details = await letters.get(options.letter)
    if options.json:
        print(json.dumps(_everything(details)))
        return 0
    letter = details.letter
    state = "open" if details.open else (details.history[-1].action if details.history else "closed")
    print(f"{details.id}  {letter.queue}  {state}")
    print(
        f"agent {letter.agent}, workflow {_plain(letter.correlation_id)}, redriven {letter.redrives} times before"
    )
    for attempt in letter.attempts:
        message = _plain(f"{attempt.error_type}: {attempt.error_message}")
        print(f"attempt {attempt.number}, {_time(attempt.ended_at)}, {attempt.run_s:.3g} s: {message}")
        if attempt.traceback:
            print(*(f"    {_plain(line)}" for line in attempt.traceback.splitlines()), sep="\n")
    for entry, artifact in zip(letter.inputs, details.inputs, strict=True):
        print(f"input {entry.id} {entry.type}: {_payload(artifact)}")
        key = uuid.UUID(entry.id)
        if key in details.edited:
            print(f"    edited: {_payload(details.edited[key])}")
    for action in details.history:
        detail = f": {_plain(action.detail)}" if action.detail else ""
        print(f"{action.action} {_time(action.at)} by {_plain(action.by) or 'somebody'}{detail}")
    return 0


async def _edit(letters: DeadLetters, options: argparse.Namespace) -> int:
    text = sys.stdin.read() if options.payload == "-" else _read(options.payload)
    try:
        payload = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{options.payload} is no JSON: {error}.") from None
    if not isinstance(payload, dict):
        raise ConfigurationError(f"{options.payload} holds no JSON object.")
    made = await letters.edit(options.letter, payload, input=options.input, by=who(options))
    print(f"a redrive uses {made.id}")
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Can't read {path}: {error}.") from None


async def _redrive(letters: DeadLetters, options: argparse.Namespace) -> int:
    by, selector = who(options), _selector(options)
    if options.all == bool(options.letters):
        raise ConfigurationError("flock dlq redrive: name letters, or give --all.")
    if options.all:
        report = await letters.redrive_all(**selector, rate=options.rate, dry_run=options.dry_run, by=by)
        done = "would be redriven" if report.dry_run else "redriven"
        print(
            f"{report.matched if report.dry_run else report.redriven} of {report.matched} dead letters {done}"
        )
        for count, why in (
            (report.gone, "were redriven or discarded by somebody else"),
            (report.cancelled, "are of cancelled workflows"),
            (report.incomplete, "have inputs that are gone"),
        ):
            if count:
                print(f"{count} {why}")
        return EXIT_NOT_DONE if report.cancelled or report.incomplete else 0
    if options.dry_run or options.rate is not None or any(value is not None for value in selector.values()):
        raise ConfigurationError("flock dlq redrive: filters, --rate and --dry-run go with --all.")
    return await _each(options.letters, lambda key: letters.redrive(key, by=by), "redriven")


async def _discard(letters: DeadLetters, options: argparse.Namespace) -> int:
    by = who(options)
    return await _each(
        options.letters, lambda key: letters.discard(key, by=by, reason=options.reason), "discarded"
    )


async def _each(keys: list[str], work: Callable[[str], Awaitable[bool]], what: str) -> int:
    worst = 0
    for key in keys:
        try:
            done = await work(key)
        except FlockError as error:
            if len(keys) == 1:
                raise
            print(f"{key}: {type(error).__name__}: {error}", file=sys.stderr)
            done = None
        if done is not None:
            print(f"{key}: {what if done else 'not open any more'}")
        worst = worst if done else EXIT_NOT_DONE
    return worst


# -- what is printed -----------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Take control characters out: what agents and inputs say must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _payload(artifact: Any) -> str:
    return "gone" if artifact is None else json.dumps(artifact.payload)


def _entry(letter: OpenLetter) -> dict[str, Any]:
    return {
        "id": str(letter.id), "queue": letter.queue, "agent": letter.agent, "error_type": letter.error_type,
        "workflow": letter.workflow, "failed_at": letter.failed_at.isoformat(),
        "inputs": [str(key) for key in letter.inputs], "redrives": letter.redrives, "edits": letter.edits,
    }  # fmt: skip


def _everything(details: DeadLetterDetails) -> dict[str, Any]:
    return {
        "id": str(details.id),
        "open": details.open,
        "letter": details.letter.model_dump(mode="json"),
        "inputs": [None if artifact is None else artifact.to_dict() for artifact in details.inputs],
        "edited": {str(key): None if new is None else new.to_dict() for key, new in details.edited.items()},
        "history": [action.model_dump(mode="json") for action in details.history],
    }
