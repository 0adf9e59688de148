"""`flock approvals`: what waits for people on a board that runs, and their decisions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flock_ray.commands.joining import verb, who
from flock_ray.commands.letters import _plain, _time
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.approvals.service import Approvals
    from flock_ray.approvals.views import Approval
    from flock_ray.board import Board

    Work = Callable[[Approvals, argparse.Namespace], Awaitable[None]]

DEFAULT_SHOWN = 50

_DECISIONS = {
    "approve": "say yes",
    "reject": "say no: it is not published",
    "abstain": "say that others have to decide",
    "changes": "send it back to be done in another way",
    "delegate": "have another person decide in one's place",
    "edit": "change what would be published; approvals begin anew",
}


def add_commands(approvals: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of `flock approvals`."""
    verbs = approvals.add_subparsers(metavar="COMMAND", required=True)
    shown = _verb(verbs, "list", "list what waits for people, oldest first", _list)
    shown.add_argument("--for", dest="person", metavar="WHO", help="only what this person may decide about")
    shown.add_argument("--agent", metavar="NAME")
    shown.add_argument("--workflow", metavar="ID")
    shown.add_argument("--shadow", action="store_true", help="what training mode asks about")
    shown.add_argument("--limit", type=int, default=DEFAULT_SHOWN, metavar="N", help="default: %(default)s")
    shown.add_argument("--json", action="store_true", help="one JSON object per line")
    show = _verb(verbs, "show", "show one: content, who decides, decisions", _show)
    show.add_argument("approval", metavar="APPROVAL", help="its id")
    show.add_argument("--json", action="store_true", help="one JSON object")
    for name, text in _DECISIONS.items():
        parser = _verb(verbs, name, text, _decide, code=name == "edit")
        parser.add_argument("approval", metavar="APPROVAL", help="its id")
        if name == "delegate":
            parser.add_argument("to", metavar="PERSON", help="who decides now")
        elif name == "edit":
            parser.add_argument(
                "payload", metavar="FILE", help="JSON of the whole new content; - for standard input"
            )
        else:
            parser.add_argument("--shown", metavar="HASH", help="decide only if exactly this is shown")
        if name == "approve":
            parser.add_argument("--amount", metavar="N", help="of more budget: dollars, tokens or calls")
        parser.add_argument("--by", metavar="WHO", help="who decides; default: the user's name")
        parser.add_argument("--comment", default="", metavar="TEXT", help="why")
        parser.set_defaults(decision=name)
    redeem = _verb(verbs, "redeem", "take the decision of a link", _redeem)
    redeem.add_argument("token", metavar="TOKEN", help="- for standard input")
    redeem.add_argument("--comment", default="", metavar="TEXT", help="why")
    _verb(verbs, "agreement", "how often people would have said yes, in training mode", _agreement)


def _verb(verbs: Any, name: str, text: str, work: Work, *, code: bool = False) -> argparse.ArgumentParser:
    async def run(ready: Callable[[], Awaitable[Board]], options: argparse.Namespace) -> None:
        from flock_ray.approvals.principals import directory_of
        from flock_ray.approvals.service import Approvals
        from flock_ray.config import load_settings
        from flock_ray.core.registry import type_registry

        settings = load_settings()
        directory = directory_of(None, settings.principals)
        await work(Approvals(ready, type_registry, directory, settings.approval_secret), options)

    return verb(verbs, name, text, run, code=code)


async def _list(approvals: Approvals, options: argparse.Namespace) -> None:
    found = await approvals.pending(
        by=options.person,
        agent=options.agent,
        workflow=options.workflow,
        shadow=options.shadow,
        limit=options.limit,
    )
    for one in found:
        print(json.dumps(_everything(one)) if options.json else _line(one))
    if not options.json:
        print(f"{len(found)} approvals")


async def _show(approvals: Approvals, options: argparse.Namespace) -> None:
    one = await approvals.get(options.approval)
    if options.json:
        print(json.dumps(_everything(one)))
        return
    print(_line(one))
    print(f"shown {one.shown}")
    print("the content is gone" if one.artifact is None else json.dumps(one.artifact, indent=2))
    for decision in one.decisions:
        to = f" to {_plain(decision.to)}" if decision.to else ""
        comment = f": {_plain(decision.comment)}" if decision.comment else ""
        old = "" if decision.counts else " (of what was shown before)"
        print(f"{_time(decision.at)} {_plain(decision.by)}: {decision.decision}{to}{comment}{old}")
    if one.reason:
        print(f"because: {_plain(one.reason)}")


async def _decide(approvals: Approvals, options: argparse.Namespace) -> None:
    kind, key = options.decision, options.approval
    said: dict[str, Any] = {"by": who(options), "comment": options.comment}
    if kind == "delegate":
        one = await approvals.delegate(key, to=options.to, **said)
    elif kind == "edit":
        one = await approvals.edit(key, _payload(options.payload), **said)
    elif kind == "approve":
        one = await approvals.approve(key, shown=options.shown, amount=_number(options.amount), **said)
    else:
        calls = {
            "reject": approvals.reject, "abstain": approvals.abstain, "changes": approvals.request_changes,
        }  # fmt: skip
        one = await calls[kind](key, shown=options.shown, **said)
    print(_line(one))


async def _redeem(approvals: Approvals, options: argparse.Namespace) -> None:
    token = sys.stdin.read().strip() if options.token == "-" else options.token
    print(_line(await approvals.redeem(token, comment=options.comment)))


async def _agreement(approvals: Approvals, _: argparse.Namespace) -> None:
    for row in await approvals.agreement():
        rate = "nothing was decided" if row.rate is None else f"{row.rate:.1%} would have been approved"
        print(f"{_plain(row.agent)} {_plain(row.artifact_type)}: {row.asked} asked, {row.open} open, {rate}")


def _number(text: str | None) -> Decimal | int | None:
    if text is None:
        return None
    try:
        return int(text) if text.isdigit() else Decimal(text)
    except ArithmeticError:
        raise ConfigurationError(f"--amount {text}: give a number.") from None


def _payload(path: str) -> dict[str, Any]:
    try:
        payload = json.loads(sys.stdin.read() if path == "-" else Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} can't be read as JSON: {error}.") from None
    if not isinstance(payload, dict):
        raise ConfigurationError(f"{path} holds no JSON object.")
    return payload


def _line(one: Approval) -> str:
    what = f"{one.id}  {_plain(one.artifact_type)} of {_plain(one.agent)}"
    if one.summary:
        what += f" ({_plain(one.summary)})"
    if one.state != "pending" or one.expires_at is None:
        return f"{what}: {one.state.replace('_', ' ')}"
    yes = len(one.approved_by)
    who = ", ".join(map(_plain, one.approvers)) or "anybody"
    return f"{what}: {yes} of {one.quorum} approved, for {who}, until {_time(one.expires_at)}"


def _everything(one: Approval) -> dict[str, Any]:
    return {
        "id": str(one.id), "state": one.state, "artifact_type": one.artifact_type, "agent": one.agent,
        "workflow": one.workflow, "shown": one.shown, "artifact": one.artifact, "approvers": list(one.approvers),
        "quorum": one.quorum, "summary": one.summary, "reason": one.reason, "escalated": one.escalated,
        "shadow": one.shadow, "opened_at": one.opened_at and one.opened_at.isoformat(),
        "expires_at": one.expires_at and one.expires_at.isoformat(),
        "decided_at": one.decided_at and one.decided_at.isoformat(),
        "decisions": [decision.model_dump(mode="json") for decision in one.decisions],
    }  # fmt: skip
