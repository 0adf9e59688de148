"""Budgets as users see them: declared, used up, raised, through a restart."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Artifact, Budget, ModelSettings, WorkflowError, degrade, flock_type
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.engines.llm import LiteLLMEngine
from flock_ray.errors import AgentError, ConfigurationError, ModelError
from flock_ray.model import ModelReply, ModelRequest, Usage
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual

DOLLAR_PER_MTOK = ModelSettings(input_usd_per_mtok=0.0, output_usd_per_mtok=1_000_000.0)
"""A token of an answer costs a dollar: easy to count with."""
PRICES = {
    "dear": DOLLAR_PER_MTOK,
    "cheap": dataclasses.replace(DOLLAR_PER_MTOK, output_usd_per_mtok=100_000.0),
}


@flock_type(name="BudgetQuestion")
class Question(BaseModel):
    """An input."""

    text: str = ""


@flock_type(name="BudgetReply")
class Reply(BaseModel):
    """An output."""

    text: str = ""


class Metered(ScriptedModel):
    """Answers with as many tokens as asked for, and bills them."""

    def __init__(
        self, tokens: int = 5, *, sent: int = 1, delay_s: float = 1.0, fails: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(None, delay_s=delay_s)
        self.sent = sent
        self.tokens, self.fails, self.rng = tokens, fails, random.Random(seed)
        self.billed = 0
        self.most_billed = 0

    async def complete(self, request: ModelRequest, on_text: Any = None) -> ModelReply:
        """Bill when the call comes in: the provider does not care who reads the answer."""
        self.requests.append(request)
        self.running += 1
        self.billed += self.tokens * (10 if request.model == "dear" else 1)
        try:
            await asyncio.sleep(self._delay_s)
        finally:
            self.running -= 1
        if self.rng.random() < self.fails:
            raise ModelError("cut")
        return ModelReply(
            text=Reply(text="x").model_dump_json(), model=request.model,
            usage=Usage(input_tokens=self.sent, output_tokens=self.tokens),
        )  # fmt: skip

    @property
    def models(self) -> list[str]:
        """Return which models were asked."""
        return [request.model for request in self.requests]


def flock_of(model: Any, *, agents: int = 1, **options: Any) -> VirtualFlock:
    """Declare agents that ask a model for 5 to 10 tokens."""
    flock = VirtualFlock("dear", language_model=model, models=PRICES, no_output=True, **options)
    for number in range(agents):
        engine = LiteLLMEngine(max_tokens=10, max_repairs=0)
        flock.agent(f"a{number}").consumes(Question).publishes(Reply).with_engines(engine)
    return flock


async def ended(flock: VirtualFlock) -> tuple[int, list[WorkflowError]]:
    """Wait, and return how many replies and which errors there are."""
    await flock.run_until_idle()
    replies = await flock.store.get_by_type(Reply)
    return len(replies), await flock.store.get_by_type(WorkflowError)


# -- used up ------------------------------------------------------------------------------------------


def test_a_run_that_can_not_be_paid_fails_and_is_not_tried_again() -> None:
    async def main() -> None:
        model = Metered()
        async with flock_of(model, budgets=[Budget(usd=10, per="agent")]) as flock:
            for _ in range(3):
                await flock.publish(Question())
                await flock.run_until_idle()
            replies, errors = await ended(flock)
            assert replies == 1 and len(errors) == 2
            assert errors[0].error_type == "BudgetExceededError"
            assert "agent:a0" in errors[0].error_message
            assert model.models == ["dear"]
            (status,) = await flock.budgets.list()
            assert (status.account, status.limit_usd, status.spent_usd, status.reserved_usd) == (
                "agent:a0",
                10,
                5,
                0,
            )
            assert (status.spent_calls, status.spent_tokens, status.on_exceeded) == (1, 6, "stop")
            await flock.budgets.set("agent:a0", usd=6, by="me")
            events = flock.events("budget")
            told = [await anext(events), await anext(events)]
            assert [(e.kind, e.agent) for e in told] == [("budget.exceeded", "a0"), ("budget.set", "")]
            assert told[0].detail.startswith("agent:a0: nusd: limit 10000000000, left 5000000000")
            assert told[1].detail == "agent:a0: 6 USD, by me"

    run_virtual(main())


@pytest.mark.parametrize(
    ("budget", "calls"), [(Budget(calls=2, per="day"), 2), (Budget(tokens=5_000, per="day"), 4)]
)
def test_calls_and_tokens_are_limited_too(budget: Budget, calls: int) -> None:
    async def main() -> None:
        model = Metered(tokens=10, sent=1_000)
        async with flock_of(model, budgets=[budget]) as flock:
            for _ in range(calls + 3):
                await flock.publish(Question(text="x" * 300))
                await flock.run_until_idle()
            status = await flock.budgets.get("day")
            assert status is not None and len(model.requests) == status.spent_calls == calls
            assert status.spent_tokens == calls * 1_010

    run_virtual(main())


def test_each_workflow_and_each_tenant_has_its_own() -> None:
    async def main() -> None:
        model = Metered(tokens=10)
        budgets = [Budget(usd=10, per="workflow"), Budget(usd=20, per="tenant")]
        async with flock_of(model, budgets=budgets) as flock:
            for tenant in ("acme", "acme", "acme", "other", None):
                await flock.publish(Question(), tenant=tenant)
                await flock.run_until_idle()
            replies, errors = await ended(flock)
            assert (replies, len(errors)) == (4, 1)
            tenants = {s.account: s.spent_usd for s in await flock.budgets.list(per="tenant")}
            assert tenants == {"tenant:acme": 20, "tenant:other": 10, "tenant:": 10}
            assert len(await flock.budgets.list(per="workflow")) == 4  # one was refused by its tenant
            used = {row.tenant: row.calls for row in await flock.usage()}
            assert used == {"acme": 2, "other": 1, "": 1}
            assert [row.calls for row in await flock.usage(tenant="other")] == [1]

    run_virtual(main())


def test_what_agents_make_belongs_to_the_tenant_of_their_inputs() -> None:
    @flock_type(name="BudgetNote")
    class Note(BaseModel):
        text: str = ""

    async def main() -> None:
        model = Metered()
        flock = VirtualFlock("dear", language_model=model, models=PRICES, no_output=True)
        flock.agent("first").consumes(Question).publishes(Note).runs(lambda q: Note())
        flock.agent("second").consumes(Note).publishes(Reply).tenant("house").with_engines(
            LiteLLMEngine(max_tokens=10)
        )
        async with flock:
            await flock.publish(Question(), tenant="acme", tags={"x"})
            await flock.publish(Question())
            await flock.run_until_idle()
            assert sorted(r.caller.tenant for r in model.requests) == ["acme", "house"]
            tags = {tuple(sorted(a.tags)) for a in [Artifact.from_envelope(e) for e in await _all(flock)]}
            assert tags == {("tenant:acme", "x"), ()}

    async def _all(flock: VirtualFlock) -> list[Any]:
        return await (await flock._ready_board()).read()

    run_virtual(main())


def test_a_strange_tenant_is_refused_before_anything_happens() -> None:
    async def main() -> None:
        async with flock_of(Metered()) as flock:
            with pytest.raises(ConfigurationError, match="A tenant's id"):
                await flock.publish(Question(), tenant="a/b")
            with pytest.raises(ConfigurationError, match="A tenant's id"):
                await flock.publish_many([Question()], tenant="")
            assert await ended(flock) == (0, [])

    run_virtual(main())


def test_a_workflow_can_have_a_budget_of_its_own() -> None:
    async def main() -> None:
        model = Metered(tokens=10)
        async with flock_of(model, shards=3) as flock:
            first = await flock.publish(Question(), budget=Budget(usd=20))
            assert first.tags == {f"budget:{first.correlation_id}"}
            for _ in range(2):  # it knows the budget of its workflow
                await flock.publish(Question(), correlation_id=str(first.correlation_id))
                await flock.run_until_idle()
            await flock.publish_many([Question(), Question()], budget=Budget(calls=1), tenant="acme")
            await flock.publish(Question())
            replies, errors = await ended(flock)
            assert (replies, len(errors)) == (2 + 1 + 1, 1 + 1)
            status = await flock.budgets.get(f"workflow:{first.correlation_id}")
            assert status is not None and status.is_set and (status.limit_usd, status.spent_usd) == (20, 20)

    run_virtual(main())


@pytest.mark.parametrize("budget", [Budget(usd=1, per="day"), 5])
def test_a_budget_of_publish_is_for_its_workflow(budget: Any) -> None:
    async def main() -> None:
        async with flock_of(Metered()) as flock:
            with pytest.raises(ConfigurationError, match=r"publish\(budget"):
                await flock.publish(Question(), budget=budget)

    run_virtual(main())


def test_a_tenants_budget_begins_anew_with_the_month() -> None:
    async def main() -> None:
        model = Metered(tokens=10)
        budget = Budget(usd=20, per="tenant", renews="month", on_exceeded="queue")
        async with flock_of(model, budgets=[budget]) as flock:
            for _ in range(3):  # ten dollars each; virtual time begins on the first of January
                await flock.publish(Question(), tenant="acme")
            await flock.publish(Question(), tenant="other")
            await asyncio.sleep(30 * 86_400)
            assert len(model.requests) == 3
            assert [s.account for s in await flock.budgets.list(per="tenant")] == [
                "month/tenant:acme", "month/tenant:other"
            ]  # fmt: skip
            await asyncio.sleep(2 * 86_400)
            assert len(model.requests) == 4
            assert (await flock.budgets.get("month/tenant:acme")).spent_usd == 10  # type: ignore[union-attr]

    run_virtual(main())


def test_a_run_waits_for_the_next_day_without_its_worker() -> None:
    async def main() -> None:
        model = Metered(tokens=10)
        budget = Budget(usd=20, per="day", on_exceeded="queue")
        async with flock_of(model, budgets=[budget]) as flock:
            now = asyncio.get_running_loop().time
            await flock.publish_many([Question() for _ in range(4)])
            await asyncio.sleep(3600)
            assert len(model.requests) == 2 and model.running == 0
            replies, errors = await ended(flock)
            assert (replies, errors) == (4, [])
            assert 86400 <= now() < 86400 + 60
            assert len(model.requests) == 4
            assert (await flock.budgets.get("day")).spent_usd == 20  # type: ignore[union-attr]

    run_virtual(main())


def test_a_run_that_waits_goes_on_when_somebody_raises_the_limit() -> None:
    async def main() -> None:
        model = Metered(tokens=10)
        async with flock_of(model, budgets=[Budget(usd=10, per="tenant", on_exceeded="queue")]) as flock:
            await flock.publish_many([Question(), Question()], tenant="acme")
            await asyncio.sleep(5000)
            assert len(model.requests) == 1
            await flock.budgets.add("tenant:acme", usd=10, by="me")
            await asyncio.sleep(601)
            assert await ended(flock) == (2, [])
            status = await flock.budgets.get("tenant:acme")
            assert status is not None and status.is_set and status.limit_usd == 20

    run_virtual(main())


def test_waiting_does_not_count_as_an_attempt() -> None:
    async def main() -> None:
        model = Metered(tokens=10)
        flock = flock_of(model, budgets=[Budget(usd=10, per="day", on_exceeded="queue")])
        flock.get_agent("a0").retry(max_attempts=2)
        async with flock:
            await flock.publish_many([Question(), Question()])
            assert await ended(flock) == (2, [])

    run_virtual(main())


def test_the_cheaper_model_takes_the_last_share() -> None:
    async def main() -> None:
        model = Metered(tokens=10)
        async with flock_of(
            model, budgets=[Budget(usd=25, per="agent", on_exceeded=degrade("cheap"))]
        ) as flock:
            for _ in range(10):
                await flock.publish(Question())
                await flock.run_until_idle()
            replies, errors = await ended(flock)
            assert model.models == ["dear"] * 2 + ["cheap"] * 5
            assert (replies, len(errors)) == (7, 3)
            assert {(row.model, row.cost_usd) for row in await flock.usage()} == {
                ("dear", 20.0), ("cheap", 5.0),
            }  # fmt: skip

    run_virtual(main())


# -- looking and setting ------------------------------------------------------------------------------


def test_limits_are_set_and_taken_back() -> None:
    async def main() -> None:
        async with flock_of(Metered(tokens=10), budgets=[Budget(usd=1, per="tenant")], shards=2) as flock:
            await flock.budgets.set("tenant:big", usd=100, by="sales")
            await flock.publish(Question(), tenant="big")
            await flock.publish(Question(), tenant="small")
            assert (await ended(flock))[0] == 1
            await flock.budgets.clear("tenant:big")
            await flock.publish(Question(), tenant="big")
            assert (await ended(flock))[0] == 1
            (big,) = await flock.budgets.list()
            assert (big.account, big.limit_usd, big.is_set, big.spent_usd) == ("tenant:big", 1.0, False, 10.0)
            assert await flock.budgets.get("tenant:nobody") is None

    run_virtual(main())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.set("tenant:x"), "give usd="),
        (lambda b: b.add("tenant:x", usd=-1), "above 0"),
        (lambda b: b.set("nonsense", usd=1), "no budget account 'nonsense'"),
        (lambda b: b.get("agent:a/agent:b"), "no budget account"),
        (lambda b: b.get(None), "no budget account"),
        (lambda b: b.list(per="week"), "choose one of"),
        (lambda b: b.list(limit=0), "1 or more"),
    ],
)
def test_nonsense_is_refused(call: Any, message: str) -> None:
    async def main() -> None:
        async with flock_of(Metered()) as flock:
            with pytest.raises(ConfigurationError, match=message):
                await call(flock.budgets)

    run_virtual(main())


def test_lists_are_bounded_and_complete() -> None:
    async def main() -> None:
        async with flock_of(Metered(), shards=3) as flock:
            for number in range(30):
                await flock.budgets.set(f"tenant:{number:02}", calls=1)
            assert [s.account for s in await flock.budgets.list()] == [f"tenant:{n:02}" for n in range(30)]
            assert len(await flock.budgets.list(limit=7)) == 7
            assert await flock.budgets.list(per="agent") == []

    run_virtual(main())


def test_usage_by_day() -> None:
    async def main() -> None:
        async with flock_of(Metered()) as flock:
            for _ in range(2):
                await flock.publish(Question())
                await flock.run_until_idle()
                await asyncio.sleep(86400)
            await flock.publish(Question())
            await flock.run_until_idle()
            rows = await flock.usage(by_day=True)
            assert [(str(row.day), row.calls) for row in rows] == [
                ("2026-01-01", 1), ("2026-01-02", 1), ("2026-01-03", 1),
            ]  # fmt: skip
            (all_,) = await flock.usage()
            assert all_.day is None and all_.calls == 3
            assert [row.calls for row in await flock.usage(by_day=True, since=timedelta(hours=30))] == [1, 1]

    run_virtual(main())


# -- through crashes ----------------------------------------------------------------------------------


def test_what_is_spent_survives_a_restart() -> None:
    async def main() -> None:
        options: dict[str, Any] = {
            "persistence": MemoryPersistence(),
            "budgets": [Budget(usd=20, per="agent")],
        }
        model = Metered(tokens=10)
        for _ in range(3):
            async with flock_of(model, **options) as flock:
                await flock.publish(Question())
                await flock.run_until_idle()
                status = await flock.budgets.get("agent:a0")
                assert status is not None and status.reserved_usd == 0
        assert len(model.requests) == 2

    run_virtual(main())


@pytest.mark.parametrize("seed", range(3))
def test_many_workflows_and_one_dollar_and_crashes(seed: int) -> None:
    """64 workflows, each of three agents: whatever dies, the provider never bills more than the dollar."""

    async def main() -> None:
        rng = random.Random(seed)
        cent = dataclasses.replace(DOLLAR_PER_MTOK, output_usd_per_mtok=1000.0)  # 0.1 cent a token
        model = Metered(tokens=7, delay_s=0.7, fails=0.1, seed=seed)
        flock = flock_of(
            model, agents=3, shards=3, persistence=MemoryPersistence(), max_workers=3,
            budgets=[Budget(usd=1.0, per="day"), Budget(usd=0.5, per="agent"), Budget(usd=1, per="tenant")],
        )  # fmt: skip
        flock._gateway_plan = dataclasses.replace(flock._gateway_plan, models={"dear": cent})
        async with flock:
            await asyncio.gather(*(flock.publish(Question(), tenant=f"t{n % 2}") for n in range(64)))
            board = flock.local
            assert board is not None
            for _ in range(12):
                await asyncio.sleep(rng.uniform(0.05, 0.6))
                if rng.random() < 0.5 and board.workers:
                    worker = rng.choice(sorted(board.workers))
                    await board.stop(worker)
                    assert board.the_router is not None
                    board.the_router._forget(worker)  # as when the call to it fails
                else:
                    index = rng.randrange(3)
                    shard = board.shards[index]
                    assert shard is not None
                    board.shards[index] = None
                    await shard.close()
                    await asyncio.sleep(rng.uniform(0, 0.5))
                    again = board.shards[index] = board._make_shard(index)
                    again.start()
                assert len(model.requests) * 7 * 0.001 <= 1.0
            await asyncio.sleep(300)
            assert len(model.requests) * 7 * 0.001 <= 1.0
            spent = {s.account: s.spent_usd + s.reserved_usd for s in await flock.budgets.list()}
            assert spent["day"] <= 1.0 and spent["agent:a0"] <= 0.5
            assert len(model.requests) * 7 * 0.001 <= spent["day"] + 1e-9
            assert len(model.requests) > 40

    run_virtual(main())


def test_invoking_is_in_the_budget_too() -> None:
    async def main() -> None:
        async with flock_of(Metered(tokens=10), budgets=[Budget(usd=10, per="agent")]) as flock:
            await flock.invoke("a0", Question())
            with pytest.raises(AgentError, match="BudgetExceededError: The budget agent:a0"):
                await flock.invoke("a0", Question())

    run_virtual(main())
