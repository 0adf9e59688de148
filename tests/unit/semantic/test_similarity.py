"""What text of an artifact is compared, and the decision."""

from __future__ import annotations

import enum
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel, SecretStr

from flock_ray.core.similarity import MAX_TEXT, Meaning, TextPredicate, describe, similarity, text_of
from flock_ray.errors import ConfigurationError
from flock_ray.semantic import RememberingEmbedder
from tests.unit.semantic.words import WordEmbedder


class Colour(enum.StrEnum):
    RED = "red"


class Inner(BaseModel):
    text: str = "deep"


class Everything(BaseModel):
    title: str = "First"
    n: int = 7
    ok: bool = True
    lines: list[str] = ["second", "third"]
    mixed: list[Any] = ["fourth", 5, None]
    pair: tuple[str, str] = ("fifth", "sixth")
    tags: set[str] = {"b", "a"}
    colour: Colour = Colour.RED
    secret: SecretStr = SecretStr("hidden")
    inner: Inner = Inner()
    missing: str | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    title: str


def test_all_text_is_compared_in_declared_order_and_nothing_else() -> None:
    assert text_of(Everything(), None) == "First second third fourth fifth sixth a b red"


def test_extra_fields_count_and_a_root_model_has_one_field() -> None:
    assert text_of(Open.model_validate({"title": "a", "more": "b", "n": 3}), None) == "a b"
    assert text_of(Open.model_validate({"title": "a", "more": "b"}), "more") == "b"
    assert text_of(RootModel[list[str]](["a", "b"]), None) == "a b"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("title", "First"),
        ("lines", "second third"),
        ("n", "7"),
        ("ok", "True"),
        ("missing", ""),
        ("inner", ""),
    ],
)
def test_one_field_is_compared_when_named(field: str, expected: str) -> None:
    assert text_of(Everything(), field) == expected


def test_text_is_bounded_and_can_always_be_encoded() -> None:
    assert len(text_of(Open(title="x" * 1_000_000), None)) == MAX_TEXT
    assert text_of(Open.model_construct(title="a\ud800b"), None) == "a?b"
    assert text_of(Open(title=" \n "), None) == ""


@given(
    title=st.text(max_size=50),
    more=st.lists(st.text(max_size=20), max_size=5),
    tags=st.sets(st.text(max_size=9)),
)
def test_the_text_survives_the_journal(title: str, more: list[str], tags: set[str]) -> None:
    class Note(BaseModel):
        title: str
        more: list[str]
        tags: set[str]

    note = Note(title=title, more=more, tags=tags)

    assert text_of(Note.model_validate_json(note.model_dump_json()), None) == text_of(note, None)


vectors = st.lists(st.floats(-1, 1), min_size=8, max_size=8).filter(lambda v: math.hypot(*v) > 1e-3)


@given(one=vectors, other=vectors)
def test_similarity_is_symmetric_and_from_0_to_1(one: list[float], other: list[float]) -> None:
    assert 0.0 <= similarity(one, other) == similarity(other, one) <= 1.0


def test_vectors_of_different_models_are_never_compared() -> None:
    with pytest.raises(ValueError, match="2 and 3 numbers"):
        similarity([1.0, 0.0], [1.0, 0.0, 0.0])


def scores(model: BaseModel, *predicates: TextPredicate) -> list[Any]:
    return list(Meaning(predicates, RememberingEmbedder(WordEmbedder())).scores(model))


@given(text=st.text(min_size=1, max_size=60).filter(str.strip))
def test_a_text_is_always_similar_enough_to_itself(text: str) -> None:
    [score] = scores(Open(title=text), TextPredicate(text, 1.0))

    assert score.passed


@given(
    words=st.lists(st.sampled_from(["refund", "money", "crash", "login", "angry"]), min_size=1, max_size=5),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
)
def test_a_higher_threshold_never_lets_more_through(words: list[str], low: float, high: float) -> None:
    low, high = sorted((low, high))
    strict, lax = scores(
        Open(title=" ".join(words)),
        TextPredicate("refund my money", high),
        TextPredicate("refund my money", low),
    )

    assert strict.passed <= lax.passed


def test_no_text_reaches_no_threshold_not_even_0_and_embeds_nothing() -> None:
    embedder = WordEmbedder()
    meaning = Meaning((TextPredicate("refunds", 0.0),), RememberingEmbedder(embedder))

    [score] = meaning.scores(Open(title=""))

    assert not score.passed
    assert describe(score) == ("semantic 'refunds'", False, "no text to compare")
    assert embedder.asked == []


def test_without_an_embedder_a_comparison_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="needs an embedder"):
        list(Meaning((TextPredicate("refunds", 0.0),), None).scores(Open(title="refunds")))


def test_what_misses_the_threshold_by_little_is_not_shown_as_reaching_it() -> None:
    [score] = scores(Open(title="refund money now please"), TextPredicate("refund money", 0.7072))

    assert describe(score) == ("semantic 'refund money'", False, "similarity 0.707, threshold 0.7072")


def test_queries_are_embedded_once_and_survive_a_full_memory() -> None:
    embedder = WordEmbedder()
    meaning = Meaning((TextPredicate("refunds"),), RememberingEmbedder(embedder, max_bytes=1))

    for n in range(5):
        list(meaning.scores(Open(title=f"text {n}")))

    assert embedder.texts.count("refunds") == 1
