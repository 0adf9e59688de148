"""How values are cut into chunks: nothing is lost, nothing comes twice, and limits hold."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from flock_ray import FanOutStrategy
from flock_ray.engines.fan.chunking import FanOut, plan_of
from flock_ray.engines.fan.cutting import by_count, by_key, by_size, by_weight
from flock_ray.engines.fan.sources import pieces_of
from flock_ray.errors import ConfigurationError


@given(st.lists(st.integers()), st.integers(1, 50))
def test_by_size_is_a_partition(items: list[int], size: int) -> None:
    chunks = list(by_size(items, size))
    assert [item for chunk in chunks for item in chunk] == items
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(chunks)


@given(st.lists(st.integers()), st.integers(1, 50), st.booleans())
def test_by_count_is_even(items: list[int], count: int, known: bool) -> None:
    chunks = list(by_count(iter(items), len(items) if known else None, count))
    assert [item for chunk in chunks for item in chunk] == items
    assert len(chunks) == min(count, len(items))
    assert not chunks or max(map(len, chunks)) - min(map(len, chunks)) <= 1


@given(st.lists(st.integers(0, 9)), st.integers(1, 20))
def test_by_weight_keeps_its_limit(items: list[int], limit: int) -> None:
    chunks = list(by_weight(items, float, limit))
    assert [item for chunk in chunks for item in chunk] == items
    assert all(sum(chunk) <= limit or len(chunk) == 1 for chunk in chunks)
    assert all(sum(a) + b[0] > limit for a, b in itertools.pairwise(chunks))


@given(st.lists(st.integers(0, 99)), st.none() | st.integers(1, 5))
def test_by_key_keeps_keys_together(items: list[int], size: int | None) -> None:
    chunks = list(by_key(items, lambda n: n % 7, size))
    assert sorted(item for chunk in chunks for item in chunk) == sorted(items)
    assert all(len({n % 7 for n in chunk}) == 1 for chunk in chunks)
    assert size is not None or len(chunks) == len({n % 7 for n in items})
    assert size is None or all(len(chunk) <= size for chunk in chunks)


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"weight= gave -1\.0"):
        list(by_weight([1], lambda _: -1, 10))


class Book(BaseModel):
    title: str = "t"
    text: str


class Page(BaseModel):
    index: int
    text: str


@given(st.text(alphabet="ab \n\t\u00a0", max_size=200), st.integers(1, 30))
def test_a_text_is_cut_between_words_and_is_whole_again(text: str, size: int) -> None:
    split = FanOut(Page, FanOutStrategy.BY_SIZE, chunk_size=size, field="text")
    pages = list(split(Book(text=text)))
    assert "".join(page.text for page in pages) == text  # type: ignore[attr-defined]
    assert [page.index for page in pages] == list(range(len(pages)))  # type: ignore[attr-defined]
    for page, following in itertools.pairwise(pages):
        assert page.text[-1].isspace()  # type: ignore[attr-defined]
        assert following.text  # type: ignore[attr-defined]


class Rows(BaseModel):
    path: Path
    source: str = "s"


class Part(BaseModel):
    rows: list[dict[str, str | int]]
    source: str


class Lines(BaseModel):
    text: str


def test_files_are_cut_by_rows_or_lines(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("n,m\n1,a\n2,b\n3,c\n")
    split = FanOut(Part, FanOutStrategy.BY_SIZE, chunk_size=2)
    parts = list(split(Rows(path=table)))
    assert [part.rows for part in parts] == [  # type: ignore[attr-defined]
        [{"n": "1", "m": "a"}, {"n": "2", "m": "b"}],
        [{"n": "3", "m": "c"}],
    ]
    assert [part.source for part in parts] == ["s", "s"]  # type: ignore[attr-defined]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps({"n": n}) for n in range(3)))
    assert [p.rows for p in split(Rows(path=lines))] == [[{"n": 0}, {"n": 1}], [{"n": 2}]]  # type: ignore[attr-defined]
    as_text = FanOut(Lines, FanOutStrategy.BY_SIZE, chunk_size=3)
    assert [p.text for p in as_text(Rows(path=table))] == ["n,m\n1,a\n2,b\n", "3,c\n"]  # type: ignore[attr-defined]


def test_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="Every worker must be able to read it"):
        pieces_of(Path("/nowhere/at/all"))


def test_tables_are_cut_by_rows() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"n": list(range(5))})
    pieces = pieces_of(table)
    assert pieces.size == 5
    assert [pieces.join(chunk).to_pylist() for chunk in by_size(pieces.items, 3)] == [
        [{"n": 0}, {"n": 1}, {"n": 2}],
        [{"n": 3}, {"n": 4}],
    ]
    assert pieces.join([0, 2, 4]).to_pylist() == [{"n": 0}, {"n": 2}, {"n": 4}]


def test_data_frames_are_cut_by_rows() -> None:
    pandas = pytest.importorskip("pandas")
    pieces = pieces_of(pandas.DataFrame({"n": [0, 1, 2]}))
    assert [pieces.join(chunk).to_dict("records") for chunk in by_size(pieces.items, 2)] == [
        [{"n": 0}, {"n": 1}],
        [{"n": 2}],
    ]
    assert pieces.join([0, 2])["n"].tolist() == [0, 2]


def test_what_can_not_be_cut_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a int can't be cut"):
        pieces_of(3)


class Two(BaseModel):
    left: list[int]
    right: list[int]


class Number(BaseModel):
    n: int


class Left(BaseModel):
    left: list[int]


class Asks(BaseModel):
    left: list[int]
    who: str


class Wrapped(BaseModel):
    items: Annotated[list[int], Field(min_length=1)] | None = None


@pytest.mark.parametrize(
    ("into", "source", "message"),
    [
        (Page, Two, "which field of Two is cut: left or right"),
        (Left, Number, "has no list, table, text or Path to cut"),
        (Asks, Two, "nothing says what Asks.who is"),
        (Number, Left, "which field of Number gets the items of Left.left"),
    ],
)
def test_what_does_not_fit_says_what_to_add(into: type, source: type, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_of(FanOut(into, FanOutStrategy.BY_SIZE, chunk_size=1), source)


def test_fields_are_found_by_name_and_through_annotations() -> None:
    assert plan_of(FanOut(Left, FanOutStrategy.BY_SIZE, chunk_size=1), Two).field == "left"
    assert plan_of(FanOut(Left, FanOutStrategy.BY_SIZE, chunk_size=1), Wrapped).field == "items"


def test_chunks_are_built_by_hand() -> None:
    split = FanOut(
        Number,
        FanOutStrategy.BY_SIZE,
        chunk_size=2,
        build=lambda items, index, source: Number(n=sum(items) + index),
    )
    assert [chunk.n for chunk in split(Left(left=[1, 2, 3]))] == [3, 4]  # type: ignore[attr-defined]
