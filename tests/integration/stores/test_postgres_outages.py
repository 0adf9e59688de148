from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.postgres_errors import store_error
from flock_ray.adapters.postgres_index import PostgresStore
from flock_ray.core.rows import ArtifactQuery
from flock_ray.errors import StaleEpochError, StoreCorruptError, StoreError, StoreUnavailableError
from tests.servers import PostgresServer
from tests.unit.adapters.store_rows import activation, artifact, batch, key, workflow

EVERYTHING = ArtifactQuery()


@pytest.fixture(scope="module")
def server(new_postgres_server: Callable[..., PostgresServer]) -> PostgresServer:
    """A server that tests may kill."""
    return new_postgres_server()


@pytest.fixture
async def store(server: PostgresServer, postgres_schema: str) -> AsyncIterator[PostgresStore]:
    place = PostgresPersistence(server.url(), schema=postgres_schema, timeout=2.0, enable_audit_log=True)
    await place.prepare("board", 1)
    store = place.store("board", 0, range(256))
    await store.acquire()
    yield store
    await store.close()


async def insist(call: Callable[[], Awaitable[object]]) -> int:
    """Repeat a call until it works, as shards do, and return how often it did not."""
    refusals = 0
    while True:
        try:
            await call()
        except StoreUnavailableError:
            refusals += 1
            await asyncio.sleep(0.02)
        else:
            return refusals


async def append_until(store: PostgresStore, stop: asyncio.Event) -> tuple[int, int]:
    """Append batches until told to stop; return how many were acknowledged, and how many tries were refused."""
    lsn = refusals = 0
    while not stop.is_set():
        lsn += 1
        artifacts = [artifact((lsn, n), tags=("t",)) for n in range(5)]
        made = batch(lsn, artifacts, first_seq=5 * lsn, activations=[activation(lsn)], workflows=[workflow()])
        refusals += await insist(lambda made=made: store.append(made))  # type: ignore[misc]
    return lsn, refusals


async def check(server: PostgresServer, schema: str, batches: int) -> None:
    """Assert that every batch is there, once, with all its rows."""
    place = PostgresPersistence(server.url(), schema=schema)
    store = place.store("board", 0, range(256))
    await store.acquire()
    loaded = await store.load()
    assert list(range(1, batches + 1)) == [lsn for lsn, _ in loaded.frames]
    assert batches == loaded.last_lsn
    seqs = [seq for seq, _ in await store.page(EVERYTHING, 0, 0)]
    assert [5 * lsn + n for lsn in range(1, batches + 1) for n in range(5)] == sorted(seqs)
    assert 5 * batches == await store.count(ArtifactQuery(tags=("t",)))
    assert batches == len(await store.activations("wf-1", 100_000))
    report = await place.verify_audit("board")
    assert (6 * batches, True) == (report.entries, report.sound)
    await store.close()


@pytest.mark.parametrize("kill", [False, True])
async def test_nothing_is_lost_or_doubled_when_the_server_restarts(
    store: PostgresStore, server: PostgresServer, postgres_schema: str, kill: bool
) -> None:
    stop = asyncio.Event()
    appending = asyncio.create_task(append_until(store, stop))

    for _ in range(3):
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.restart, kill=kill)
    await insist(lambda: store.count(EVERYTHING))
    stop.set()
    batches, refusals = await appending

    assert batches > 3 and refusals >= 3
    await check(server, postgres_schema, batches)


async def test_connections_that_are_cut_in_the_middle_lose_and_double_nothing(
    store: PostgresStore, server: PostgresServer, postgres_schema: str
) -> None:
    stop = asyncio.Event()
    appending = asyncio.create_task(append_until(store, stop))
    killer = await asyncpg.connect(server.url())

    for _ in range(60):
        await asyncio.sleep(0.01)
        await killer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flock_ray'"
        )
    stop.set()
    await killer.close()
    batches, refusals = await appending

    assert refusals > 0
    await check(server, postgres_schema, batches)


