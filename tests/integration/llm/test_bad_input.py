"""What users get wrong, end to end: one clear sentence each, and no second try where none can help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field

from flock_ray import Flock, WorkflowError, flock_type
from flock_ray.engines.llm import LiteLLMEngine
from flock_ray.errors import ConfigurationError
from flock_ray.gateway.settings import ModelSettings
from flock_ray.mcp import StdioServerParameters
from tests import llm_answers as answers
from tests.llm_server import LLMServer, in_thread

pytestmark = pytest.mark.timeout(180)

MODEL = "openai/gpt-4.1-mini"
NewFlock = Callable[..., Flock]


@flock_type(name="bad.Question")
class Question(BaseModel):
    text: str


@flock_type(name="bad.Reply")
class Reply(BaseModel):
    text: str


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with in_thread(models=("gpt-4.1-mini",), context_tokens=2000) as server:
        server.on(lambda _: True, {"text": "fine"})
        yield server


def asker(new_flock: NewFlock, server: LLMServer, model: str = MODEL, **settings: Any) -> Flock:
    known = {"api_key": server.key, "api_base": server.url, **settings}
    flock = new_flock(model=model, models={"*": ModelSettings(**known)})
    flock.agent("oracle").description("Answers.").consumes(Question).publishes(Reply)
    return flock


async def failure(flock: Flock, text: str = "why?") -> str:
    """Ask, and return the one error as a user sees it."""
    await flock.publish(Question(text=text))
    await flock.run_until_idle(timeout=90)
    [error] = await flock.store.get_by_type(WorkflowError)
    return f"{error.error_type}: {error.error_message}"


async def test_models_keys_and_lengths(new_flock: NewFlock, server: LLMServer) -> None:
    unknown = await failure(asker(new_flock, server, "openai/gpt-99"))
    assert unknown.startswith("ModelRequestError: ") and "gpt-99" in unknown
    assert server.num_requests == 1

    nowhere = await failure(asker(new_flock, server, "nonsense/x"))
    assert nowhere.startswith("ModelRequestError: ") and "name it as litellm does" in nowhere

    wrong = await failure(asker(new_flock, server, api_key="sk-wrong-0123456789abcdef"))
    assert wrong.startswith("ModelRequestError: ") and "key" in wrong
    assert "0123456789abcdef" not in wrong
    assert server.num_requests == 2  # none of them was tried again

    long = await failure(asker(new_flock, server), "word " * 10_000)
    assert long.startswith("ContextTooLongError: ")
    assert "10622 more than its limit of 2000" in long
    assert server.num_requests == 3
    for message in (unknown, nowhere, wrong, long):
        assert "\n" not in message and len(message) < 400, message


async def test_no_key_at_all(new_flock: NewFlock) -> None:
    flock = new_flock(model="anthropic/claude-sonnet-4-5")
    flock.agent("oracle").description("Answers.").consumes(Question).publishes(Reply)

    message = await failure(flock)

    assert message.startswith("ModelRequestError: There is no API key for anthropic")
    assert "ModelSettings(api_key=...)" in message


async def test_tools_that_raise_or_hang_and_a_program_that_is_not_there(
    new_flock: NewFlock, server: LLMServer
) -> None:
    def broken(what: str) -> str:
        """Fail.

        Args:
            what: Anything.
        """
        raise RuntimeError("the shelf is empty")

    async def hanging(what: str) -> str:
        """Hang.

        Args:
            what: Anything.
        """
        import asyncio

        await asyncio.sleep(3600)
        return "never"

    server.script(
        answers.tool_calls(("broken", {"what": "x"}), ("hanging", {"what": "x"})), {"text": "without tools"}
    )
    flock = asker(new_flock, server)
    flock.add_mcp("gone", StdioServerParameters(command="no-such-program-anywhere"), max_retries=0)
    flock.get_agent("oracle").with_tools([broken, hanging]).with_mcps(["gone"]).with_engines(
        LiteLLMEngine(tool_timeout=timedelta(seconds=1))
    )
    asked = await flock.publish(Question(text="why?"))
    await flock.run_until_idle(timeout=90)

    # The agent answers; the model and the log were told what is wrong
    [reply] = await flock.store.get_by_type(Reply)
    assert reply.text == "without tools"
    told = [str(m["content"]) for m in server.requests[-1].messages if m["role"] == "tool"]
    assert "the shelf is empty" in told[0]
    assert "1 s" in told[1]
    async for event in flock.events("mcp.unreachable", correlation_id=asked.correlation_id):
        assert "no-such-program-anywhere" in event.detail
        break


class Tree(BaseModel):
    children: list[Tree] = []


Huge: Any = type(
    "Huge",
    (BaseModel,),
    {
        "__annotations__": {f"field_{n}": str for n in range(3000)},
        **{f"field_{n}": Field(description="x" * 100) for n in range(3000)},
    },
)


@pytest.mark.parametrize(
    ("output", "says"), [(Tree, "recursive"), (Huge, "bytes")], ids=["recursive", "huge"]
)
async def test_a_schema_that_no_model_can_follow_is_refused_before_anything_starts(
    new_flock: NewFlock, output: Any, says: str
) -> None:
    flock = new_flock(model=MODEL)
    flock.agent("oracle").description("Answers.").consumes(Question).publishes(output)

    with pytest.raises(ConfigurationError, match=says) as caught:
        await flock.publish(Question(text="x"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
