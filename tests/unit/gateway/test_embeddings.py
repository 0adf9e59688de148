"""Embeddings through the gateway: the same limits, tries, cassettes and records as for answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flock_ray.core.budgets import NUSD
from flock_ray.errors import CassetteMissError, ModelError, ModelRequestError
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.quotes import Tariff, quote
from flock_ray.gateway.requests import canonical, estimate_tokens
from flock_ray.gateway.settings import GatewayPlan, ModelLimits, ModelSettings
from flock_ray.model import ModelRequest, packed, unpacked
from tests import llm_answers as answers
from tests.llm_server import LLMServer
from tests.llm_wire import embedding
from tests.unit.gateway.fakes import FakeProvider

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ReadOnly.*:UserWarning", "ignore:Accessing the '.*' attribute on the instance"
)
"""Of pydantic, about litellm."""

MODEL = "openai/text-embedding-3-small"
TEXTS = ["a red lighthouse", "a night train"]


@pytest.fixture
async def server() -> AsyncIterator[LLMServer]:
    async with LLMServer() as server:
        yield server


def gateway(server: LLMServer, plan: GatewayPlan | None = None, **settings: Any) -> Gateway:
    known = ModelSettings(api_key=server.key, api_base=server.url)
    models = {"*": dataclasses.replace(known, **settings)}
    return Gateway(dataclasses.replace(plan or GatewayPlan(), models=models), rng=random.Random(1))


def request(*texts: str, **more: Any) -> ModelRequest:
    return ModelRequest(**{"model": MODEL, "embed": list(texts or TEXTS), **more})


async def test_vectors_come_in_order_with_what_they_cost(server: LLMServer) -> None:
    reply = await gateway(server).complete(request())

    for text, vector in zip(TEXTS, reply.vectors, strict=True):
        assert unpacked(vector) == pytest.approx(embedding(text, 32), abs=1e-6)
    assert reply.usage.output_tokens == 0
    assert reply.usage.cost_usd == pytest.approx(reply.usage.input_tokens * 0.02e-6)
    assert reply.request_hash


async def test_dimensions_are_asked_for_and_what_an_embedder_was_given_wins(server: LLMServer) -> None:
    extra = {"dimensions": 8, "api_base": server.url, "api_key": server.key, "encoding_format": "float"}
    wrong = gateway(server, api_base="http://127.0.0.1:9/v1", api_key="sk-other")

    reply = await wrong.complete(request(extra=extra))

    assert [len(unpacked(vector)) for vector in reply.vectors] == [8, 8]


async def test_what_may_pass_is_tried_again_and_a_wrong_key_is_not(server: LLMServer) -> None:
    server.faults = 1.0
    server._fault_kinds = ("error_503",)

    async def heal() -> None:
        await server.until(lambda seen: seen.count("error_503") == 1)
        server.faults = 0.0

    healing = asyncio.ensure_future(heal())
    reply = await gateway(server).complete(request())
    await healing
    assert reply.tries == 2

    with pytest.raises(ModelRequestError, match="key"):
        await gateway(server, api_key="sk-wrong").complete(request())
    assert server.num_requests == 3


async def test_a_wrong_number_of_vectors_is_a_retryable_error(server: LLMServer) -> None:
    short = answers.Answer(kind="short", body=json.dumps({"object": "list", "data": [], "model": "m",
                           "usage": {"prompt_tokens": 1, "total_tokens": 1}}).encode())  # fmt: skip
    server._embedded = lambda seen: short  # type: ignore[method-assign]

    with pytest.raises(ModelError, match="did not answer with 2 vectors") as caught:
        await gateway(server, max_tries=1).complete(request())
    assert caught.value.retryable


async def test_limits_hold_for_them(server: LLMServer) -> None:
    server.latency_s = 0.02
    calls = gateway(server, limits=ModelLimits(concurrency=1))

    await asyncio.gather(*(calls.complete(request(str(number))) for number in range(5)))

    assert server.max_open == 1


async def test_a_cassette_has_the_texts_to_read_and_the_vectors_and_no_address(
    server: LLMServer, tmp_path: Path
) -> None:
    plan = GatewayPlan(cassette=str(tmp_path), cassette_mode="record")
    extra = {"api_base": server.url, "api_key": server.key}
    recorded = await gateway(server, plan).complete(request(extra=extra))
    [path] = tmp_path.iterdir()  # noqa: ASYNC240 - nobody waits
    assert json.loads(path.read_text())["request"] == {"model": MODEL, "embed": TEXTS}

    replay = Gateway(GatewayPlan(cassette=str(tmp_path), cassette_mode="replay"))
    played = await replay.complete(request())

    assert (played.vectors, played.source) == (recorded.vectors, "cassette")
    with pytest.raises(CassetteMissError, match=r"embed\[1\]"):
        await replay.complete(request(TEXTS[0], "a night plane"))


async def test_another_model_never_stands_in() -> None:
    provider = FakeProvider([ModelError("down"), ModelError("down")], delay_s=0.0)
    plan = GatewayPlan(models={"*": ModelSettings(fallbacks=["openai/other"], max_tries=2)})
    calls = Gateway(plan, provider=provider, rng=random.Random(1))
    with pytest.raises(ModelError, match="down"):
        await calls.complete(request(fallbacks=["openai/third"]))
    assert {asked.model for _, asked in provider.starts} == {MODEL}


def test_the_worst_case_is_the_bytes_of_the_texts_and_no_output() -> None:
    asked = request("x" * 1000, "y" * 1000)
    made = quote(asked, ModelSettings(), Tariff(input_nusd=20.0, max_input=100))
    assert made.missing == ""
    assert 2000 <= made.amount.tokens <= 2200
    assert made.amount.nusd == made.amount.tokens * 20
    assert quote(asked, ModelSettings(), Tariff()).missing == "price"
    assert NUSD == 1_000_000_000
    assert 500 <= estimate_tokens(asked, len(canonical(asked))) <= 550


def test_a_vector_is_packed_into_four_bytes_a_number() -> None:
    assert unpacked(packed([0.5, -1.0])) == [0.5, -1.0]
    assert len(packed([0.0] * 384)) == 1536
