"""Budgets in the gateway: worst cases, reservations with several shards, and what is settled after a call."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.actors.gateway import GatewayHost
from flock_ray.actors.model_link import ModelLink
from flock_ray.actors.model_messages import error_of, failure_of
from flock_ray.core.budgets import (
    NUSD,
    Amount,
    Charge,
    Limit,
    Refusal,
    Reserve,
    Settle,
    Terms,
    home_of_account,
)
from flock_ray.errors import (
    BudgetExceededError,
    ModelError,
    ModelRequestError,
    RateLimitError,
    StoreUnavailableError,
)
from flock_ray.gateway.budgets import GIVE_UP_S, WAIT_S, within_budget
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.provider import Answer
from flock_ray.gateway.quotes import Tariff, quote
from flock_ray.gateway.settings import GatewayPlan, ModelLimits, ModelSettings
from flock_ray.model import Caller, ModelReply, ModelRequest, Usage
from flock_ray.testing import run_virtual
from tests.unit.gateway.fake_shards import NOW, FakeShards
from tests.unit.gateway.fakes import MODEL, FakeProvider, request

STOP = Terms()
PRICES = ModelSettings(input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)
PLAN = GatewayPlan(
    models={MODEL: PRICES, "cheap": ModelSettings(input_usd_per_mtok=0.001, output_usd_per_mtok=0.001)}
)


def monotonic() -> float:
    """Return the running loop's time."""
    return asyncio.get_running_loop().time()


def charge(account: str, usd: float | None = None, terms: Terms | None = STOP, **limits: int) -> Charge:
    """Pay by an account."""
    return Charge(account, Limit(None if usd is None else round(usd * NUSD), **limits), terms)


def paid(*charges: Charge, text: str = "hello", **more: Any) -> ModelRequest:
    """Ask something that accounts pay for."""
    return request(text, **{"max_tokens": 100, "caller": Caller(agent="a", charges=charges), **more})


def answered(tokens: int = 50) -> Answer:
    """Answer."""
    return Answer(ModelReply(text="x", usage=Usage(input_tokens=tokens, output_tokens=tokens)))


def gateway(shards: FakeShards, provider: Any, plan: GatewayPlan = PLAN) -> Gateway:
    """Return a gateway on the running loop."""
    return Gateway(plan, provider=provider, ledger=shards.link(monotonic), monotonic=monotonic)


async def settle() -> None:
    """Let messages arrive."""
    await asyncio.sleep(0.1)


# -- reserving ----------------------------------------------------------------------------------------


def test_calls_of_one_turn_are_one_message() -> None:
    async def main() -> None:
        shards = FakeShards(1)
        link = shards.link(monotonic)
        asks = [Reserve(bytes([n]), Amount(1, 1, 1), (charge("day", 1.0),)) for n in range(50)]
        assert await asyncio.gather(*(link.reserve(ask) for ask in asks)) == [None] * 50
        link.settle([Settle(ask.key, "day", Amount()) for ask in asks])
        await settle()
        assert shards.messages == [("reserve", 50), ("settle", 50)]
        assert shards.accounts()["day"].held == Amount()

    run_virtual(main())


def test_what_one_shard_has_reserved_is_given_back_when_another_refuses() -> None:
    async def main() -> None:
        shards = FakeShards(4)
        names = [f"tenant:{n}" for n in range(40)]
        poor = max(names, key=lambda name: home_of_account(name) % 4)
        charges = tuple(charge(name, 0.0000001 if name == poor else 1.0) for name in names)
        refusal = await shards.link(monotonic).reserve(Reserve(b"k", Amount(1000, 1, 1), charges))
        await settle()
        assert refusal is not None and refusal.account == poor
        assert {account.held for account in shards.accounts().values()} <= {Amount()}
        assert {account.spent for account in shards.accounts().values()} <= {Amount()}

    run_virtual(main())


