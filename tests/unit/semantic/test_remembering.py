"""The memory of an embedder."""

from __future__ import annotations

import math
import pickle
import threading
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # ships no types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.errors import AgentNotPicklableError, ConfigurationError, ModelError
from flock_ray.semantic import EmbeddingService, RememberingEmbedder, embedder_of
from tests.unit.semantic.words import WordEmbedder, vector_of


class Fixed:
    name = "fixed"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def embed(self, texts: list[str]) -> Any:
        return self.answer


texts = st.lists(st.sampled_from([f"text {n}" for n in range(30)]), max_size=40)


@given(rounds=st.lists(texts, max_size=6), room=st.integers(0, 40_000))
def test_answers_are_those_of_the_embedder_whatever_is_remembered(rounds: list[list[str]], room: int) -> None:
    words = WordEmbedder()
    remembering = RememberingEmbedder(words, max_bytes=room)

    for batch in rounds:
        before = remembering.missing(batch)
        words.asked.clear()
        answer = remembering.embed(batch)

        assert [math.dist(a, vector_of(t)) < 1e-6 for a, t in zip(answer, batch, strict=True)] == [
            True
        ] * len(batch)
        assert words.texts == before == list(dict.fromkeys(before))
        assert remembering.stats().size_bytes <= room


def test_the_least_recently_used_text_is_forgotten_first() -> None:
    remembering = RememberingEmbedder(WordEmbedder(), max_bytes=3 * (512 * 4 + 250))
    for text in ("a1", "b1", "c1", "a1", "d1"):
        remembering.embed([text])

    assert remembering.missing(["a1", "b1", "c1", "d1"]) == ["b1"]
    assert remembering.stats().entries == 3


def test_large_requests_are_split() -> None:
    words = WordEmbedder()

    RememberingEmbedder(words).embed([f"t {n}" for n in range(600)])

    assert [len(batch) for batch in words.asked] == [256, 256, 88]


def test_vectors_get_length_1() -> None:
    assert RememberingEmbedder(Fixed([[3.0, 4.0]])).embed(["x"])[0] == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [[1.0], [1.0]],
        [[0.0, 0.0]],
        [[math.nan, 1.0]],
        [[math.inf]],
        [["x"]],
        [None],
        None,
        7,
        [[]],
        [[10**400]],
    ],
)
def test_garbage_is_a_retryable_error_and_is_not_remembered(answer: Any) -> None:
    remembering = RememberingEmbedder(Fixed(answer))

    with pytest.raises(ModelError, match=r"'fixed'") as raised:
        remembering.embed(["private text"])

    assert raised.value.retryable
    assert "private" not in str(raised.value)
    assert remembering.stats().entries == 0


def test_vectors_of_another_length_are_refused() -> None:
    fixed = Fixed([[1.0, 0.0]])
    remembering = RememberingEmbedder(fixed)
    remembering.embed(["a"])
    fixed.answer = [[1.0, 0.0, 0.0]]

    with pytest.raises(ModelError, match="has 3 numbers, another 2"):
        remembering.embed(["b"])


def test_copies_share_one_memory_in_another_process() -> None:
    data = cloudpickle.dumps(
        {"one": RememberingEmbedder(WordEmbedder()), "other": RememberingEmbedder(WordEmbedder())}
    )

    arrived, later = pickle.loads(data), pickle.loads(data)

    assert arrived["one"] is arrived["other"] is later["one"]
    other = pickle.loads(cloudpickle.dumps(RememberingEmbedder(WordEmbedder("other"))))
    assert other is not arrived["one"]
    assert arrived["one"].embed(["x"]) == [pytest.approx(vector_of("x"))]


def test_an_embedder_that_cannot_travel_is_named() -> None:
    from pydantic import BaseModel

    from flock_ray import Flock
    from flock_ray.deployment import CloudpickleCodec

    class Note(BaseModel):
        text: str

    stuck = WordEmbedder()
    stuck.lock = threading.Lock()  # type: ignore[attr-defined]
    flock = Flock(embedder=stuck)
    flock.agent("a").consumes(Note, semantic_match="x").runs(lambda note: None)
    [definition] = flock._definitions()

    with pytest.raises(AgentNotPicklableError, match=r"'a'.*lock"):
        CloudpickleCodec().dump(definition)


def test_concurrent_use_answers_everybody() -> None:
    remembering = RememberingEmbedder(WordEmbedder(), max_bytes=20_000)
    wrong: list[str] = []

    def use(seed: int) -> None:
        for n in range(100):
            text = f"text {(seed * 7 + n) % 20}"
            if math.dist(remembering.embed([text])[0], vector_of(text)) > 1e-6:
                wrong.append(text)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    stats = remembering.stats()
    assert wrong == []
    assert stats.hits + stats.misses == 400
    assert stats.size_bytes == stats.entries * (512 * 4 + 250)


def test_the_service_has_upstreams_names() -> None:
    service = EmbeddingService(WordEmbedder())

    assert service.similarity("refund my money", "money refund") == pytest.approx(1.0)
    assert service.embed("refund") == pytest.approx(vector_of("refund"))
    assert service.embed_batch([]) == []
    assert service.get_cache_stats() == {
        "hits": 0, "misses": 3, "total": 3, "hit_rate": 0.0, "cache_size": 3, "cache_limit": 64 * 1024 * 1024
    }  # fmt: skip
    with pytest.raises(ValueError, match="empty text"):
        service.embed(" ")


def test_upstreams_module_has_its_names_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from flock_ray import semantic
    from flock_ray.context_provider import SemanticContextProvider
    from flock_ray.semantic import service

    assert semantic.SEMANTIC_AVAILABLE is True
    assert semantic.SemanticContextProvider is SemanticContextProvider
    with pytest.raises(AttributeError, match="nothing"):
        semantic.nothing  # noqa: B018
    monkeypatch.setattr(service, "_instance", None)
    monkeypatch.delenv("FLOCK_EMBEDDER", raising=False)
    with pytest.raises(ConfigurationError, match="FLOCK_EMBEDDER"):
        EmbeddingService.get_instance()
    monkeypatch.setenv("FLOCK_EMBEDDER", "openai/small")
    assert EmbeddingService.get_instance() is EmbeddingService.get_instance()


@pytest.mark.parametrize("given", ["all-MiniLM-L6-v2", "", 7, object(), WordEmbedder])
def test_what_is_no_embedder_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="embedder="):
        embedder_of(given)


def test_a_setting_names_the_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    from flock_ray import Flock

    monkeypatch.setenv("FLOCK_EMBEDDER", "openai/text-embedding-3-small")
    named, given = Flock().embedder, Flock(embedder=WordEmbedder()).embedder

    assert named is not None
    assert given is not None
    assert (named.name, given.name) == ("openai/text-embedding-3-small", "words")
    monkeypatch.setenv("FLOCK_EMBEDDER", "onnx:/nowhere")
    with pytest.raises(ConfigurationError, match=r"No model\.onnx in '/nowhere'"):
        Flock()
