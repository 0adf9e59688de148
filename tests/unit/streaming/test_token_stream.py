"""The worker's half of streaming: bundled, bounded, never in the way of a run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.actors.token_stream import FLUSH_S, TokenStream
from flock_ray.core.texts import MAX_TEXT, Text, decode_batch
from flock_ray.core.wire import Completion, ErrorInfo, Task
from flock_ray.ports import PeerGoneError
from flock_ray.testing import run_virtual


def task(run: int = 1, *, attempt: int = 1, slot: int = 0) -> Task:
    return Task(run.to_bytes(16, "big"), attempt, f"agent{run}", "s", slot, f"w{run}", ())


class Shards:
    """Keeps what is sent; may be slow, gone or refuse."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, int, list[Text]]] = []
        self.delay_s = 0.0
        self.error: Exception | None = None

    async def __call__(self, shard: int, blob: bytes) -> None:
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        self.batches.append((asyncio.get_running_loop().time(), shard, decode_batch(blob).texts))

    @property
    def texts(self) -> list[Text]:
        return [text for _, _, batch in self.batches for text in batch]

    def of(self, run: int) -> list[tuple[str, str]]:
        return [(t.kind, t.text) for t in self.texts if t.activation_id == run.to_bytes(16, "big")]


@pytest.fixture
def shards() -> Shards:
    return Shards()


def stream_to(shards: Shards, num_shards: int = 1, **options: Any) -> TokenStream:
    stream = TokenStream(shards, num_shards, **options)
    stream.begin()
    return stream


def test_pieces_of_a_run_are_bundled(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards)
        for n in range(10):
            stream(task(1), "token", str(n))
            stream(task(2), "token", "x")
            await asyncio.sleep(FLUSH_S / 20)
        stream(task(1), "final", "")
        await stream.flush(10)

    run_virtual(main())
    assert [("token", "0123456789"), ("final", "")] == shards.of(1)
    assert [("token", "x" * 10)] == shards.of(2)
    [(at_s, _, _)] = shards.batches
    assert at_s == pytest.approx(FLUSH_S, abs=0.01)


def test_status_and_final_end_a_bundle(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards)
        stream(task(), "token", "a")
        stream(task(), "status", "calls a tool")
        stream(task(), "token", "b")
        stream(task(), "token", "c")
        stream(task(), "final", "all")
        stream(task(), "nonsense", "z")
        stream(task(), "token", "")
        await stream.flush(10)

    run_virtual(main())
    assert [("token", "a"), ("status", "calls a tool"), ("token", "bc"), ("final", "all")] == shards.of(1)


def test_text_that_is_no_unicode_does_not_take_the_others_along(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards)
        stream(task(1), "token", "half \ud800 pair, 日本")
        stream(task(2), "token", "whole")
        await stream.flush(10)

    run_virtual(main())
    assert [("token", "half ? pair, 日本")] == shards.of(1)
    assert [("token", "whole")] == shards.of(2)


def test_texts_go_to_the_shard_of_their_workflow(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards, num_shards=4)
        stream(task(1, slot=6), "token", "a")
        stream(task(2, slot=9), "token", "b")
        await stream.flush(10)

    run_virtual(main())
    assert {2: "a", 1: "b"} == {shard: batch[0].text for _, shard, batch in shards.batches}


def test_a_slow_shard_gets_the_newest_pieces_and_hears_how_many_it_missed(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards, max_waiting_bytes=20_000)
        shards.delay_s = 60.0
        stream(task(), "token", "first")
        await asyncio.sleep(1)
        for n in range(200):
            stream(task(), "status", f"{n:03}")
            assert stream._lanes[0].size <= 20_000
        stream(task(), "final", "")
        await stream.flush(1000)
        assert stream.num_dropped == 200 - (len(shards.texts) - 2)

    run_virtual(main())
    numbers = [int(t.text) for t in shards.texts if t.kind == "status"]
    assert list(range(numbers[0], 200)) == numbers and 50 < len(numbers) < 100
    assert numbers[0] == next(t for t in shards.texts if t.kind == "status").missed
    assert numbers[0] == sum(t.missed for t in shards.texts)


def test_many_tokens_for_a_shard_that_hangs_stay_in_bounds(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards, max_waiting_bytes=100_000)
        shards.delay_s = 1e6
        await asyncio.sleep(0)
        for n in range(200_000):
            stream(task(n % 50), "token", "tok ")
        lane = stream._lanes[0]
        assert lane.size <= 100_000
        assert sum(len(run.waiting) for run in stream._runs.values()) == len(lane.turns)
        stream.close()
        await asyncio.sleep(0)

    run_virtual(main())


def test_many_runs_that_never_end_are_forgotten(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards, max_runs=100)
        for n in range(1000):
            stream(task(n), "token", "x")
        assert 100 == len(stream._runs)
        await stream.flush(10)

    run_virtual(main())
    assert 1000 == len(shards.texts)


def test_what_a_dead_shard_did_not_get_is_a_hole_in_what_it_gets_next(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards)
        shards.error = PeerGoneError("dead")
        stream(task(), "token", "lost")
        await asyncio.sleep(0.3)
        shards.error = None
        stream(task(), "token", "kept")
        await stream.flush(10)

    run_virtual(main())
    assert [("kept", 1)] == [(t.text, t.missed) for t in shards.texts]


