"""A fan-out as it is declared: from one input to its chunks."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flock_ray.engines.fan.cutting import by_count, by_key, by_size, by_weight
from flock_ray.engines.fan.sources import pieces_of, rows_of_table
from flock_ray.errors import ConfigurationError

__all__ = ["FanOut", "FanOutStrategy"]

INDEX_FIELDS = ("chunk_id", "chunk_index", "index", "number", "part")
"""Whole numbers of a chunk that get its index, the first that there is."""


class FanOutStrategy(Enum):
    """How an input is cut into chunks."""

    BY_SIZE = "by_size"
    """`chunk_size` items each: elements, rows, lines of a file, characters of a text (words stay whole)."""
    BY_COUNT = "by_count"
    """`count` chunks that are about equally long."""
    BY_KEY = "by_key"
    """A chunk for each value of `key(item)`."""
    BY_WEIGHT = "by_weight"
    """Chunks of which `weight(item)` adds up to `max_weight` at most."""
    CUSTOM = "custom"
    """What `split(input)` gives: an iterable of chunks."""


@dataclass(frozen=True, slots=True)
class FanOut:
    """One `.fan_out(...)`: the engine of its agent."""

    into: type[BaseModel]
    strategy: FanOutStrategy
    chunk_size: int | None = None
    count: int | None = None
    key: Callable[[Any], Any] | None = None
    weight: Callable[[Any], float] | None = None
    max_weight: float | None = None
    field: str | None = None
    build: Callable[..., BaseModel] | None = None
    split: Callable[[Any], Iterable[BaseModel]] | None = None

    def __call__(self, source: BaseModel) -> Iterator[BaseModel]:
        """Yield the chunks of an input, one after the other.

        Raises:
            ConfigurationError: The input has no field to cut, or the chunks can't be made of its items.
        """
        if self.split is not None:
            yield from self.split(source)
            return
        plan = plan_of(self, type(source))
        value = getattr(source, plan.field)
        pieces = pieces_of(value, as_text=plan.as_text)
        for index, items in enumerate(self._groups(pieces)):
            joined = pieces.join(items)
            if self.build is not None:
                yield self.build(joined, index, source)
            else:
                yield plan.made(self.into, joined, index, source)

    def _groups(self, pieces: Any) -> Iterator[list[Any]]:
        if self.strategy is FanOutStrategy.BY_COUNT:
            return by_count(pieces.items, pieces.size, self.count or 1)
        if self.strategy is FanOutStrategy.BY_KEY and self.key is not None:
            return by_key(pieces.items, self.key, self.chunk_size)
        if self.strategy is FanOutStrategy.BY_WEIGHT and self.weight is not None:
            return by_weight(pieces.items, self.weight, self.max_weight or 0)
        size = self.chunk_size or 1
        if pieces.length is not None:
            return by_weight(pieces.items, pieces.length, size)
        return by_size(pieces.items, size)

    def functions(self) -> list[Callable[..., Any] | None]:
        """Return its user code, for the fingerprint of the agent."""
        return [self.key, self.weight, self.build, self.split]

    def digest(self) -> bytes:
        """Return the rest of it, for the same."""
        return repr((self.into.__qualname__, self.strategy.value, self.chunk_size, self.count, self.max_weight,
                     self.field)).encode()  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Which field of an input is cut, and how the fields of a chunk are filled."""

    field: str
    items: str = ""
    """Field of the chunk that gets the items."""
    index: str = ""
    """Field of the chunk that gets its index; empty: there is none."""
    copied: tuple[str, ...] = ()
    """Fields that the input has, too."""
    as_text: bool = False
    as_rows: bool = False
    """The chunk takes a list where the input has a table."""

    def made(self, into: type[BaseModel], joined: Any, index: int, source: BaseModel) -> BaseModel:
        """Make a chunk."""
        values: dict[str, Any] = {name: getattr(source, name) for name in self.copied}
        values[self.items] = rows_of_table(joined) if self.as_rows else joined
        if self.index:
            values[self.index] = index
        return into(**values)


@lru_cache(maxsize=256)
def plan_of(fan_out: FanOut, source: type[BaseModel]) -> ChunkPlan:
    """Work out how an input type becomes chunks.

    The field that is cut is `field`, or the only one that can be. A chunk's field of the same name, or else its only
    list, text or table, gets the items; a whole number named `chunk_id`, `index` or alike gets the index, from 0; every
    other field that has no default is copied from the input's field of its name.

    Raises:
        ConfigurationError: It does not fit; says what to add.
    """
    field = fan_out.field or _only_field(source, fan_out.into)
    if field not in source.model_fields:
        raise ConfigurationError(
            f"{source.__name__} has no field {field!r}; its fields: {', '.join(source.model_fields)}"
        )
    if fan_out.build is not None:
        return ChunkPlan(field)
    into = fan_out.into
    kinds = {name: _kind(info.annotation) for name, info in into.model_fields.items()}
    takers = [name for name, kind in kinds.items() if kind in ("list", "text", "table")]
    items = field if field in takers else takers[0] if len(takers) == 1 else _preferred(takers)
    if not items:
        raise ConfigurationError(
            f"which field of {into.__name__} gets the items of {source.__name__}.{field}? Name it {field!r}, or say "
            f"how a chunk is made: build=lambda items, index, source: {into.__name__}(...)"
        )
    index = next(
        (n for n in INDEX_FIELDS if into.model_fields.get(n) and into.model_fields[n].annotation is int), ""
    )
    rest = [name for name in into.model_fields if name not in (items, index)]
    copied = tuple(name for name in rest if name in source.model_fields and name != field)
    left = [name for name in rest if into.model_fields[name].is_required() and name not in copied]
    if left:
        raise ConfigurationError(
            f"nothing says what {into.__name__}.{left[0]} is: {source.__name__} has no such field. Give it a default, "
            f"or say how a chunk is made: build=lambda items, index, source: {into.__name__}(...)"
        )
    return ChunkPlan(field, items, index, copied, kinds[items] == "text", kinds[items] == "list")


def _only_field(source: type[BaseModel], into: type[BaseModel]) -> str:
    kinds = {name: _kind(info.annotation) for name, info in source.model_fields.items()}
    for wanted in (("list", "table"), ("path",), ("text",)):
        found = [name for name, kind in kinds.items() if kind in wanted]
        if len(found) > 1:
            found = [name for name in found if name in into.model_fields] or found
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigurationError(
                f"which field of {source.__name__} is cut: {' or '.join(found)}? Say field={found[0]!r}."
            )
    raise ConfigurationError(
        f"{source.__name__} has no list, table, text or Path to cut: use strategy=FanOutStrategy.CUSTOM, split=..."
    )


def _preferred(takers: Sequence[str]) -> str:
    return next((name for name in ("data", "items", "rows", "text", "content") if name in takers), "")


def _kind(annotation: Any) -> str:
    """Say what a field holds: list, text, table, path, or nothing that can be cut."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        kinds = {_kind(arg) for arg in typing.get_args(annotation) if arg is not type(None)}
        return kinds.pop() if len(kinds) == 1 else ""
    cls = origin or annotation
    if not isinstance(cls, type):
        return ""
    if cls is str:
        return "text"
    if issubclass(cls, Path):
        return "path"
    if issubclass(cls, (list, tuple)):
        return "list"
    return "table" if cls.__module__.partition(".")[0] in ("pyarrow", "pandas") else ""
