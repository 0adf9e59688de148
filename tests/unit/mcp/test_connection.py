"""Connections over a wire in this process, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from mcp.server.mcpserver import Context, Elicit, ListRoots, Resolve, Sample
from mcp_types import CreateMessageResult, ListRootsResult, SamplingMessage, TextContent
from pydantic import BaseModel

from flock_ray.mcp import StdioServerParameters
from flock_ray.mcp import connection as module
from flock_ray.mcp.connection import Connection
from flock_ray.mcp.trouble import ServerUnreachableError, ToolFailedError
from flock_ray.testing import run_virtual
from tests.unit.mcp.conftest import Wire, server_named


class Consent(BaseModel):
    is_given: bool


# Resolvers are found by name in their module.
async def ask_roots() -> ListRoots:
    return ListRoots()


async def ask() -> Elicit[Consent]:
    return Elicit("May I?", Consent)


async def think() -> Sample:
    message = SamplingMessage(role="user", content=TextContent(text="think for me"))
    return Sample([message], max_tokens=10)


@asynccontextmanager
async def connected(roots: tuple[str, ...] = (), **options: Any) -> AsyncIterator[Connection]:
    made = Connection(server_named(**options), roots)
    try:
        yield made
    finally:
        await made.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    run_virtual(scenario)


async def echo(text: str) -> str:
    """Say it again."""
    return text


def test_all_runs_share_one_connection(wire: Wire) -> None:
    wire.server.tool()(echo)

    async def scenario() -> None:
        async with connected() as server:
            answers = await asyncio.gather(*(server.call("echo", {"text": str(i)}) for i in range(200)))
            await asyncio.gather(*(server.tools() for _ in range(50)))

        assert [(str(i), []) for i in range(200)] == answers
        assert (1, 0) == (wire.opened, wire.open_now)

    run(scenario())


def test_a_tool_is_described_as_its_server_does(wire: Wire) -> None:
    wire.server.tool()(echo)

    async def scenario() -> None:
        async with connected() as server:
            [tool] = await server.tools()

        assert ("echo", "Say it again.") == (tool.name, tool.description)
        assert "string" == tool.parameters["properties"]["text"]["type"]

    run(scenario())


def test_a_lost_connection_is_opened_again(wire: Wire) -> None:
    wire.server.tool()(echo)

    async def scenario() -> None:
        async with connected() as server:
            await server.call("echo", {"text": "a"})
            wire.cut()
            await asyncio.sleep(1)
            assert ("b", []) == await server.call("echo", {"text": "b"})
            assert 2 == wire.opened

    run(scenario())


def test_a_server_that_dies_fails_the_call_and_is_not_called_twice(wire: Wire) -> None:
    calls = 0

    @wire.server.tool()
    async def pay() -> str:
        nonlocal calls
        calls += 1
        wire.cut()
        await asyncio.sleep(1000)
        return "paid"

    async def scenario() -> None:
        async with connected() as server:
            with pytest.raises(ToolFailedError, match="lost during the call, which may have had an effect"):
                await server.call("pay", {})

        assert 1 == calls

    run(scenario())


def test_a_server_that_can_not_be_reached_is_not_tried_by_every_run(wire: Wire) -> None:
    wire.broken = ConnectionRefusedError("nobody is there")

    async def scenario() -> None:
        async with connected(max_retries=2) as server:
            for _ in range(10):
                with pytest.raises(ServerUnreachableError, match="nobody is there"):
                    await server.tools()
            assert 3 == wire.opened

            wire.broken = None
            await asyncio.sleep(module.MAX_PAUSE_S * 1.2)
            assert [] == await server.tools()

    run(scenario())


def test_runs_that_wait_for_the_same_broken_server_all_hear_of_it(wire: Wire) -> None:
    wire.broken = ConnectionRefusedError("nobody is there")

    async def scenario() -> None:
        async with connected() as server:
            heard = await asyncio.gather(*(server.tools() for _ in range(20)), return_exceptions=True)

        assert {ServerUnreachableError} == {type(error) for error in heard}
        assert 4 == wire.opened

    run(scenario())


def test_a_run_that_is_cancelled_leaves_the_connection_to_the_others(wire: Wire) -> None:
    wire.server.tool()(echo)

    async def scenario() -> None:
        async with connected() as server:
            first = asyncio.create_task(server.tools())
            second = asyncio.create_task(server.tools())
            await asyncio.sleep(0)
            first.cancel()
            assert 1 == len(await second)
            assert 1 == wire.opened

    run(scenario())


def test_a_call_that_takes_too_long_fails_and_the_server_hears_of_it(wire: Wire) -> None:
    cancelled: list[bool] = []

    @wire.server.tool()
    async def wait() -> str:
        try:
            await asyncio.sleep(10_000)
        except BaseException:
            cancelled.append(True)
            raise
        return "late"

    async def scenario() -> None:
        async with connected(read_timeout_s=5.0) as server:
            with pytest.raises(ToolFailedError, match="did not answer within 5 s"):
                await server.call("wait", {})
            await asyncio.sleep(1)
            assert [True] == cancelled
            assert 1 == wire.open_now

    run(scenario())


def test_no_more_calls_than_a_server_can_take_are_under_way(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CALLS", 3)
    now = most = 0

    @wire.server.tool()
    async def work() -> str:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(1)
        now -= 1
        return "done"

    async def scenario() -> None:
        async with connected() as server:
            await asyncio.gather(*(server.call("work", {}) for _ in range(10)))

        assert 3 == most

    run(scenario())


def test_tools_are_listed_once_and_again_when_the_server_says_so(wire: Wire) -> None:
    listed = 0
    list_tools = wire.server.list_tools

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal listed
        listed += 1
        return await list_tools(*args, **kwargs)

    wire.server.list_tools = counted  # type: ignore[method-assign]

    @wire.server.tool()
    async def grow(ctx: Context[Any]) -> str:
        wire.server.add_tool(echo)
        await ctx.session.send_tool_list_changed()
        await ctx.notify_tools_changed()
        return "grown"

    async def scenario() -> None:
        async with connected() as server:
            await server.tools()
            await server.tools()
            before = listed
            await server.call("grow", {})
            await asyncio.sleep(1)
            assert ["echo", "grow"] == [tool.name for tool in await server.tools()]
            assert (1, 2) == (before, listed)

    run(scenario())


def test_an_idle_connection_is_closed_and_opened_when_needed(wire: Wire) -> None:
    wire.server.tool()(echo)

    async def scenario() -> None:
        async with connected() as server:
            await server.call("echo", {"text": "a"})
            await asyncio.sleep(module.IDLE_S * 2)
            assert 0 == wire.open_now
            await server.call("echo", {"text": "b"})
            assert 2 == wire.opened

    run(scenario())


def test_a_long_call_is_not_idleness(wire: Wire) -> None:
    @wire.server.tool()
    async def wait() -> str:
        await asyncio.sleep(module.IDLE_S * 3)
        return "waited"

    async def scenario() -> None:
        async with connected(read_timeout_s=module.IDLE_S * 4) as server:
            assert ("waited", []) == await server.call("wait", {})

    run(scenario())


def test_a_closed_connection_opens_no_more(wire: Wire) -> None:
    async def scenario() -> None:
        async with connected() as server:
            await server.tools()
        with pytest.raises(ServerUnreachableError, match="shutting down"):
            await server.tools()
        assert 0 == wire.open_now

    run(scenario())


def test_huge_descriptions_and_schemas_of_a_hostile_server_are_bounded(wire: Wire) -> None:
    wire.server.add_tool(echo, name="talks", description="x" * 1_000_000)
    wire.server.add_tool(echo, name="nested")
    huge = wire.server._tool_manager.get_tool("nested")
    assert huge is not None
    huge.parameters["properties"]["text"]["description"] = "x" * 1_000_000

    async def scenario() -> None:
        async with connected() as server:
            [tool] = await server.tools()

        assert ("talks", module.MAX_DESCRIPTION_CHARS) == (tool.name, len(tool.description))

    run(scenario())


@pytest.mark.filterwarnings("ignore:The logging capability is deprecated")
def test_what_a_server_logs_during_a_call_is_noted_without_secrets(wire: Wire) -> None:
    @wire.server.tool()
    async def complain(ctx: Context[Any]) -> str:
        for number in range(20):
            await ctx.warning(f"{number}: sk-very-secret\nis wrong")
            await ctx.info("all is well")
        return "done"

    async def scenario() -> None:
        params = StdioServerParameters(command="unused", env={"TOKEN": "sk-very-secret"})
        async with connected(params=params) as server:
            _, logs = await server.call("complain", {})

        assert module.MAX_LOGS == len(logs)
        assert "fs: warning: 0: [redacted] is wrong" == logs[0]

    run(scenario())


def test_a_server_is_told_its_roots(wire: Wire) -> None:
    @wire.server.tool()
    async def roots(found: Annotated[ListRootsResult, Resolve(ask_roots)]) -> str:
        return " ".join(str(root.uri) for root in found.roots)

    async def scenario() -> None:
        async with connected(("file:///data", "file:///more")) as server:
            assert ("file:///data file:///more", []) == await server.call("roots", {})
        async with connected(("file:///data",), has_roots=False) as server:
            with pytest.raises(ToolFailedError, match="capability"):
                await server.call("roots", {})

    run(scenario())


def test_a_server_may_not_use_our_model_nor_ask_our_user(wire: Wire) -> None:
    @wire.server.tool()
    async def asks(consent: Annotated[Consent, Resolve(ask)]) -> str:
        return "asked"

    @wire.server.tool()
    async def thinks(thought: Annotated[CreateMessageResult, Resolve(think)]) -> str:
        return "thought"

    async def scenario() -> None:
        async with connected() as server:
            for tool in ("asks", "thinks"):
                with pytest.raises(ToolFailedError, match="capability"):
                    await server.call(tool, {})

    run(scenario())
