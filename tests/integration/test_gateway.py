"""Model calls on Ray: worker, gateway, litellm and a server that speaks OpenAI's API."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from flock_ray import Flock
from flock_ray.gateway.settings import ModelSettings
from tests import llm_answers as answers
from tests.integration.models import Shout, Word
from tests.integration.waiting import until
from tests.llm_server import LLMServer

pytestmark = pytest.mark.timeout(300)  # gateways start anew, and import litellm

MODEL = "openai/gpt-4.1-mini"


@pytest.fixture
async def server() -> AsyncIterator[LLMServer]:
    async with LLMServer() as server:
        yield server


def asker(new_flock: Callable[..., Flock], server: LLMServer, **settings: Any) -> Flock:
    known = ModelSettings(api_key=server.key, api_base=server.url, **settings)
    flock = new_flock(model=MODEL, models={"openai/*": known})
    flock.agent("oracle").description("Answers.").consumes(Word).publishes(Shout).max_concurrency(50)
    return flock


async def gateway_pid(flock: Flock) -> int:
    # Gateways of boards that are being shut down may still be listed.
    namespace = (await flock._ready_board()).shard(0)._namespace
    actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    (name,) = {a["name"] for a in actors if ":gateway:" in a["name"] and a["namespace"] == namespace}
    handle: Any = ray.get_actor(name, namespace)
    return int(await handle.start_up.remote())


async def test_an_agent_is_answered_by_a_model_and_the_calls_are_counted(
    new_flock: Callable[..., Flock], server: LLMServer
) -> None:
    server.on(lambda _: True, answers.json_answer({"text": "yes"}, usage=(100, 10, 0)))
    flock = asker(new_flock, server)

    artifacts = [await flock.publish(Word(text=f"q{i}")) for i in range(20)]
    await flock.run_until_idle(timeout=120)

    found = await flock.store.get_by_type(Shout)
    assert len(found) == 20
    (row,) = await flock.usage()
    assert (row.agent, row.model, row.calls, row.input_tokens) == ("oracle", MODEL, 20, 2000)
    assert row.cost_usd == pytest.approx(20 * (100 * 0.4e-6 + 10 * 1.6e-6))
    (one,) = await flock.usage(workflow=artifacts[0])
    assert one.calls == 1


async def test_a_killed_gateway_is_replaced_and_its_calls_are_answered_once(
    new_flock: Callable[..., Flock], server: LLMServer
) -> None:
    server.on(lambda _: True, answers.silent())
    flock = asker(new_flock, server)
    for i in range(5):
        await flock.publish(Word(text=f"q{i}"))
    await server.until(lambda s: s.open == 5, timeout_s=120)

    server.on(lambda _: True, answers.json_answer({"text": "yes"}))
    os.kill(await gateway_pid(flock), signal.SIGKILL)
    await flock.run_until_idle(timeout=120)

    assert len(await flock.store.get_by_type(Shout)) == 5
    assert server.num_requests >= 10
    (row,) = await flock.usage()
    assert row.calls == 5 and row.failed == 0 and row.tries >= 10


async def test_calls_of_an_attempt_whose_worker_died_are_in_the_usage(
    new_flock: Callable[..., Flock], server: LLMServer, tmp_path: Path
) -> None:
    # Given a worker that dies in a tool, after its first call was answered and while the second one runs
    def suicide(here: str) -> str:
        """Look.

        Args:
            here: Where to.
        """
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "nothing"

    server.on(lambda _: True, answers.json_answer({"text": "yes"}, usage=(100, 10, 0)))
    call = answers.tool_calls(("suicide", {"here": "x"}), usage=(100, 10, 0))
    server.on(lambda seen: all(message["role"] != "tool" for message in seen.messages), call)
    flock = asker(new_flock, server)
    flock.get_agent("oracle").with_tools([suicide])

    artifact = await flock.publish(Word(text="q"))
    await flock.run_until_idle(timeout=120)

    # Then the calls of both attempts are counted, each once
    assert len(await flock.store.get_by_type(Shout)) == 1

    async def counted() -> bool:  # the shard asks the gateway beside its work
        return sum(row.calls for row in await flock.usage()) >= 3

    await until(counted, timeout_s=120)
    (row,) = await flock.usage(workflow=artifact)
    assert (row.calls, row.failed, row.input_tokens, row.tries) == (3, 0, 300, 3)
    assert server.num_requests == 3


async def test_cancelling_a_workflow_cancels_the_http_request(
    new_flock: Callable[..., Flock], server: LLMServer
) -> None:
    server.on(lambda _: True, answers.silent())
    flock = asker(new_flock, server)
    # Given twenty calls of a workflow that a server has taken, and one of another workflow
    await flock.publish_many([Word(text=f"q{n}") for n in range(20)], correlation_id="w")
    await flock.publish(Word(text="other"))
    await server.until(lambda s: s.open == 21, timeout_s=120)

    # When the workflow is cancelled (`python -m bench crowded` measures how soon it is seen: under a second)
    assert await flock.cancel("w") == 20

    # Then the server sees the twenty connections go, and the other one stay; nothing of the workflow is asked again
    await server.until(lambda s: s.num_cancelled == 20, timeout_s=60)
    assert (server.open, server.num_requests) == (1, 21)
    assert (await flock.workflow_status("w")).state == "cancelled"

    # And each of them is in the account of the workflow
    async def counted() -> bool:
        return sum(row.calls for row in await flock.usage(workflow="w")) == 20

    await until(counted, timeout_s=120)
    assert [(row.calls, row.failed) for row in await flock.usage(workflow="w")] == [(20, 20)]
