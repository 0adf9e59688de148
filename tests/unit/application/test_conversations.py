"""History: what a session has said before, in order, one workflow at a time."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from flock_ray import PrivateVisibility, TenantVisibility
from flock_ray.application import (
    Conversation,
    FlockApplication,
    SessionRequired,
    WorkflowIdConflict,
    WorkflowStatus,
)
from flock_ray.application import ledger as ledger_module
from flock_ray.application.sessions import Sessions
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from tests.unit.application.declared import Answer, Question, application, ask, called


class Chat:
    """An agent that notes which history it was given."""

    def __init__(self, *, visibility: Any = None, **options: Any) -> None:
        self.heard: list[Conversation] = []
        self.times: list[tuple[str, float, float]] = []
        self.flock = VirtualFlock(**options)

        async def answer(question: Question, history: Conversation) -> Answer:
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(question.seconds)
            self.heard.append(history)
            self.times.append((question.text, began, asyncio.get_running_loop().time()))
            if question.text == "fail":
                raise ValueError
            return Answer(text=f"about {question.text}")

        agent = self.flock.agent("chat").consumes(Question, Conversation)
        agent.publishes(Answer, visibility=visibility).runs(answer)

    def app(self, **options: Any) -> FlockApplication:
        return application(self.flock, history="conversation", **options)

    @property
    def said(self) -> list[list[tuple[str, list[str]]]]:
        return [
            [(t.input.payload["text"], [o.payload["text"] for o in t.outputs]) for t in history.turns]
            for history in self.heard
        ]


def in_session(workflow_id: str, session: str = "s", **fields: Any) -> Any:
    return called(workflow_id, session_id=session, **fields)


def test_a_workflow_gets_the_turns_of_its_session_before_it() -> None:
    async def main() -> None:
        chat = Chat()
        async with chat.app() as app:
            for number, text in enumerate(("a", "b", "fail", "c")):
                await app.run(ask(text), context=in_session(f"w{number}"))
            await app.run(ask("other"), context=in_session("other", session="t"))
            await app.run(ask("person"), context=in_session("person", principal_id="p"))
            a, b = ("a", ["about a"]), ("b", ["about b"])
            assert chat.said == [[], [a], [a, b], [a, b], [], []]
            assert [turn.workflow_id for turn in chat.heard[3].turns] == ["w0", "w1"]
            with pytest.raises(SessionRequired):
                await app.run(ask(), context=called("w9"))
        await chat.flock.shutdown()

    run_virtual(main())


def test_only_the_newest_turns_are_given_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        chat = Chat()
        async with chat.app(history_turns=3) as app:
            for number in range(6):
                await app.run(ask(f"q{number}"), context=in_session(f"w{number}"))
            assert [text for text, _ in chat.said[5]] == ["q2", "q3", "q4"]
            assert [history.omitted for history in chat.heard] == [0, 0, 0, 0, 1, 2]
            monkeypatch.setattr(ledger_module, "MAX_HISTORY_BYTES", 1000)
            await app.run(ask("long " * 200), context=in_session("w6"))
            await app.run(ask("short"), context=in_session("w7"))
            assert chat.heard[-1].turns == [] and chat.heard[-1].omitted == 7
        await chat.flock.shutdown()

    run_virtual(main())


def test_the_workflows_of_a_session_run_one_after_the_other_in_the_order_of_the_calls() -> None:
    async def main() -> None:
        chat = Chat()
        async with chat.app() as app:
            calls = []
            for number in range(4):
                calls.append(
                    asyncio.ensure_future(
                        app.run(ask(f"q{number}", seconds=10), context=in_session(f"w{number}"))
                    )
                )
                await asyncio.sleep(0.1)
            other = asyncio.ensure_future(app.run(ask("x", seconds=1), context=in_session("x", session="t")))
            assert all(result.ok for result in await asyncio.gather(*calls, other))
            ordered = [entry for entry in chat.times if entry[0] != "x"]
            assert [text for text, _, _ in ordered] == ["q0", "q1", "q2", "q3"]
            assert all(before[2] <= after[1] for before, after in itertools.pairwise(ordered))
            assert chat.times[0][0] == "x"  # another session does not wait
            assert [len(turns) for turns in chat.said[1:]] == [0, 1, 2, 3]
        await chat.flock.shutdown()

    run_virtual(main())


def test_one_that_waits_for_its_session_can_be_cancelled_and_times_out_without_a_trace() -> None:
    async def main() -> None:
        chat = Chat()
        async with chat.app() as app:
            first = asyncio.ensure_future(app.run(ask("a", seconds=50), context=in_session("w0")))
            await asyncio.sleep(1)
            second = asyncio.ensure_future(app.run(ask("b"), context=in_session("w1"), timeout=10))
            async with app.stream(ask("c"), context=in_session("w2")) as third:
                await asyncio.sleep(1)
                third.cancel()
                assert (await third.result()).status is WorkflowStatus.CANCELLED
            with pytest.raises(WorkflowIdConflict):
                async with app.stream(ask("not a"), context=in_session("w0")):
                    pass
            assert (await second).status is WorkflowStatus.TIMED_OUT
            assert (await first).ok
            assert [text for text, _, _ in chat.times] == ["a"]
            assert (await app.run(ask("b"), context=in_session("w1"))).ok  # it had not begun
            assert len(chat.heard[-1].turns) == 1
        await chat.flock.shutdown()

    run_virtual(main())


def test_history_survives_a_restart_and_is_no_wider_than_its_outputs() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        secret = TenantVisibility(tenant_id="ada")
        chat = Chat(persistence=keep, visibility=secret)
        chat.flock.get_agent("chat").tenant("ada")
        async with chat.app() as app:
            assert (await app.run(ask("a"), context=in_session("w0", principal_id="ada"))).ok
        await chat.flock.shutdown()

        again = Chat(persistence=keep, visibility=secret)
        again.flock.get_agent("chat").tenant("ada")
        async with again.app() as app:
            assert (await app.run(ask("b"), context=in_session("w1", principal_id="ada"))).ok
            assert again.said == [[("a", ["about a"])]]
            kept = await again.flock.store.list_by_type("flock.Conversation")
            assert kept[1].visibility == secret
            [turn, _] = await again.flock.store.list_by_type("flock.ConversationTurn")
            assert turn.visibility == PrivateVisibility(agents=frozenset())
        await again.flock.shutdown()

    run_virtual(main())


def test_a_turn_that_was_under_way_at_a_crash_comes_before_the_next_one() -> None:
    async def main() -> None:
        keep = MemoryPersistence()
        chat = Chat(persistence=keep)
        app = chat.app()
        call = asyncio.ensure_future(app.run(ask("a", seconds=20), context=in_session("w0")))
        await asyncio.sleep(1)
        await app.shutdown()
        await asyncio.gather(call, return_exceptions=True)
        await chat.flock.shutdown(flush_batches=False)

        again = Chat(persistence=keep)
        async with again.app() as app:
            assert (await app.run(ask("b"), context=in_session("w1"))).ok
            assert again.said == [[], [("a", ["about a"])]]
        await again.flock.shutdown()

    run_virtual(main())


def test_a_queue_of_a_session_survives_whoever_leaves_it() -> None:
    async def main() -> None:
        sessions, order = Sessions(), []

        async def turn(number: int) -> None:
            await sessions.acquire("s")
            order.append(number)
            await asyncio.sleep(1)
            sessions.release("s")

        tasks = [asyncio.ensure_future(turn(number)) for number in range(6)]
        await asyncio.sleep(0.5)
        tasks[2].cancel()
        tasks[4].cancel()
        await asyncio.sleep(1)  # 1 has its turn
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 1, 3, 5] and not sessions.busy("s")

        await sessions.acquire("s")
        waiting = asyncio.ensure_future(sessions.acquire("s"))
        await asyncio.sleep(0)
        sessions.release("s")
        waiting.cancel()  # in the moment in which it gets its turn
        await asyncio.gather(waiting, return_exceptions=True)
        assert not sessions.busy("s")

    run_virtual(main())
