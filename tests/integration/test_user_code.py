from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flock_ray import Flock, WorkflowError
from flock_ray.errors import AgentNotPicklableError, ConfigurationError
from tests.integration.models import Done, Job, Shout, Word

pytestmark = pytest.mark.timeout(180)

NewFlock = Callable[..., Flock]


async def errors_of(flock: Flock) -> dict[str, WorkflowError]:
    """Return the board's errors by agent."""
    found = await flock.store.get_by_type(WorkflowError)
    by_agent = {error.failed_agent: error for error in found}
    assert len(by_agent) == len(found)
    return by_agent


MAIN_SCRIPT = """
    import asyncio, dataclasses, json
    from pydantic import BaseModel
    from flock_ray import Flock, flock_type

    @flock_type
    class Question(BaseModel):
        n: int

    @flock_type
    class Answer(BaseModel):
        n: int
        by: str

    offset = 100
    def shift(q: Question) -> Answer:
        return Answer(n=q.n + offset, by="function")

    async def later(q: Question) -> Answer:
        await asyncio.sleep(0.01)
        return Answer(n=q.n, by="async")

    def scaled(factor):
        return lambda q: Answer(n=q.n * factor, by="closure")

    async def main():
        flock = Flock(max_workers=1)
        flock.agent("function").consumes(Question).publishes(Answer).runs(shift)
        flock.agent("async").consumes(Question).publishes(Answer).runs(later)
        flock.agent("closure").consumes(Question, where=lambda q: q.n > 1).publishes(Answer).runs(scaled(10))
        await flock.publish_many([Question(n=1), Question(n=2)])
        await flock.run_until_idle(timeout=60)
        print(json.dumps(sorted((a.by, a.n) for a in await flock.store.get_by_type(Answer))))
        await flock.shutdown()

    asyncio.run(main())
"""


async def test_types_functions_lambdas_and_closures_of_a_script_run_on_workers(run_script: Any) -> None:
    # When a script defines everything in __main__ and runs
    out = await run_script(MAIN_SCRIPT)

    # Then each kind of function has run
    assert '[["async", 1], ["async", 2], ["closure", 20], ["function", 101], ["function", 102]]' in out


@dataclasses.dataclass
class NotAnArtifact:
    text: str


