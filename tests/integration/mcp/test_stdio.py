"""Servers that are programs: real processes, written with the SDK."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from flock_ray.mcp import StdioServerParameters
from flock_ray.mcp.trouble import ToolFailedError
from tests.integration.mcp.conftest import SCRIPT, Client, children, gone, program

Connect = Callable[..., Client]


async def test_a_program_is_started_once_and_answers_all_runs(connect: Connect) -> None:
    server = connect(program())

    sums = await asyncio.gather(*(server.call("add", a=i, b=1) for i in range(50)))

    assert [str(i + 1) for i in range(50)] == sums
    assert 1 == len({await server.call("pid") for _ in range(3)})
    assert [] == server.notes


async def test_a_program_gets_no_secret_that_was_not_given_to_it(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-worker")
    monkeypatch.setenv("LC_ALL", "() { echo code; }")
    server = connect(program(env={"GIVEN": "yes"}))

    environment = json.loads(await server.call("environment"))

    assert "yes" == environment["GIVEN"]
    assert {"OPENAI_API_KEY", "LC_ALL", "RAY_AUTH_TOKEN"}.isdisjoint(environment)


async def test_a_program_that_dies_fails_the_call_and_is_started_again(connect: Connect) -> None:
    server = connect(program())
    first = await server.call("pid")

    with pytest.raises(
        ToolFailedError, match=r"ended with exit code 3; it said: something terrible happened"
    ):
        await server.call("die")

    assert first != await server.call("pid")


async def test_a_program_that_was_killed_while_nobody_called_is_started_again(connect: Connect) -> None:
    server = connect(program())
    first = int(await server.call("pid"))
    os.kill(first, signal.SIGKILL)
    assert await gone(first)
    await asyncio.sleep(0.2)

    assert first != int(await server.call("pid"))


async def test_a_program_that_grows_is_asked_for_its_tools_again(connect: Connect) -> None:
    server = connect(program())
    assert "there is more" == await server.call("grow", name="newer")

    for _ in range(100):
        if "t__newer" in await server.tools():
            break
        await asyncio.sleep(0.05)

    assert "grown" == await server.call("newer")


async def test_an_answer_without_end_ends_the_connection_and_not_the_worker(connect: Connect) -> None:
    server = connect(program())

    with pytest.raises(ToolFailedError, match="a message of more than 16777216 bytes"):
        await server.call("much", characters=17 * 1024 * 1024)

    assert "3" == await server.call("add", a=1, b=2)


async def test_what_a_program_prints_by_mistake_is_skipped(connect: Connect) -> None:
    assert "3" == await connect(program("chatty")).call("add", a=1, b=2)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (
            program().model_copy(update={"command": "no-such-command"}),
            "the command 'no-such-command' is not found",
        ),
        (
            program().model_copy(update={"command": "/no/such/file"}),
            "the command '/no/such/file' is not found",
        ),
        (program(cwd="/no/such/directory"), "its directory '/no/such/directory' does not exist"),
        (program("broken", env={"T": "sk-very-secret-token"}), "it said: the token [redacted] is wrong"),
        (program("silent"), "did not answer within 3 s"),
    ],
    ids=["no command", "no file", "no directory", "broken", "silent"],
)
async def test_why_a_program_can_not_be_used_is_one_sentence(
    connect: Connect, params: StdioServerParameters, says: str
) -> None:
    # Only the silent one is waited for; the others may start slowly on a busy machine.
    server = connect(params, connect_timeout_s=3.0 if "silent" in params.args else 40.0, max_retries=0)

    assert {} == await server.tools()

    [(kind, detail)] = server.notes
    assert "mcp.unreachable" == kind
    assert detail.startswith("t: ") and says in detail and "\n" not in detail


async def test_a_program_that_refuses_to_end_is_ended_with_its_children(connect: Connect) -> None:
    from flock_ray.mcp.hub import McpHub

    server = connect(program("stubborn"))
    pid = int(await server.call("pid"))
    family = children(pid)
    assert 2 == len(family)  # its child, and the guard

    hub: McpHub = server._hub
    await asyncio.to_thread(hub.close)

    assert [True] * 3 == [await gone(member) for member in (pid, *family)]


WORKER = """
import asyncio
from tests.integration.mcp.conftest import Client, program
from flock_ray.mcp import McpServer
from flock_ray.mcp.hub import McpHub

async def main():
    server = Client(McpHub(), McpServer("t", program("stubborn")))
    print(await server.call("pid"), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def start_worker() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True, env=environment
    )


async def test_programs_do_not_outlive_a_worker_that_was_killed() -> None:
    worker = start_worker()
    assert worker.stdout is not None
    pid = int(await asyncio.to_thread(worker.stdout.readline))
    family = [pid, *children(pid)]
    assert 3 == len(family)  # the server, its child and the guard

    worker.kill()

    assert [True] * 3 == [await gone(member) for member in family]
    worker.wait()
    worker.stdout.close()
