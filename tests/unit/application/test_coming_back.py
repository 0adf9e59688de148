"""What a crash leaves of an application, and what the next one makes of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from flock_ray import Until
from flock_ray.application import (
    ApplicationNotRunning,
    CompletionPolicy,
    FlockApplication,
    WorkflowIdConflict,
    WorkflowStatus,
)
from flock_ray.application import ending as ending_module
from flock_ray.application.ledger import Ledger
from flock_ray.errors import StoreUnavailableError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from flock_ray.testing.virtual_time import START_US
from tests.unit.application.declared import Answer, Question, Runs, application, ask, called, flock_with


class LoopClock:
    """Wall time that does not begin anew with each flock."""

    def now_us(self) -> int:
        return START_US + round(asyncio.get_running_loop().time() * 1e6)


@pytest.fixture(autouse=True)
def _one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flock_ray.testing.flock.VirtualClock", LoopClock)


class Program:
    """A process with an application, which can be killed."""

    def __init__(self, keep: MemoryPersistence, *, shards: int | None = None, **options: Any) -> None:
        self.runs = Runs()
        self.flock = flock_with(self.runs, persistence=keep, **({} if shards is None else {"shards": shards}))
        self.app: FlockApplication = application(self.flock, **options)

    async def kill(self) -> None:
        """Nothing of it says goodbye."""
        for workflow in list(self.app._active.values()):
            workflow.abandon()
        assert self.app._feed is not None and self.flock.local is not None
        await self.app._feed.stop()
        await self.flock.local.close()
        self.flock.local.workers.clear()
        await asyncio.sleep(0)


async def stopped(program: Program) -> None:
    await program.app.shutdown()
    await program.flock.shutdown(flush_batches=False)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_caller_who_comes_back_after_a_crash_attaches_to_the_workflow(shards: int) -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        first = Program(keep, shards=shards)
        call = asyncio.ensure_future(first.app.run(ask("a", seconds=10), context=called("w")))
        await asyncio.sleep(3)
        await first.kill()
        with pytest.raises(ApplicationNotRunning, match="attach"):
            await call
        assert first.runs.answered == []

        second = Program(keep)
        async with second.app.stream(ask("a", seconds=10), context=called("w")) as workflow:
            assert workflow.attached
            result = await workflow.result()
        assert result.ok and [a.text for a in result.values(Answer)] == ["a 0"]
        assert len(await second.flock.store.get_by_type(Question)) == 1
        assert second.runs.answered == ["a"]  # the board ran it again, as nothing of it was committed

        third = Program(keep)
        await stopped(second)
        again = await third.app.run(ask("a", seconds=10), context=called("w"))
        assert again == result and third.runs.answered == []
        with pytest.raises(WorkflowIdConflict):
            await third.app.run(ask("b"), context=called("w"))
        await stopped(third)

    run_virtual(main())


def test_a_deadline_holds_though_the_application_was_gone_when_it_came() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        first = Program(keep)
        await first.app.start()
        call = asyncio.ensure_future(first.app.run(ask("a", seconds=1000), context=called("w"), timeout=60))
        await asyncio.sleep(5)
        await first.kill()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.sleep(100)

        second = Program(keep)
        await second.app.start()
        await asyncio.sleep(1)  # nobody calls
        assert second.app.active_workflows == 0
        assert (await second.flock.workflow_status("w")).state == "cancelled"
        result = await second.app.run(ask("a", seconds=1000), context=called("w"), timeout=3000)
        assert result.status is WorkflowStatus.TIMED_OUT
        await stopped(second)

    run_virtual(main())


def test_a_deadline_that_has_not_come_yet_is_that_of_the_first_call() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        first = Program(keep)
        await first.app.start()
        call = asyncio.ensure_future(first.app.run(ask("a", seconds=1000), context=called("w"), timeout=60))
        await asyncio.sleep(5)
        await first.kill()
        await asyncio.gather(call, return_exceptions=True)

        second = Program(keep)
        result = await second.app.run(ask("a", seconds=1000), context=called("w"), timeout=3000)
        assert result.status is WorkflowStatus.TIMED_OUT
        assert asyncio.get_running_loop().time() == pytest.approx(60, abs=1)
        await stopped(second)

    run_virtual(main())


def test_a_workflow_that_ended_in_time_while_nobody_was_there_has_succeeded() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        first = Program(keep)
        await first.app.start()
        call = asyncio.ensure_future(first.app.run(ask("a", seconds=10), context=called("w"), timeout=60))
        await asyncio.sleep(5)
        # Only the application is gone; its board goes on and finishes.
        for workflow in list(first.app._active.values()):
            workflow.abandon()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.sleep(100)
        await first.kill()

        second = Program(keep)
        result = await second.app.run(ask("a", seconds=10), context=called("w"))
        assert result.ok and [a.text for a in result.values(Answer)] == ["a 0"]
        await stopped(second)

    run_virtual(main())


def test_a_restart_leaves_the_workflows_of_a_board_that_stays() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        first = Program(keep)
        async with first.app:
            call = asyncio.ensure_future(first.app.run(ask("a", seconds=100), context=called("w")))
            await asyncio.sleep(1)
        with pytest.raises(ApplicationNotRunning):
            await call
        await first.flock.shutdown(flush_batches=False)

        second = Program(keep)
        result = await second.app.run(ask("a", seconds=100), context=called("w"))
        assert result.ok and second.runs.answered == ["a"]
        await second.app.shutdown(cancel=True)
        await second.flock.shutdown(flush_batches=False)

    run_virtual(main())


def test_the_stream_of_a_workflow_that_was_interrupted_goes_on_behind_its_cursor() -> None:
    async def main() -> None:
        keep = MemoryPersistence()

        def declared() -> VirtualFlock:
            flock = VirtualFlock(persistence=keep)

            async def count(question: Question) -> Answer:
                return Answer(text="1")

            async def go_on(answer: Answer) -> Answer | None:
                await asyncio.sleep(10)
                return None if answer.text == "5" else Answer(text=str(int(answer.text) + 1))

            flock.agent("count").consumes(Question).publishes(Answer).runs(count)
            further = flock.agent("further").consumes(Answer, where=lambda a: a.text != "5").publishes(Answer)
            further.prevent_self_trigger(False).runs(go_on)
            return flock

        flock = declared()
        app = application(flock)
        seen = []
        async with app.stream(ask(), context=called("w")) as workflow:
            workflow.detach()
            async for event in workflow:
                seen.append((event.sequence, event.value.text))  # type: ignore[attr-defined]
                if event.sequence == 1:
                    break
        await app.shutdown()
        await flock.shutdown(flush_batches=False)

        second = declared()
        app = application(second)
        async with app.stream(ask(), context=called("w"), after=seen[-1][0]) as workflow:
            seen += [(e.sequence, e.value.text) async for e in workflow]  # type: ignore[attr-defined]
            assert (await workflow.result()).ok
        assert seen == [(0, "1"), (1, "2"), (2, "3"), (3, "4"), (4, "5")]
        await app.shutdown()
        await second.shutdown()

    run_virtual(main())


def test_two_processes_on_one_workflow_come_to_one_result() -> None:
    async def main() -> None:
        """Two applications follow it; one of them cancels, and both say so."""
        flock = flock_with()
        one, two = application(flock), application(flock)
        await one.start()
        await two.start()
        first, second = (app.stream(ask(seconds=50), context=called("w")) for app in (one, two))
        async with first, second:
            assert second.attached and not first.attached
            await asyncio.sleep(1)
            second.cancel()
            results = await asyncio.gather(first.result(), second.result())
        assert results[0] == results[1] and results[0].status is WorkflowStatus.CANCELLED

        first, second = (app.stream(ask(seconds=5), context=called("v")) for app in (one, two))
        async with first, second:
            results = await asyncio.gather(first.result(), second.result())
        assert results[0] == results[1] and results[0].ok
        await one.shutdown()
        await two.shutdown()
        await flock.shutdown()

    run_virtual(main())


def test_the_decision_of_whoever_was_first_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        flock = flock_with()
        app = application(flock)
        await app.start()
        original = Ledger.end

        async def beaten(self: Ledger, workflow_id: str, record: Any) -> Any:
            # Somebody else has ended it a moment before.
            await original(
                self, workflow_id, record.model_copy(update={"status": "cancelled", "outputs": []})
            )
            return await original(self, workflow_id, record)

        monkeypatch.setattr(Ledger, "end", beaten)
        result = await app.run(ask(), context=called("w"))
        assert (result.status, result.outputs) == (WorkflowStatus.CANCELLED, ())
        await app.shutdown()
        await flock.shutdown()

    run_virtual(main())


def test_what_ended_just_before_a_crash_is_cancelled_by_the_next_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the record of the end and the cancellation of the rest a process may die."""

    async def main() -> None:
        keep = MemoryPersistence()
        policy = CompletionPolicy(until=Until.exists(Answer))

        def declared() -> VirtualFlock:
            flock = VirtualFlock(persistence=keep)

            async def slow(question: Question) -> Answer:
                await asyncio.sleep(3600)
                return Answer(text="slow")

            flock.agent("quick").consumes(Question).publishes(Answer).runs(lambda q: Answer(text="quick"))
            flock.agent("slow").consumes(Question).publishes(Answer).runs(slow)
            return flock

        async def dies(*_: object) -> None:
            raise asyncio.CancelledError

        flock = declared()
        app = application(flock, completion=policy)
        with monkeypatch.context() as patch:
            patch.setattr(ending_module, "stop", dies)
            with contextlib.suppress(ApplicationNotRunning):
                await app.run(ask(), context=called("w"))
        assert (await flock.workflow_status("w")).open == 1
        await app.shutdown()
        await flock.shutdown(flush_batches=False)

        second = declared()
        app = application(second, completion=policy)
        await app.start()
        await asyncio.sleep(1)
        assert (await second.workflow_status("w")).state == "cancelled"
        assert (await app.run(ask(), context=called("w"))).ok
        await app.shutdown()
        await second.shutdown()

    run_virtual(main())


