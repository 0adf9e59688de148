"""Contexts by meaning, with an embedder that counts words."""

from __future__ import annotations

import asyncio
import math
import pickle
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Artifact, FilterConfig, WorkflowError, flock_type, only_for
from flock_ray.context_provider import (
    BoundContextProvider,
    ContextRequest,
    DefaultContextProvider,
    RedactingContextProvider,
    SemanticContextProvider,
)
from flock_ray.core.visibility import AgentIdentity
from flock_ray.engines.services import Services
from flock_ray.errors import ConfigurationError, ModelError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.context.board import Ask, Fact, Memo, witness

WORDS = ("cat", "dog", "fish", "money", "bank")


class CountingWords:
    """Vectors of word counts: texts with the same words are equal."""

    name = "words"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: list[str]) -> list[list[float]]:
        self.asked += texts
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        counts = Counter(text.lower().split())
        vector = [float(counts[word]) for word in WORDS] + [0.001]
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]


async def fill(flock: VirtualFlock) -> None:
    for text in ("cat dog", "money bank", "cat", "fish", "dog cat cat"):
        await flock.publish(Fact(text=text), correlation_id="w")
        await asyncio.sleep(1)


def shown(provider: Any, *, ask: str = "?", embedder: Any = None) -> list[str]:
    async def main() -> list[str]:
        async with VirtualFlock(embedder=embedder or CountingWords()) as flock:
            seen = witness(flock, provider)
            await fill(flock)
            await flock.publish(Ask(text=ask))
            await flock.run_until_idle()
            assert not await flock.store.get_by_type(WorkflowError)
        return seen.texts

    return run_virtual(main())


def test_what_is_similar_enough_is_shown_oldest_first() -> None:
    assert shown(SemanticContextProvider("cat")) == ["cat dog", "cat", "dog cat cat"]
    assert shown(SemanticContextProvider("cat", threshold=0.8)) == ["cat", "dog cat cat"]
    assert shown(SemanticContextProvider("bank", threshold=0.99)) == []


def test_a_limit_keeps_the_most_similar() -> None:
    assert shown(SemanticContextProvider("cat", limit=1)) == ["cat"]


def test_a_budget_keeps_the_most_similar() -> None:
    assert shown(SemanticContextProvider("cat", max_tokens=16)) == ["cat"]


def test_without_a_query_text_the_inputs_are_the_query() -> None:
    assert shown(SemanticContextProvider(threshold=0.6), ask="some money") == ["money bank"]
    assert shown(SemanticContextProvider(threshold=-1), ask="  ") == []


def test_conditions_narrow_the_candidates() -> None:
    assert shown(SemanticContextProvider("cat", where=lambda a: "dog" in a.payload["text"])) == [
        "cat dog", "dog cat cat"
    ]  # fmt: skip
    assert shown(SemanticContextProvider("cat", candidates=2)) == ["dog cat cat"]
    assert shown(SemanticContextProvider("cat", artifact_type=Memo)) == []
    assert len(shown(SemanticContextProvider("cat", artifact_type="context.Fact"))) == 3


def test_one_field_is_compared_or_all_strings() -> None:
    @flock_type(name="context.Story")
    class Story(BaseModel):
        text: str
        tags: list[str]
        more: dict[str, Any]
        number: int = 7

    async def main() -> list[str]:
        embedder = CountingWords()
        async with VirtualFlock(embedder=embedder) as flock:
            witness(flock, SemanticContextProvider("cat"), name="all")
            witness(flock, SemanticContextProvider("cat", extract_field="tags"), name="one")
            witness(flock, SemanticContextProvider("cat", extract_field="missing"), name="none")
            await flock.publish(Story(text="one", tags=["two", "cat"], more={"a": {"b": ["three"]}}))
            await flock.publish(Ask())
            await flock.run_until_idle()
        return sorted({text for text in embedder.asked if text != "cat"})

    assert run_virtual(main()) == ["one two cat three", "two cat"]


