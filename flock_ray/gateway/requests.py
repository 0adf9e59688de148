"""A request as data: what is asked in a canonical form, its hash, its size, and how two of them differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec

from flock_ray.model import ModelRequest

__all__ = ["asked", "canonical", "differences", "estimate_tokens", "hash_of"]

SECRET_KEYS = frozenset(
    {
        "api_key", "apikey", "api-key", "x-api-key", "authorization", "headers", "extra_headers", "password", "token",
        "access_token", "secret", "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
        "vertex_credentials", "azure_ad_token", "client_secret", "api_base", "base_url",
    }
)  # fmt: skip
"""Keys of `extra` that say who asks, or where, and not what: no part of the canonical form."""

CHARS_PER_TOKEN = 4
TOKENS_OF_ANSWER = 256
"""Expected length of an answer whose request does not limit it."""
TOKENS_OF_FILE = 1000
"""What an image or file counts for in the estimate; its bytes say nothing."""

_FIELDS = (
    "model", "messages", "tools", "tool_choice", "response_format", "temperature", "max_tokens", "stop", "seed",
    "extra", "embed",
)  # fmt: skip
_encode = msgspec.json.Encoder(order="deterministic").encode


def asked(request: ModelRequest) -> dict[str, Any]:
    """Return what a request asks: no caller, timeouts, fallbacks, cache or secrets; defaults are left out."""
    made: dict[str, Any] = {}
    for name in _FIELDS:
        value = getattr(request, name)
        if value is None or value == [] or value == {}:
            continue
        if name == "extra" and not (value := _without_secrets(value)):
            continue
        made[name] = value
    return made


def canonical(request: ModelRequest) -> bytes:
    """Encode what a request asks: equal bytes for equal questions."""
    return _encode(asked(request))


def hash_of(data: bytes) -> str:
    """Return the hash of a canonical request: 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def estimate_tokens(request: ModelRequest, size: int) -> int:
    """Guess how many tokens a call will use, input and output together.

    Args:
        request: The call.
        size: Length of its canonical form in bytes.
    """
    if request.embed:
        return max(1, size // CHARS_PER_TOKEN)
    files = 0
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and part.get("type") not in ("text", None):
                    size -= sum(len(text) for text in _texts(part))
                    files += 1
    return max(1, size // CHARS_PER_TOKEN) + files * TOKENS_OF_FILE + (request.max_tokens or TOKENS_OF_ANSWER)


def differences(old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, old, new) of every leaf that differs; None stands for what is not there."""
    yield from _walk("", old, new)


def _walk(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(key for key in old if key not in new)]
        for key in keys:
            yield from _walk(f"{path}.{key}" if path else str(key), old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            left = old[index] if index < len(old) else None
            right = new[index] if index < len(new) else None
            yield from _walk(f"{path}[{index}]", left, right)
    elif old != new or type(old) is not type(new):
        yield path, old, new


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_secrets(v) for k, v in value.items() if str(k).lower() not in SECRET_KEYS}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
