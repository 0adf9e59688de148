"""The gateway over litellm, against a server that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flock_ray.errors import (
    ContextTooLongError,
    ModelAnswerError,
    ModelError,
    ModelRefusedError,
    ModelRequestError,
    ModelTimeoutError,
    RateLimitError,
)
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.settings import GatewayPlan, ModelSettings
from flock_ray.model import ModelReply, ModelRequest, Timeouts
from tests import llm_answers as answers
from tests.llm_server import LLMServer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ReadOnly.*:UserWarning", "ignore:Accessing the '.*' attribute on the instance"
)
"""Of pydantic, about litellm."""

MODEL = "openai/gpt-4.1-mini"


@pytest.fixture
async def server() -> AsyncIterator[LLMServer]:
    async with LLMServer() as server:
        yield server


def gateway(server: LLMServer, **settings: Any) -> Gateway:
    known = ModelSettings(api_key=server.key, api_base=server.url)
    return Gateway(GatewayPlan(models={"*": dataclasses.replace(known, **settings)}), rng=random.Random(1))


def request(text: str = "hello", **more: Any) -> ModelRequest:
    return ModelRequest(**{"model": MODEL, "messages": [{"role": "user", "content": text}], **more})


async def test_an_answer_comes_with_what_it_used_and_cost(server: LLMServer) -> None:
    server.script(answers.text("hi there", usage=(1000, 10, 400)))

    reply = await gateway(server).complete(request())

    assert (reply.text, reply.finish_reason, reply.model, reply.tries) == ("hi there", "stop", MODEL, 1)
    usage = reply.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (1000, 10, 400)
    assert usage.cost_usd == pytest.approx(600 * 0.4e-6 + 400 * 0.1e-6 + 10 * 1.6e-6)
    assert len(reply.request_hash) == 32


async def test_an_answer_is_streamed_when_somebody_listens(server: LLMServer) -> None:
    server.script(answers.text("one two three", pieces=("one ", "two ", "three"), usage=(9, 3, 0)))
    heard: list[str] = []

    reply = await gateway(server).complete(request(), heard.append)

    assert heard == ["one ", "two ", "three"]
    assert (reply.text, reply.usage.input_tokens, reply.usage.output_tokens) == ("one two three", 9, 3)
    assert reply.first_token_s is not None
    assert server.requests[-1].body["stream"] is True


@pytest.mark.parametrize("streams", [False, True])
async def test_parallel_tool_calls_arrive_whole(server: LLMServer, streams: bool) -> None:
    server.script(answers.tool_calls(("weather", {"city": "Paris"}), ("weather", {"city": "Rome"})))
    heard: list[str] = []

    reply = await gateway(server).complete(request(), heard.append if streams else None)

    assert reply.finish_reason == "tool_calls"
    assert [call.name for call in reply.tool_calls] == ["weather", "weather"]
    assert [call.arguments.replace(" ", "") for call in reply.tool_calls] == [
        '{"city":"Paris"}',
        '{"city":"Rome"}',
    ]
    assert len({call.id for call in reply.tool_calls}) == 2


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (answers.wrong_key(), ModelRequestError, "API key"),
        (answers.unknown_model("gpt-4.1-mini"), ModelRequestError, "does not know the model"),
        (answers.bad_request("temperature is too high"), ModelRequestError, "temperature is too high"),
        (answers.context_too_long(8192, 10_000), ContextTooLongError, "1808 more than its limit of 8192"),
        (answers.content_filter(), ModelRefusedError, "content filter"),
    ],
    ids=["key", "model", "bad", "context", "filter"],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_what_will_never_work_is_not_tried_again(
    server: LLMServer, answer: answers.Answer, error: type[ModelError], says: str, streams: bool
) -> None:
    server.script(answer, answers.text("too late"))

    with pytest.raises(error) as caught:
        await gateway(server).complete(request(), (lambda _: None) if streams else None)

    assert says in str(caught.value)
    assert not caught.value.retryable
    assert server.num_requests == 1
    assert server.key not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        answers.server_error(500),
        answers.server_error(503),
        answers.rate_limited(0.05),
        answers.garbage(),
        answers.dropped(),
        answers.cut(),
    ],
    ids=["500", "503", "429", "garbage", "dropped", "cut"],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_what_may_work_later_is_tried_again(
    server: LLMServer, answer: answers.Answer, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flock_ray.gateway.gateway.BACKOFF_S", 0.01)
    server.script(answer, answers.text("well"))
    heard: list[str] = []

    reply = await gateway(server).complete(request(), heard.append if streams else None)

    assert (reply.text, reply.tries) == ("well", 2)
    if streams:
        shown = heard[len(heard) - heard[::-1].index("") :] if "" in heard else heard
        assert "".join(shown) == "well"


async def test_a_stream_that_just_ends_is_no_answer() -> None:
    # litellm makes up a finish reason for it, and the usage.
    event = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    event += b'"delta":{"content":"half an ans"}}]}\n\n'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(event)}\r\n\r\n"
        writer.write(head.encode() + event)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    plan = GatewayPlan(models={"*": ModelSettings(api_key="k", api_base=url, max_tries=1)})
    async with server:
        with pytest.raises(ModelError, match="ended without a finish reason"):
            await Gateway(plan).complete(request(), lambda _: None)


async def test_white_space_without_end_is_cut(server: LLMServer) -> None:
    server.script(answers.whitespace(repeats=100_000))

    with pytest.raises(ModelError, match="white space"):
        await gateway(server, max_tries=1).complete(request(), lambda _: None)


async def test_a_slow_first_token_and_a_stall_are_timeouts(server: LLMServer) -> None:
    server.script(answers.slow_first_token(30.0), answers.stall())
    slow, stalled = Timeouts(first_token_s=0.3), Timeouts(first_token_s=30.0, idle_s=0.3)

    with pytest.raises(ModelTimeoutError, match=r"has not begun to answer within 0\.3 s"):
        await gateway(server, max_tries=1).complete(request(timeouts=slow))
    with pytest.raises(ModelTimeoutError, match=r"has stopped in its answer for 0\.3 s"):
        await gateway(server, max_tries=1).complete(request(timeouts=stalled))

    await server.until(lambda s: s.num_cancelled == 2)


@pytest.mark.parametrize("streams", [False, True])
async def test_cancelling_a_call_cancels_its_http_request(server: LLMServer, streams: bool) -> None:
    server.script(answers.silent())
    call = asyncio.ensure_future(gateway(server).complete(request(), (lambda _: None) if streams else None))
    await server.until(lambda s: s.open == 1)

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    await server.until(lambda s: s.num_cancelled == 1)


async def test_the_total_time_is_kept(server: LLMServer) -> None:
    server.script(answers.silent())

    with pytest.raises(ModelTimeoutError, match=r"within 0\.3 s"):
        await gateway(server).complete(request(timeouts=Timeouts(total_s=0.3)))


async def test_nobody_listening_at_the_address_is_retryable() -> None:
    plan = GatewayPlan(
        models={"*": ModelSettings(api_key="k", api_base="http://127.0.0.1:9/v1", max_tries=1)}
    )

    with pytest.raises(ModelError) as caught:
        await Gateway(plan).complete(request())

    assert type(caught.value) is ModelError


async def test_no_key_and_no_provider_are_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for model in (MODEL, "anthropic/claude-sonnet-4-5"):
        with pytest.raises(ModelRequestError, match="There is no API key for"):
            await Gateway().complete(request(model=model))
    with pytest.raises(ModelRequestError, match=r"unknown: name it as litellm does"):
        await Gateway().complete(request(model="nonsense/x"))


async def test_connections_are_used_again(server: LLMServer) -> None:
    calls = gateway(server)
    for _ in range(5):
        await calls.complete(request())

    assert server.num_connections == 1


async def test_more_calls_than_a_hundred_have_a_connection_at_once(server: LLMServer) -> None:
    # aiohttp's default is 100 connections: the rest of many calls waited for no reason
    server.latency_s = 600.0
    calls = gateway(server)
    asked = [asyncio.ensure_future(calls.complete(request(str(number)))) for number in range(150)]
    try:
        await server.until(lambda seen: seen.open == 150, timeout_s=60)
    finally:
        for call in asked:
            call.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_a_429_without_a_time_backs_off_and_with_one_waits_so_long(server: LLMServer) -> None:
    server.script(answers.rate_limited(30.0))

    with pytest.raises(RateLimitError) as caught:
        await gateway(server).complete(request(timeouts=Timeouts(total_s=2.0)))

    assert caught.value.retry_after_s == pytest.approx(30.0, abs=1.0)


async def test_a_schema_and_sampling_parameters_reach_the_provider(server: LLMServer) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "N", "schema": schema}}

    reply: ModelReply = await gateway(server).complete(
        request(response_format=form, temperature=0.2, max_tokens=50, seed=7, stop=["END"])
    )

    body = server.requests[-1].body
    assert reply.text.startswith("{")
    assert (body["temperature"], body["seed"], body["stop"]) == (0.2, 7, ["END"])
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["n"]


async def test_litellm_keeps_no_books_of_our_calls(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logs and prices are a third of a call's CPU; whether they are left out hangs on litellm's insides."""
    from litellm.litellm_core_utils.litellm_logging import Logging

    from flock_ray.gateway import litellm_calls

    booked: list[str] = []
    for name in ("success_handler", "failure_handler", "pre_call", "post_call", "response_cost_calculator"):
        monkeypatch.setattr(Logging, name, lambda *_, name=name, **__: booked.append(name))

    async def later(*_: Any, **__: Any) -> None:
        booked.append("async_success_handler")

    monkeypatch.setattr(Logging, "async_success_handler", later)
    server.script("one", "two", answers.server_error(500), "three")
    ours = gateway(server)

    for on_text in (None, lambda text: None, None):
        reply = await ours.complete(request(), on_text)
        assert reply.usage.cost_usd is not None
    await asyncio.sleep(0.05)  # what litellm does behind the answer

    assert litellm_calls._keeper is not False
    assert booked == []


