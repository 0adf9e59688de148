"""Fan-out and fan-in: very many small chunks, and large ones beside the same job written on plain Ray tasks."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.processes import pss_bytes, roles
from flock_ray import FanInStrategy, FanOutStrategy, Flock, flock_type

TIMEOUT_S = 280.0
PIECE_BYTES = 1_000_000
IN_FLIGHT = 64
"""Ray tasks at the same time, of the plain job."""


@flock_type(name="bench.Numbers")
class Numbers(BaseModel):
    count: int


@flock_type(name="bench.Number")
class Number(BaseModel):
    n: int


@flock_type(name="bench.Square")
class Square(BaseModel):
    n: int


@flock_type(name="bench.SumOfSquares")
class SumOfSquares(BaseModel):
    count: int
    total: int


@flock_type(name="bench.BigFile")
class BigFile(BaseModel):
    path: str


@flock_type(name="bench.Piece")
class Piece(BaseModel):
    text: str


@flock_type(name="bench.Spaces")
class Spaces(BaseModel):
    count: int


@flock_type(name="bench.AllSpaces")
class AllSpaces(BaseModel):
    count: int


def numbers(source: Numbers) -> Iterator[Number]:
    return (Number(n=n) for n in range(source.count))


def square(number: Number) -> Square:
    return Square(n=number.n**2)


def add(squares: list[Square]) -> SumOfSquares:
    return SumOfSquares(count=len(squares), total=sum(square.n for square in squares))


def add_further(sums: list[SumOfSquares]) -> SumOfSquares:
    return SumOfSquares(count=sum(s.count for s in sums), total=sum(s.total for s in sums))


def read_pieces(path: str) -> Iterator[str]:
    with Path(path).open() as file:
        while text := file.read(PIECE_BYTES):
            yield text


def pieces(source: BigFile) -> Iterator[Piece]:
    return (Piece(text=text) for text in read_pieces(source.path))


def count_spaces(piece: Piece) -> Spaces:
    return Spaces(count=piece.text.count(" "))


def add_spaces(found: list[Spaces]) -> AllSpaces:
    return AllSpaces(count=sum(spaces.count for spaces in found))


def declare(flock: Flock) -> None:
    """Declare both jobs."""
    flock.agent("count").consumes(Numbers).fan_out(Number, strategy=FanOutStrategy.CUSTOM, split=numbers)
    flock.agent("square").consumes(Number).publishes(Square).runs(square)
    flock.agent("add").fan_in(
        Square, into=SumOfSquares, strategy=FanInStrategy.REDUCE, merge_fn=add, combine=add_further
    )
    flock.agent("cut").consumes(BigFile).fan_out(Piece, strategy=FanOutStrategy.CUSTOM, split=pieces)
    flock.agent("spaces").consumes(Piece).publishes(Spaces).runs(count_spaces)
    flock.agent("all-spaces").fan_in(Spaces, into=AllSpaces, merge_fn=add_spaces)


class Peaks:
    """Watches how large the shards become."""

    def __init__(self) -> None:
        """Begin to watch."""
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            shards = [pid for pid, role in roles().items() if "shard" in role.lower()]
            self.bytes = max([self.bytes, *map(pss_bytes, shards)])

    def end(self) -> int:
        """Stop, and return the size of the largest shard, in bytes."""
        self._over.set()
        self._thread.join()
        return self.bytes


async def small(flock: Flock, count: int) -> dict[str, Any]:
    """Square numbers, one per chunk, and add the squares up."""
    before = await flock.store.get_by_type(SumOfSquares)
    peaks, began = Peaks(), time.perf_counter()
    await flock.publish(Numbers(count=count))
    await flock.run_until_idle(timeout=TIMEOUT_S)
    seconds = time.perf_counter() - began
    after = await flock.store.get_by_type(SumOfSquares)
    if [s.count for s in after if s not in before] != [count]:
        raise RuntimeError("the sum is not of all numbers")
    return {"chunks": count, "seconds": seconds, "chunks_per_s": count / seconds, "shard_bytes": peaks.end()}


async def large(flock: Flock, path: str, expected: int) -> dict[str, Any]:
    """Count the spaces of a file."""
    peaks, began = Peaks(), time.perf_counter()
    await flock.publish(BigFile(path=path))
    await flock.run_until_idle(timeout=TIMEOUT_S)
    seconds = time.perf_counter() - began
    found = await flock.store.get_by_type(AllSpaces)
    if found[-1].count != expected:
        raise RuntimeError("not all spaces were counted")
    return {"seconds": seconds, "shard_bytes": peaks.end()}


def plain(path: str) -> tuple[int, float]:
    """Do the same on plain Ray tasks; returns the spaces and the seconds."""
    import ray

    @ray.remote
    def count(text: str) -> int:
        return text.count(" ")

    began = time.perf_counter()
    total = 0
    running: list[Any] = []
    for text in read_pieces(path):
        if len(running) >= IN_FLIGHT:
            done, running = ray.wait(running, num_returns=1)
            total += ray.get(done[0])
        running.append(count.remote(text))
    total += sum(ray.get(running))
    return total, time.perf_counter() - began


async def _measure(*, quick: bool) -> dict[str, Any]:
    count, megabytes = (10_000, 100) if quick else (100_000, 1_000)
    line = "the quick brown fox jumps over the lazy dog and goes home \n"
    with tempfile.TemporaryDirectory(prefix="flock-bench-fan-") as folder:
        path = str(Path(folder, "large.txt"))
        with open(path, "w") as file:  # noqa: ASYNC230  # before anything is measured
            for _ in range(megabytes):
                file.write((line * (PIECE_BYTES // len(line) + 1))[:PIECE_BYTES])
        async with Flock(shards=2, max_artifacts=4 * count) as flock:
            declare(flock)
            await small(flock, 1_000)  # starts the workers
            many = await small(flock, count)
            expected, plain_s = plain(path)
            few = await large(flock, path, expected)
            again = plain(path)[1]
    return {
        "small": many,
        "large": {**few, "megabytes": megabytes, "plain_s": min(plain_s, again)},
        "ratio": few["seconds"] / min(plain_s, again),
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Measure on a cluster of its own."""
    return asyncio.run(_measure(quick=quick))
