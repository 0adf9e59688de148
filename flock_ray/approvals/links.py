"""Signed links to decide with: whoever has one decides as the person it names, once, about what it was made for."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from datetime import timedelta
from hashlib import sha256
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import SecretStr

from flock_ray.errors import ApprovalExpiredError, ConfigurationError, ForbiddenError

__all__ = ["LinkDecision", "LinkToken", "make_token", "read_token", "with_token"]

LinkDecision = Literal["approve", "reject", "abstain"]

MIN_SECRET_BYTES = 32
MAX_TOKEN_CHARS = 2_000
LONGEST = timedelta(days=30)

_CONTEXT = b"flock_ray approval link 1\x00"
"""So that nothing else that is signed with the same secret is ever a link."""


class LinkToken(msgspec.Struct, array_like=True, frozen=True):
    """What a link says."""

    case: bytes
    shown: bytes
    """Hash of what was shown when it was made: after an edit it decides nothing."""
    by: str
    decision: LinkDecision
    expires_s: int
    """Seconds since the Unix epoch."""
    nonce: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LinkToken).decode


def key_of(secret: SecretStr | None) -> bytes:
    """Return the key that signs links.

    Raises:
        ConfigurationError: There is none, or it is too short.
    """
    text = "" if secret is None else secret.get_secret_value()
    if len(text.encode()) < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"Links to approve with need FLOCK_APPROVAL_SECRET, of at least {MIN_SECRET_BYTES} bytes: take "
            "`openssl rand -hex 32`."
        )
    return text.encode()


def make_token(
    secret: SecretStr | None, *, case: bytes, shown: bytes, by: str, decision: LinkDecision, now_s: float,
    expires: timedelta,
) -> str:  # fmt: skip
    """Sign a link's token.

    Raises:
        ConfigurationError: There is no secret, or it lives too long or not at all.
    """
    key = key_of(secret)
    given: object = expires
    if not isinstance(given, timedelta) or not timedelta(0) < given <= LONGEST:
        raise ConfigurationError(
            "approvals.link(expires=...) takes a timedelta above zero and up to 30 days."
        )
    if decision not in ("approve", "reject", "abstain"):
        raise ConfigurationError(f"approvals.link(decision={decision!r}): give approve, reject or abstain.")
    token = LinkToken(
        case, shown, by, decision, int(now_s + expires.total_seconds()), secrets.token_bytes(12)
    )
    body = _encode(token)
    return f"{_text(body)}.{_text(_signature(key, body))}"


def read_token(secret: SecretStr | None, text: str, *, now_s: float) -> LinkToken:
    """Check a token; compares in constant time, and decodes nothing that is not signed.

    Raises:
        ForbiddenError: It is none of ours, or was changed.
        ApprovalExpiredError: Its time is over.
    """
    key = key_of(secret)
    body, signature = _bytes(text)
    if not hmac.compare_digest(_signature(key, body), signature):
        raise ForbiddenError("This is no link of this board: it was changed, or another secret signed it.")
    try:
        token = _decode(body)
    except msgspec.DecodeError:
        raise ForbiddenError("This link was made by another version: ask for a new one.") from None
    if now_s >= token.expires_s:
        raise ApprovalExpiredError("This link has expired: ask for a new one, or decide in another way.")
    return token


def with_token(base: str, token: str) -> str:
    """Return an address with a token added.

    Raises:
        ConfigurationError: It is no address.
    """
    parts = urlsplit(base)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.fragment:
        raise ConfigurationError(
            f"A link's base={base!r}: give an address, as in https://flock.example.com/decide."
        )
    return f"{base}{'&' if parts.query else '?'}token={token}"


def _signature(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, _CONTEXT + body, sha256).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: object) -> tuple[bytes, bytes]:
    """Return body and signature; something that is no token fails the comparison."""
    if not isinstance(text, str) or len(text) > MAX_TOKEN_CHARS or not text.isascii() or text.count(".") != 1:
        return b"", b""
    try:
        body, signature = (
            base64.b64decode(part + "=" * (-len(part) % 4), b"-_", True) for part in text.split(".")
        )
    except (binascii.Error, ValueError):
        return b"", b""
    return body, signature