def test_a_shard_that_refuses_does_not_stop_the_stream(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        stream = stream_to(shards)
        shards.error = ValueError("no")
        stream(task(), "token", "secret")
        await asyncio.sleep(1)
        shards.error = None
        stream(task(), "token", "kept")
        await stream.flush(10)

    run_virtual(main())
    assert ["kept"] == [t.text for t in shards.texts]
    assert "secret" not in caplog.text and "did not take" in caplog.text


@pytest.mark.parametrize(
    ("error", "end"),
    [(None, ("final", "")), (ErrorInfo("RateLimitError", "secret"), ("failed", "RateLimitError"))],
)
def test_a_run_that_does_not_say_its_last_word_gets_one(
    shards: Shards, error: ErrorInfo | None, end: tuple[str, str]
) -> None:
    async def main() -> None:
        stream = stream_to(shards)
        stream(task(1), "token", "a")
        stream(task(2), "token", "b")
        stream(task(2), "final", "b")
        stream(task(4), "token", "d")
        stream.ended([(0, Completion(task(n).id, 1, 0, error=error)) for n in (1, 2, 3)])
        stream.cancelled([task(4).id, task(5).id])
        await stream.flush(10)

    run_virtual(main())
    assert [("token", "a"), end] == shards.of(1)
    assert [("token", "b"), ("final", "b")] == shards.of(2)
    assert [] == shards.of(3)
    assert [("token", "d"), ("failed", "cancelled")] == shards.of(4)


def test_attempts_are_told_apart(shards: Shards) -> None:
    async def main() -> None:
        stream = stream_to(shards)
        stream(task(), "token", "one")
        stream(task(attempt=2), "token", "two")
        stream(task(attempt=(5 << 32) + 3), "token", "three")
        await stream.flush(10)

    run_virtual(main())
    assert [(1, "one"), (2, "two"), (3, "three")] == [(t.attempt, t.text) for t in shards.texts]


@pytest.mark.parametrize("spoke", [False, True])
def test_a_long_answer_is_not_said_twice(shards: Shards, spoke: bool) -> None:
    answer = "x" * (2 * MAX_TEXT + 1)

    async def main() -> None:
        stream = stream_to(shards)
        if spoke:
            for piece in (answer[:MAX_TEXT], answer[MAX_TEXT:]):
                stream(task(), "token", piece)
        stream(task(), "status", answer)
        stream(task(), "final", answer)
        await stream.flush(10)

    run_virtual(main())
    assert answer == "".join(t.text for t in shards.texts if t.kind == "token")
    assert ("final", "") == shards.of(1)[-1]
    assert all(len(t.text) <= MAX_TEXT for t in shards.texts)


async def test_threads_stream_through_the_loop_that_began(shards: Shards) -> None:
    stream = stream_to(shards, flush_s=0.001)

    def speak(run: int) -> None:
        for n in range(500):
            stream(task(run), "token", f"{n},")
        stream(task(run), "final", "")

    await asyncio.gather(*(asyncio.to_thread(speak, run) for run in range(4)))
    await asyncio.sleep(0)  # the threads asked this loop to send
    await stream.flush(10)

    for run in range(4):
        *tokens, last = shards.of(run)
        assert ("final", "") == last
        assert "".join(f"{n}," for n in range(500)) == "".join(text for _, text in tokens)


def test_nothing_is_sent_before_it_begins_or_after_it_was_closed(shards: Shards) -> None:
    async def main() -> None:
        stream = TokenStream(shards, 1)
        stream(task(), "token", "early")
        await asyncio.sleep(1)
        stream.begin()
        stream(task(), "token", " and now")
        await asyncio.sleep(1)
        stream.close()
        stream(task(), "token", "late")
        await asyncio.sleep(1)

    run_virtual(main())
    assert [("token", "early and now")] == shards.of(1)


@given(
    said=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["token", "status"]), st.integers(1, 30), st.booleans()),
        max_size=80,
    ),
    room=st.integers(1, 8),
)
def test_what_arrives_is_in_order_and_what_does_not_is_counted(
    said: list[tuple[int, str, int, bool]], room: int
) -> None:
    """Each piece but those that were dropped arrives once, in the order of its run."""
    shards = Shards()

    async def main() -> int:
        stream = stream_to(shards, max_waiting_bytes=room * 300)
        for run, kind, length, pause in said:
            stream(task(run), kind, "x" * length)
            if pause:
                await asyncio.sleep(2 * FLUSH_S)
        for run in range(4):
            stream(task(run), "final", "")
        await stream.flush(100)
        return stream.num_dropped

    dropped = run_virtual(main())

    for run in range(4):
        arrived = [(kind, len(text)) for kind, text in shards.of(run) if kind == "status"]
        wanted = [(kind, length) for who, kind, length, _ in said if who == run and kind == "status"]
        assert is_subsequence(arrived, wanted)
        if not dropped:
            assert arrived == wanted
            total = sum(length for who, kind, length, _ in said if who == run and kind == "token")
            assert total == sum(len(text) for kind, text in shards.of(run) if kind == "token")
    heard_out = all(shards.of(run)[-1:] == [("final", "")] for run in range(4))
    counted = sum(text.missed for text in shards.texts)
    assert counted == dropped or (counted < dropped and not heard_out)


def is_subsequence(some: list[Any], of: list[Any]) -> bool:
    rest = iter(of)
    return all(item in rest for item in some)