def test_an_application_takes_up_only_its_own_workflows() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        first = Program(keep, name="one")
        call = asyncio.ensure_future(first.app.run(ask(seconds=99), context=called("w")))
        await asyncio.sleep(1)
        await first.kill()
        await asyncio.gather(call, return_exceptions=True)

        second = Program(keep, name="two")
        await second.app.start()
        await asyncio.sleep(1)
        assert second.app.active_workflows == 0
        with pytest.raises(WorkflowIdConflict):
            await second.app.run(ask(seconds=99), context=called("w"))
        await stopped(second)

    run_virtual(main())


def test_an_erased_workflow_is_refused_and_not_run_again() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        program = Program(keep)
        assert (await program.app.run(ask("a"), context=called("w"))).ok
        await program.flock.erase(correlation_id="w", reason="asked for")
        with pytest.raises(WorkflowIdConflict, match="erased"):
            await program.app.run(ask("a"), context=called("w"))
        assert program.runs.answered == ["a"]
        await stopped(program)

    run_virtual(main())


def test_an_id_stays_taken_for_its_time_though_the_board_has_forgotten_it() -> None:
    async def main() -> None:
        runs = Runs()
        flock = flock_with(runs)
        async with application(flock) as app:
            assert (await app.run(ask("a"), context=called("w"))).ok
            assert flock.local is not None
            for shard in flock.local.shards:
                assert shard is not None
                for slot in shard.core.slots:
                    shard.core.drop_settled(slot)
            with pytest.raises(WorkflowIdConflict, match="is gone"):
                await app.run(ask("a"), context=called("w"))
            await asyncio.sleep(16 * 60)
            assert (await app.run(ask("a"), context=called("w"))).ok
            assert runs.answered == ["a", "a"]
        await flock.shutdown()

    run_virtual(main())


