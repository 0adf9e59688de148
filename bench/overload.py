"""What failures cost those who do well: poison among good messages, and a redrive beside a live workload."""

from __future__ import annotations

import asyncio
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.machine import Percentiles, percentiles
from bench.workload import TEXT
from flock_ray import DeadLetterQueue, FixedDelay, Flock, Until, flock_type

TIMEOUT_S = 200.0
BATCH = 1_000
OUTSTANDING = 4
REDRIVES_PER_S = 50
LIVE_PER_S = 50


@flock_type(name="bench.Message")
class Message(BaseModel):
    n: int
    mended: str = ""
    """Of poison: the file whose presence makes it good."""
    text: str = TEXT


@flock_type(name="bench.Answer")
class Answer(BaseModel):
    n: int


@flock_type(name="bench.Question")
class Question(BaseModel):
    n: int


@flock_type(name="bench.Reply")
class Reply(BaseModel):
    n: int


def work(message: Message) -> Answer:
    if message.mended and not Path(message.mended).exists():
        raise ConnectionError(f"message {message.n} is poison")
    return Answer(n=message.n)


def reply(question: Question) -> Reply:
    return Reply(n=question.n)


def declare(flock: Flock) -> None:
    """Declare the agent that meets poison, with one retry and a dead letter queue, and the live workload's."""
    flock.agent("work").consumes(Message).publishes(Answer).runs(work).retry(
        FixedDelay(timedelta(milliseconds=100), max_attempts=2), dead_letter=DeadLetterQueue("poison")
    )
    flock.agent("reply").consumes(Question).publishes(Reply).runs(reply)


async def throughput(flock: Flock, messages: list[Message], good: int) -> float:
    """Publish messages, each batch a workflow, and return good answers per second."""
    before = await flock.store.count(Answer)
    gate = asyncio.Semaphore(OUTSTANDING)

    async def publish(start: int) -> None:
        async with gate:
            await flock.publish_many(messages[start : start + BATCH])

    started = time.perf_counter()
    await asyncio.gather(*(publish(start) for start in range(0, len(messages), BATCH)))
    if not await flock.run_until(Until.artifact_count(Answer).at_least(before + good), timeout=TIMEOUT_S):
        raise RuntimeError(f"{good:,} good messages were not answered within {TIMEOUT_S:g} s")
    seconds = time.perf_counter() - started
    await flock.run_until_idle(timeout=TIMEOUT_S, include_timers=True)
    return good / seconds


async def live_latency_ms(flock: Flock, seconds: float) -> Percentiles:
    """Ask questions at a steady rate, whether the ones before were answered or not, and time the answers."""
    times: list[float] = []

    async def ask(n: int) -> None:
        began = time.perf_counter()
        await flock.wait(await flock.publish(Question(n=n)), timeout=TIMEOUT_S)
        times.append((time.perf_counter() - began) * 1000)

    loop, asked = asyncio.get_running_loop(), []
    begin = loop.time()
    for n in range(int(seconds * LIVE_PER_S)):
        await asyncio.sleep(max(0.0, begin + n / LIVE_PER_S - loop.time()))
        asked.append(asyncio.ensure_future(ask(n)))
    await asyncio.gather(*asked)
    return percentiles(times)


async def _measure(*, quick: bool) -> dict[str, Any]:
    good, poison, seconds = (5_000, 500, 4.0) if quick else (100_000, 10_000, 15.0)
    with tempfile.TemporaryDirectory(prefix="flock-bench-poison-") as folder:
        mended = Path(folder, "mended")
        async with Flock(shards=1, max_artifacts=4 * (good + poison)) as flock:
            declare(flock)
            await throughput(flock, [Message(n=n) for n in range(BATCH)], BATCH)  # starts a worker
            pure = await throughput(flock, [Message(n=n) for n in range(good)], good)
            every = (good + poison) // poison
            mixed = [Message(n=n, mended=str(mended) if n % every == 0 else "") for n in range(good + poison)]
            bad = sum(bool(message.mended) for message in mixed)
            among = await throughput(flock, mixed, len(mixed) - bad)
            letters = await flock.dead_letters.count()
            if letters != bad:
                raise RuntimeError(f"{bad:,} poison messages made {letters:,} dead letters")
            mended.touch()  # noqa: ASYNC240  # once, on an empty file
            # In turns, so that both meet the same weather on a shared machine.
            alone: list[Percentiles] = []
            beside: list[Percentiles] = []
            for _ in range(2):
                alone.append(await live_latency_ms(flock, seconds / 2))
                redrive = asyncio.ensure_future(
                    flock.dead_letters.redrive_all(rate=REDRIVES_PER_S, by="bench")
                )
                await asyncio.sleep(0.5)
                beside.append(await live_latency_ms(flock, seconds / 2))
                redrive.cancel()
                await asyncio.gather(redrive, return_exceptions=True)
            redriven = letters - await flock.dead_letters.count()
    if redriven < 0.7 * seconds * REDRIVES_PER_S:
        raise RuntimeError(f"only {redriven:,} letters were redriven in {seconds:g} s")
    return {
        "good": good,
        "poison": bad,
        "pure_per_s": pure,
        "among_poison_per_s": among,
        "live_p99_ms": min(part["p99"] for part in alone),
        "live_p50_ms": min(part["p50"] for part in alone),
        "redrive_p99_ms": min(part["p99"] for part in beside),
        "redrive_p50_ms": min(part["p50"] for part in beside),
        "redriven": redriven,
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Measure on a cluster of its own."""
    return asyncio.run(_measure(quick=quick))
