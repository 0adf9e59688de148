from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.core.definition import AgentDefinition
from flock_ray.engines.notes import noting
from flock_ray.engines.outputs import Note
from flock_ray.errors import ConfigurationError
from flock_ray.mcp import McpServer, McpUse, StdioServerParameters, hub
from flock_ray.mcp.hub import McpHub
from flock_ray.mcp.trouble import ToolFailedError
from flock_ray.model import ToolCall
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual
from tests.unit.mcp.conftest import Wire, server_named


@pytest.fixture
def servers() -> Iterator[McpHub]:
    made = McpHub()
    yield made
    made.close()
    assert "flock-mcp" not in {thread.name for thread in threading.enumerate()}


def agent(*uses: McpUse, name: str = "helper") -> AgentDefinition:
    return AgentDefinition(name, mcp_servers=uses)


def use(server: McpServer, **options: Any) -> McpUse:
    return McpUse(server.name, server=server, **options)


async def names(servers: McpHub, *uses: McpUse) -> tuple[list[str], list[Note]]:
    notes: list[Note] = []
    with noting(notes):
        tools = await servers.tools(agent(*uses))
    return [tool.name for tool in tools], notes


async def read(path: str) -> str:
    """Read."""
    return f"content of {path}"


async def write(path: str) -> str:
    """Write."""
    return f"wrote {path}"


@pytest.fixture
def files(wire: Wire) -> Wire:
    wire.server.add_tool(read, name="read.file")
    wire.server.add_tool(write)
    return wire


async def test_tools_are_called_by_the_name_that_the_model_sees(files: Wire, servers: McpHub) -> None:
    tools = {tool.name: tool for tool in await servers.tools(agent(use(server_named())))}

    assert {"fs__read_file", "fs__write"} == tools.keys()
    assert "content of a" == await tools["fs__read_file"].call({"path": "a"})


async def test_both_whitelists_hold(files: Wire, servers: McpHub) -> None:
    everything = server_named()
    readonly = server_named(tool_whitelist=frozenset({"read.file"}))

    assert (["fs__write"], []) == await names(servers, use(everything, tool_whitelist=frozenset({"write"})))
    assert (["fs__read_file"], []) == await names(servers, use(readonly))
    assert ([], []) == await names(servers, use(readonly, tool_whitelist=frozenset({"write"})))


async def test_a_whitelisted_tool_that_its_server_does_not_have_is_noted(
    files: Wire, servers: McpHub
) -> None:
    allowed = frozenset({"write", "fs__read", "delete"})

    found, notes = await names(servers, use(server_named(), tool_whitelist=allowed))

    assert ["fs__write"] == found
    assert [("mcp.missing", "fs has no tool delete, fs__read")] == notes


async def test_agents_share_a_connection_unless_their_roots_differ(files: Wire, servers: McpHub) -> None:
    server = server_named(mount_points=("file:///a",))
    for _ in range(3):
        await names(servers, use(server))
    await names(servers, use(server, roots=("file:///a",)))
    assert 1 == files.opened

    await names(servers, use(server, roots=("file:///b",)))
    assert 2 == files.opened


async def test_a_server_out_of_reach_is_left_out_and_noted(files: Wire, servers: McpHub) -> None:
    down = McpServer("down", StdioServerParameters(command="no-such-command"), max_retries=0)
    files.broken = FileNotFoundError("the command 'no-such-command' is not found")
    found, notes = await names(servers, use(down))
    files.broken = None

    found, more = await names(servers, use(down), use(server_named()))

    assert ["fs__read_file", "fs__write"] == found
    assert [("mcp.unreachable", "down: the command 'no-such-command' is not found")] == notes
    assert [("mcp.unreachable", f"{notes[0][1]} (it is tried again in 1 s)")] == more


async def test_agents_without_servers_cost_nothing(servers: McpHub) -> None:
    quiet = server_named(has_tools=False)

    assert ([], []) == await names(servers)
    assert ([], []) == await names(servers, use(quiet))
    assert not servers.is_running


async def test_a_worker_without_the_sdk_says_so(servers: McpHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)

    with pytest.raises(ConfigurationError, match=r"'helper'.*not installed on this worker"):
        await servers.tools(agent(use(server_named())))


