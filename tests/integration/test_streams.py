from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flock_ray import Artifact, Cursor, Flock
from flock_ray.errors import AgentCrashedError, AgentError, BackpressureError, WaitTimeoutError
from tests.integration.models import Done, Job, Shout, Word

pytestmark = pytest.mark.timeout(180)

NewFlock = Callable[..., Flock]
T = TypeVar("T")


async def take(items: AsyncIterator[T], count: int) -> list[T]:
    """Return the first items of a stream that may have no end."""
    found: list[T] = []
    async with asyncio.timeout(60):
        async for item in items:
            found.append(item)
            if len(found) == count:
                break
    return found


async def test_a_stream_yields_every_artifact_of_all_shards_and_goes_on_from_its_cursor(
    new_flock: NewFlock,
) -> None:
    # Given thirty words on three shards, and a reader who has read them
    flock = new_flock(shards=3)
    await asyncio.gather(*(flock.publish(Word(text=str(n))) for n in range(30)))
    cursor = Cursor()
    stream = flock.stream(Word, after=cursor)
    seen = [a.payload["text"] for a in await take(stream, 30) if isinstance(a, Artifact)]
    assert sorted(map(int, seen)) == list(range(30))

    # When a reader comes back with the cursor of the first while more arrives
    async def publish_later() -> None:
        await asyncio.gather(*(flock.publish(Word(text=str(n))) for n in range(30, 60)))

    publishing = asyncio.create_task(publish_later())
    again = set[int]()
    async with asyncio.timeout(60):
        async for artifact in flock.stream(Word, after=cursor):
            assert isinstance(artifact, Artifact)
            again.add(int(artifact.payload["text"]))
            if set(range(30, 60)) <= again:
                break
    await publishing

    # Then it gets everything new, and of the old at most what was read last
    assert len(again) < 60


async def test_events_tell_of_failures_and_go_on_from_their_cursor(new_flock: NewFlock) -> None:
    # Given an agent that fails on some words
    def picky(word: Word) -> Shout:
        if word.text.startswith("bad"):
            raise ValueError(f"no {word.text}")
        return Shout(text=word.text)

    flock = new_flock(shards=3)
    flock.agent("picky").consumes(Word).publishes(Shout).runs(picky)
    texts = ["good-1", "bad-1", "good-2", "bad-2"]
    await asyncio.gather(*(flock.publish(Word(text=text)) for text in texts))

    # When somebody reads only failures
    failures = await take(flock.events("activation.failed"), 2)

    # Then these are the failures, with agent, workflow and reason
    assert sorted(event.detail for event in failures) == ["ValueError: no bad-1", "ValueError: no bad-2"]
    assert {event.agent for event in failures} == {"picky"}
    workflow = failures[0].correlation_id
    assert (await flock.workflow_status(workflow)).state == "failed"
    # And a whole family is read per workflow
    family = await take(flock.events("artifact", "activation", correlation_id=workflow), 3)
    assert [event.kind for event in family].count("artifact.published") == 2


def _held(job: Job) -> Done:
    while not Path(job.gate).exists():
        time.sleep(0.01)
    return Done(n=job.n, pid=os.getpid())


async def test_a_full_board_makes_publishers_wait_then_says_so_and_loses_nothing_it_took(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given a board that takes fifty open activations, and an agent that does not come forward
    gate = tmp_path / "gate"
    flock = new_flock(max_open=50, publish_timeout=timedelta(seconds=1))
    flock.agent("slow").consumes(Job).publishes(Done).runs(_held)
    await flock.start()
    refused: list[int] = []

    async def publish(n: int) -> None:
        try:
            await flock.publish(Job(n=n, gate=str(gate)), idempotency_key=f"job-{n}")
        except BackpressureError:
            refused.append(n)

    # When two hundred jobs are published, ten at a time
    for start in range(0, 200, 10):
        if len(refused) < 20:
            await asyncio.gather(*(publish(n) for n in range(start, start + 10)))
        else:
            refused.extend(range(start, start + 10))

    # Then it holds about as many as it may, and the publishers of the rest were told
    stats = (await (await flock._ready_board()).each("stats"))[0]
    assert 50 <= stats["open"] < 60
    assert len(refused) == 200 - stats["open"]

    # And once the agent works, those can be published again, and every job is done exactly once
    gate.touch()
    again = [*refused, 0, 1]
    while again:
        refused.clear()
        await asyncio.gather(*(publish(n) for n in again))
        again = refused.copy()
    await flock.run_until_idle(timeout=60)
    assert sorted(d.n for d in await flock.store.get_by_type(Done)) == list(range(200))


async def _by_text(word: Word) -> Shout:
    if word.text == "raise":
        raise KeyError("nothing there")
    if word.text == "exit":
        os._exit(1)
    if word.text == "hang":
        await asyncio.Event().wait()
    return Shout(text=word.text.upper())


async def test_invoke_returns_outputs_and_reports_errors_timeouts_and_crashes(new_flock: NewFlock) -> None:
    # Given an agent that does what it is told
    flock = new_flock()
    flock.agent("do").consumes(Word, where=lambda w: False).publishes(Shout).max_concurrency(1).runs(_by_text)

    async def invoke(text: str, **options: Any) -> list[Artifact]:
        return await flock.invoke("do", Word(text=text), **options)

    # When it is invoked past its predicate: outputs come back, and go to the board unless told otherwise
    assert [a.payload["text"] for a in await invoke("a")] == ["A"]
    assert [a.payload["text"] for a in await invoke("b", publish_outputs=False)] == ["B"]
    assert [s.text for s in await flock.store.get_by_type(Shout)] == ["A"]

    # Then failures are errors of the caller, and never artifacts
    with pytest.raises(AgentError, match="KeyError: 'nothing there'"):
        await invoke("raise")
    with pytest.raises(WaitTimeoutError):
        await invoke("hang", timeout=0.5)
    assert [a.payload["text"] for a in await invoke("c")] == ["C"]
    with pytest.raises(AgentCrashedError):
        await invoke("exit")
    assert [a.payload["text"] for a in await invoke("d")] == ["D"]
    assert {a.type for a in await flock.store.list()} == {"integration.Shout"}
