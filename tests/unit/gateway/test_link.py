"""Worker and gateway process without Ray: batches, cancels, a gateway that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from flock_ray.actors.gateway import SILENT_S, GatewayHost
from flock_ray.actors.model_link import MAX_LOST, ModelLink
from flock_ray.actors.model_messages import Ask, AskBatch, encode
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
        """Sizes of the batches of asks."""
        self.collects = 0
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

    async def collect(self, client: str, session: str, wait_s: float, blob: bytes = b"") -> bytes:
        self.processes.collects += 1
        if blob:
            self.processes.submits.append(len(blob))
        return bytes(await self._call(self.host.collect(client, session, wait_s, blob)))


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


def test_a_lone_call_is_one_message() -> None:
    async def test() -> None:
        processes = Processes(FakeProvider(delay_s=2.0))
        link = linked(processes)
        for number in range(1, 4):
            await link.complete(request())
            assert (processes.collects, len(processes.submits)) == (number, number)

    run_virtual(test())


def test_what_is_asked_while_a_gateway_starts_goes_along() -> None:
    async def test() -> None:
        processes = Processes(FakeProvider())
        connect, started = processes.connect, asyncio.Event()

        async def slowly(index: int) -> _Link:
            await started.wait()
            return await connect(index)

        link = ModelLink("w1", processes.plan, slowly, monotonic=asyncio.get_running_loop().time)
        link.begin()
        calls = [asyncio.ensure_future(link.complete(request("1")))]
        await asyncio.sleep(1)
        calls += [asyncio.ensure_future(link.complete(request("2"))) for _ in range(3)]
        calls[1].cancel()
        await asyncio.sleep(1)
        started.set()
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(reply, ModelReply) for reply in replies] == [True, False, True, True]
        assert (processes.started, len(processes.submits)) == (1, 1)

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


def test_how_many_gateways_there_may_be_hangs_on_the_cluster() -> None:
    sizes = {cpus: GatewayPlan().fitted(cpus).num_gateways for cpus in (1, 2, 3, 4, 8, 64)}
    assert sizes == {1: 1, 2: 1, 3: 1, 4: 2, 8: 2, 64: 2}
    assert GatewayPlan(max_gateways=5).fitted(2).num_gateways == 5
    assert GatewayPlan().num_gateways == 2


def test_a_call_that_is_given_up_before_its_first_step_leaves_nothing_at_the_gateway() -> None:
    async def test() -> None:
        provider = FakeProvider(delay_s=1000.0)
        time = asyncio.get_running_loop().time
        host = GatewayHost(lambda: Gateway(GatewayPlan(), provider=provider, monotonic=time), monotonic=time)
        asked = encode(AskBatch("w1", "s1", [Ask(n, encode(request()), False, False) for n in (1, 2)]))
        given_up = encode(AskBatch("w1", "s1", [], [1, 2]))
        first, second = host.submit(asked), host.submit(given_up)
        await first
        await second  # no step of the loop between them: neither call has begun
        await asyncio.sleep(1)
        assert host.open_calls == 0 and not provider.starts
        assert not host._sessions["w1"].tasks

    run_virtual(test())


def test_a_call_that_was_answered_while_it_waited_to_be_asked_again_is_not_paid_twice() -> None:
    async def main() -> None:
        link = linked(Processes(FakeProvider()))
        calls = [asyncio.ensure_future(link.complete(request(f"{n}"))) for n in range(2)]
        while not link._lines or len(next(iter(link._lines.values())).calls) < 2:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0)
        [line] = link._lines.values()
        answered, waiting = line.calls.values()
        line.asks.clear()
        line.asks.extend([answered, waiting])
        del line.calls[answered.id]

        batch = msgspec.msgpack.decode(link._batch(line), type=AskBatch)

        assert [one.id for one in batch.asks] == [waiting.id]
        for call in calls:
            call.cancel()

    run_virtual(main())
