"""What a component or engine is set to, as bytes that are the same in every process: part of an agent's fingerprint."""

from __future__ import annotations

import enum
import marshal
import re
from collections.abc import Iterator, Mapping
from datetime import date, time, timedelta
from hashlib import blake2b
from types import CodeType
from typing import Any

from pydantic import BaseModel

__all__ = ["settings_digest"]

_MAX_DEPTH = 20
_PLAIN = (str, bytes, int, float, complex, type(None), timedelta, date, time, enum.Enum)


def settings_digest(part: Any) -> bytes:
    """Hash the class and settings of a component or engine: an agent that is set differently is deployed again.

    Secrets count by their presence only, and so does every object that says nothing of itself.
    """
    digest = blake2b(digest_size=16)
    digest.update(f"{type(part).__module__}.{type(part).__qualname__}".encode())
    if isinstance(part, BaseModel):
        for line in _of(part, 0):
            digest.update(line + b"\n")
    return digest.digest()


def _of(value: Any, depth: int) -> Iterator[bytes]:
    if depth > _MAX_DEPTH:
        yield b"..."
    elif isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif isinstance(value, re.Pattern):
        yield repr((value.pattern, value.flags)).encode()
    elif isinstance(value, BaseModel):
        yield type(value).__qualname__.encode()
        for name in sorted(type(value).model_fields):
            yield name.encode()
            yield from _of(getattr(value, name, None), depth + 1)
    elif isinstance(value, Mapping):
        # Neither sets nor mappings may depend on the order that a process happens to have.
        yield from sorted(b"=".join([*_of(k, depth + 1), *_of(v, depth + 1)]) for k, v in value.items())
    elif isinstance(value, (set, frozenset)):
        yield from sorted(b"".join(_of(item, depth + 1)) for item in value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _of(item, depth + 1)
    else:
        code = getattr(value, "__code__", None)
        yield marshal.dumps(code) if isinstance(code, CodeType) else _name_of(value)


def _name_of(value: Any) -> bytes:
    named = value if isinstance(value, type) else type(value)
    return f"{named.__module__}.{named.__qualname__}".encode()