async def test_a_litellm_that_has_no_place_for_it_is_called_as_it_is(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from flock_ray.gateway import litellm_calls
    from flock_ray.gateway.litellm import litellm_module

    monkeypatch.setattr(litellm_calls, "_keeper", None)
    monkeypatch.delattr(litellm_module().utils, "function_setup")
    parameters = {"model": MODEL, "messages": []}

    assert litellm_calls.without_books(litellm_module(), parameters) is parameters
    assert "keeps books" in caplog.text
    assert litellm_calls.without_books(litellm_module(), parameters) is parameters


@pytest.mark.parametrize("model", [MODEL, "openrouter/openai/gpt-4.1-mini"])
async def test_errors_are_the_same_whichever_way_litellm_is_called(server: LLMServer, model: str) -> None:
    """Calls to OpenAI's API skip the thread in which litellm prepares them."""
    server.script(answers.rate_limited(7.0))
    with pytest.raises(RateLimitError) as refused:
        await gateway(server, max_tries=1).complete(request(model=model))
    assert refused.value.retry_after_s == pytest.approx(7.0, abs=0.5)

    server.script(answers.text("fine"))
    assert (await gateway(server).complete(request(model=model))).text == "fine"


async def test_warming_up_imports_what_a_call_needs_and_reaches_nobody(server: LLMServer) -> None:
    import sys

    ours = gateway(server)
    await ours.warm_up()
    assert server.num_requests == 0
    known = set(sys.modules)
    await ours.complete(request())
    assert {name for name in set(sys.modules) - known if name.startswith(("openai", "litellm"))} == set()


@pytest.mark.parametrize("streams", [False, True])
async def test_an_answer_that_is_too_long_is_given_up_and_not_asked_for_again(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    monkeypatch.setattr("flock_ray.gateway.litellm.MAX_ANSWER_CHARS", 10)
    server.script("a long, long answer", "short")

    with pytest.raises(ModelAnswerError, match="longer than 10 characters") as caught:
        await gateway(server).complete(request(), (lambda _: None) if streams else None)

    assert not caught.value.retryable
    assert server.num_requests == 1


@pytest.mark.parametrize("bypassed", [False, True])
async def test_warming_up_does_not_go_to_a_proxy(monkeypatch: pytest.MonkeyPatch, bypassed: bool) -> None:
    from flock_ray.gateway import litellm_calls

    made: list[Any] = []

    async def completed(litellm: Any, parameters: dict[str, Any]) -> None:
        made.append(parameters["api_base"])

    monkeypatch.setattr(litellm_calls, "completed", completed)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1" if bypassed else "")
    await litellm_calls.rehearse(None)
    assert len(made) == bypassed