@given(
    st.lists(st.sampled_from(["", "before", "after"]), max_size=60),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=25),
)
@settings(max_examples=60, deadline=None)
def test_no_limit_is_exceeded_and_nothing_is_lost_whatever_messages_get_lost(
    losses: list[str], calls: list[tuple[int, int, int]]
) -> None:
    """Each call pays by two accounts, uses what it reserved or nothing, and may be cancelled on its way."""

    async def main() -> None:
        shards, limit = FakeShards(3), 100
        trouble = iter(losses)
        shards.away = lambda method: next(trouble, "")
        link = shards.link(monotonic)
        used: dict[str, int] = {}

        async def call(number: int, one: int, two: int, amount: int) -> None:
            charges = tuple(
                Charge(name, Limit(limit), STOP) for name in sorted({f"tenant:{one}", f"agent:{two}"})
            )
            await asyncio.sleep(0.002 * (number % 5))
            ask = Reserve(number.to_bytes(2, "big"), Amount(amount, 1, 1), charges)
            if number % 7 == 6:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.0005):
                        await link.reserve(ask)
                return
            if await link.reserve(ask) is None:
                real = amount if number % 2 else 0
                for paying in charges:
                    used[paying.account] = used.get(paying.account, 0) + real
                    assert used[paying.account] <= limit
                link.settle([Settle(ask.key, paying.account, Amount(real, 1, 1)) for paying in charges])

        await asyncio.gather(*(call(number, *args) for number, args in enumerate(calls)))
        await asyncio.sleep(60)
        await link.flushed()
        for name, account in shards.accounts().items():
            assert account.spent.nusd == used.get(name, 0), name
            assert account.held == Amount()

    run_virtual(main())


@pytest.mark.parametrize("trouble", ["before", "after", "broken"])
def test_a_shard_that_stays_away_fails_the_call_and_the_provider_is_not_called(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider()
        shards.away = lambda method: trouble
        started = monotonic()
        with pytest.raises(StoreUnavailableError, match="did not answer"):
            await gateway(shards, provider).complete(paid(charge("day", 1.0)))
        assert GIVE_UP_S <= monotonic() - started < GIVE_UP_S + 5
        assert not provider.starts
        shards.away = lambda method: ""
        await asyncio.sleep(5)  # what it may have reserved is given back
        assert all(account.held == Amount() for account in shards.accounts().values())

    run_virtual(main())
    assert len(caplog.records) == (trouble == "broken")


# -- calls --------------------------------------------------------------------------------------------


def test_a_call_is_settled_with_what_it_used() -> None:
    async def main() -> None:
        shards, provider = FakeShards(2), FakeProvider(answer=lambda _: answered())
        await gateway(shards, provider).complete(paid(charge("day", 1.0), charge("tenant:t")))
        await settle()
        for account in shards.accounts().values():
            assert (account.spent, account.held) == (Amount(100_000, 100, 1), Amount())

    run_virtual(main())


def test_a_call_that_is_in_no_budget_asks_nobody() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered())
        await gateway(shards, provider).complete(request())
        await settle()
        assert not shards.messages

    run_virtual(main())


def test_without_a_board_a_call_in_a_budget_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ModelRequestError, match="no board here"):
            await Gateway(PLAN, provider=FakeProvider(), monotonic=monotonic).complete(
                paid(charge("day", 1.0))
            )

    run_virtual(main())


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        (RateLimitError("no", retry_after_s=0.1), 0),
        (ModelRequestError("no"), 0),
        (ModelError("cut"), 1),
        (RuntimeError("who knows"), 1),
    ],
)
def test_a_try_that_failed_is_paid_unless_the_provider_refused_it(error: Exception, spent: int) -> None:
    async def main() -> None:
        shards = FakeShards(1)
        plan = GatewayPlan(models={MODEL: dataclasses.replace(PRICES, max_tries=1)})
        with pytest.raises(type(error)):
            await gateway(shards, FakeProvider([error]), plan).complete(paid(charge("day", 1.0)))
        await settle()
        account = shards.accounts()["day"]
        assert account.held == Amount() and account.spent.calls == spent
        assert bool(account.spent.nusd) == bool(spent)

    run_virtual(main())


def test_each_try_of_a_call_is_reserved_and_settled_by_itself() -> None:
    async def main() -> None:
        shards = FakeShards(1)
        provider = FakeProvider(
            [ModelError("cut"), RateLimitError("no", retry_after_s=1), None], answer=lambda _: answered()
        )
        await gateway(shards, provider).complete(paid(charge("day", 1.0)))
        await settle()
        account = shards.accounts()["day"]
        assert account.spent.calls == 2  # the one that was cut, at its worst case, and the last
        assert account.spent.tokens > 200 and account.held == Amount()

    run_virtual(main())


def test_a_call_that_is_cancelled_stays_spent() -> None:
    async def main() -> None:
        shards = FakeShards(1)
        call = asyncio.ensure_future(
            gateway(shards, FakeProvider(delay_s=10)).complete(paid(charge("day", 1.0)))
        )
        await asyncio.sleep(1)
        call.cancel()
        await settle()
        account = shards.accounts()["day"]
        assert account.spent.calls == 1 and account.spent.nusd > 100_000 and account.held == Amount()

    run_virtual(main())


