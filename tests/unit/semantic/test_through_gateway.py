"""An embedder behind an API on a board: its requests go through the gateway, and are counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Flock, flock_type
from flock_ray.actors.embeddings import GatewayEmbeddings
from flock_ray.actors.model_link import ModelLink
from flock_ray.embeddings import embeddings_here, set_default, through
from flock_ray.engines.records import RecordingModel, RunRecords, collecting
from flock_ray.errors import ModelError
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.provider import Answer
from flock_ray.gateway.settings import GatewayPlan
from flock_ray.model import Caller, ModelReply, ModelRequest, Usage, packed
from flock_ray.semantic import OpenAIEmbedder
from flock_ray.testing import VirtualFlock, run_virtual


class Asked:
    """Embeds every text as its length and 1; keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[ModelRequest] = []

    def ask(self, requests: Sequence[ModelRequest]) -> list[ModelReply]:
        self.requests += requests
        return [ModelReply(vectors=[packed([len(text), 1.0]) for text in r.embed]) for r in requests]

    async def complete(self, request: ModelRequest, on_text: Any = None) -> ModelReply:
        [reply] = self.ask([request])
        return reply


def test_batches_are_requests_for_the_producer_and_vectors_keep_their_order() -> None:
    asked = Asked()
    embedder = OpenAIEmbedder(
        "openai/small", batch_size=2, dimensions=2, api_key="sk-x", timeout_s=5, tries=2
    )

    with through(asked, "external"):
        vectors = embedder.embed(["a", "bb", "ccc"])

    assert vectors == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
    first, second = asked.requests
    assert (first.model, first.embed, second.embed) == ("openai/small", ["a", "bb"], ["ccc"])
    assert first.extra == {"encoding_format": "float", "dimensions": 2, "api_key": "sk-x"}
    assert (first.caller.agent, first.timeouts.total_s) == ("external", 10.0)


def test_a_server_of_one_s_own_is_openai_s_for_litellm() -> None:
    asked = Asked()
    with through(asked):
        OpenAIEmbedder("mine", base_url="http://host/v1/").embed(["a"])
    [request] = asked.requests
    assert request.model == "openai/mine"
    assert request.extra["api_base"] == "http://host/v1"
    assert request.extra["api_key"]


def test_what_was_said_around_the_code_wins_over_the_process() -> None:
    board, process = Asked(), Asked()
    set_default(process)
    try:
        with through(board, "a"):
            assert embeddings_here() == (board, "a")
        with through(None, "b"):
            assert embeddings_here() == (process, "b")
    finally:
        set_default(None)
    assert embeddings_here().embeddings is None


class _Provider:
    async def call(self, request: ModelRequest, settings: Any, on_text: Any) -> Answer:
        vectors = [packed([float(len(text)), 1.0]) for text in request.embed]
        return Answer(ModelReply(vectors=vectors, usage=Usage(input_tokens=7, cost_usd=0.5)))


def link_to(gateway: Any) -> ModelLink:
    """Stands in for a link: no processes."""
    gateway.begin = lambda: None
    return gateway  # type: ignore[no-any-return]


def test_calls_of_many_threads_are_recorded_with_their_runs() -> None:
    gateway = Gateway(GatewayPlan(), provider=_Provider())
    embeddings = GatewayEmbeddings(
        lambda: link_to(gateway), lambda link: RecordingModel(link, now_us=lambda: 1)
    )
    embedder = OpenAIEmbedder("openai/small")
    found: dict[int, RunRecords] = {}

    def run(number: int) -> None:
        caller = Caller(agent=f"a{number}", activation="0" * 32, attempt=number)
        with collecting(RunRecords(None, caller)) as records, through(embeddings):
            assert embedder.embed(["x" * number]) == [[float(number), 1.0]]
        found[number] = records

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    embeddings.close()

    assert sorted(found) == list(range(1, 9))
    assert all([call.cost_usd for call in records.calls()] == [0.5] for records in found.values())


def test_a_flock_that_shuts_down_answers_with_an_error() -> None:
    embeddings = GatewayEmbeddings(lambda: link_to(Asked()), lambda link: link)
    embeddings.close()
    embeddings.close()
    with through(embeddings), pytest.raises(ModelError, match="shutting down"):
        OpenAIEmbedder("openai/small").embed(["a"])


def test_errors_of_the_gateway_reach_whoever_embeds() -> None:
    class Down(Asked):
        async def complete(self, request: ModelRequest, on_text: Any = None) -> ModelReply:
            raise ModelError("down")

    embeddings = GatewayEmbeddings(lambda: link_to(Down()), lambda link: link)
    with through(embeddings), pytest.raises(ModelError, match="down"):
        OpenAIEmbedder("openai/small").embed(["a"])
    embeddings.close()


def test_a_virtual_flock_embeds_from_a_cassette(tmp_path: Any) -> None:
    @flock_type(name="through.Ticket")
    class Ticket(BaseModel):
        text: str

    @flock_type(name="through.Taken")
    class Taken(BaseModel):
        text: str

    def taken(ticket: Ticket) -> Taken:
        return Taken(text=ticket.text)

    async def play(flock: Flock) -> list[str]:
        async with flock:
            flock.agent("desk").consumes(
                Ticket, semantic_match="four", semantic_threshold=0.99
            ).publishes(Taken).runs(taken)  # fmt: skip
            await flock.publish_many([Ticket(text="door"), Ticket(text="x")])
            await flock.run_until_idle(timeout=60)
            return [made.text for made in await flock.store.get_by_type(Taken)]

    recording = Gateway(
        GatewayPlan(cassette=str(tmp_path), cassette_mode="record"),
        provider=_Provider(),
        monotonic=lambda: 0.0,
    )
    embedder = "openai/small"
    first = run_virtual(play(VirtualFlock(embedder=embedder, language_model=recording)))
    second = run_virtual(play(VirtualFlock(embedder=embedder, cassette=tmp_path, cassette_mode="replay")))

    assert first == second == ["door"]
    assert embeddings_here().embeddings is None
