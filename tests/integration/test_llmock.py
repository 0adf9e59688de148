"""The gateway against a mock server that is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.settings import GatewayPlan, ModelSettings
from flock_ray.model import ModelRequest

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ReadOnly.*:UserWarning", "ignore:Accessing the '.*' attribute on the instance"
)

MODEL = "openai/gpt-4.1-mini"
START_S = 30.0


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    command = shutil.which("llmock", path=str(Path(sys.executable).parent)) or shutil.which("llmock")
    if command is None:
        pytest.skip("llmock is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(  # noqa: ASYNC220  # it is only started here
        [command, "serve", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.1)
        base = f"http://127.0.0.1:{port}/v1"
        yield Gateway(GatewayPlan(models={"*": ModelSettings(api_key="sk-any", api_base=base)}))
    finally:
        process.kill()
        process.wait()


async def test_the_gateway_understands_an_independent_server(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": "Tell me something."}]
    whole = await gateway.complete(ModelRequest(model=MODEL, messages=messages))
    assert whole.text and whole.finish_reason == "stop" and whole.usage.output_tokens > 0

    heard: list[str] = []
    streamed = await gateway.complete(ModelRequest(model=MODEL, messages=messages), heard.append)
    assert streamed.text == "".join(heard) and streamed.usage.input_tokens > 0

    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    called = await gateway.complete(
        ModelRequest(model=MODEL, messages=messages, tools=[tool], tool_choice="required")
    )
    assert called.finish_reason == "tool_calls" and called.tool_calls[0].name == "weather"

    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "N", "schema": schema, "strict": True}}
    shaped = await gateway.complete(ModelRequest(model=MODEL, messages=messages, response_format=form))
    assert '"n"' in shaped.text
