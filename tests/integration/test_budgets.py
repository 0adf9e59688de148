"""Budgets on a real Ray: a dollar for 64 workflows while gateways, workers and shards are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from flock_ray import Budget, BudgetStatus, Flock, SQLitePersistence, WorkflowError
from flock_ray.engines.llm import LiteLLMEngine
from flock_ray.gateway.settings import ModelSettings
from tests import llm_answers as answers
from tests.integration.models import Shout, Word
from tests.llm_server import LLMServer

pytestmark = pytest.mark.timeout(240)
"""What a killed gateway had reserved is waited for, for half a minute."""

MODEL = "openai/gpt-4.1-mini"
OUTPUT_USD_PER_MTOK = 200.0
"""A hundred tokens of an answer, the most that is asked for, cost two cents."""


@pytest.fixture
async def server() -> AsyncIterator[LLMServer]:
    async with LLMServer(latency_s=0.4) as server:
        server.on(lambda _: True, answers.json_answer({"text": "yes"}, usage=(1000, 100, 0)))
        yield server


def asker(new_flock: Callable[..., Flock], server: LLMServer, tmp_path: Path, **options: Any) -> Flock:
    known = ModelSettings(
        api_key=server.key,
        api_base=server.url,
        input_usd_per_mtok=0.0,
        output_usd_per_mtok=OUTPUT_USD_PER_MTOK,
    )
    flock = new_flock(
        model=MODEL, models={"openai/*": known}, shards=2, persistence=SQLitePersistence(tmp_path),
        namespace=f"budgets-{os.getpid()}-{tmp_path.name}", max_workers=2, **options,
    )  # fmt: skip
    flock.agent("oracle").description("Answers.").consumes(Word).publishes(Shout).max_concurrency(
        32
    ).max_crashes(20).with_engines(LiteLLMEngine(max_tokens=100, max_repairs=0))
    return flock


async def pids(flock: Flock, role: str) -> list[int]:
    namespace = (await flock._ready_board()).shard(0)._namespace
    found: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    names = [a["name"] for a in found if f":{role}:" in a["name"] and a["namespace"] == namespace]
    live: list[int] = []
    for name in names:
        try:
            live.append(int(await asyncio.wait_for(ray.get_actor(name, namespace).start_up.remote(), 20.0)))
        except Exception:  # it died a moment ago
            continue
    return live


async def settled(flock: Flock, account: str) -> BudgetStatus:
    """Return an account once nothing is reserved in it: an answer may be here before its bill."""
    for _ in range(300):
        status = await flock.budgets.get(account)
        if status is not None and not status.reserved_calls:
            return status
        await asyncio.sleep(0.1)
    raise AssertionError(f"{account} is never settled")


async def test_64_workflows_and_killed_processes_never_spend_more_than_the_dollar(
    new_flock: Callable[..., Flock], server: LLMServer, tmp_path: Path
) -> None:
    # Given a dollar, of which every call costs two cents
    budgets = [Budget(usd=1.0, per="agent"), Budget(usd=0.9, per="tenant")]
    flock = asker(new_flock, server, tmp_path, budgets=budgets)
    rng = random.Random(5)

    # When 64 workflows of two tenants want to spend it while their processes are killed
    await flock.publish_many([Word(text="first")], tenant="t0")
    await asyncio.gather(*(flock.publish(Word(text=f"w{n}"), tenant=f"t{n % 2}") for n in range(63)))
    for role in ("gateway", "worker", "shard", "gateway", "shard"):
        await asyncio.sleep(rng.uniform(0.2, 0.8))
        live = await pids(flock, role)
        if live:
            os.kill(rng.choice(live), signal.SIGKILL)
        assert server.num_requests * 0.02 <= 1.0 + 1e-9
    await flock.run_until_idle(timeout=150)

    # Then the server has billed no more than that, and every workflow has ended
    assert 20 <= server.num_requests <= 50
    replies = await flock.store.get_by_type(Shout)
    errors = await flock.store.get_by_type(WorkflowError)
    assert len(replies) + len(errors) == 64
    assert {error.error_type for error in errors} <= {"BudgetExceededError"}
    accounts = {status.account: status for status in await flock.budgets.list()}
    oracle = accounts["agent:oracle"]
    assert server.num_requests * 0.02 <= oracle.spent_usd + oracle.reserved_usd + 1e-9 <= 1.0 + 2e-9
    tenants = [accounts[f"tenant:t{n}"] for n in range(2)]
    assert all(tenant.spent_usd + tenant.reserved_usd <= 0.9 + 1e-9 for tenant in tenants)


async def test_a_limit_that_is_raised_while_everything_runs(
    new_flock: Callable[..., Flock], server: LLMServer, tmp_path: Path
) -> None:
    flock = asker(new_flock, server, tmp_path, budgets=[Budget(usd=0.04, per="tenant")])
    for _ in range(3):
        await flock.publish(Word(text="a"), tenant="acme")
        await flock.run_until_idle(timeout=90)
    assert server.num_requests == 2

    await flock.budgets.add("tenant:acme", usd=0.02, by="test")
    await flock.publish(Word(text="b"), tenant="acme")
    await flock.run_until_idle(timeout=60)

    assert server.num_requests == 3
    status = await settled(flock, "tenant:acme")
    assert (status.limit_usd, status.spent_usd, status.spent_calls) == (0.06, 0.06, 3)
    (row, *_) = await flock.usage(tenant="acme")
    assert row.cost_usd == pytest.approx(0.06)
