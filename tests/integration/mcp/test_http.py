"""Servers behind a URL: written with the SDK, served on localhost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from flock_ray.mcp import SseServerParameters, StreamableHttpServerParameters, connection
from flock_ray.mcp.trouble import ToolFailedError
from tests.integration.mcp.conftest import Client, serving
from tests.mcp_server import build

Connect = Callable[..., Client]


class Guarded:
    """An app that asks for a token and keeps what it was sent."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._token = token
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            self.seen.append(request.method)
            if request.headers.get("authorization") != f"Bearer {self._token}":
                await Response(status_code=401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def http(port: int, **options: Any) -> StreamableHttpServerParameters:
    return StreamableHttpServerParameters(url=f"http://127.0.0.1:{port}/mcp", **options)


@pytest.mark.parametrize("json_response", [False, True], ids=["events", "json"])
async def test_a_server_over_streamable_http(connect: Connect, json_response: bool) -> None:
    with serving(build().streamable_http_app(json_response=json_response)) as port:
        server = connect(http(port))

        sums = await asyncio.gather(*(server.call("add", a=i, b=1) for i in range(20)))

        assert [str(i + 1) for i in range(20)] == sums
        await asyncio.to_thread(server._hub.close)


async def test_a_server_over_server_sent_events(connect: Connect) -> None:
    with serving(build().sse_app()) as port:
        server = connect(SseServerParameters(url=f"http://127.0.0.1:{port}/sse"))

        assert "3" == await server.call("add", a=1, b=2)
        await asyncio.to_thread(server._hub.close)


async def test_headers_are_sent_and_a_wrong_token_is_one_sentence_without_it(connect: Connect) -> None:
    app = Guarded(build().streamable_http_app(), "right-token")
    with serving(app) as port:
        right = connect(http(port, headers={"Authorization": "Bearer right-token"}))
        wrong = connect(http(port, headers={"Authorization": "Bearer wrong-token"}), max_retries=0)

        assert "3" == await right.call("add", a=1, b=2)
        assert {} == await wrong.tools()
        await asyncio.to_thread(right._hub.close)

    expected = f"t: http://127.0.0.1:{port}/mcp refuses the credentials (HTTP 401): check headers= or auth="
    assert [("mcp.unreachable", expected)] == wrong.notes


async def test_an_auth_of_the_http_library_is_used(connect: Connect) -> None:
    class Token(httpx2.Auth):
        def auth_flow(self, request: Any) -> Any:
            request.headers["Authorization"] = "Bearer right-token"
            yield request

    with serving(Guarded(build().streamable_http_app(), "right-token")) as port:
        server = connect(http(port, auth=Token()))

        assert "3" == await server.call("add", a=1, b=2)
        await asyncio.to_thread(server._hub.close)


async def test_nobody_at_the_address_is_one_sentence(connect: Connect) -> None:
    port = unused_port()
    server = connect(http(port), max_retries=1)

    assert {} == await server.tools()
    assert [("mcp.unreachable", f"t: nobody answers at http://127.0.0.1:{port}/mcp")] == server.notes


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_server_that_was_restarted_is_used_again(
    connect: Connect, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "legacy":  # has sessions, which the new server does not know
        make: Any = vars(connection)["Client"]
        monkeypatch.setattr(connection, "Client", lambda *args, **more: make(*args, mode="legacy", **more))
    with serving(build().streamable_http_app()) as port:
        server = connect(http(port))
        tools = await server.tools()
        assert "3" == await tools["t__add"].call({"a": 1, "b": 2})

    with serving(build().streamable_http_app(), port):
        assert "5" == await tools["t__add"].call({"a": 2, "b": 3})
        await asyncio.to_thread(server._hub.close)


async def test_a_server_that_is_gone_fails_the_call_and_not_the_agent(connect: Connect) -> None:
    with serving(build().streamable_http_app()) as port:
        server = connect(http(port), max_retries=0)
        tools = await server.tools()

    with pytest.raises(ToolFailedError, match="nobody answers at"):
        await tools["t__add"].call({"a": 1, "b": 2})
    assert {} == await server.tools()


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (b"x" * (17 * 1024 * 1024), {}, "an answer of more than 16777216 bytes"),
        (b"\x1f\x8b", {"content-encoding": "gzip"}, "an answer with the encoding 'gzip'"),
        (b"[]", {}, "Failed to parse JSON response"),
        (b'{"jsonrpc": "2.0", "id": 77, "result": {}}', {}, "did not answer in time"),
    ],
    ids=["huge", "compressed", "no message", "another's answer"],
)
async def test_a_hostile_answer_ends_the_attempt_and_nothing_else(
    connect: Connect, body: bytes, headers: dict[str, str], says: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await Response(body, media_type="application/json", headers=headers)(scope, receive, send)

    with serving(app) as port:
        # Only the one that never comes is waited for; a machine may be busy with the huge one.
        timeout_s = 5.0 if "in time" in says else 40.0
        server = connect(http(port), max_retries=0, connect_timeout_s=timeout_s)

        assert {} == await server.tools()
        await asyncio.to_thread(server._hub.close)

    [(kind, detail)] = server.notes
    assert "mcp.unreachable" == kind and len(detail) < 400 and says in detail


async def test_a_web_server_that_is_no_mcp_server_is_one_sentence(connect: Connect) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await PlainTextResponse("hello", status_code=500)(scope, receive, send)

    with serving(app) as port:
        server = connect(http(port), max_retries=0)

        assert {} == await server.tools()
        await asyncio.to_thread(server._hub.close)

    assert [
        ("mcp.unreachable", f"t: http://127.0.0.1:{port}/mcp answers with HTTP status 500")
    ] == server.notes
