"""Embeddings on Ray: publishers and workers ask the model gateway, and what they use is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from flock_ray import Flock
from flock_ray.gateway.settings import ModelSettings
from tests.integration.models import Shout, Word
from tests.integration.waiting import until
from tests.llm_server import LLMServer

pytestmark = pytest.mark.timeout(300)  # a gateway starts, and imports litellm

MODEL = "openai/text-embedding-3-small"


@pytest.fixture
async def server() -> AsyncIterator[LLMServer]:
    async with LLMServer() as server:
        yield server


def shout(word: Word) -> Shout:
    return Shout(text=word.text.upper())


async def test_publishers_and_agents_embed_through_the_gateway(
    new_flock: Callable[..., Flock], server: LLMServer
) -> None:
    # Given a key and an address that only the gateway knows
    known = ModelSettings(api_key=server.key, api_base=server.url)
    flock = new_flock(embedder=MODEL, models={"openai/*": known})
    flock.agent("shouter").consumes(
        Word, semantic_match="red lighthouse", semantic_threshold=0.5
    ).publishes(Shout).runs(shout)  # fmt: skip
    flock.agent("listener").consumes(
        Shout, semantic_match="RED LIGHTHOUSE", semantic_threshold=0.5
    ).publishes(Word).runs(lambda heard: None)  # fmt: skip

    # When words are published, of which one fits
    await flock.publish_many([Word(text="the red lighthouse"), Word(text="seventeen bananas")])
    await flock.run_until_idle(timeout=120)

    # Then it was found, the shout was compared in the worker, and both are in the usage
    assert [made.text for made in await flock.store.get_by_type(Shout)] == ["THE RED LIGHTHOUSE"]
    assert server.count("embedding") == server.num_requests >= 2
    assert {seen.headers["user-agent"].split("/")[0] for seen in server.requests} != {"python-httpx"}

    async def counted() -> bool:  # the gateway tells the shard beside its work
        return sum(row.calls for row in await flock.usage()) == server.num_requests

    await until(counted, timeout_s=120)
    assert {row.agent for row in await flock.usage(model=MODEL)} == {"external", "shouter"}
