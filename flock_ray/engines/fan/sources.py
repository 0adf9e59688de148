"""What can be cut into chunks: lists, tables, texts and files, each as something that gives pieces."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flock_ray.errors import ConfigurationError

__all__ = ["Pieces", "pieces_of", "rows_of_table"]

_WORD = re.compile(r"\s*\S+\s*|\s+")


class Pieces:
    """A value to cut: a number of items that comes one after the other, and how some of them are put together."""

    def __init__(
        self,
        items: Iterable[Any],
        join: Callable[[list[Any]], Any],
        size: int | None,
        length: Callable[[Any], int] | None = None,
    ) -> None:
        """Hold items.

        Args:
            items: One after the other.
            join: Makes the value of a chunk's field of some of them.
            size: How many there are; None: nobody knows before the end.
            length: What an item counts for BY_SIZE; None: one.
        """
        self.length = length
        self.items = items
        self.join = join
        self.size = size


def pieces_of(value: Any, *, as_text: bool = False) -> Pieces:
    """Return the pieces of a value.

    A list or tuple has its elements; a table (Arrow or pandas) its rows; a text its words, each with the space behind
    it; a path the rows of its file, or its lines.

    Args:
        value: What to cut.
        as_text: The chunks take text, also of a file that has rows.

    Raises:
        ConfigurationError: It is nothing of the kind.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Path):
        return _file(value, as_text)
    if isinstance(value, (list, tuple)):
        return Pieces(value, list, len(value))
    module = type(value).__module__.partition(".")[0]
    if module == "pyarrow" and hasattr(value, "to_pylist"):
        return _table(value, lambda first, count: value.slice(first, count), value.num_rows)
    if module == "pandas" and hasattr(value, "iloc"):
        return _table(value, lambda first, count: value.iloc[first : first + count], len(value))
    if isinstance(value, Sequence):
        return Pieces(value, list, len(value))
    raise ConfigurationError(
        f"a {type(value).__name__} can't be cut: give a list, a text, a table or a Path, or cut it yourself with "
        "strategy=FanOutStrategy.CUSTOM, split=..."
    )


def rows_of_table(value: Any) -> Any:
    """Return a table as rows that have a JSON form; anything else as it is."""
    module = type(value).__module__.partition(".")[0]
    if module == "pyarrow" and hasattr(value, "to_pylist"):
        return value.to_pylist()
    if module == "pandas" and hasattr(value, "to_dict"):
        return value.to_dict("records")
    return value


def _table(table: Any, part: Callable[[int, int], Any], size: int) -> Pieces:
    def join(numbers: list[Any]) -> Any:
        if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
            return part(numbers[0], len(numbers))
        return table.take(numbers)

    return Pieces(range(size), join, size)


def _text(text: str) -> Pieces:
    return Pieces(_words(text), "".join, None, len)


def _words(text: str) -> Iterator[str]:
    """Yield words, each with the white space behind it: together they are the text again."""
    return (match.group() for match in _WORD.finditer(text))


def _file(path: Path, as_text: bool) -> Pieces:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or no file. Every worker must be able to read it.")
    suffix = path.suffix.lower()
    if as_text or suffix not in _READERS:
        return Pieces(_lines(path), "".join, None)
    return Pieces(_READERS[suffix](path), list, None)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _jsonl(path: Path) -> Iterator[Any]:
    for line in _lines(path):
        if line.strip():
            yield json.loads(line)


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet  # type: ignore[import-untyped, import-not-found, unused-ignore]

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet,
}  # fmt: skip