async def test_answer_that_was_lost_is_made_up_for(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an append that is written, and whose connection dies before the answer
    one = batch(1, [artifact("a")])
    fetchval = asyncpg.Connection.fetchval

    async def lose_answer(*args: Any, **options: Any) -> None:
        await fetchval(*args, **options)
        monkeypatch.undo()
        raise ConnectionResetError

    broken = await _pid(store)
    monkeypatch.setattr(asyncpg.Connection, "fetchval", lose_answer)
    with pytest.raises(StoreUnavailableError):
        await store.append(one)

    await store.append(one)
    await store.append(batch(2, [artifact("b")], first_seq=2))

    assert [1, 2] == [lsn for lsn, _ in (await store.load()).frames]
    assert broken != await _pid(store)


async def _pid(store: PostgresStore) -> int:
    """Return which of the server's processes serves the connection that writes."""
    async with store._connections.write() as connection:
        return connection.get_server_pid()


async def test_stopped_server_is_unavailable_within_the_timeout(
    store: PostgresStore, server: PostgresServer, postgres_schema: str
) -> None:
    place = PostgresPersistence(server.url(), schema=postgres_schema, timeout=0.3)
    waiting, fresh = (place.store("board", 0, range(256)) for _ in range(2))
    epoch = await waiting.acquire()
    pids = [row["pid"] for row in await _backends(server)]
    server.send(signal.SIGSTOP)
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(10):
            for call in (
                waiting.append(batch(1)),
                waiting.count(EVERYTHING),
                fresh.acquire(),
                fresh.count(EVERYTHING),
            ):
                with pytest.raises(StoreUnavailableError):
                    await call
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        server.send(signal.SIGCONT)

    # Then everything goes on, without anybody doing anything.
    refused = False
    try:
        await insist(lambda: waiting.append(batch(1)))
    except StaleEpochError:
        refused = True  # the acquire whose answer nobody waited for has happened
    assert refused == (await fresh.acquire() > epoch + 1)
    for opened in (waiting, fresh):
        await opened.close()


async def _backends(server: PostgresServer) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(server.url())
    rows = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'flock_ray'")
    await connection.close()
    return rows


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.DiskFullError, StoreUnavailableError),
        (asyncpg.OutOfMemoryError, StoreUnavailableError),
        (asyncpg.TooManyConnectionsError, StoreUnavailableError),
        (asyncpg.CannotConnectNowError, StoreUnavailableError),
        (asyncpg.AdminShutdownError, StoreUnavailableError),
        (asyncpg.CrashShutdownError, StoreUnavailableError),
        (asyncpg.QueryCanceledError, StoreUnavailableError),
        (asyncpg.ReadOnlySQLTransactionError, StoreUnavailableError),
        (asyncpg.IdleInTransactionSessionTimeoutError, StoreUnavailableError),
        (asyncpg.SerializationError, StoreUnavailableError),
        (asyncpg.DeadlockDetectedError, StoreUnavailableError),
        (asyncpg.LockNotAvailableError, StoreUnavailableError),
        (asyncpg.InvalidPasswordError, StoreUnavailableError),
        (asyncpg.ConnectionDoesNotExistError, StoreUnavailableError),
        (asyncpg.InterfaceError, StoreUnavailableError),
        (TimeoutError, StoreUnavailableError),
        (ConnectionResetError, StoreUnavailableError),
        (asyncpg.UndefinedTableError, StoreCorruptError),
        (asyncpg.UniqueViolationError, StoreCorruptError),
        (asyncpg.DataCorruptedError, StoreCorruptError),
        (asyncpg.IndexCorruptedError, StoreCorruptError),
        (asyncpg.NumericValueOutOfRangeError, StoreError),
        (asyncpg.DataError, StoreError),
    ],
)
def test_meaning_of_errors(error: type[Exception], expected: type[StoreError]) -> None:
    meaning = store_error(error("secret of the server"), "PostgreSQL at db")

    assert type(meaning) is expected
    assert "secret" not in str(meaning) and "PostgreSQL at db" in str(meaning)


async def test_disk_full_is_unavailable_until_there_is_room(
    store: PostgresStore, server: PostgresServer
) -> None:
    # A trigger raises what PostgreSQL raises when it can't extend a table: filling a real disk is not for tests.
    connection = await asyncpg.connect(server.url())
    schema = store._schema
    await connection.execute(
        f"CREATE FUNCTION {schema}.no_room() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$;"
        f"CREATE TRIGGER no_room BEFORE INSERT ON {schema}.artifact_rows EXECUTE FUNCTION {schema}.no_room()"
    )

    with pytest.raises(StoreUnavailableError, match="53100"):
        await store.append(batch(1, [artifact("a")]))
    assert 0 == (await store.load()).last_lsn

    await connection.execute(f"DROP TRIGGER no_room ON {schema}.artifact_rows")
    await connection.close()
    await store.append(batch(1, [artifact("a")]))
    assert {key("a"): b'{"n":1}'} == await store.bodies([key("a")])
