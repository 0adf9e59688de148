"""Dead letters on boards that are stored: what survives, what was evicted or erased, and what is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Flock, JoinSpec, flock_type
from flock_ray.core.ids import shard_of, slot_of
from flock_ray.errors import ArtifactNotFoundError, BackpressureError, ConfigurationError
from flock_ray.letters.calls import LetterBoard, inputs_of, redrive_order
from flock_ray.testing import VirtualFlock, run_virtual
from flock_ray.verifying import verify_board
from tests.unit.semantics.kept import Kept, kill


@flock_type(name="letters.Order")
class Order(BaseModel):
    n: int
    key: str = "k"


@flock_type(name="letters.Payment")
class Payment(BaseModel):
    n: int
    key: str = "k"


def declare(flock: Flock, seen: list[int]) -> None:
    def process(order: Order) -> None:
        seen.append(order.n)
        if order.n < 0:
            raise ValueError("negative")

    flock.agent("processor").consumes(Order).runs(process).retry(max_attempts=1, dead_letter="q")


def opened(kept: Kept, seen: list[int], **options: Any) -> VirtualFlock:
    flock = VirtualFlock(persistence=kept, shards=2, **options)
    declare(flock, seen)
    return flock


def virtually(test: Callable[[], Any]) -> None:
    run_virtual(test())


async def idle(flock: Flock) -> None:
    await flock.run_until_idle(include_timers=True)


def test_letters_edits_and_what_was_done_survive_the_board() -> None:
    async def test() -> None:
        kept, seen = Kept(), list[int]()
        flock = opened(kept, seen)
        for n in range(6):
            await flock.publish(Order(n=-1 - n), correlation_id=f"w{n}")
        await idle(flock)
        before = (await flock.dead_letters.list()).letters
        await flock.dead_letters.edit(before[0].id, Order(n=100), by="ann")
        await flock.dead_letters.redrive(before[1].id)
        await flock.dead_letters.discard(before[2].id, reason="no")
        await kill(flock)

        flock = opened(kept, seen)
        await flock.start()
        await idle(flock)
        letters = flock.dead_letters
        after = (await letters.list()).letters
        assert [x.id for x in after if not x.redrives] == [x.id for x in before if x not in before[1:3]]
        assert [x.workflow for x in after if x.redrives] == [before[1].workflow]  # failed again
        assert not await letters.redrive(before[1].id)
        assert not await letters.redrive(before[2].id)
        assert await letters.redrive(before[0].id)
        await idle(flock)
        assert seen.count(100) == 1
        assert [a.action for a in (await letters.get(before[0].id)).history] == ["edited", "redriven"]
        await kill(flock)

    virtually(test)


def test_a_redrive_whose_run_was_cut_off_by_a_crash_is_done_and_not_done_twice() -> None:
    async def test() -> None:
        kept, seen = Kept(), list[int]()
        flock = opened(kept, seen)
        await flock.publish(Order(n=-1))
        await idle(flock)
        [letter] = await flock.dead_letters.list()
        await flock.dead_letters.edit(letter.id, Order(n=5))
        assert await flock.dead_letters.redrive(letter.id)
        await kill(flock)  # the answer is there, so the journal has it

        flock = opened(kept, seen)
        await flock.start()
        await idle(flock)
        assert 1 <= seen.count(5) <= 2  # executed at least once, committed once
        assert not await flock.dead_letters.redrive(letter.id)
        [action] = [a for a in (await flock.dead_letters.get(letter.id)).history if a.action == "redriven"]
        assert action.activation_id
        await kill(flock)

    virtually(test)


async def evict(flock: VirtualFlock, workflow: str) -> None:
    """Publish so much that a workflow leaves the memory of its shard."""
    for n in range(1200):
        await flock.publish(Order(n=2), correlation_id=f"other-{n}")
    await idle(flock)
    assert flock.local is not None
    shard = flock.local.shards[shard_of(slot_of(workflow), 2)]
    assert shard is not None
    assert workflow not in shard.core.slots[slot_of(workflow)].workflows


@pytest.mark.parametrize("edited", [False, True])
def test_a_letter_of_a_workflow_that_has_left_memory_is_redriven(edited: bool) -> None:
    async def test() -> None:
        kept, seen = Kept(), list[int]()
        flock = opened(kept, seen, max_artifacts=1000)
        await flock.publish(Order(n=-7), correlation_id="first")
        await idle(flock)
        [letter] = await flock.dead_letters.list()
        await evict(flock, "first")

        assert (await flock.dead_letters.get(letter.id)).models() == [Order(n=-7)]
        if edited:
            await flock.dead_letters.edit(letter.id, Order(n=7))
        assert await flock.dead_letters.redrive(letter.id)
        await idle(flock)

        assert seen.count(7 if edited else -7) == (1 if edited else 2)
        counts = (await flock.workflow_status("first")).counts
        assert counts == {
            "letters.Order": 1 + edited, "DeadLetter": 2 - edited, "DeadLetterAction": 1 + edited
        }  # fmt: skip
        await kill(flock)

    virtually(test)


def test_a_cancelled_workflow_stays_cancelled_when_it_has_left_memory() -> None:
    async def test() -> None:
        kept, seen = Kept(), list[int]()
        flock = opened(kept, seen, max_artifacts=1000)
        await flock.publish(Order(n=-7), correlation_id="first")
        await idle(flock)
        await flock.cancel("first")
        [letter] = await flock.dead_letters.list()
        await evict(flock, "first")

        with pytest.raises(ConfigurationError, match="was cancelled"):
            await flock.dead_letters.redrive(letter.id)
        assert await flock.dead_letters.discard(letter.id)
        await kill(flock)

    virtually(test)


def test_an_input_of_another_workflow_and_shard_is_edited() -> None:
    async def test() -> None:
        seen: list[tuple[int, int]] = []

        def pair(order: Order, payment: Payment) -> None:
            seen.append((order.n, payment.n))
            if order.n < 0:
                raise ValueError("negative")

        async with VirtualFlock(shards=8) as flock:
            flock.agent("pairer").consumes(
                Order, Payment, join=JoinSpec(by=lambda x: x.key, within=10)
            ).runs(pair).retry(max_attempts=1, dead_letter="q")  # fmt: skip
            names = [f"w{n}" for n in range(40)]
            one = names[0]
            other = next(n for n in names if shard_of(slot_of(n), 8) != shard_of(slot_of(one), 8))
            order = await flock.publish(Order(n=-1), correlation_id=one)
            await flock.publish(Payment(n=2), correlation_id=other)
            await idle(flock)
            [letter] = await flock.dead_letters.list()
            assert len(letter.inputs) == 2

            edited = await flock.dead_letters.edit(letter.id, Order(n=9))
            assert (edited.correlation_id, edited.parents) == (one, (order.id,))
            await flock.dead_letters.edit(
                letter.id, Payment(n=3)
            )  # one of the two is of another shard than the gate
            assert await flock.dead_letters.redrive(letter.id)
            await idle(flock)

            assert seen == [(-1, 2), (9, 3)]
            assert sorted(o.n for o in await flock.store.get_by_type(Order)) == [-1, 9]

    virtually(test)


def test_what_was_erased_does_not_come_back_with_a_redrive() -> None:
    async def test() -> None:
        kept, seen = Kept(), list[int]()
        flock = opened(kept, seen)
        await flock.publish(Order(n=-1, key="a secret"), correlation_id="w")
        await idle(flock)
        [letter] = await flock.dead_letters.list()
        await flock.erase(correlation_id="w", reason="asked for")

        assert await flock.dead_letters.redrive(letter.id)
        await idle(flock)

        assert seen == [-1]  # the run can't read its input
        [again] = await flock.dead_letters.list()
        assert again.redrives == 1
        assert b"a secret" not in kept.bytes()
        await kill(flock)

    virtually(test)


def test_an_input_that_is_gone_is_said_and_the_letter_stays() -> None:
    async def test() -> None:
        async with VirtualFlock(shards=2) as flock:
            seen: list[int] = []
            declare(flock, seen)
            sent = await flock.publish(Order(n=-1))
            await idle(flock)
            [letter] = await flock.dead_letters.list()
            assert flock.local is not None
            for shard in flock.local.shards:
                assert shard is not None
                if sent.id.bytes in shard.core.index.ids:
                    del shard.core.index.ids[sent.id.bytes]

            with pytest.raises(ArtifactNotFoundError, match="is gone"):
                await flock.dead_letters.redrive(letter.id)
            with pytest.raises(ArtifactNotFoundError, match="is gone"):
                await flock.dead_letters.edit(letter.id, Order(n=1))
            report = await flock.dead_letters.redrive_all()
            assert (report.redriven, report.incomplete, report.unable) == (0, 1, (letter.id,))
            details = await flock.dead_letters.get(letter.id)
            assert (details.inputs, details.models(), details.open) == ((None,), [None], True)

    virtually(test)


def test_a_full_board_takes_redrives_when_it_has_room() -> None:
    async def test() -> None:
        gate = asyncio.Event()
        seen: list[int] = []

        async def process(order: Order) -> None:
            seen.append(order.n)
            if order.n < 0 and seen.count(order.n) == 1:
                raise ValueError("negative")
            await gate.wait()

        async with VirtualFlock(max_open=10) as flock:
            flock.agent("processor").consumes(Order).runs(process).retry(max_attempts=1, dead_letter="q")
            for n in range(25):
                await flock.publish(Order(n=-1 - n))
            await idle(flock)
            assert await flock.dead_letters.count() == 25

            # When nothing moves, it says so, and what is open stays bounded
            with pytest.raises(BackpressureError):
                await flock.dead_letters.redrive_all(rate=10)
            stats = (await (await flock._ready_board()).each("stats"))[0]
            assert stats["open"] <= 11

            gate.set()
            await idle(flock)
            await flock.dead_letters.redrive_all(rate=10)
            await idle(flock)
            assert sorted(seen) == sorted(2 * [-1 - n for n in range(25)])

    virtually(test)


def test_a_board_with_redriven_letters_keeps_its_guarantees() -> None:
    async def test() -> Kept:
        kept, seen = Kept(), list[int]()
        flock = opened(kept, seen)
        for n in range(4):
            await flock.publish(Order(n=-1 - n), correlation_id=f"w{n}")
        await idle(flock)
        first, second, third, _ = await flock.dead_letters.list()
        await flock.dead_letters.edit(first.id, Order(n=1))
        await flock.dead_letters.redrive(first.id)
        await flock.dead_letters.discard(second.id)
        await flock.dead_letters.redrive(third.id)
        await idle(flock)
        await flock.dead_letters.redrive_all()
        await idle(flock)
        await flock.erase(correlation_id=third.workflow, reason="asked for")
        await kill(flock)
        return kept

    kept = run_virtual(test())
    verdict = asyncio.run(verify_board(kept, next(iter(kept.boards))))
    assert verdict.violations == []
    assert verdict.activations == 8


def test_an_erase_between_reading_the_inputs_and_the_redrive_is_not_undone() -> None:
    async def test() -> None:
        kept, seen = Kept(), list[int]()
        flock = opened(kept, seen)
        await flock.publish(Order(n=-1, key="a secret"), correlation_id="w")
        await idle(flock)
        [letter] = await flock.dead_letters.list()
        board = LetterBoard(await flock._ready_board())
        row = await board.find(letter.id.bytes)
        assert row is not None
        inputs = await board.fetch(inputs_of(row))

        await flock.erase(correlation_id="w", reason="asked for")
        order = redrive_order(row, inputs, "")
        assert order is not None
        assert await board.order([order]) == ["ok"]
        await idle(flock)

        assert seen == [-1]
        assert b"a secret" not in kept.bytes()
        await kill(flock)

    virtually(test)