class OddError(Exception):
    """Can't be pickled back: its constructor wants more than its args."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"odd {code}: {hint}")


def _raise_odd(word: Word) -> Shout:
    raise OddError(7, hint="three arguments")


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


async def _raise_unprintable(word: Word) -> Shout:
    raise UnprintableError


def _raise_exit(word: Word) -> Shout:
    sys.exit(3)


async def test_whatever_a_function_returns_or_raises_is_a_result_or_an_error_on_the_board(
    new_flock: NewFlock,
) -> None:
    # Given agents that return what they should not, nothing, or raise odd things
    flock = new_flock()
    flock.agent("dataclass").consumes(Word).publishes(Shout).runs(lambda w: NotAnArtifact(w.text))
    flock.agent("none").consumes(Word).publishes(Shout).runs(lambda w: None)
    flock.agent("odd").consumes(Word).publishes(Shout).runs(_raise_odd)
    flock.agent("unprintable").consumes(Word).publishes(Shout).runs(_raise_unprintable)
    flock.agent("exit").consumes(Word).publishes(Shout).runs(_raise_exit)
    flock.agent("good").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=w.text))

    # When one word arrives
    artifact = await flock.publish(Word(text="w"))
    status = await flock.wait(artifact.correlation_id, timeout=60)

    # Then each failure is one error that names its agent and its cause, and the good agent is not disturbed
    errors = await errors_of(flock)
    assert set(errors) == {"dataclass", "odd", "unprintable", "exit"}
    assert errors["dataclass"].error_type == "OutputContractError"
    assert "NotAnArtifact" in errors["dataclass"].error_message
    assert (errors["odd"].error_type, errors["odd"].error_message) == ("OddError", "odd 7: three arguments")
    assert errors["unprintable"].error_type == "UnprintableError"
    assert errors["exit"].error_type == "SystemExit"
    assert [s.text for s in await flock.store.get_by_type(Shout)] == ["w"]
    assert (status.state, status.error_count) == ("failed", 4)


def _blocked(job: Job) -> Done:
    while not Path(job.gate).exists():
        time.sleep(0.01)
    return Done(n=job.n, pid=os.getpid())


async def test_a_worker_answers_while_a_sync_function_blocks(new_flock: NewFlock, tmp_path: Path) -> None:
    # Given a function that holds its thread until a file appears
    gate = tmp_path / "gate"
    flock = new_flock()
    flock.agent("blocked").consumes(Job).publishes(Done).runs(_blocked)
    await flock.publish(Job(n=1, gate=str(gate)))

    # When its worker is asked for a heartbeat meanwhile
    board = await flock._ready_board()
    worker = await board.router.worker_for("blocked")
    answer = await asyncio.wait_for(board.worker(worker).watch(0), 30)

    # Then it answers, and the function goes on
    assert answer
    gate.touch()
    await flock.run_until_idle(timeout=60)
    assert [d.n for d in await flock.store.get_by_type(Done)] == [1]


def _never(word: Word) -> Shout:
    while True:
        time.sleep(0.01)


async def _never_yields(word: Word) -> Shout:
    while True:
        time.sleep(0.01)  # noqa: ASYNC251  # blocks the event loop: that is what is tested


def _pid(job: Job) -> Done:
    return Done(n=job.n, pid=os.getpid())


async def _pid_async(job: Job) -> Done:
    return Done(n=-job.n, pid=os.getpid())


@pytest.mark.parametrize("function", [_never, _never_yields])
async def test_a_function_that_never_returns_times_out_and_its_worker_is_replaced(
    new_flock: NewFlock, function: Any
) -> None:
    # Given an agent that never returns, beside sync and async agents on the same worker
    flock = new_flock()
    flock.agent("never").consumes(Word).publishes(Shout).timeout(timedelta(seconds=1)).runs(function)
    flock.agent("sync").consumes(Job).publishes(Done).runs(_pid)
    flock.agent("async").consumes(Job).publishes(Done).runs(_pid_async)
    await flock.publish(Job(n=1))
    await flock.run_until_idle(timeout=60)
    (before,) = {d.pid for d in await flock.store.get_by_type(Done)}

    # When it gets work, and others do
    await flock.publish(Word(text="w"))
    await flock.publish_many([Job(n=n) for n in range(2, 30)])
    await flock.run_until_idle(timeout=60)

    # Then it has failed for its timeout, and everything else has run once
    error = (await errors_of(flock))["never"]
    assert error.error_type == "AgentTimeoutError"
    done = await flock.store.get_by_type(Done)
    assert sorted(abs(d.n) for d in done) == sorted([*range(1, 30), *range(1, 30)])

    # And the process with the lost thread gives way to a new one
    deadline = time.monotonic() + 60
    after = before
    while after == before and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        artifact = await flock.publish(Job(n=100))
        await flock.wait(artifact.correlation_id, timeout=60)
        found = await flock.store.get_by_type(Done, correlation_id=artifact.correlation_id)
        after = found[0].pid
    assert after != before


def _poison(word: Word) -> Shout:
    os._exit(1)


async def test_work_that_kills_its_process_is_given_up_and_all_other_work_is_done_once(
    new_flock: NewFlock,
) -> None:
    # Given an agent whose every run ends the process
    flock = new_flock(shards=2)
    flock.agent("poison").consumes(Word).publishes(Shout).runs(_poison)
    flock.agent("good").consumes(Job).publishes(Done).runs(_pid)

    # When it gets work among that of others
    await asyncio.gather(*(flock.publish(Job(n=n)) for n in range(20)))
    await flock.publish(Word(text="w"))
    await asyncio.gather(*(flock.publish(Job(n=n)) for n in range(20, 40)))
    await flock.run_until_idle(timeout=150)

    # Then it is given up after a few workers, and nothing else is lost, repeated or blamed
    errors = await errors_of(flock)
    assert set(errors) == {"poison"}
    assert errors["poison"].error_type == "AgentCrashedError"
    done = await flock.store.get_by_type(Done)
    assert sorted(d.n for d in done) == list(range(40))


async def test_an_agent_that_can_not_travel_is_refused_by_name(new_flock: NewFlock) -> None:
    # Given a function that closes over a lock
    lock = threading.Lock()
    flock = new_flock()
    flock.agent("locked").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=str(lock.locked())))

    # When it is deployed
    with pytest.raises(AgentNotPicklableError) as caught:
        await flock.start()

    # Then the error says which agent and what
    assert "'locked'" in str(caught.value)
    assert "lock" in str(caught.value).partition("can't be sent")[2]


async def test_an_agent_whose_module_workers_lack_is_refused_and_the_board_goes_on(
    new_flock: NewFlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a board that works, and a function of a module that only exists in this process
    namespace = f"module-{uuid.uuid4().hex}"
    flock = new_flock(namespace=namespace)
    flock.agent("good").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=w.text))
    module = types.ModuleType("only_here")
    exec("def shout(w): return None", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    await flock.publish(Word(text="a"))

    # When it is deployed
    other = new_flock(namespace=namespace)
    other.agent("lost").consumes(Word).publishes(Shout).runs(module.shout)
    with pytest.raises(ConfigurationError) as caught:
        await other.start()

    # Then the error names agent and module, and the board is as it was
    assert "'lost'" in str(caught.value)
    assert "only_here" in str(caught.value)
    await flock.publish(Word(text="b"))
    await flock.run_until_idle(timeout=60)
    assert sorted(s.text for s in await flock.store.get_by_type(Shout)) == ["a", "b"]
