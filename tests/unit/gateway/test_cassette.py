"""Recorded answers: the same again, offline; and what a miss says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flock_ray import Flock
from flock_ray.errors import CassetteMissError, ConfigurationError
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.provider import Answer
from flock_ray.gateway.settings import CassetteMode, GatewayPlan, planned
from flock_ray.model import Caller, ModelReply, ModelRequest, ToolCall, Usage
from tests.unit.gateway.fakes import FakeProvider, request


def gateway(folder: Path, mode: CassetteMode, provider: FakeProvider | None = None) -> Gateway:
    return Gateway(GatewayPlan(cassette=str(folder), cassette_mode=mode), provider=provider)


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


async def test_what_was_recorded_is_replayed_without_a_provider(tmp_path: Path) -> None:
    answer = ModelReply(
        text="hi",
        tool_calls=[ToolCall("c1", "f", '{"a": 1}')],
        finish_reason="tool_calls",
        usage=Usage(input_tokens=3, output_tokens=2, cost_usd=0.5),
    )
    first = await gateway(tmp_path, "record", FakeProvider([Answer(answer)], delay_s=0)).complete(request())

    again = await gateway(tmp_path, "replay").complete(request(agent="other", timeouts=request().timeouts))

    assert again.source == "cassette"
    for name in ("text", "tool_calls", "finish_reason", "usage", "model", "request_hash"):
        assert getattr(again, name) == getattr(first, name), name


async def test_a_streamed_answer_is_replayed_in_its_pieces(tmp_path: Path) -> None:
    provider = FakeProvider(["one two three"], delay_s=0)
    await gateway(tmp_path, "record", provider).complete(request(), lambda _: None)
    heard: list[str] = []

    await gateway(tmp_path, "replay").complete(request(), heard.append)

    assert heard == ["one", "two", "three"]


async def test_equal_requests_are_replayed_in_the_order_of_their_answers(tmp_path: Path) -> None:
    recorder = gateway(tmp_path, "record", FakeProvider(["a", "b", "c"], delay_s=0))
    for _ in range(3):
        await recorder.complete(request())
    player = gateway(tmp_path, "replay")

    assert [(await player.complete(request())).text for _ in range(5)] == ["a", "b", "c", "c", "c"]


async def test_recording_again_replaces_what_was_there(tmp_path: Path) -> None:
    await gateway(tmp_path, "record", FakeProvider(["old"], delay_s=0)).complete(request())
    await gateway(tmp_path, "record", FakeProvider(["new"], delay_s=0)).complete(request())

    assert (await gateway(tmp_path, "replay").complete(request())).text == "new"
    only_file(tmp_path)  # one, and not two


async def test_auto_records_only_what_is_missing(tmp_path: Path) -> None:
    provider = FakeProvider(["first", "second"], delay_s=0)
    auto = gateway(tmp_path, "auto", provider)
    assert (await auto.complete(request())).source == "provider"
    assert (await gateway(tmp_path, "auto", provider).complete(request())).source == "cassette"
    assert (await auto.complete(request("other"))).text == "second"
    assert len(provider.starts) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 0.5}, ["temperature (0.1 became 0.5)"]),
        ({"messages": [{"role": "user", "content": "hello you"}]}, ["messages[0].content", "hello you"]),
        ({"seed": None}, ["seed (was 7, is gone)"]),
        ({"max_tokens": 5}, ["max_tokens (new: 5)"]),
        ({"model": "openai/other"}, ["model (at character", "other"]),
    ],
    ids=["value", "text", "gone", "new", "model"],
)
async def test_a_miss_names_the_field_that_changed(
    tmp_path: Path, change: dict[str, Any], says: list[str]
) -> None:
    recorder = gateway(tmp_path, "record", FakeProvider(delay_s=0))
    await recorder.complete(request(temperature=0.1, seed=7))
    await recorder.complete(request("something else entirely, and longer", model="anthropic/x"))

    with pytest.raises(CassetteMissError) as caught:
        await gateway(tmp_path, "replay").complete(request(**{"temperature": 0.1, "seed": 7, **change}))

    assert not caught.value.retryable
    for words in says:
        assert words in str(caught.value)
    assert "FLOCK_CASSETTE_MODE=record" in str(caught.value)


async def test_no_secret_gets_into_a_file(tmp_path: Path) -> None:
    secret = "sk-proj-abcdefghijklmnopqrstuvwxyz0123"
    asked = request(
        f"my key is {secret}", extra={"api_key": secret, "headers": {"Authorization": secret}, "top_p": 1}
    )
    recorder = gateway(tmp_path, "record", FakeProvider([f'{{"key":"{secret}","n":1}}'], delay_s=0))

    await recorder.complete(asked)

    file = only_file(tmp_path)
    assert secret not in file.read_text()
    content = json.loads(file.read_text())
    assert content["request"]["extra"] == {"top_p": 1}
    assert json.loads(content["answers"][0]["text"])["n"] == 1
    other = request(f"my key is {secret}", extra={"api_key": "another", "top_p": 1})
    assert (await gateway(tmp_path, "replay").complete(other)).source == "cassette"


async def test_the_bytes_of_images_are_not_kept(tmp_path: Path) -> None:
    url = "data:image/png;base64," + "A" * 100_000
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    await gateway(tmp_path, "record", FakeProvider(delay_s=0)).complete(
        request(messages=[{"role": "user", "content": parts}])
    )

    file = only_file(tmp_path)
    assert file.stat().st_size < 2000


async def test_a_damaged_file_is_said_and_not_overwritten(tmp_path: Path) -> None:
    await gateway(tmp_path, "record", FakeProvider(delay_s=0)).complete(request())
    file = only_file(tmp_path)
    file.write_text('{"format": 1, "ha')

    with pytest.raises(ConfigurationError, match="can't be read"):
        await gateway(tmp_path, "replay").complete(request())


def test_there_must_be_something_to_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="There is no cassette"):
        planned(None, tmp_path / "none", "replay")
    with pytest.raises(ConfigurationError, match="needs a folder"):
        planned(None, None, "record")
    monkeypatch.setenv("FLOCK_CASSETTE", str(tmp_path))
    assert Flock()._gateway_plan.cassette_mode == "auto"
    monkeypatch.setenv("FLOCK_CASSETTE_MODE", "replay")
    assert Flock()._gateway_plan.cassette_mode == "replay"
    assert Flock(cassette_mode="off")._gateway_plan.cassette is None
    monkeypatch.setenv("FLOCK_CASSETTE_MODE", "nonsense")
    with pytest.raises(ConfigurationError, match="cassette_mode"):
        Flock()


def test_a_worker_process_does_not_import_litellm() -> None:
    source = """
import sys
import flock_ray.actors.processes
assert not {"litellm", "openai"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_replaying_does_not_import_litellm(tmp_path: Path) -> None:
    async def record() -> None:
        await gateway(tmp_path, "record", FakeProvider(delay_s=0)).complete(
            ModelRequest(model="m", messages=[], caller=Caller())
        )

    asyncio.run(record())
    source = f"""
import asyncio, sys
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.settings import GatewayPlan
from flock_ray.model import ModelRequest
plan = GatewayPlan(cassette={str(tmp_path)!r}, cassette_mode="replay")
print(asyncio.run(Gateway(plan).complete(ModelRequest(model="m", messages=[]))).text)
assert not {{"litellm", "ray", "openai"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
