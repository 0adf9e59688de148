from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import BatchSpec, Flock, JoinSpec, flock_type
from tests.integration.models import Length, Shout, Word

pytestmark = pytest.mark.timeout(180)

NewFlock = Callable[..., Flock]


@flock_type(name="boards.Seed")
class Seed(BaseModel):
    n: int


@flock_type(name="boards.Doubled")
class Doubled(BaseModel):
    n: int


@flock_type(name="boards.Pair")
class Pair(BaseModel):
    seed: int
    doubled: int


@flock_type(name="boards.Report")
class Report(BaseModel):
    pairs: int
    total: int


@flock_type(name="boards.Invoice")
class Invoice(BaseModel):
    key: str


@flock_type(name="boards.Payment")
class Payment(BaseModel):
    key: str


@flock_type(name="boards.Settled")
class Settled(BaseModel):
    invoice: str
    payment: str


async def test_chain_and_join_and_batch_give_exact_results_across_four_shards(new_flock: NewFlock) -> None:
    # Given agents that chain, pair within a workflow, join and batch across workflows, on four shards
    flock = new_flock(shards=4)
    flock.agent("double").consumes(Seed).publishes(Doubled).runs(lambda s: Doubled(n=2 * s.n))
    flock.agent("pair").consumes(Seed, Doubled).publishes(Pair).runs(lambda s, d: Pair(seed=s.n, doubled=d.n))
    flock.agent("report").consumes(Pair, batch=BatchSpec(size=10)).publishes(Report).runs(
        lambda pairs: Report(pairs=len(pairs), total=sum(p.doubled for p in pairs))
    )
    flock.agent("settle").consumes(
        Invoice, Payment, join=JoinSpec(by=lambda a: a.key, within=timedelta(minutes=5))
    ).publishes(Settled).runs(lambda i, p: Settled(invoice=i.key, payment=p.key))

    # When 40 seeds, 20 invoices and 20 payments arrive, each a workflow of its own
    await asyncio.gather(*(flock.publish(Seed(n=n)) for n in range(40)))
    await asyncio.gather(*(flock.publish(Payment(key=f"k{n}")) for n in range(20)))
    await asyncio.gather(*(flock.publish(Invoice(key=f"k{n}")) for n in range(20)))
    await flock.run_until_idle(timeout=60)

    # Then each pair is of one workflow, each batch full, each payment meets its invoice, all exactly once
    pairs = await flock.store.get_by_type(Pair)
    assert sorted((p.seed, p.doubled) for p in pairs) == [(n, 2 * n) for n in range(40)]
    reports = await flock.store.get_by_type(Report)
    assert [r.pairs for r in reports] == [10] * 4
    assert sum(r.total for r in reports) == sum(2 * n for n in range(40))
    settled = await flock.store.get_by_type(Settled)
    assert sorted((s.invoice, s.payment) for s in settled) == sorted((f"k{n}", f"k{n}") for n in range(20))


async def test_two_flocks_of_one_process_do_not_see_each_other(new_flock: NewFlock) -> None:
    # Given two flocks with different agents of the same name
    loud, long = new_flock(), new_flock()
    loud.agent("a").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=w.text.upper()))
    long.agent("a").consumes(Word).publishes(Length).runs(lambda w: Length(text=w.text, length=len(w.text)))

    # When one of them gets a word
    await asyncio.gather(loud.publish(Word(text="hi")), long.start())
    await asyncio.gather(loud.run_until_idle(timeout=60), long.run_until_idle(timeout=60))

    # Then only its agent has run
    assert [s.text for s in await loud.store.get_by_type(Shout)] == ["HI"]
    assert await long.store.list() == []


SECOND_DRIVER = """
    import asyncio, json, sys
    from flock_ray import Flock
    from tests.integration.models import Length, Shout, Word

    async def main():
        flock = Flock(namespace=sys.argv[1])
        flock.agent("measure").consumes(Word, where=lambda w: len(w.text) > 1).publishes(Length).runs(
            lambda w: Length(text=w.text, length=len(w.text)))
        before = [s.text for s in await flock.store.get_by_type(Shout)]
        await flock.publish(Word(text="bb"))
        await flock.run_until_idle(timeout=60)
        shouts = [s.text for s in await flock.store.get_by_type(Shout)]
        print(json.dumps([before, shouts]))
        await flock.shutdown()

    asyncio.run(main())
"""


async def test_a_second_driver_joins_the_board_and_its_agents_match_what_the_first_publishes(
    new_flock: NewFlock, run_script: Any
) -> None:
    # Given a board with one agent and one result
    namespace = f"shared-{uuid.uuid4().hex}"
    flock = new_flock(namespace=namespace, shards=2)
    flock.agent("shout").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=w.text.upper()))
    await flock.publish(Word(text="a"))
    await flock.run_until_idle(timeout=60)

    # When another process joins it, deploys its own agent, publishes and leaves
    before, shouts = json.loads(await run_script(SECOND_DRIVER, namespace))

    # Then it has seen what was there, and used the first driver's agent
    assert before == ["A"]
    assert sorted(shouts) == ["A", "BB"]
    # And the first driver, whose table is now old, gets its words matched to the new agent
    words = [f"word-{n}" for n in range(8)]
    await asyncio.gather(*(flock.publish(Word(text=w)) for w in [*words, "x"]))
    await flock.run_until_idle(timeout=60)
    assert sorted(item.text for item in await flock.store.get_by_type(Length)) == ["bb", *words]


CONFLICTING_DRIVER = """
    import asyncio, sys
    from flock_ray import Flock
    from flock_ray.errors import DeployConflictError
    from tests.integration.models import Shout, Word

    async def main():
        flock = Flock(namespace=sys.argv[1])
        flock.agent("shout").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=w.text + "!"))
        try:
            await flock.start()
        except DeployConflictError as error:
            print(error)
        await flock.shutdown()

    asyncio.run(main())
"""


async def test_an_agent_of_another_driver_is_only_replaced_on_purpose_and_then_at_once(
    new_flock: NewFlock, run_script: Any
) -> None:
    # Given a board with an agent
    namespace = f"conflict-{uuid.uuid4().hex}"
    flock = new_flock(namespace=namespace)
    flock.agent("shout").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=w.text.upper()))
    await flock.publish(Word(text="a"))

    # When another driver deploys a different agent of that name
    message = await run_script(CONFLICTING_DRIVER, namespace)

    # Then it is told so, and nothing has changed
    assert "'shout'" in message
    assert "replace_agents=True" in message
    await flock.publish(Word(text="b"))
    await flock.run_until_idle(timeout=60)
    assert sorted(s.text for s in await flock.store.get_by_type(Shout)) == ["A", "B"]

    # And when a driver replaces it on purpose, the first driver's next word runs the new code
    other = new_flock(namespace=namespace, replace_agents=True)
    other.agent("shout").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=f"<{w.text}>"))
    await other.start()
    await flock.publish(Word(text="c"))
    await flock.run_until_idle(timeout=60)
    assert sorted(s.text for s in await flock.store.get_by_type(Shout)) == ["<c>", "A", "B"]
