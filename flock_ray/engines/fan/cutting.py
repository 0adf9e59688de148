"""The strategies of a fan-out: how items are put into chunks. Pure, and lazy: nothing is held but one chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from flock_ray.errors import ConfigurationError

__all__ = ["by_count", "by_key", "by_size", "by_weight"]


def by_size(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield chunks of so many items; the last one may have fewer."""
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def by_count(items: Iterable[Any], size: int | None, count: int) -> Iterator[list[Any]]:
    """Yield at most so many chunks, whose sizes differ by one at most.

    Args:
        items: What to cut.
        size: How many items there are; None: they are counted first.
        count: How many chunks; fewer when there are fewer items.
    """
    if size is None:
        items = list(items)
        size = len(items)
    source = iter(items)
    count = min(count, size)
    for number in range(count):
        length = size // count + (number < size % count)
        yield list(islice(source, length))


def by_weight(items: Iterable[Any], weight: Callable[[Any], float], limit: float) -> Iterator[list[Any]]:
    """Yield chunks that weigh at most so much, in order; an item that weighs more is a chunk of its own.

    Raises:
        ConfigurationError: An item has no weight from 0 up.
    """
    chunk: list[Any] = []
    total = 0.0
    for item in items:
        heavy = float(weight(item))
        if not heavy >= 0:
            raise ConfigurationError(f"weight= gave {heavy}: give a number from 0 for every item.")
        if chunk and total + heavy > limit:
            yield chunk
            chunk, total = [], 0.0
        chunk.append(item)
        total += heavy
    if chunk:
        yield chunk


def by_key(items: Iterable[Any], key: Callable[[Any], Any], size: int | None) -> Iterator[list[Any]]:
    """Yield a chunk per key, in the order in which keys came first; all items have to be held for that.

    Args:
        items: What to cut.
        key: Gives the key of an item; it can be hashed.
        size: Most items of a chunk; a key with more has several. None: no limit.
    """
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    for group in groups.values():
        if size is None:
            yield group
        else:
            yield from by_size(group, size)
