"""What runs say, from the run to whoever follows it: order, cursors, gaps, attempts, ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Context, Cursor, flock_type
from flock_ray.core.texts import Text, TextLog
from flock_ray.errors import ConfigurationError, ModelRequestError
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual
from flock_ray.token_streams import StreamPiece


@flock_type(name="streaming.Question")
class Question(BaseModel):
    text: str


@flock_type(name="streaming.Reply")
class Reply(BaseModel):
    text: str


async def take(stream: AsyncIterator[Any], count: int) -> list[Any]:
    found: list[Any] = []
    async for item in stream:
        found.append(item)
        if len(found) == count:
            break
    return found


async def until_end(stream: AsyncIterator[StreamPiece], ends: int = 1) -> list[StreamPiece]:
    found: list[StreamPiece] = []
    async for piece in stream:
        found.append(piece)
        ends -= piece.kind in ("final", "failed")
        if not ends:
            break
    return found


def said(pieces: list[Any]) -> list[tuple[str, str]]:
    return [(piece.kind, piece.text) for piece in pieces]


async def speak(ctx: Context, question: Question) -> Reply:
    """Say the question word by word, a word a second."""
    ctx.stream("thinks", "status")
    for word in question.text.split():
        ctx.stream(f"{word} ")
        await asyncio.sleep(1)
    ctx.stream("", "final")
    return Reply(text=question.text)


def speaking(**options: Any) -> VirtualFlock:
    flock = VirtualFlock(**options)
    flock.agent("speaker").consumes(Question).publishes(Reply).runs(speak).max_concurrency(8)
    return flock


def test_words_arrive_while_the_run_goes_on() -> None:
    async def main() -> None:
        async with speaking() as flock:
            following = asyncio.ensure_future(until_end(flock.stream_tokens("w")))
            question = await flock.publish(Question(text="one two three"), correlation_id="w")
            early = await take(flock.stream_tokens(question), 2)
            assert "active" == (await flock.workflow_status("w")).state
            pieces = await following

            assert [("status", "thinks"), ("token", "one ")] == said(early)
            words = [("token", "one "), ("token", "two "), ("token", "three ")]
            assert [("status", "thinks"), *words, ("final", "")] == said(pieces)
            assert {("speaker", "w", 1, 0)} == {
                (p.agent, p.correlation_id, p.attempt, p.shard) for p in pieces
            }
            assert 1 == len({piece.activation_id for piece in pieces})
            ats = [piece.at for piece in pieces[1:4] if piece.at is not None]
            assert [1.0, 1.0] == [pytest.approx((b - a).total_seconds()) for a, b in pairwise(ats)]

    run_virtual(main())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_kept_cursor_goes_on_behind_the_last_piece(shards: int) -> None:
    async def main() -> None:
        async with speaking(shards=shards) as flock:
            for n in range(4):
                await flock.publish(Question(text="a b c d"), correlation_id=f"w{n}")
            cursor = Cursor()
            pieces: list[StreamPiece] = []
            for _ in range(4):
                pieces += await take(flock.stream_tokens(after=cursor), 5)
                cursor = Cursor(texts=dict(cursor.texts))
            pieces += await take(flock.stream_tokens(after=cursor), 4)

            for n in range(4):
                mine = [piece for piece in pieces if piece.correlation_id == f"w{n}"]
                assert "a b c d " == "".join(piece.text for piece in mine if piece.kind == "token")
                assert 6 == len(mine) == len({(piece.shard, piece.seq) for piece in mine})

    run_virtual(main())


def test_only_an_agent_or_only_what_is_new() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            for name in ("left", "right"):
                flock.agent(name).consumes(Question).publishes(Reply).runs(speak)
            await flock.publish(Question(text="old"))
            await flock.run_until_idle()
            await asyncio.sleep(1)
            new = asyncio.ensure_future(until_end(flock.stream_tokens(only_new=True), 2))
            await asyncio.sleep(1)
            await flock.publish(Question(text="new"))
            right = flock.get_agent("right")

            assert {"thinks", "new ", ""} == {piece.text for piece in await new}
            of_right = await until_end(flock.stream_tokens(agent=right), 2)
            assert {"right"} == {piece.agent for piece in of_right}
            assert ["old ", "new "] == [piece.text for piece in of_right if piece.kind == "token"]

    run_virtual(main())


def test_a_run_that_failed_ends_with_the_kind_of_its_error() -> None:
    async def fails(ctx: Context, question: Question) -> Reply:
        ctx.stream("I was going to")
        raise ConnectionError("secret")

    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("fails").consumes(Question).publishes(Reply).runs(fails)
            await flock.publish(Question(text="x"))
            pieces = await until_end(flock.stream_tokens())

            assert [("token", "I was going to"), ("failed", "ConnectionError")] == said(pieces)

    run_virtual(main())


def test_the_answer_of_a_language_model_is_streamed_and_its_failure_is_told() -> None:
    model = ScriptedModel([Reply(text="roses are red"), ModelRequestError("wrong key")])

    async def main() -> None:
        async with VirtualFlock(language_model=model) as flock:
            flock.agent("poet").description("Write a poem.").consumes(Question).publishes(Reply)
            await flock.publish(Question(text="x"), correlation_id="good")
            good = await until_end(flock.stream_tokens("good"))
            await flock.publish(Question(text="x"), correlation_id="bad")
            events = await take(flock.events("activation.failed"), 1)

            text = "".join(piece.text for piece in good if piece.kind == "token")
            assert {"text": "roses are red"} == json.loads(text)
            assert ("final", text) == said(good)[-1]
            assert "wrong key" in events[0].detail

    run_virtual(main())


def test_candidates_of_best_of_do_not_stream() -> None:
    model = ScriptedModel(lambda request: Reply(text="roses are red"))

    async def main() -> None:
        async with VirtualFlock(language_model=model) as flock:
            poet = flock.agent("poet").description("Write a poem.").consumes(Question).publishes(Reply)
            poet.best_of(3, score=lambda result: 1.0)
            flock.agent("speaker").consumes(Reply).runs(lambda ctx, reply: ctx.stream("done", "final"))
            await flock.publish(Question(text="x"))

            assert {"speaker"} == {piece.agent for piece in await until_end(flock.stream_tokens())}

    run_virtual(main())


def test_a_run_that_is_cancelled_or_too_slow_ends() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("slow").consumes(Question).publishes(Reply).runs(speak).timeout(timedelta(seconds=2))
            await flock.publish(Question(text="a b c d e f"), correlation_id="late")
            await flock.publish(Question(text="a b c d e f"), correlation_id="given up")
            await asyncio.sleep(0.5)
            await flock.cancel("given up")
            late = await until_end(flock.stream_tokens("late"))
            given_up = await until_end(flock.stream_tokens("given up"))

            assert ("failed", "AgentTimeoutError") == said(late)[-1]
            assert [("status", "thinks"), ("token", "a "), ("failed", "cancelled")] == said(given_up)

    run_virtual(main())


def test_a_run_that_was_invoked_streams_as_well() -> None:
    async def main() -> None:
        async with speaking() as flock:
            await flock.invoke("speaker", Question(text="hello"))
            assert [("status", "thinks"), ("token", "hello "), ("final", "")] == said(
                await until_end(flock.stream_tokens())
            )

    run_virtual(main())


def test_a_reader_that_is_too_slow_sees_a_gap_and_what_is_left() -> None:
    async def main() -> None:
        async with speaking() as flock:
            await flock.start()
            assert flock.local is not None and flock.local.shards[0] is not None
            size = Text(b"x" * 16, 1, "speaker", "w", "token", "12 ").size
            log = flock.local.shards[0].texts = TextLog(max_bytes=10 * size)
            cursor = Cursor()
            await flock.publish(Question(text=" ".join(str(n) for n in range(60))), correlation_id="w")
            await take(flock.stream_tokens(after=cursor), 2)
            await flock.run_until_idle()
            await asyncio.sleep(1)
            pieces = await until_end(flock.stream_tokens(after=cursor))
            events = await take(flock.events("stream", after=Cursor(texts={0: 2})), 2)

            gap, *rest = pieces
            assert "gap" == gap.kind and gap.activation_id is None
            assert [("token", f"{n} ") for n in range(60 - len(rest) + 1, 60)] == said(rest)[:-1]
            assert 62 == 2 + gap.missed + len(rest) and len(log) == len(rest)
            assert ["gap", "stream.token"] == [event.kind for event in events]
            assert "pieces of what runs streamed were dropped" in events[0].detail

    run_virtual(main())


def test_events_have_them_only_when_asked() -> None:
    async def main() -> None:
        async with speaking() as flock:
            await flock.publish(Question(text="a b"), correlation_id="w")
            await flock.run_until_idle()
            await asyncio.sleep(1)
            board_only = await take(flock.events(), 3)
            tokens = await take(flock.events("stream.token", correlation_id="w"), 2)
            cursor = Cursor()
            mixed = await take(flock.events("stream.final", "artifact", after=cursor), 3)

            assert not any(event.kind.startswith("stream") for event in board_only)
            assert [("stream.token", "a ", 1), ("stream.token", "b ", 1)] == [
                (event.kind, event.detail, event.attempt) for event in tokens
            ]
            assert {"stream.final", "artifact.published"} == {event.kind for event in mixed}
            assert cursor.positions and cursor.texts
            with pytest.raises(ConfigurationError, match=r"stream.failed, stream.final"):
                await take(flock.events("stream.tokens"), 1)

    run_virtual(main())


def test_what_was_erased_is_not_repeated_by_the_stream() -> None:
    async def main() -> None:
        async with speaking() as flock:
            await flock.publish(Question(text="my secret"), correlation_id="w")
            await flock.run_until_idle()
            await asyncio.sleep(1)
            cursor = Cursor()
            await take(flock.stream_tokens(after=cursor), 1)
            await flock.erase(correlation_id="w", reason="asked to")
            await flock.publish(Question(text="hello"), correlation_id="v")
            pieces = await until_end(flock.stream_tokens(after=cursor))

            assert [("gap", ""), ("status", "thinks"), ("token", "hello "), ("final", "")] == said(pieces)

    run_virtual(main())


def test_a_board_that_came_back_says_that_the_past_is_gone(tmp_path: Any) -> None:
    from flock_ray import SQLitePersistence

    async def first(cursor: Cursor) -> None:
        async with speaking(namespace="b", persistence=SQLitePersistence(tmp_path)) as flock:
            await flock.publish(Question(text="one two"), correlation_id="w")
            await until_end(flock.stream_tokens(after=cursor))

    async def second(cursor: Cursor) -> list[tuple[str, str]]:
        async with speaking(namespace="b", persistence=SQLitePersistence(tmp_path)) as flock:
            await flock.publish(Question(text="three"), correlation_id="v")
            return said(await until_end(flock.stream_tokens(after=cursor)))

    cursor = Cursor()
    asyncio.run(first(cursor))
    assert ("gap", "") == asyncio.run(second(cursor))[0]


def test_runs_do_not_wait_for_a_shard_that_is_slow_to_take_texts() -> None:
    async def main() -> None:
        async with speaking() as flock:
            await flock.start()
            assert flock.local is not None and flock.local.shards[0] is not None

            async def hangs(blob: bytes) -> bool:
                await asyncio.sleep(1e6)
                return True

            flock.local.shards[0].take_texts = hangs  # type: ignore[method-assign]
            started = asyncio.get_running_loop().time()
            await flock.publish(Question(text="a b"), correlation_id="w")
            assert "completed" == (await flock.wait("w")).state
            assert asyncio.get_running_loop().time() - started < 3

    run_virtual(main())
