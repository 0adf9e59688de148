"""Streaming where it matters: the run in a worker's user loop, the ring in a shard, the reader in the driver."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flock_ray import Context, Cursor, Flock, LiteLLMEngine
from flock_ray.gateway.settings import ModelSettings
from flock_ray.token_streams import StreamPiece
from tests import llm_answers as say
from tests.integration.models import Done, Job, Shout, Word
from tests.llm_server import in_thread

pytestmark = pytest.mark.timeout(180)

NewFlock = Callable[..., Flock]


async def until(flock: Flock, workflow: str, kind: str, *, after: Cursor | None = None) -> list[StreamPiece]:
    found: list[StreamPiece] = []
    async with asyncio.timeout(60):
        async for piece in flock.stream_tokens(workflow, after=after):
            found.append(piece)
            if piece.kind == kind:
                break
    return found


def speaking_until(gate: Path) -> Callable[[Context, Word], Awaitable[Shout]]:
    """Return an agent that spells a word, and is not done before a file appears."""

    async def speak(ctx: Context, word: Word) -> Shout:
        for letter in word.text:
            ctx.stream(letter)
            await asyncio.sleep(0.02)
        while not gate.exists():  # noqa: ASYNC110, ASYNC240  # another process makes it
            await asyncio.sleep(0.02)
        ctx.stream("", "final")
        return Shout(text=word.text.upper())

    return speak


def in_a_thread(ctx: Context, word: Word) -> Shout:
    for letter in word.text:
        ctx.stream(letter)
    return Shout(text=word.text.upper())


async def twice(ctx: Context, job: Job) -> Done:
    ctx.stream(str(os.getpid()))
    if ctx.attempt == 1:
        await asyncio.sleep(3600)
    return Done(n=job.n, pid=os.getpid())


async def test_what_a_run_says_reaches_the_driver_while_it_goes_on(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    flock, gate = new_flock(shards=2), tmp_path / "gate"
    flock.agent("speaker").consumes(Word).publishes(Shout).runs(speaking_until(gate))
    text = "the quick brown fox jumps over the lazy dog"
    following = [asyncio.ensure_future(until(flock, f"w{n}", "final")) for n in range(4)]
    await asyncio.gather(*(flock.publish(Word(text=f"{n} {text}"), correlation_id=f"w{n}") for n in range(4)))

    async for piece in flock.stream_tokens("w0"):
        assert "active" == (await flock.workflow_status("w0")).state
        assert piece.text.startswith("0")
        break
    gate.touch()
    for n, pieces in enumerate(await asyncio.gather(*following)):
        assert f"{n} {text}" == "".join(piece.text for piece in pieces)
        assert 5 < len(pieces), "it came in pieces, while it was said"


async def test_sync_runs_stream_too_and_a_cursor_goes_on(new_flock: NewFlock) -> None:
    flock = new_flock()
    flock.agent("speaker").consumes(Word).publishes(Shout).runs(in_a_thread)
    cursor = Cursor()
    for text in ("first", "second"):
        await flock.publish(Word(text=text), correlation_id="w")
        pieces = await until(flock, "w", "final", after=cursor)
        assert text == "".join(piece.text for piece in pieces)


async def test_a_model_s_answer_streams_from_the_provider_to_the_driver(new_flock: NewFlock) -> None:
    """Provider, gateway, worker, shard, driver: every piece is passed on before the next one is made."""
    words = tuple(f"{n} " for n in range(20))
    answer = say.Answer(
        text='{"text": "' + "".join(words) + '"}', pieces=('{"text": "', *words, '"}'), piece_s=0.1
    )
    with in_thread(respond=answer) as server:
        settings = ModelSettings(api_base=server.url, api_key=server.key)
        flock = new_flock(model="openai/test-model", models={"openai/test-model": settings})
        # Otherwise it streams only if somebody reads by the time it is called, and the reader may come late.
        engine = LiteLLMEngine(stream=True)
        flock.agent("speaker").description("Counts.").consumes(Word).publishes(Shout).with_engines(engine)
        await flock.start()
        # First: without a reader nothing is streamed.
        listening = asyncio.ensure_future(until(flock, "w", "final"))
        await flock.publish(Word(text="count"), correlation_id="w")
        pieces = await listening
        tokens = [piece for piece in pieces if piece.kind == "token"]

        assert answer.text == "".join(piece.text for piece in tokens)
        assert len(tokens) > 5, "it came in pieces"
        spread = [piece.at for piece in tokens if piece.at is not None]
        assert (spread[-1] - spread[0]).total_seconds() > 1, "while it was made"
        assert [Shout(text="".join(words))] == await flock.store.get_by_type(Shout)


async def test_a_killed_worker_s_run_speaks_again_as_the_second_attempt(new_flock: NewFlock) -> None:
    flock = new_flock()
    flock.agent("twice").consumes(Job).publishes(Done).runs(twice)
    await flock.publish(Job(n=1), correlation_id="w")
    cursor = Cursor()
    [first] = await until(flock, "w", "token", after=cursor)
    os.kill(int(first.text), signal.SIGKILL)
    pieces: list[Any] = await until(flock, "w", "final", after=cursor)

    assert 1 == first.attempt and {2} == {piece.attempt for piece in pieces}
    assert first.activation_id == pieces[0].activation_id
    assert first.text != pieces[0].text
