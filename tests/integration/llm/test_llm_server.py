"""The hostile test server, seen through the clients that providers' users have: openai and httpx."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import openai
import pytest

from tests import llm_answers as say
from tests.llm_server import FAULTS, LLMServer, in_thread
from tests.llm_wire import embedding
from tests.servers import free_port

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 6},
        "score": {"type": "integer", "minimum": 3, "maximum": 9},
        "mood": {"enum": ["good", "bad"]},
        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
    },
    "required": ["title", "score", "mood"],
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
        }
    },
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
async def server() -> AsyncIterator[LLMServer]:
    async with LLMServer() as running:
        yield running


@pytest.fixture
async def client(server: LLMServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(server.url, server.key) as made:
        yield made


def client_of(url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=10)


async def ask(client: openai.AsyncOpenAI, prompt: str = "hi", **more: Any) -> Any:
    return await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": prompt}], **more
    )


async def stream(client: openai.AsyncOpenAI, prompt: str = "hi", **more: Any) -> tuple[str, str | None, Any]:
    """Return the text of a streamed answer, why it ended and its usage."""
    text, reason, usage = "", None, None
    options = {"include_usage": True}
    async for chunk in await ask(client, prompt, stream=True, stream_options=options, **more):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


# -- what every compatible server must do: ours and an independent one -------------------------


@pytest.fixture(scope="module")
def llmock_url() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmock.cli", "serve", "--port", str(port), "--log-level", "error"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < deadline, "llmock did not start"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(params=["ours", "llmock"])
async def any_client(request: pytest.FixtureRequest, server: LLMServer) -> AsyncIterator[openai.AsyncOpenAI]:
    url = server.url if request.param == "ours" else request.getfixturevalue("llmock_url")
    async with client_of(url, server.key) as made:
        yield made


async def test_it_answers_with_text_and_usage(any_client: openai.AsyncOpenAI) -> None:
    answer = await ask(any_client)

    assert answer.choices[0].message.content
    assert "stop" == answer.choices[0].finish_reason
    assert answer.usage.completion_tokens > 0


async def test_it_streams_with_usage_at_the_end(any_client: openai.AsyncOpenAI) -> None:
    text, reason, usage = await stream(any_client, "tell me more than one word")

    assert text and "stop" == reason
    assert usage.total_tokens > 0


async def test_it_answers_in_the_schema_that_is_asked_for(any_client: openai.AsyncOpenAI) -> None:
    properties = {name: SCHEMA["properties"][name] for name in SCHEMA["required"]}
    schema = {"type": "object", "properties": properties, "required": SCHEMA["required"]}
    form = {"type": "json_schema", "json_schema": {"name": "Note", "schema": schema}}

    answer = await ask(any_client, response_format=form)

    made = json.loads(answer.choices[0].message.content)
    assert len(made["title"]) >= 6 and 3 <= made["score"] <= 9 and made["mood"] in ("good", "bad")


async def test_it_calls_an_offered_tool(any_client: openai.AsyncOpenAI) -> None:
    answer = await ask(any_client, "what is the weather in Paris?", tools=[TOOL])

    call = answer.choices[0].message.tool_calls[0]
    assert "tool_calls" == answer.choices[0].finish_reason
    assert "weather" == call.function.name and "city" in json.loads(call.function.arguments)


async def test_it_embeds(any_client: openai.AsyncOpenAI) -> None:
    answer = await any_client.embeddings.create(model="text-embedding-3-small", input=["a cat", "a dog"])

    assert [0, 1] == [row.index for row in answer.data]
    assert len(answer.data[0].embedding) == len(answer.data[1].embedding) > 0


# -- what only ours does -----------------------------------------------------------------------


async def test_it_echoes_when_nobody_said_what_to_answer(client: openai.AsyncOpenAI) -> None:
    assert "echo: hi" == (await ask(client)).choices[0].message.content


async def test_a_script_is_answered_in_turn_and_then_the_rules(
    server: LLMServer, client: openai.AsyncOpenAI
) -> None:
    server.on(lambda seen: "Paris" in seen.prompt, "the rule")
    server.on(lambda seen: "Rome" in seen.prompt, lambda seen: say.text(seen.prompt.upper()))
    server.script("first", {"n": 2})

    answers = [(await ask(client, p)).choices[0].message.content for p in ("Paris", "x", "Paris", "Rome")]

    assert ["first", '{"n": 2}', "the rule", "ROME"] == answers
    assert ["Paris", "x", "Paris", "Rome"] == [seen.prompt for seen in server.requests]
    assert 4 == server.num_requests == server.num_done


@pytest.mark.parametrize("as_date", [False, True])
async def test_429_says_when_to_come_back(
    server: LLMServer, client: openai.AsyncOpenAI, as_date: bool
) -> None:
    server.script(say.rate_limited(7, as_date_of=time.time() if as_date else None))

    with pytest.raises(openai.RateLimitError) as raised:
        await ask(client)

    header = raised.value.response.headers["retry-after"]
    wait_s = parsedate_to_datetime(header).timestamp() - time.time() if as_date else float(header)
    assert 5 <= wait_s <= 7.1


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (say.server_error(500), openai.InternalServerError, None),
        (say.server_error(503), openai.InternalServerError, None),
        (say.wrong_key(), openai.AuthenticationError, "invalid_api_key"),
        (say.unknown_model("m"), openai.NotFoundError, "model_not_found"),
        (say.context_too_long(100, 130), openai.BadRequestError, "context_length_exceeded"),
        (say.bad_request("no"), openai.BadRequestError, None),
        (say.dropped(), openai.APIConnectionError, None),
    ],
)
async def test_errors_are_what_the_client_takes_them_for(
    server: LLMServer, client: openai.AsyncOpenAI, answer: say.Answer, error: Any, code: str | None
) -> None:
    server.script(answer)

    with pytest.raises(error) as raised:
        await ask(client)

    assert code == getattr(raised.value, "code", None)


async def test_its_own_rules_of_keys_models_and_lengths() -> None:
    async with LLMServer(models=("m",), context_tokens=10) as server:
        async with client_of(server.url, "sk-wrong") as wrong:
            with pytest.raises(openai.AuthenticationError):
                await ask(wrong)
        async with client_of(server.url, server.key) as client:
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="x", messages=[])
            with pytest.raises(openai.BadRequestError, match="maximum context length is 10 tokens"):
                await ask(client, "long " * 20)

    assert {"wrong_key": 1, "unknown_model": 1, "context_too_long": 1} == dict(server.kinds)


async def test_a_stream_is_cut_in_the_middle(server: LLMServer, client: openai.AsyncOpenAI) -> None:
    server.script(say.cut("one two three four", after=2))

    pieces = []

    async def read() -> None:
        async for chunk in await ask(client, stream=True):
            pieces.append(chunk.choices[0].delta.content)

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert ["", "one", " two"] == pieces


async def test_a_body_is_cut_in_the_middle(server: LLMServer, client: openai.AsyncOpenAI) -> None:
    server.script(say.cut())

    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
        await ask(client)


async def test_garbage_whole_and_streamed(server: LLMServer, client: openai.AsyncOpenAI) -> None:
    server.script(say.garbage(), say.garbage())

    with pytest.raises(ValueError, match="Expecting value"):
        await ask(client)
    with pytest.raises(ValueError, match="Expecting property name"):
        await stream(client)


async def test_endless_white_space_ends_at_max_tokens(server: LLMServer, client: openai.AsyncOpenAI) -> None:
    server.on(lambda seen: True, say.whitespace(repeats=say.ENDLESS))

    text, reason, _ = await stream(client, max_tokens=300)
    whole = (await ask(client, max_tokens=20)).choices[0]

    assert "{" == text.strip() and 601 == len(text) and "length" == reason
    assert "{" == whole.message.content.strip() and "length" == whole.finish_reason


async def test_endless_white_space_ends_when_the_client_leaves(
    server: LLMServer, client: openai.AsyncOpenAI
) -> None:
    server.script(say.whitespace(repeats=say.ENDLESS))

    answer = await ask(client, stream=True)
    async for _ in answer:
        break
    await answer.close()

    await server.until(lambda s: s.num_cancelled == 1)
    assert server.requests[0].cancelled and not server.requests[0].done


@pytest.mark.parametrize("answer", [say.stall(), say.silent(), say.slow_first_token(60)])
async def test_it_notices_that_a_client_gave_up(
    server: LLMServer, client: openai.AsyncOpenAI, answer: say.Answer
) -> None:
    server.script(answer)

    asking = asyncio.ensure_future(stream(client))
    await server.until(lambda s: s.num_requests == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    await server.until(lambda s: s.num_cancelled == 1)
    assert 0 == server.open and not server.requests[0].done


async def test_a_client_times_out_on_silence(server: LLMServer, client: openai.AsyncOpenAI) -> None:
    server.script(say.silent())

    with pytest.raises(openai.APITimeoutError):
        await ask(client, timeout=0.2)

    await server.until(lambda s: s.num_cancelled == 1)


async def test_parallel_tool_calls_streamed(server: LLMServer, client: openai.AsyncOpenAI) -> None:
    server.script(say.tool_calls(("weather", {"city": "Paris"}), ("weather", {"city": "Rome"})))

    arguments = {0: "", 1: ""}
    async for chunk in await ask(client, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments[call.index] += call.function.arguments

    assert [{"city": "Paris"}, {"city": "Rome"}] == [json.loads(text) for text in arguments.values()]


async def test_other_bad_answers_are_whole_answers(server: LLMServer, client: openai.AsyncOpenAI) -> None:
    server.script(
        say.refusal("no way"), say.content_filter("par"), say.wrong_schema(), say.broken_json(),
        say.bad_arguments("weather"), say.too_short("half"), say.text("x", usage=(5, 7, 3)),
    )  # fmt: skip

    choices = [answer.choices[0] for answer in [await ask(client) for _ in range(6)]]
    usage = (await ask(client)).usage

    assert "no way" == choices[0].message.refusal and choices[0].message.content is None
    assert "content_filter" == choices[1].finish_reason
    assert {"unexpected": [1, None]} == json.loads(choices[2].message.content)
    for text in (choices[3].message.content, choices[4].message.tool_calls[0].function.arguments):
        with pytest.raises(ValueError, match="Unterminated"):
            json.loads(text)
    assert "length" == choices[5].finish_reason
    assert (5, 7) == (usage.prompt_tokens, usage.completion_tokens)
    assert 3 == usage.prompt_tokens_details.cached_tokens


async def test_limits_of_its_own_and_the_headers_that_tell_of_them() -> None:
    async with LLMServer(rpm=2) as server, client_of(server.url, server.key) as client:
        raw = client.chat.completions.with_raw_response
        first = await raw.create(model="m", messages=[])
        await ask(client)
        with pytest.raises(openai.RateLimitError) as raised:
            await ask(client)

    assert ("2", "1") == tuple(
        first.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining")
    )
    assert 50 < float(raised.value.response.headers["retry-after"]) <= 60
    assert 1 == server.count("over_rpm")


async def test_a_limit_of_tokens() -> None:
    async with LLMServer(tpm=100) as server, client_of(server.url, server.key) as client:
        raw = client.chat.completions.with_raw_response
        first = await raw.create(model="m", messages=[{"role": "user", "content": "x" * 40}], max_tokens=50)
        with pytest.raises(openai.RateLimitError):
            await ask(client, "x" * 40, max_tokens=50)
        await ask(client, "x" * 40, max_tokens=5)

    assert "40" == first.headers["x-ratelimit-remaining-tokens"]
    assert 1 == server.count("over_tpm")


async def test_too_many_at_once() -> None:
    async with LLMServer(max_concurrent=2) as server, client_of(server.url, server.key) as client:
        server.on(lambda seen: seen.prompt == "wait", say.silent())
        waiting = [asyncio.ensure_future(ask(client, "wait")) for _ in range(2)]
        await server.until(lambda s: s.open == 2)
        with pytest.raises(openai.RateLimitError):
            await ask(client)
        for call in waiting:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    assert 1 == server.count("over_concurrency")


async def test_faults_hang_on_the_seed_and_not_on_the_order() -> None:
    async def kinds(order: list[int], seed: int) -> dict[int, str]:
        async with LLMServer(faults=0.5, seed=seed, any_key=True) as server:
            async with httpx.AsyncClient() as http:
                for n in order:
                    body = {"model": "m", "messages": [{"role": "user", "content": str(n)}]}
                    with contextlib.suppress(httpx.TransportError):
                        await http.post(f"{server.url}/chat/completions", json=body)
            return {int(seen.prompt): seen.kind for seen in server.requests}

    forward = await kinds(list(range(100)), 1)
    assert forward == await kinds(list(reversed(range(100))), 1)
    assert forward != await kinds(list(range(100)), 2)
    assert 30 <= sum(kind in FAULTS for kind in forward.values()) <= 70


async def test_it_embeds_alike_what_shares_words(server: LLMServer, client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(
        model="e", input=["a red cat", "a red dog", "gross profit"], dimensions=64
    )

    cat, dog, profit = [row.embedding for row in answer.data]
    assert cat == pytest.approx(embedding("a red cat", 64), abs=1e-6)
    assert dot(cat, dog) > dot(cat, profit)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_it_serves_from_a_thread() -> None:
    with in_thread() as server, openai.OpenAI(base_url=server.url, api_key=server.key) as client:
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])

        assert "echo: hi" == answer.choices[0].message.content
    assert 1 == server.num_done


async def test_two_thousand_connections_at_once() -> None:
    """The bench has 10,000 of them; this shows that none waits for another."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)

    async with LLMServer(any_key=True, keep=0) as server:
        release = asyncio.Event()
        server.on(lambda seen: True, say.slow_first_token(1.0, "ok"))

        async def call() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head + body)
            line = await reader.readline()
            await release.wait()
            writer.close()
            return line

        calls = [asyncio.ensure_future(call()) for _ in range(2000)]
        await server.until(lambda s: s.num_done == 2000, timeout_s=50)
        release.set()

        assert {b"HTTP/1.1 200 OK\r\n"} == set(await asyncio.gather(*calls))
        assert server.max_open > 200