async def test_a_cancelled_call_is_cancelled_at_the_server(wire: Wire, servers: McpHub) -> None:
    started, ended = threading.Event(), threading.Event()

    @wire.server.tool()
    async def wait() -> str:
        started.set()
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()
        return "late"

    [tool] = await servers.tools(agent(use(server_named())))
    call = asyncio.ensure_future(tool.call({}))
    assert await asyncio.to_thread(started.wait, 10)
    call.cancel()

    assert await asyncio.to_thread(ended.wait, 10)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_closed_hub_refuses_and_closes_twice(files: Wire) -> None:
    servers = McpHub()
    [tool, *_] = await servers.tools(agent(use(server_named())))
    servers.close()
    servers.close()

    with pytest.raises(RuntimeError, match="shutting down"):
        await tool.call({})
    assert 0 == files.open_now


async def test_an_error_of_a_tool_is_for_the_model(wire: Wire, servers: McpHub) -> None:
    [tool] = [t for t in await _with_failing(wire, servers) if t.name == "fs__fail"]

    with pytest.raises(ToolFailedError, match="the disk is full"):
        await tool.call({})


async def _with_failing(wire: Wire, servers: McpHub) -> list[Any]:
    from mcp.server.mcpserver.exceptions import ToolError

    @wire.server.tool()
    async def fail() -> str:
        raise ToolError("the disk is full")

    return await servers.tools(agent(use(server_named())))


@flock_type
class Wish(BaseModel):
    path: str


@flock_type
class Found(BaseModel):
    text: str


def wished(flock: VirtualFlock) -> None:
    flock.add_mcp("fs", StdioServerParameters(command="unused"))
    flock.agent("reader").consumes(Wish).publishes(Found).with_mcps(
        {"fs": {"tool_whitelist": ["read.file", "gone"]}}
    )


def script(*calls: tuple[str, dict[str, Any]]) -> ScriptedModel:
    asked = [ToolCall(f"call-{i}", name, json.dumps(arguments)) for i, (name, arguments) in enumerate(calls)]
    return ScriptedModel([asked, Found(text="done")])


async def events(flock: VirtualFlock, kind: str) -> list[str]:
    found = []
    async for event in flock.events():
        if event.kind == kind:
            found.append(event.detail)
        if event.kind == "tool.called":
            break
    return found


def test_an_agent_calls_the_tools_of_its_servers_also_in_virtual_time(files: Wire) -> None:
    model = script(("fs__read_file", {"path": "a.txt"}))

    async def scenario() -> None:
        async with VirtualFlock(language_model=model) as flock:
            wished(flock)
            await flock.publish(Wish(path="a.txt"))
            await flock.run_until_idle()

            assert [Found(text="done")] == await flock.store.get_by_type(Found)
            assert ["fs has no tool gone"] == await events(flock, "mcp.missing")

    run_virtual(scenario())

    assert ["fs__read_file"] == [tool["function"]["name"] for tool in model.requests[0].tools]
    assert "content of a.txt" == model.requests[1].messages[-1]["content"]


def test_an_agent_goes_on_without_a_server_that_is_down(files: Wire) -> None:
    files.broken = FileNotFoundError("the command 'unused' is not found")
    model = ScriptedModel([Found(text="alone")])

    async def scenario() -> None:
        async with VirtualFlock(language_model=model) as flock:
            wished(flock)
            await flock.publish(Wish(path="a.txt"))
            await flock.run_until_idle()

            assert [Found(text="alone")] == await flock.store.get_by_type(Found)

    run_virtual(scenario())

    assert [] == model.requests[0].tools


def test_a_server_that_dies_fails_the_tool_call_and_not_the_agent(wire: Wire) -> None:
    @wire.server.tool(name="read.file")
    async def dying(path: str) -> str:
        wire.cut()
        await asyncio.sleep(1000)
        return path

    model = script(("fs__read_file", {"path": "a.txt"}))

    async def scenario() -> None:
        async with VirtualFlock(language_model=model) as flock:
            wished(flock)
            await flock.publish(Wish(path="a.txt"))
            await flock.run_until_idle()

            assert [Found(text="done")] == await flock.store.get_by_type(Found)

    run_virtual(scenario())

    assert "was lost during the call" in model.requests[1].messages[-1]["content"]
