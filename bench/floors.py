"""What each backend can do by itself: the same bytes in batches of 100 rows, and one row per commit."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis

from bench.machine import percentiles

ROWS, QUICK_ROWS = 20_000, 4_000
COMMITS, QUICK_COMMITS = 300, 50
BATCH = 100
BODY = b"x" * 300

Write = Callable[[list[tuple[bytes, bytes]]], Awaitable[None]]


def _rows(count: int) -> list[tuple[bytes, bytes]]:
    return [(os.urandom(16), BODY) for _ in range(count)]


async def _time(write: Write, *, quick: bool) -> dict[str, Any]:
    rows = _rows(QUICK_ROWS if quick else ROWS)
    started = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        await write(rows[start : start + BATCH])
    rate = len(rows) / (time.perf_counter() - started)
    times = []
    for row in _rows(QUICK_COMMITS if quick else COMMITS):
        began = time.perf_counter()
        await write([row])
        times.append((time.perf_counter() - began) * 1000)
    return {"rows_per_s": rate, "commit_ms": percentiles(times)}


async def sqlite_floor(path: Path, *, quick: bool) -> dict[str, Any]:
    """Write to a file of its own, WAL and synchronous=FULL, from a thread."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.executescript(
        "pragma journal_mode=wal; pragma synchronous=full; create table r (id blob primary key, body blob)"
    )

    def insert(rows: list[tuple[bytes, bytes]]) -> None:
        connection.execute("begin immediate")
        connection.executemany("insert into r values (?, ?)", rows)
        connection.execute("commit")

    async def write(rows: list[tuple[bytes, bytes]]) -> None:
        await asyncio.to_thread(insert, rows)

    try:
        return await _time(write, quick=quick)
    finally:
        connection.close()


async def postgres_floor(url: str, *, quick: bool) -> dict[str, Any]:
    """Write through asyncpg with unnest, one statement per batch."""
    connection = await asyncpg.connect(url)
    await connection.execute("create table floor_rows (id bytea primary key, body bytea)")

    async def write(rows: list[tuple[bytes, bytes]]) -> None:
        await connection.execute(
            "insert into floor_rows select * from unnest($1::bytea[], $2::bytea[])",
            [key for key, _ in rows],
            [body for _, body in rows],
        )

    try:
        return await _time(write, quick=quick)
    finally:
        await connection.close()


async def redis_floor(url: str, *, quick: bool) -> dict[str, Any]:
    """Write through redis-py, one pipeline per batch."""
    client: Any = Redis.from_url(url)

    async def write(rows: list[tuple[bytes, bytes]]) -> None:
        pipeline = client.pipeline(transaction=False)
        for key, body in rows:
            pipeline.set(key, body)
        await pipeline.execute()

    try:
        return await _time(write, quick=quick)
    finally:
        await client.aclose()