def test_answers_from_the_cache_cost_nothing() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered())
        asks = gateway(shards, provider)
        for _ in range(3):
            await asks.complete(paid(charge("day", 1.0, calls=1), cache_ttl_s=60.0))
        await settle()
        assert shards.accounts()["day"].spent.calls == 1

    run_virtual(main())


def test_a_used_up_budget_stops_the_call_and_says_what_to_do() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered())
        asks = gateway(shards, provider)
        with pytest.raises(BudgetExceededError) as caught:
            await asks.complete(paid(charge("tenant:acme", 0.00001)))
        assert "The budget tenant:acme is used up" in str(caught.value)
        assert "0.00001" in str(caught.value) and "flock.budgets.add('tenant:acme', usd=...)" in str(
            caught.value
        )
        assert not caught.value.retryable and caught.value.agent == "a"
        assert not hasattr(caught.value, "retry_after_s") and not provider.starts

    run_virtual(main())


def test_a_call_waits_for_others_that_may_give_back_enough() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered(1), delay_s=3.0)
        asks = gateway(shards, provider)
        one = quote(paid(), PRICES, Tariff(1000.0, 1000.0)).amount.nusd
        both = await asyncio.gather(
            *(asks.complete(paid(charge("day", (one + 5000) / NUSD))) for _ in range(2))
        )
        assert len(both) == 2
        assert 3.0 <= provider.starts[1][0] - provider.starts[0][0] < 5.1

    run_virtual(main())


def test_a_call_that_waits_for_money_holds_back_nobody() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered(1), delay_s=3.0)
        plan = GatewayPlan(models={MODEL: dataclasses.replace(PRICES, limits=ModelLimits(concurrency=2))})
        asks = gateway(shards, provider, plan)
        one = quote(paid(), PRICES, Tariff(1000.0, 1000.0)).amount.nusd
        poor = [
            asyncio.ensure_future(asks.complete(paid(charge("day", (one + 5000) / NUSD)))) for _ in range(2)
        ]
        await asyncio.sleep(0.5)
        started = monotonic()
        await asks.complete(request("free"))
        assert monotonic() - started == pytest.approx(3.0, abs=0.1)
        await asyncio.gather(*poor)

    run_virtual(main())


def test_a_lost_reservation_is_not_waited_for_for_ever() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered(1))
        link = shards.link(monotonic)
        assert await link.reserve(Reserve(b"lost", Amount(900_000, 1, 1), (charge("day", 0.001),))) is None
        started = monotonic()
        with pytest.raises(BudgetExceededError, match="while other calls run"):
            await gateway(shards, provider).complete(paid(charge("day", 0.001)))
        assert WAIT_S <= monotonic() - started < WAIT_S + 5

    run_virtual(main())


def test_a_run_that_may_queue_is_told_how_long_and_until_when() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered())
        with pytest.raises(BudgetExceededError) as caught:
            await gateway(shards, provider).complete(paid(charge("day", 0.00001, Terms("queue"))))
        assert isinstance(caught.value, BudgetExceededError)
        found: Any = error_of(failure_of(caught.value))  # as a worker gets it
        assert found.code == "budget_exceeded"
        assert (found.retry_after_s, found.renews_us) == (60.0, NOW + 24 * 3_600_000_000)

    run_virtual(main())


def test_the_cheaper_model_answers_when_most_is_used() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered())
        asks = gateway(shards, provider)
        terms = Terms("degrade", "cheap", 800)
        for _ in range(20):
            await asks.complete(paid(charge("day", 0.001, terms), fallbacks=["openai/other"]))
        await settle()
        models = [asked.model for _, asked in provider.starts]
        assert models == [MODEL] * models.count(MODEL) + ["cheap"] * models.count("cheap")
        assert 4 <= models.count(MODEL) <= 8
        assert shards.accounts()["day"].spent.nusd <= 1_000_000

    run_virtual(main())


def test_the_cheaper_model_does_not_exceed_the_budget_either() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered())
        with pytest.raises(BudgetExceededError) as caught:
            await gateway(shards, provider).complete(
                paid(charge("day", 0.00000001, Terms("degrade", "cheap", 800)))
            )
        assert "cheap" in str(caught.value) and not provider.starts

    run_virtual(main())