def test_what_the_agent_may_not_see_is_not_even_compared() -> None:
    async def main() -> tuple[list[str], list[str]]:
        embedder = CountingWords()
        async with VirtualFlock(embedder=embedder) as flock:
            seen = witness(flock, SemanticContextProvider("cat"))
            await flock.publish(Fact(text="cat secret"), visibility=only_for("somebody else"))
            await flock.publish(Fact(text="cat public"))
            await flock.publish(Ask())
            await flock.run_until_idle()
        return seen.texts, embedder.asked

    texts, asked = run_virtual(main())
    assert texts == ["cat public"]
    assert "cat secret" not in asked


def test_it_works_inside_other_providers() -> None:
    boss = AgentIdentity(name="boss")
    wrapped = RedactingContextProvider(
        BoundContextProvider(SemanticContextProvider("cat", threshold=0.9), boss), patterns=["a"]
    )
    assert shown(wrapped) == ["c[REDACTED]t"]


def test_get_context_is_for_providers_made_of_others() -> None:
    inner = SemanticContextProvider("cat", threshold=0.9)

    async def main() -> list[str]:
        async with VirtualFlock() as flock:

            async def outer(request: ContextRequest) -> list[Artifact]:
                inner.bind(Services(embedder=CountingWords()))
                return [a for a in await inner.get_context(request.store) if a.payload["text"] != "dog"]

            seen = witness(flock, outer)
            await fill(flock)
            await flock.publish(Ask())
            await flock.run_until_idle()
            with pytest.raises(ConfigurationError, match="visibility"):
                await inner.get_context(flock.store)  # type: ignore[arg-type]
        return seen.texts

    assert run_virtual(main()) == ["cat"]


@pytest.mark.parametrize(
    "provider",
    [
        SemanticContextProvider("cat"),
        RedactingContextProvider(SemanticContextProvider("cat")),
        BoundContextProvider(SemanticContextProvider("cat"), AgentIdentity(name="boss")),
    ],
)
def test_without_an_embedder_it_is_refused_at_the_deploy(provider: Any) -> None:
    async def main(**options: Any) -> None:
        async with VirtualFlock(**options) as flock:
            flock.agent("a").consumes(Ask).runs(lambda ask: None).with_context(provider, max_tokens=5)
            await flock.start()

    with pytest.raises(ConfigurationError, match="no embedder"):
        run_virtual(main())
    run_virtual(main(embedder=CountingWords()))


def test_an_embedder_that_fails_fails_the_run_with_its_own_error() -> None:
    class Failing(CountingWords):
        def embed(self, texts: list[str]) -> list[list[float]]:
            raise ModelError("the embedder is away")

    async def main() -> list[WorkflowError]:
        async with VirtualFlock(embedder=Failing()) as flock:
            witness(flock, SemanticContextProvider("cat"))
            await flock.publish(Fact(text="cat"))
            await flock.publish(Ask())
            await flock.run_until_idle()
            return await flock.store.get_by_type(WorkflowError)

    [error] = run_virtual(main())
    assert error.error_type == "ModelError"


def test_a_provider_travels_without_its_embedder() -> None:
    provider = SemanticContextProvider("cat")
    provider.bind(Services(embedder=CountingWords()))
    copy = pickle.loads(pickle.dumps(provider))
    assert copy.query_text == "cat"
    assert copy._embedder is None


@pytest.mark.parametrize(
    "options",
    [
        {"query_text": " "},
        {"query_text": 7},
        {"threshold": 2},
        {"threshold": float("nan")},
        {"threshold": True},
        {"limit": 0},
        {"candidates": -1},
        {"max_tokens": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SemanticContextProvider(**{"query_text": "cat", **options})


def test_other_providers_need_no_embedder() -> None:
    async def main() -> None:
        async with VirtualFlock(context_provider=DefaultContextProvider()) as flock:
            flock.agent("a").consumes(Ask).runs(lambda ask: None)
            await flock.start()
            assert FilterConfig() is not None

    run_virtual(main())
