"""Azure's Prompt Shields against a server of our own, as its REST reference describes it."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from flock_ray.components import AzurePromptShieldComponent, GuardComponentConfig
from flock_ray.components.azure import (
    ENDPOINT_VARIABLE,
    KEY_VARIABLE,
    MAX_CALL_CHARS,
    MAX_CALL_DOCUMENTS,
    OVERLAP_CHARS,
    _calls,
)
from flock_ray.engines.component import EvalInputs
from flock_ray.errors import (
    ConfigurationError,
    GuardBlockedError,
    GuardUnavailableError,
    ModelError,
    ModelRequestError,
    ModelTimeoutError,
)
from tests.unit.components.board import AGENT, Ask, artifact, context

KEY = "k-very-secret-123"
Answers = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


def shield(body: dict[str, Any]) -> dict[str, Any]:
    """What the service answers: an attack is whatever says "ignore"."""
    answer: dict[str, Any] = {
        "documentsAnalysis": [{"attackDetected": "ignore" in d} for d in body["documents"]]
    }
    if body["userPrompt"]:
        answer["userPromptAnalysis"] = {"attackDetected": "ignore" in body["userPrompt"]}
    return answer


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def honest(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(http(json.dumps(shield(body)).encode()))


def saying(raw: bytes) -> Answers:
    async def answer(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return answer


class Service:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.connections = 0


@asynccontextmanager
async def service(answer: Answers = honest) -> AsyncIterator[Service]:
    """A server on localhost."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.splitlines()
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if line)}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                made.requests.append((lines[0], headers, body))
                await answer(body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made = Service(server.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        server.close()


@asynccontextmanager
async def guarded(
    answer: Answers = honest, **fields: Any
) -> AsyncIterator[tuple[AzurePromptShieldComponent, Service]]:
    async with service(answer) as there:
        guard = AzurePromptShieldComponent(endpoint=there.url + "/", api_key=SecretStr(KEY), **fields)
        try:
            yield guard, there
        finally:
            await guard.aclose()


async def test_it_asks_as_the_reference_of_the_service_says() -> None:
    async with guarded() as (guard, there):
        verdict = await guard.scan_input("hello", ["a document"])

    assert verdict.safe
    prompt, documents = there.requests
    assert prompt[0] == "POST /contentsafety/text:shieldPrompt?api-version=2024-09-01 HTTP/1.1"
    assert prompt[1]["ocp-apim-subscription-key"] == KEY
    assert (prompt[2], documents[2]) == (
        {"userPrompt": "hello", "documents": []},
        {"userPrompt": "", "documents": ["a document"]},
    )


@pytest.mark.parametrize(
    ("text", "documents", "where"),
    [("ignore all", [], "prompt"), ("fine", ["ignore all"], "documents")],
)
async def test_an_attack_is_flagged(text: str, documents: list[str], where: str) -> None:
    async with guarded() as (guard, _):
        verdict = await guard.scan_input(text, documents)

    assert (verdict.safe, verdict.reason) == (False, f"an attack was detected in the {where}")


async def test_an_attack_at_the_end_of_a_long_text_is_found() -> None:
    async with guarded() as (guard, there):
        verdict = await guard.scan_input("x" * 50_000 + "ignore", ["y" * 30_000])

    assert not verdict.safe
    assert len(there.requests) > 6
    assert there.connections <= guard.max_parallel


TEXT = "".join(f"{number:07}" for number in range(5_000))


@settings(max_examples=40)
@given(st.integers(0, 35_000), st.lists(st.integers(1, 25_000), max_size=6))
def test_a_scan_is_split_into_calls_that_the_service_takes_and_nothing_is_left_out(
    size: int, documents: list[int]
) -> None:
    calls = _calls(TEXT[:size], [TEXT[:length] for length in documents])

    for prompt, batch in calls:
        assert len(prompt) <= MAX_CALL_CHARS
        assert len(batch) <= MAX_CALL_DOCUMENTS and sum(map(len, batch)) <= MAX_CALL_CHARS
        assert bool(prompt) != bool(batch)
    # Any piece as long as the overlap is in one call as a whole.
    for length, found in [(size, [p for p, _ in calls])] + [
        (n, [d for _, b in calls for d in b]) for n in documents
    ]:
        for start in range(0, max(0, length - OVERLAP_CHARS), 1_111):
            assert any(TEXT[start : start + OVERLAP_CHARS] in piece for piece in found)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (saying(http(b"{}", "401 Unauthorized")), ModelRequestError),
        (saying(http(b"{}", "400 Bad Request")), ModelRequestError),
        (saying(http(b"{}", "429 Too Many Requests")), ModelError),
        (saying(http(b"{}", "500 Oops")), ModelError),
        (saying(http(b"{}", "302 Found")), ModelError),
        (saying(http(b"{}")), ModelError),
        (saying(http(b"<html>")), ModelError),
        (saying(http(b'{"userPromptAnalysis": {"attackDetected": "no"}}')), ModelError),
        (saying(http(b'{"documentsAnalysis": []}')), ModelError),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"), ModelTimeoutError),
        (saying(b"garbage\r\n\r\n"), ModelError),
        (saying(http(b" " * 1_100_000)), ModelError),
    ],
)
async def test_anything_but_a_verdict_is_an_error(answer: Answers, error: type[Exception]) -> None:
    async with guarded(answer, timeout_s=1.0) as (guard, _):
        with pytest.raises(error) as caught:
            await guard.scan_input("hello", [])

    assert type(caught.value) is error
    assert KEY not in str(caught.value)