def test_text_that_was_told_starts_again_with_the_cheaper_model() -> None:
    async def main() -> None:
        told: list[str] = []

        async def ask(asked: ModelRequest, on_text: Callable[[str], None] | None) -> ModelReply:
            assert on_text is not None
            if asked.model == "cheap":
                on_text("new")
                return answered().reply
            on_text("old")
            error: Any = BudgetExceededError("used up")
            error.degrade_to = "cheap"
            raise error

        await within_budget(ask, paid(), told.append)
        assert told == ["old", "", "new"]

    run_virtual(main())


@pytest.mark.parametrize(
    ("model", "max_tokens", "message"),
    [
        ("openai/unheard-of", 10, "the price of openai/unheard-of is not known"),
        (MODEL, None, "Set max_tokens"),
    ],
)
def test_what_nobody_knows_is_refused_and_says_what_to_set(
    model: str, max_tokens: int | None, message: str
) -> None:
    async def main() -> None:
        with pytest.raises(ModelRequestError, match=message):
            await gateway(FakeShards(1), FakeProvider()).complete(
                paid(charge("day", 1.0), model=model, max_tokens=max_tokens)
            )

    run_virtual(main())


def test_a_gateway_that_dies_leaves_what_it_reserved_and_the_next_one_stays_below_the_limit() -> None:
    async def main() -> None:
        shards, billed = FakeShards(2), 0

        class Billing:
            async def call(self, asked: ModelRequest, settings: ModelSettings, on_text: Any) -> Answer:
                nonlocal billed
                billed += 150_000  # whoever reads the answer
                await asyncio.sleep(1.0)
                return answered(75)

        charges = (charge("day", 0.003), charge("tenant:acme", 0.003))
        for round_ in range(20):
            asks = gateway(shards, Billing())
            calls = [asyncio.ensure_future(asks.complete(paid(*charges, text="x" * 20))) for _ in range(4)]
            await asyncio.sleep(0.3 + 0.1 * (round_ % 9))
            asks._ledger.settle = lambda ends: None  # type: ignore[union-attr, method-assign]  # killed
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert billed <= 3_000_000
        assert billed > 1_000_000

    run_virtual(main())


def linked(shards: FakeShards, provider: Any) -> tuple[ModelLink, Callable[[], None]]:
    """Return a worker's way to a gateway, and what kills that gateway."""
    hosts: list[GatewayHost] = []

    async def connect(index: int) -> Any:
        hosts.append(GatewayHost(lambda: gateway(shards, provider), monotonic=monotonic))
        return hosts[-1]

    def kill() -> None:
        made = hosts[-1]._gateway
        assert made is not None and made._ledger is not None
        made._ledger.settle = lambda ends: None  # type: ignore[method-assign]  # its process is gone
        hosts[-1].close()
        link._lost(link._lines[0], link._lines[0].session)

    link = ModelLink("w", PLAN, connect, monotonic=monotonic)
    link.begin()
    return link, kill


def test_a_worker_goes_on_with_the_cheaper_model() -> None:
    async def main() -> None:
        shards, provider = FakeShards(2), FakeProvider(answer=lambda _: answered())
        link, _ = linked(shards, provider)
        terms = Terms("degrade", "cheap", 1)
        reply = await link.complete(paid(charge("day", 0.1, terms), fallbacks=["openai/other"]))
        assert reply.model == "cheap" and [asked.model for _, asked in provider.starts] == ["cheap"]

    run_virtual(main())


def test_a_call_that_another_gateway_makes_again_is_paid_again() -> None:
    async def main() -> None:
        shards, provider = FakeShards(1), FakeProvider(answer=lambda _: answered(1), delay_s=2.0)
        link, kill = linked(shards, provider)
        call = asyncio.ensure_future(link.complete(paid(charge("day", 1.0))))
        await asyncio.sleep(1.0)
        kill()
        await call
        await settle()
        account = shards.accounts()["day"]
        assert len(provider.starts) == 2
        assert account.spent.calls == 1 and account.held.calls == 1  # the lost one may have been billed
        assert account.held.nusd > account.spent.nusd

    run_virtual(main())


def test_refusals_survive_the_way_to_the_worker() -> None:
    error: Any = BudgetExceededError("x")
    error.degrade_to = "cheap"
    found: Any = error_of(failure_of(error))
    assert found.degrade_to == "cheap" and found.retry_after_s is None
    assert Refusal("day", "nusd").terms == STOP
