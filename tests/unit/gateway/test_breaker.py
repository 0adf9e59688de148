"""Circuit breakers of models, in a gateway in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from flock_ray.core.wire import BreakerSpec
from flock_ray.errors import (
    ConfigurationError,
    ModelError,
    ModelRefusedError,
    ModelRequestError,
    ModelTimeoutError,
    RateLimitError,
)
from flock_ray.gateway.breaker import ModelBreakers
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.settings import GatewayPlan, ModelBreaker, ModelLimits, ModelSettings
from flock_ray.model import Timeouts
from flock_ray.testing import run_virtual
from tests.unit.gateway.fakes import MODEL, FakeProvider, request

OTHER = "openai/other"
BREAKER = ModelBreaker(failure_threshold=3, recovery_timeout=timedelta(seconds=30), half_open_attempts=1)


def made(provider: FakeProvider, told: list[tuple[str, str]] | None = None, **more: Any) -> Gateway:
    settings = ModelSettings(**{"breaker": BREAKER, "max_tries": 1, **more})
    return Gateway(
        GatewayPlan(models={MODEL: settings}), provider=provider, rng=random.Random(1),
        monotonic=asyncio.get_running_loop().time,
        on_breaker=None if told is None else lambda state, text: told.append((state, text)),
    )  # fmt: skip


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run_virtual(test())


async def fails(gateway: Gateway, **more: Any) -> ModelError:
    with pytest.raises(ModelError) as raised:
        await gateway.complete(request(**more))
    return raised.value


def test_after_failures_in_a_row_calls_fail_at_once_and_say_when_to_come_again() -> None:
    async def test() -> None:
        told: list[tuple[str, str]] = []
        provider = FakeProvider([ModelError("down")] * 3)
        gateway = made(provider, told)
        for _ in range(3):
            await fails(gateway)
        started = asyncio.get_running_loop().time()

        error = await fails(gateway)

        assert started == asyncio.get_running_loop().time()
        assert 3 == len(provider.starts)
        assert error.retryable
        assert 30 == pytest.approx(error.retry_after_s)  # type: ignore[attr-defined]  # set by the breaker
        assert "is not asked for another 30 s: it failed 3 times in a row" in str(error)
        assert [("open", f"{MODEL}: after 3 failures in a row")] == told
        assert {MODEL: "open"} == gateway._breakers.states()

    virtual(test)


def test_tries_of_one_call_count_each_and_stop_when_it_opens() -> None:
    async def test() -> None:
        provider = FakeProvider([ModelError("down")] * 10)

        error = await fails(made(provider, max_tries=10))

        assert 3 == len(provider.starts)
        assert "circuit breaker" in str(error)

    virtual(test)


def test_half_open_one_call_tries_and_a_success_closes() -> None:
    async def test() -> None:
        told: list[tuple[str, str]] = []
        provider = FakeProvider([ModelError("down")] * 4)
        gateway = made(provider, told)
        for _ in range(3):
            await fails(gateway)
        await asyncio.sleep(30)

        first = await asyncio.gather(
            *(gateway.complete(request(str(n))) for n in range(5)), return_exceptions=True
        )

        assert 4 == len(provider.starts)
        assert all(isinstance(error, ModelError) for error in first)
        await asyncio.sleep(30)
        assert "fine" == (await gateway.complete(request())).text
        assert "fine" == (await gateway.complete(request("again"))).text
        assert ["open", "half_open", "open", "half_open", "closed"] == [state for state, _ in told]

    virtual(test)


def test_a_fallback_answers_meanwhile() -> None:
    async def test() -> None:
        def answer(asked: Any) -> Any:
            return ModelError("down") if asked.model == MODEL else "from the other"

        provider = FakeProvider(answer=answer)
        gateway = made(provider, fallbacks=[OTHER])

        texts = [(await gateway.complete(request(str(n)))).text for n in range(6)]

        assert ["from the other"] * 6 == texts
        assert 3 == sum(asked.model == MODEL for _, asked in provider.starts)

    virtual(test)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ModelError("500"), "open"),
        (ModelTimeoutError("silent"), "open"),
        (RateLimitError("429", retry_after_s=0.001), "closed"),
        (ModelRequestError("401"), "closed"),
        (ModelRefusedError("no"), "closed"),
    ],
)
def test_what_counts_against_a_model(error: ModelError, state: str) -> None:
    async def test() -> None:
        gateway = made(FakeProvider([error] * 3))
        for _ in range(3):
            await fails(gateway)
            await asyncio.sleep(5)

        assert {MODEL: state} == gateway._breakers.states()

    virtual(test)


def test_an_answer_that_is_refused_ends_the_row_and_a_refused_request_does_not() -> None:
    async def test() -> None:
        script = [ModelError("1"), ModelError("2"), ModelRefusedError("no"), ModelError("1"), ModelError("2")]
        gateway = made(FakeProvider([*script, ModelRequestError("401"), ModelError("3")]))
        states = []
        for _ in range(7):
            await fails(gateway)
            states.append(gateway._breakers.states()[MODEL])

        assert ["closed"] * 6 + ["open"] == states

    virtual(test)


def test_a_model_that_says_nothing_for_the_whole_time_of_a_call_has_failed() -> None:
    async def test() -> None:
        gateway = made(FakeProvider(delay_s=1e6))
        for _ in range(3):
            await fails(gateway, timeouts=Timeouts(total_s=10))

        assert "open" == gateway._breakers.states()[MODEL]

    virtual(test)


def test_a_cancelled_call_says_nothing_and_gives_its_place_back() -> None:
    async def test() -> None:
        provider = FakeProvider([ModelError("down")] * 3)
        gateway = made(provider)
        for _ in range(3):
            await fails(gateway)
        await asyncio.sleep(30)
        call = asyncio.ensure_future(gateway.complete(request()))
        await asyncio.sleep(0.5)
        call.cancel()
        await asyncio.sleep(0)

        assert "half_open" == gateway._breakers.states()[MODEL]
        assert "fine" == (await gateway.complete(request())).text

    virtual(test)


def test_a_call_that_only_waited_for_a_limit_says_nothing() -> None:
    async def test() -> None:
        gateway = made(FakeProvider(), limits=ModelLimits(rpm=1))
        await gateway.complete(request())
        for _ in range(5):
            assert isinstance(await fails(gateway, timeouts=Timeouts(total_s=1)), RateLimitError)

        assert {MODEL: "closed"} == gateway._breakers.states()

    virtual(test)


def test_a_try_that_never_reached_the_provider_says_nothing_even_if_its_time_is_over() -> None:
    breakers = ModelBreakers(monotonic=lambda: 0.0)
    for asked, state in ((False, "closed"), (True, "open")):
        for _ in range(3):
            breakers.enter(MODEL, BREAKER).ended(asyncio.CancelledError(), asked=asked, late=True)

        assert {MODEL: state} == breakers.states()


def test_without_settings_nothing_is_counted() -> None:
    async def test() -> None:
        gateway = made(FakeProvider([ModelError("down")] * 9), breaker=None)
        for _ in range(9):
            await fails(gateway)

        assert {} == gateway._breakers.states()
        assert "fine" == (await gateway.complete(request())).text

    virtual(test)


def test_the_most_specific_settings_hold_and_one_gateway_sees_all_calls() -> None:
    plan = GatewayPlan(
        models={"*": ModelSettings(breaker=BREAKER), MODEL: ModelSettings(breaker=ModelBreaker(7))}
    )

    assert 7 == plan.settings(MODEL).breaker.failure_threshold  # type: ignore[union-attr]
    assert 3 == plan.settings("anthropic/x").breaker.failure_threshold  # type: ignore[union-attr]
    assert (MODEL, "anthropic/x") == (plan.home_key(MODEL), plan.home_key("anthropic/x"))
    assert GatewayPlan().home_key(MODEL) is None
    assert BreakerSpec(3, 30_000_000, 1) == BREAKER.spec()


@pytest.mark.parametrize(
    "bad",
    [
        {"failure_threshold": 0},
        {"failure_threshold": True},
        {"failure_threshold": 2.5},
        {"half_open_attempts": -1},
        {"recovery_timeout": timedelta(0)},
        {"recovery_timeout": timedelta(days=2)},
        {"recovery_timeout": 30},
    ],
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        ModelBreaker(**bad)


def test_a_breaker_is_a_model_breaker() -> None:
    with pytest.raises(ConfigurationError, match="takes a ModelBreaker"):
        ModelSettings(breaker=5)  # type: ignore[arg-type]  # that is the point
