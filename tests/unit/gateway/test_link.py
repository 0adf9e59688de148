"""Worker and gateway process without Ray: batches, cancels, a gateway that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from flock_ray.actors.gateway import SILENT_S, GatewayHost
from flock_ray.actors.model_link import MAX_LOST, ModelLink
from flock_ray.core.gateway_scaling import CALLS_PER_GATEWAY, home_of, pick
from flock_ray.errors import ConfigurationError, ModelError, RateLimitError
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.settings import GatewayPlan, ModelLimits, ModelSettings
from flock_ray.model import ModelReply
from flock_ray.ports import PeerGoneError
from flock_ray.testing import run_virtual
from tests.unit.gateway.fakes import FakeProvider, request


class Processes:
    """Gateways that can be killed; calls to a dead one fail, also those that are under way."""

    def __init__(self, provider: FakeProvider, plan: GatewayPlan | None = None) -> None:
        self.plan = plan or GatewayPlan()
        self.provider = provider
        self.hosts: dict[int, GatewayHost] = {}
        self.dead: dict[int, asyncio.Event] = {}
        self.submits: list[int] = []
        self.started = 0

    async def connect(self, index: int) -> _Link:
        if index not in self.hosts:
            self.started += 1
            time = asyncio.get_running_loop().time
            self.hosts[index] = GatewayHost(
                lambda: Gateway(self.plan, provider=self.provider, monotonic=time), monotonic=time
            )
            self.dead[index] = asyncio.Event()
        return _Link(self, index, self.hosts[index], self.dead[index])

    def kill(self, index: int = 0) -> None:
        self.hosts.pop(index).close()
        self.dead.pop(index).set()


class _Link:
    def __init__(self, processes: Processes, index: int, host: GatewayHost, dead: asyncio.Event) -> None:
        self.processes, self.index, self.host, self.dead = processes, index, host, dead

    async def _call(self, made: Coroutine[Any, Any, Any]) -> Any:
        await asyncio.sleep(0.001)
        call, dead = asyncio.ensure_future(made), asyncio.ensure_future(self.dead.wait())
        await asyncio.wait([call, dead], return_when=asyncio.FIRST_COMPLETED)
        if self.dead.is_set():
            call.cancel()
            raise PeerGoneError("dead", final=True)
        dead.cancel()
        return await call

    async def submit(self, blob: bytes) -> int:
        self.processes.submits.append(len(blob))
        return int(await self._call(self.host.submit(blob)))

    async def collect(self, client: str, session: str, wait_s: float) -> bytes:
        return bytes(await self._call(self.host.collect(client, session, wait_s)))


def linked(processes: Processes) -> ModelLink:
    link = ModelLink("w1", processes.plan, processes.connect, monotonic=asyncio.get_running_loop().time)
    link.begin()
    return link


def test_a_thousand_calls_travel_in_a_few_messages() -> None:
    async def test() -> None:
        processes = Processes(FakeProvider(delay_s=2.0))
        link = linked(processes)
        replies = await asyncio.gather(*(link.complete(request(str(i))) for i in range(1000)))
        assert {reply.text for reply in replies} == {"fine"}
        assert len(processes.submits) <= 3
        assert processes.provider.most_running == 1000
        assert not any(line.calls for line in link._lines.values())

    run_virtual(test())


def test_text_comes_in_pieces_in_order() -> None:
    async def test() -> None:
        heard: list[str] = []
        link = linked(Processes(FakeProvider(["one two three"])))
        reply = await link.complete(request(), heard.append)
        assert "".join(heard) == reply.text == "onetwothree"

    run_virtual(test())


def test_errors_keep_their_class_and_what_they_know() -> None:
    async def test() -> None:
        refused = RateLimitError("slow down", retry_after_s=700.0)
        link = linked(Processes(FakeProvider([refused, ValueError("a secret prompt")], delay_s=0)))
        with pytest.raises(RateLimitError) as caught:
            await link.complete(request())
        assert caught.value.retry_after_s == pytest.approx(700.0, abs=1)
        assert caught.value.request_hash  # type: ignore[attr-defined]
        with pytest.raises(ModelError) as broken:
            await link.complete(request("x", model="other/model"))
        assert "secret" not in str(broken.value)

    run_virtual(test())


def test_a_gateway_that_can_not_be_made_says_why() -> None:
    async def test() -> None:
        def make() -> Gateway:
            raise ConfigurationError("There is no cassette.")

        host = GatewayHost(make, monotonic=asyncio.get_running_loop().time)
        processes = Processes(FakeProvider())
        processes.hosts[0], processes.dead[0] = host, asyncio.Event()
        with pytest.raises(ConfigurationError, match="There is no cassette"):
            await linked(processes).complete(request())

    run_virtual(test())


def test_cancelling_reaches_the_provider() -> None:
    async def test() -> None:
        processes = Processes(FakeProvider(delay_s=1000.0))
        link = linked(processes)
        calls = [asyncio.ensure_future(link.complete(request(str(i)))) for i in range(3)]
        await asyncio.sleep(1)
        calls[1].cancel()
        await asyncio.sleep(1)
        assert processes.provider.cancelled == 1 and processes.provider.running == 2
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(1)
        assert processes.provider.running == 0

    run_virtual(test())


def test_the_calls_of_a_dead_gateway_are_answered_by_the_next_one_once() -> None:
    async def test() -> None:
        heard: list[str] = []
        processes = Processes(FakeProvider(delay_s=10.0))
        link = linked(processes)
        calls = [asyncio.ensure_future(link.complete(request(str(i)))) for i in range(50)]
        told = asyncio.ensure_future(link.complete(request("told"), heard.append))
        await asyncio.sleep(5)
        processes.kill()
        replies: list[ModelReply] = await asyncio.gather(*calls)
        assert {reply.tries for reply in replies} == {2}
        assert processes.started == 2
        assert len(processes.provider.starts) == 102
        await told

    run_virtual(test())


def test_text_starts_again_when_its_gateway_dies() -> None:
    async def test() -> None:
        heard: list[str] = []
        processes = Processes(FakeProvider([(["half"], "never"), "whole"], delay_s=10.0))
        call = asyncio.ensure_future(linked(processes).complete(request(), heard.append))
        await asyncio.sleep(5)
        assert heard == ["half"]
        processes.kill()
        await call
        assert heard == ["half", "", "whole"]

    run_virtual(test())


def test_a_call_that_kills_every_gateway_is_given_up() -> None:
    async def test() -> None:
        processes = Processes(FakeProvider(delay_s=1000.0))
        call = asyncio.ensure_future(linked(processes).complete(request()))
        for _ in range(MAX_LOST + 1):
            await asyncio.sleep(20)
            processes.kill()
        with pytest.raises(ModelError, match="lost 4 times"):
            await call

    run_virtual(test())


def test_the_calls_of_a_worker_that_is_gone_are_cancelled() -> None:
    async def test() -> None:
        processes = Processes(FakeProvider(delay_s=1000.0))
        link = linked(processes)
        call = asyncio.ensure_future(link.complete(request()))
        await asyncio.sleep(1)
        for line in link._lines.values():  # the worker dies
            for task in (line.sender, line.collector):
                if task is not None:
                    task.cancel()
            line.calls.clear()
        await asyncio.sleep(SILENT_S + 15)
        processes.hosts[0].sweep()
        await asyncio.sleep(1)
        assert processes.provider.running == 0 and processes.hosts[0].open_calls == 0
        call.cancel()

    run_virtual(test())


def test_a_limit_lives_in_one_gateway_and_other_calls_fill_them_in_turn() -> None:
    plan = GatewayPlan(models={"openai/*": ModelSettings(limits=ModelLimits(rpm=5))}, max_gateways=8)

    assert plan.home_key("gpt-4.1") == plan.home_key("openai/o3") == "openai/*"
    assert plan.home_key("anthropic/claude") is None
    homes = {home_of(f"model-{i}", 8) for i in range(100)}
    assert homes == set(range(8))
    moved = sum(home_of(f"m{i}", 8) != home_of(f"m{i}", 7) for i in range(1000))
    assert moved < 250

    assert pick([], 4) == 0
    assert pick([5, 0], 4) == 0
    assert pick([CALLS_PER_GATEWAY, 3], 4) == 1
    assert pick([CALLS_PER_GATEWAY] * 2, 4) == 2
    assert pick([CALLS_PER_GATEWAY + 9, CALLS_PER_GATEWAY + 1], 2) == 1
