"""The text in artifacts: for components that scan or change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flock_ray.artifact import Artifact

__all__ = ["MAX_DEPTH", "changed", "strings", "text_of"]

MAX_DEPTH = 200
"""Deepest nesting of a payload that is looked at; what is deeper raises ValueError and is never passed over."""


def strings(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield every text in JSON data: values, and the keys that are data rather than names of fields.

    Raises:
        ValueError: It is nested deeper than `MAX_DEPTH`.
    """
    if isinstance(value, str):
        yield value
        return
    if not isinstance(value, (dict, list)):
        return
    _check(depth)
    if isinstance(value, dict):
        for key, item in value.items():
            if not key.isidentifier():
                yield key
            yield from strings(item, depth + 1)
    else:
        for item in value:
            yield from strings(item, depth + 1)


def text_of(artifact: Artifact) -> str:
    """Return a payload as plain lines, `key: value`: nothing is escaped, so nothing hides behind an escape.

    Raises:
        ValueError: It is nested deeper than `MAX_DEPTH`.
    """
    return "\n".join(_lines(artifact.payload, "", 0))


def changed(artifact: Artifact, change: Callable[[str], str]) -> Artifact:
    """Return an artifact whose texts went through a function; the same object when none differs.

    Raises:
        ValueError: Its payload is nested deeper than `MAX_DEPTH`, or two keys became the same.
    """
    payload = artifact.payload
    replaced = _changed(payload, change, 0)
    return artifact if replaced is payload else artifact.model_copy(update={"payload": replaced})


def _lines(value: Any, key: str, depth: int) -> Iterator[str]:
    if isinstance(value, (dict, list)):
        _check(depth)
        items = value.items() if isinstance(value, dict) else ((key, item) for item in value)
        for name, item in items:
            yield from _lines(item, name, depth + 1)
    elif value is not None:
        yield f"{key}: {value}"


def _changed(value: Any, change: Callable[[str], str], depth: int) -> Any:
    """Return the value itself unless something in it differs."""
    if isinstance(value, str):
        new = change(value)
        return value if new == value else new
    if isinstance(value, dict):
        _check(depth)
        pairs = [
            (key if key.isidentifier() else change(key), _changed(item, change, depth + 1))
            for key, item in value.items()
        ]
        if all(a == key and b is item for (a, b), (key, item) in zip(pairs, value.items(), strict=True)):
            return value
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("two keys of a payload would become the same; leave that type out")
        return made
    if isinstance(value, list):
        _check(depth)
        items = [_changed(item, change, depth + 1) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def _check(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"a payload is nested deeper than {MAX_DEPTH}: it can't be looked at as a whole")
