"""What travels between workers and model gateways: batches, as msgpack."""

from __future__ import annotations

from typing import Any

import msgspec

from flock_ray import errors
from flock_ray.error_base import FlockError, safe_error_text
from flock_ray.errors import BudgetExceededError, ModelError, RateLimitError
from flock_ray.model import ModelReply, ModelRequest


class Ask(msgspec.Struct, array_like=True):
    """A call begins."""

    id: int
    request: bytes
    """Encoded ModelRequest."""
    streams: bool
    hurried: bool


class AskBatch(msgspec.Struct, array_like=True):
    """What one session of a client asks and gives up."""

    client: str
    session: str
    asks: list[Ask] = []
    cancels: list[int] = []


class Failure(msgspec.Struct, array_like=True):
    """An error as data."""

    type: str
    message: str
    retry_after_s: float | None = None
    tries: int = 1
    request_hash: str = ""
    degrade_to: str = ""
    """Of a `BudgetExceededError`: the model to call instead."""
    renews_us: int = 0
    """Of a `BudgetExceededError`: when its budget begins anew; 0: it does not."""


class Told(msgspec.Struct, array_like=True):
    """What happened to a call: pieces of text, and how it ended, if it did."""

    id: int
    pieces: list[str] = []
    """An empty one: the text starts again."""
    reply: bytes | None = None
    """Encoded ModelReply."""
    failure: Failure | None = None


class ToldBatch(msgspec.Struct, array_like=True):
    """What happened to the calls of one session since the last batch."""

    told: list[Told] = []
    open_calls: int = 0
    """Of all clients at this gateway."""
    gone: bool = False
    """The session was ended: begin another one."""


encode = msgspec.msgpack.Encoder().encode
decode_asks = msgspec.msgpack.Decoder(AskBatch).decode
decode_told = msgspec.msgpack.Decoder(ToldBatch).decode
decode_request = msgspec.msgpack.Decoder(ModelRequest).decode
decode_reply = msgspec.msgpack.Decoder(ModelReply).decode


def failure_of(error: BaseException) -> Failure:
    """Turn what a gateway raised into data."""
    name, message = safe_error_text(error)
    if not isinstance(error, FlockError):
        name, message = (
            "ModelError",
            f"The model gateway failed: {name}. Look at its log. It may be tried again.",
        )
    return Failure(
        name,
        message,
        getattr(error, "retry_after_s", None),
        int(getattr(error, "tries", 1)),
        str(getattr(error, "request_hash", "")),
        str(getattr(error, "degrade_to", "")),
        int(getattr(error, "renews_us", 0)),
    )


def error_of(failure: Failure) -> FlockError:
    """Turn it back into the error."""
    known = getattr(errors, failure.type, None)
    kind = known if isinstance(known, type) and issubclass(known, FlockError) else ModelError
    error: FlockError
    if issubclass(kind, RateLimitError):
        error = kind(failure.message, retry_after_s=failure.retry_after_s or 1.0)
    else:
        error = kind(failure.message)
    if isinstance(error, BudgetExceededError):
        found: Any = error
        found.degrade_to, found.renews_us = failure.degrade_to, failure.renews_us
        found.retry_after_s = failure.retry_after_s
    elif failure.retry_after_s is not None:
        error.retry_after_s = failure.retry_after_s  # type: ignore[attr-defined]  # for the agent's retries
    error.tries = failure.tries  # type: ignore[attr-defined]  # for the record of the call
    error.request_hash = failure.request_hash  # type: ignore[attr-defined]  # the same
    return error