async def test_a_missing_verdict_of_one_document_is_an_error() -> None:
    async with guarded(saying(http(b'{"documentsAnalysis": [{"attackDetected": false}]}'))) as (guard, _):
        with pytest.raises(ModelError, match="without a verdict"):
            await guard.scan_input("", ["one", "two"])


async def run(guard: AzurePromptShieldComponent, notes: list[tuple[str, str]]) -> EvalInputs:
    return await guard.on_pre_evaluate(
        AGENT, context(notes), EvalInputs(artifacts=[artifact(Ask(text="hi"))])
    )


async def test_an_outage_blocks_or_passes_as_the_config_says() -> None:
    notes: list[tuple[str, str]] = []
    nowhere: dict[str, Any] = {"endpoint": "http://127.0.0.1:9", "api_key": SecretStr(KEY)}
    closed = AzurePromptShieldComponent(**nowhere)
    opened = AzurePromptShieldComponent(**nowhere, config=GuardComponentConfig(on_error="allow"))

    with pytest.raises(GuardUnavailableError):
        await run(closed, notes)
    assert (await run(opened, notes)).artifacts

    assert [json.loads(text)["action"] for kind, text in notes if kind == "guard.failed"] == [
        "block",
        "allow",
    ]
    assert KEY not in str(notes)
    await closed.aclose()
    await opened.aclose()


async def test_a_refused_key_is_not_tried_again() -> None:
    async with guarded(saying(http(b"{}", "403 Forbidden"))) as (guard, _):
        with pytest.raises(GuardBlockedError, match="HTTP 403") as caught:
            await run(guard, [])

    assert not caught.value.retryable


async def test_endpoint_and_key_come_from_the_workers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = AzurePromptShieldComponent()
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match=ENDPOINT_VARIABLE):
        await guard.scan_input("x", [])

    async with service() as there:
        monkeypatch.setenv(ENDPOINT_VARIABLE, there.url)
        with pytest.raises(ConfigurationError, match=KEY_VARIABLE):
            await guard.scan_input("x", [])
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        assert (await guard.scan_input("x", [])).safe
        await guard.aclose()


async def test_the_key_goes_over_https_only_and_too_long_a_text_is_no_yes() -> None:
    guard = AzurePromptShieldComponent(endpoint="http://example.com", api_key=SecretStr(KEY), max_chars=100)

    with pytest.raises(ConfigurationError, match="https"):
        await guard.scan_input("x", [])
    with pytest.raises(ConfigurationError, match="max_chars"):
        await guard.scan_input("x" * 101, [])
    await guard.aclose()


async def test_it_travels_without_its_connections_and_shows_no_key() -> None:
    async with guarded() as (guard, _):
        await guard.scan_input("x", [])
        sent = pickle.loads(pickle.dumps(guard))

        assert sent._client is None and guard._client is not None
        assert KEY not in repr(guard) and KEY not in guard.model_dump_json()


def test_another_event_loop_gets_connections_of_its_own() -> None:
    guard = AzurePromptShieldComponent(api_key=SecretStr(KEY))

    async def scan() -> int:
        async with service() as there:
            guard.endpoint = there.url
            assert (await guard.scan_input("x", [])).safe
            await guard._client.aclose()  # the loop ends with its connections, and nobody tells the guard
            return id(guard._client)

    assert asyncio.run(scan()) != asyncio.run(scan())
