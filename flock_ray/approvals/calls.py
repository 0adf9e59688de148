"""Calls about approvals to the shards of a board, and what their answers and arguments mean."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from flock_ray.approvals.views import Approval
from flock_ray.budgets import more_of
from flock_ray.core.approval_orders import (
    ApprovalAnswer,
    ApprovalOrder,
    ApprovalRow,
    decode_answer,
    decode_rows,
    encode,
)
from flock_ray.core.ids import shard_of
from flock_ray.core.wire import Envelope
from flock_ray.errors import (
    ApprovalError,
    BoardClosedError,
    ConfigurationError,
    FlockError,
    ForbiddenError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from flock_ray.board import Board

__all__ = ["amount_of", "ask", "checked_name", "fetch", "find", "hash_of", "opened_us", "refused", "uuid_of"]

MAX_BY = 200

_envelopes = msgspec.msgpack.Decoder(list[Envelope]).decode


async def find(board: Board, key: bytes) -> ApprovalRow | None:
    """Return an open case; None when none of this id is open."""
    rows = [row for blob in await board.each("find_approvals", [key]) for row in decode_rows(blob)]
    return rows[0] if rows else None


async def fetch(board: Board, ids: list[bytes]) -> dict[bytes, Envelope]:
    """Return artifacts of any shard by id, with large payloads."""
    wanted = [key for key in dict.fromkeys(ids) if key]
    if not wanted:
        return {}
    blobs = await board.each("get", wanted)
    found = await board.whole([envelope for blob in blobs for envelope in _envelopes(blob)])
    return {envelope.id: envelope for envelope in found}


async def ask(board: Board, order: ApprovalOrder) -> ApprovalAnswer:
    """Have a decision carried out.

    Raises:
        StoreUnavailableError: The store of the shard is away; retryable.
        BoardClosedError: The board was shut down.
    """
    blob = await board.ask_shard(shard_of(order.slot, board.num_shards), "decide_approval", encode(order))
    answer = decode_answer(blob)
    if answer.status == "closed":
        raise BoardClosedError("The board was shut down. Create a new Flock to go on.")
    if answer.status == "unavailable":
        raise StoreUnavailableError("The board's store does not answer: nothing was decided. Ask again.")
    return answer


def uuid_of(key: bytes) -> uuid.UUID:
    """Return an id as callers have it."""
    return uuid.UUID(bytes=key)


def refused(status: str, kind: str, by: str, key: bytes) -> FlockError:
    """Return the error for a decision that was not taken."""
    name = str(uuid_of(key))
    if status == "forbidden":
        return ForbiddenError(
            f"{by!r} is not one of the approvers of {name}, or has delegated. Ask one of them."
        )
    if status == "own":
        return ForbiddenError(
            f"{by!r} made, asked for or edited what {name} is about, so may not approve it: another approver has to."
        )
    if status == "to_nobody":
        return ForbiddenError(
            f"{by!r} can't delegate {name} to themselves, or to somebody who has delegated it."
        )
    if status == "no_edit":
        return ForbiddenError(
            f"{name} may not be edited: its ApprovalSpec does not say allow_edit=True. Request changes."
        )
    if status == "comment":
        return ConfigurationError(f"approvals.{kind}(): {name} asks for a comment=: say why.")
    text = {
        "voted": f"{by!r} has decided about {name} already; a second decision does not count.",
        "known": f"This link to decide about {name} was used already; it works once.",
        "stale": f"{name} shows something else by now: look at it again, and decide about that.",
        "full": f"{name} has taken too many decisions. Let it time out, or cancel its workflow.",
    }.get(status, f"The decision about {name} was not taken ({status}).")
    return ApprovalError(text, approval_id=name)


def checked_name(given: object, parameter: str) -> str:
    """Return the name of a person, if it is one."""
    if not isinstance(given, str) or not given.strip() or len(given) > MAX_BY or not given.isprintable():
        raise ConfigurationError(
            f"approvals: {parameter}={given!r}: name a person, in up to {MAX_BY} characters."
        )
    return given


def hash_of(shown: str) -> bytes:
    """Return what `Approval.shown` stands for."""
    try:
        return bytes.fromhex(shown)
    except (ValueError, TypeError):
        raise ConfigurationError("approvals: shown= takes what Approval.shown gives.") from None


def opened_us(approval: Approval) -> int:
    """Return when an approval was opened."""
    assert approval.opened_at is not None
    return (approval.opened_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def amount_of(row: ApprovalRow, amount: float | Decimal | None) -> int:
    """Return how much more budget is approved, as the ledger counts it; 0: what was asked for."""
    if amount is None:
        return 0
    more = row.case.ask.budget
    if more is None:
        raise ConfigurationError("approvals.approve(amount=...) is for budgets; this is about an artifact.")
    return more_of(more.what, amount)