def test_a_shard_that_restarts_meanwhile_is_waited_for() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        program = Program(keep)
        async with program.app.stream(ask("a", seconds=30), context=called("w")) as workflow:
            await asyncio.sleep(1)
            local = program.flock.local
            assert local is not None
            failing = program.flock._opened.board._call  # type: ignore[union-attr]
            broken_until = asyncio.get_running_loop().time() + 5

            async def call(answer: Any) -> Any:
                if asyncio.get_running_loop().time() < broken_until:
                    answer.close()
                    raise StoreUnavailableError("a shard restarts")
                return await failing(answer)

            program.flock._opened.board._call = call  # type: ignore[union-attr, method-assign]
            workflow._entered().wake()
            result = await workflow.result()
            assert result.ok
        await stopped(program)

    run_virtual(main())


def test_a_board_that_never_answers_again_leaves_the_outcome_open() -> None:
    async def main() -> None:
        program = Program(MemoryPersistence())
        async with program.app.stream(ask(seconds=30), context=called("w"), timeout=20) as workflow:
            await asyncio.sleep(1)

            async def call(answer: Any) -> Any:
                answer.close()
                raise StoreUnavailableError("a shard is away")

            program.flock._opened.board._call = call  # type: ignore[union-attr, method-assign]
            workflow._entered().wake()
            with pytest.raises(StoreUnavailableError):
                await workflow.result()
        assert 20 <= asyncio.get_running_loop().time() <= 30
        await program.kill()

    run_virtual(main())


def test_a_cancellation_does_not_wait_for_ever_for_a_board_that_is_away() -> None:
    async def main() -> None:
        program = Program(MemoryPersistence())
        async with program.app.stream(ask(seconds=30), context=called("w")) as workflow:
            await asyncio.sleep(1)

            async def call(answer: Any) -> Any:
                answer.close()
                raise StoreUnavailableError("a shard is away")

            program.flock._opened.board._call = call  # type: ignore[union-attr, method-assign]
        with pytest.raises(StoreUnavailableError):  # whether it is cancelled is not known
            await workflow.result()
        assert asyncio.get_running_loop().time() < 10
        await program.kill()

    run_virtual(main())


def test_an_application_that_stops_in_the_moment_of_a_call_leaves_nobody_waiting() -> None:
    async def main() -> None:
        program = Program(MemoryPersistence())
        await program.app.start()
        calls = [
            asyncio.ensure_future(program.app.run(ask(str(n)), context=called(f"w{n}"))) for n in range(20)
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await program.app.shutdown()
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(r, ApplicationNotRunning) or r.ok for r in results)  # type: ignore[union-attr]
        assert program.app.active_workflows == 0
        await program.flock.shutdown(flush_batches=False)

    run_virtual(main())
