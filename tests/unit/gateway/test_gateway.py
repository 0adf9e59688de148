"""The gateway with a provider of our own, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from flock_ray.errors import ModelError, ModelRequestError, ModelTimeoutError, RateLimitError
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.limits import Limits, Turn
from flock_ray.gateway.settings import GatewayPlan, ModelLimits, ModelSettings
from flock_ray.model import ModelReply, Timeouts
from flock_ray.testing import run_virtual
from tests.unit.gateway.fakes import MODEL, FakeProvider, request


def made(provider: FakeProvider, **models: ModelSettings) -> Gateway:
    loop = asyncio.get_running_loop()
    plan = GatewayPlan(models=models)
    return Gateway(plan, provider=provider, monotonic=loop.time, rng=random.Random(1))


def virtual(test: Coroutine[Any, Any, None]) -> None:
    run_virtual(test)


def test_transient_failures_are_tried_again_and_counted() -> None:
    async def test() -> None:
        provider = FakeProvider([ModelError("boom"), ModelTimeoutError("slow")])
        reply = await made(provider).complete(request())
        assert (reply.text, reply.tries, reply.source) == ("fine", 3, "provider")
        assert reply.latency_s >= 3.0

    virtual(test())


def test_tries_are_bounded_and_the_error_says_how_many_there_were() -> None:
    async def test() -> None:
        provider = FakeProvider([ModelError("boom")] * 50)
        with pytest.raises(ModelError) as caught:
            await made(provider).complete(request())
        assert len(provider.starts) == 4
        assert caught.value.tries == 4  # type: ignore[attr-defined]

    virtual(test())


def test_pauses_grow_and_are_not_all_alike() -> None:
    async def test() -> None:
        pauses = set()
        for seed in range(20):
            provider = FakeProvider([ModelError("boom")] * 3, delay_s=0.0)
            gateway = Gateway(
                provider=provider, monotonic=asyncio.get_running_loop().time, rng=random.Random(seed)
            )
            await gateway.complete(request())
            times = [at for at, _ in provider.starts]
            gaps = [b - a for a, b in itertools.pairwise(times)]
            assert gaps[0] <= 0.5 and gaps[1] <= 1.0 and gaps[2] <= 2.0
            pauses.add(round(gaps[2], 3))
        assert len(pauses) > 15

    virtual(test())


def test_the_time_that_a_provider_asks_for_is_waited() -> None:
    async def test() -> None:
        provider = FakeProvider([RateLimitError("slow down", retry_after_s=7.0)], delay_s=0.0)
        await made(provider).complete(request())
        assert 7.0 <= provider.starts[1][0] - provider.starts[0][0] <= 8.5

    virtual(test())


def test_a_refusal_holds_other_calls_to_the_model_back() -> None:
    async def test() -> None:
        provider = FakeProvider([RateLimitError("slow down", retry_after_s=7.0)], delay_s=0.0)
        gateway = made(provider)
        first = asyncio.ensure_future(gateway.complete(request()))
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        await gateway.complete(request("other"))
        assert asyncio.get_running_loop().time() - began >= 5.9
        await first

    virtual(test())


def test_a_wait_that_is_longer_than_the_call_may_take_is_refused_at_once() -> None:
    async def test() -> None:
        provider = FakeProvider([RateLimitError("slow down", retry_after_s=100.0)], delay_s=0.0)
        began = asyncio.get_running_loop().time()
        with pytest.raises(RateLimitError):
            await made(provider).complete(request(timeouts=Timeouts(total_s=10.0)))
        assert asyncio.get_running_loop().time() - began < 1.0

    virtual(test())


def test_text_starts_again_after_a_failed_try() -> None:
    async def test() -> None:
        heard: list[str] = []
        provider = FakeProvider([(["half", " an"], ModelError("cut")), "all of it"])
        await made(provider).complete(request(), heard.append)
        assert heard == ["half", " an", "", "all", "of", "it"]

    virtual(test())


def test_a_fallback_answers_when_the_model_does_not_and_the_hash_is_its_own() -> None:
    async def test() -> None:
        def answer(asked: Any) -> Any:
            return ModelError("down") if asked.model == MODEL else "from the other"

        provider = FakeProvider(answer=answer)
        reply = await made(provider).complete(request(fallbacks=["anthropic/claude"]))
        assert (reply.model, reply.text, reply.tries) == ("anthropic/claude", "from the other", 3)
        assert Counter(asked.model for _, asked in provider.starts) == {MODEL: 2, "anthropic/claude": 1}

    virtual(test())


def test_a_rate_limited_model_is_left_for_its_fallback_without_waiting() -> None:
    async def test() -> None:
        def answer(asked: Any) -> Any:
            return RateLimitError("wait", retry_after_s=60.0) if asked.model == MODEL else "other"

        gateway = made(FakeProvider(answer=answer, delay_s=0.0), **{"*": ModelSettings(fallbacks=["b/b"])})
        began = asyncio.get_running_loop().time()
        for _ in range(3):
            assert (await gateway.complete(request())).model == "b/b"
        assert asyncio.get_running_loop().time() - began < 5

    virtual(test())


def test_a_bad_request_is_not_tried_on_a_fallback() -> None:
    async def test() -> None:
        provider = FakeProvider([ModelRequestError("wrong key")])
        with pytest.raises(ModelRequestError):
            await made(provider).complete(request(fallbacks=["b/b"]))
        assert len(provider.starts) == 1

    virtual(test())


def test_the_total_time_is_for_all_tries_and_fallbacks_together() -> None:
    async def test() -> None:
        provider = FakeProvider(delay_s=100.0)
        began = asyncio.get_running_loop().time()
        with pytest.raises(ModelTimeoutError):
            await made(provider).complete(request(timeouts=Timeouts(total_s=30.0), fallbacks=["b/b"]))
        assert asyncio.get_running_loop().time() - began == pytest.approx(30.0, abs=0.1)
        assert provider.cancelled >= 1 and provider.running == 0

    virtual(test())


def test_concurrency_and_rate_hold_for_all_models_of_a_provider_together() -> None:
    async def test() -> None:
        provider = FakeProvider(delay_s=1.0)
        gateway = made(provider, **{"openai/*": ModelSettings(limits=ModelLimits(rpm=10, concurrency=2))})
        models = ["openai/a", "openai/b", "c"]
        await asyncio.gather(*(gateway.complete(request(str(i), model=models[i % 3])) for i in range(25)))
        assert provider.most_running == 2
        times = [at for at, _ in provider.starts]
        assert all(sum(1 for other in times if at <= other < at + 60) <= 10 for at in times)

    virtual(test())


def test_agents_and_tenants_take_turns_at_a_limit() -> None:
    async def test() -> None:
        provider = FakeProvider(delay_s=1.0)
        gateway = made(provider, **{"*": ModelSettings(limits=ModelLimits(concurrency=1))})
        calls = [gateway.complete(request(f"{i}", tenant="big")) for i in range(30)]
        calls += [gateway.complete(request(f"s{i}", tenant="small")) for i in range(3)]
        await asyncio.gather(*calls)
        order = [asked.caller.tenant for _, asked in provider.starts]
        assert order.index("small") <= 2
        assert [i for i, tenant in enumerate(order) if tenant == "small"][-1] <= 8

    virtual(test())


def test_a_cancelled_call_gives_its_turn_back() -> None:
    async def test() -> None:
        provider = FakeProvider(delay_s=1000.0)
        gateway = made(provider, **{"*": ModelSettings(limits=ModelLimits(concurrency=1))})
        calls = [asyncio.ensure_future(gateway.complete(request(str(i)))) for i in range(3)]
        await asyncio.sleep(1)
        calls[1].cancel()  # waits
        calls[0].cancel()  # runs
        await asyncio.sleep(1)
        assert provider.cancelled == 1
        assert [asked.messages[0]["content"] for _, asked in provider.starts] == ["0", "2"]
        calls[2].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert not gateway._limits.waiting()

    virtual(test())


def test_the_cache_answers_equal_requests_for_as_long_as_they_allow() -> None:
    async def test() -> None:
        provider = FakeProvider(delay_s=1.0)
        gateway = made(provider)
        first = await gateway.complete(request(cache_ttl_s=60.0))
        again = await gateway.complete(request(cache_ttl_s=60.0, agent="somebody else"))
        assert (again.text, again.source, again.usage.cost_usd) == (first.text, "cache", 0.0)
        assert again.request_hash == first.request_hash
        await gateway.complete(request())  # did not ask for it
        await gateway.complete(request("other", cache_ttl_s=60.0))
        await asyncio.sleep(61)
        await gateway.complete(request(cache_ttl_s=60.0))
        assert len(provider.starts) == 4

    virtual(test())


def test_a_cached_answer_is_told_to_who_listens() -> None:
    async def test() -> None:
        heard: list[str] = []
        gateway = made(FakeProvider())
        await gateway.complete(request(cache_ttl_s=60.0))
        reply: ModelReply = await gateway.complete(request(cache_ttl_s=60.0), heard.append)
        assert heard == [reply.text]

    virtual(test())


def test_a_call_that_is_given_up_as_its_turn_comes_gives_the_turn_back() -> None:
    """The cancellation and the turn arrive in the same step of the loop, in both orders."""

    async def test() -> None:
        limits = Limits(monotonic=asyncio.get_running_loop().time)
        one_at_a_time = [("m", ModelLimits(concurrency=1))]

        def turn() -> asyncio.Task[Turn]:
            return asyncio.ensure_future(
                limits.turn("m", one_at_a_time, tenant="", agent="", tokens=1, patience_s=None)
            )

        for turn_first in (True, False):
            running = await turn()
            waiting, behind = turn(), turn()
            await asyncio.sleep(1)
            if turn_first:
                running.end(1)
                waiting.cancel()
            else:
                waiting.cancel()
                running.end(1)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            (await asyncio.wait_for(behind, 1)).end(1)
            assert not limits.waiting()
            assert all(not gate.limiter.in_flight and not gate._waiting for gate in limits._gates.values())

    virtual(test())
