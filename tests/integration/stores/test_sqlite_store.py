from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from flock_ray.adapters import sqlite_files
from flock_ray.adapters.sqlite import SQLitePersistence, SQLiteStore
from flock_ray.adapters.sqlite_files import board_folder, risks
from flock_ray.adapters.sqlite_queries import MAX_WALKS, Order, walks
from flock_ray.core.rows import SHARD, ArtifactQuery
from flock_ray.errors import BoardClosedError, ConfigurationError, StaleEpochError, StoreUnavailableError
from flock_ray.ports import Persistence
from tests.store_contract import PersistenceContract, StoreContract
from tests.unit.adapters.store_rows import activation, artifact, batch, key, snapshot, workflow

ROOT = Path(__file__).parents[3]
EVERYTHING = ArtifactQuery()


class TestSQLiteStore(StoreContract, PersistenceContract):
    @pytest.fixture
    def persistence(self, tmp_path: Path) -> Persistence:
        return SQLitePersistence(tmp_path / "boards")


@pytest.fixture
def place(tmp_path: Path) -> SQLitePersistence:
    return SQLitePersistence(tmp_path / "boards", timeout=0.2)


def opened(place: SQLitePersistence) -> SQLiteStore:
    store = place.store("board", 0, range(256))
    assert isinstance(store, SQLiteStore)
    return store


def shard_file(place: SQLitePersistence) -> Path:
    return place.path / "board" / "shard-0000.db"


@contextmanager
def writer(place: SQLitePersistence, batches: int) -> Iterator[subprocess.Popen[str]]:
    """Run another process that writes to the board; it is killed in the end."""
    command = [sys.executable, "-m", "tests.integration.stores.sqlite_writer", str(place.path), str(batches)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


async def test_stopped_writer_that_wakes_up_is_refused(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    store = opened(place)
    with writer(place, 2) as old:
        assert old.stdin is not None and old.stdout is not None
        print(file=old.stdin, flush=True)
        assert "1\n" == old.stdout.readline()
        os.kill(old.pid, signal.SIGSTOP)
        assert 2 == await store.acquire()
        await store.append(batch(2, frame=b"of the new writer"))

        os.kill(old.pid, signal.SIGCONT)
        print(file=old.stdin, flush=True)

        assert "stale\n" == old.stdout.readline()
    loaded = await store.load()
    assert [(1, b"frame-1"), (2, b"of the new writer")] == loaded.frames
    await store.close()


async def test_killed_writer_has_lost_nothing_that_it_said(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    with writer(place, 100_000) as old:
        assert old.stdout is not None
        said = [int(old.stdout.readline()) for _ in range(40)][-1]
        old.send_signal(signal.SIGKILL)
        old.wait()
        said = max([said, *(int(line) for line in old.stdout if line.endswith("\n"))])
    store = opened(place)
    await store.acquire()

    loaded = await store.load()

    assert loaded.last_lsn in (said, said + 1)
    assert [*range(1, loaded.last_lsn + 1)] == [lsn for lsn, _ in loaded.frames]
    assert 3 * loaded.last_lsn == await store.count(EVERYTHING)
    await store.close()


async def test_append_that_was_under_way_comes_before_the_new_epoch(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    place.timeout = 10
    old, new = opened(place), opened(place)
    await old.acquire()
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> bool:
        inside.set()
        return go_on.wait(10)

    def append_slowly(connection: sqlite3.Connection) -> None:
        connection.create_function("wait", 0, wait)
        # Runs behind the write lock, and the epoch check.
        connection.execute("CREATE TEMP TRIGGER slow BEFORE INSERT ON main.frames BEGIN SELECT wait(); END")
        old._appender.append(connection, batch(1, [artifact("in flight")]))

    appending = asyncio.ensure_future(old._writer.run(append_slowly))
    await asyncio.to_thread(inside.wait, 10)
    acquiring = asyncio.ensure_future(new.acquire())
    await asyncio.wait([acquiring], timeout=0.1)
    assert not acquiring.done()
    go_on.set()

    await appending
    assert 2 == await acquiring
    assert [(1, b"frame-1")] == (await new.load()).frames
    with pytest.raises(StaleEpochError):
        await old.append(batch(2))
    await old.close()
    await new.close()


async def test_lock_of_another_process_makes_the_store_unavailable_for_as_long(
    place: SQLitePersistence,
) -> None:
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    with closing(sqlite3.connect(shard_file(place), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked"):
            await store.append(batch(1))
        assert 0 == await store.count(EVERYTHING)
        other.execute("ROLLBACK")

    await store.append(batch(1))
    await store.close()


async def test_closed_store_has_no_thread_and_no_open_file(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    await asyncio.gather(store.count(EVERYTHING), store.get([key(1)]))
    assert 3 == len([t for t in threading.enumerate() if t.name.startswith("flock-sqlite")])

    await store.close()

    assert [] == [t for t in threading.enumerate() if t.name.startswith("flock-sqlite")]
    assert ["board.db", "shard-0000.db"] == sorted(os.listdir(place.path / "board"))
    with pytest.raises(BoardClosedError):
        await store.acquire()


async def test_event_loop_goes_on_while_the_disk_is_slow(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    release = threading.Event()
    slow = asyncio.ensure_future(store._writer.run(lambda _: release.wait(10)))

    assert 0 == await store.count(EVERYTHING)

    release.set()
    assert await slow
    await store.close()


async def test_log_stays_bounded(place: SQLitePersistence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_files, "CHECKPOINT_PAGES", 50)
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    for lsn in range(1, 101):
        await store.append(batch(lsn, [artifact(lsn, payload=b"1" * 20_000)], first_seq=lsn))

    log = shard_file(place).with_name("shard-0000.db-wal")
    assert log.stat().st_size < 100 * 4096
    await store.close()


async def test_erased_payload_is_nowhere_in_the_files(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    secrets = [b'"secret %d"' % n + b" of some length " * n * 100 for n in range(8)]
    await store.append(batch(1, [artifact(n, payload=secret) for n, secret in enumerate(secrets)]))

    def traces() -> list[bytes]:
        files = b"".join(path.read_bytes() for path in (place.path / "board").iterdir())
        return [secret[:10] for secret in secrets if secret[:10] in files]

    assert 8 == await store.erase([key(n) for n in range(8)])
    await store.close()
    assert [] == traces()


async def test_copies_of_what_was_erased_are_in_no_freed_page(place: SQLitePersistence) -> None:
    # Given copies of a payload in frames and a snapshot, which take pages of their own
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    secret = b"secret of some length " * 3_000
    for lsn in range(1, 9):
        await store.append(
            msgspec.structs.replace(batch(lsn, [artifact(lsn, payload=secret)], first_seq=lsn), frame=secret)
        )
    await store.save_snapshots([snapshot(3, 8, secret), snapshot(SHARD, 1, b"s")])

    # When it is erased, and the frames and the snapshot are replaced as a shard does then
    await store.erase([key(lsn) for lsn in range(1, 9)])
    await store.append(batch(9))
    await store.save_snapshots([snapshot(3, 9, b"clean")])
    await store.save_snapshots([snapshot(SHARD, 9, b"s")])
    await store.truncate(9)

    # Then its bytes are nowhere in the files, while the store is open
    for path in (place.path / "board").iterdir():
        assert b"secret" not in path.read_bytes(), path
    await store.close()


FIRST_PAGES: dict[str, ArtifactQuery] = {
    "everything": EVERYTHING,
    "types": ArtifactQuery(types=("a", "b")),
    "producer": ArtifactQuery(produced_by=("p",)),
    "visibility": ArtifactQuery(visibility=("Private",)),
    "workflow": ArtifactQuery(correlation_id="w"),
    "tags": ArtifactQuery(tags=("x", "y")),
    "type and tag": ArtifactQuery(types=("a",), tags=("x",)),
    "type since": ArtifactQuery(types=("a",), start_us=5),
    "many kinds": ArtifactQuery(visibility=("Public",)),
}


@pytest.mark.parametrize("order", ["seq", "time"])
@pytest.mark.parametrize("name", FIRST_PAGES)
async def test_first_page_is_a_walk_along_an_index(place: SQLitePersistence, name: str, order: Order) -> None:
    await place.prepare("board", 1)
    kinds = {("a", "p", "Private"): 0, ("b", "q", "Private"): 1}
    kinds |= {(f"type{n}", "r", "Public"): n + 2 for n in range(MAX_WALKS + 1)}

    with closing(sqlite3.connect(shard_file(place))) as connection:
        for walk in walks(FIRST_PAGES[name], kinds, order):
            columns, by = {"seq": ("w.seq", "w.seq"), "time": ("w.created_us", "w.created_us, w.id")}[order]
            statement, params = walk.select(columns, f"ORDER BY {by} LIMIT 10")
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", params)]
            sorts = [step for step in plan if "TEMP B-TREE" in step]
            assert [] == sorts or name == "workflow", plan
            scans = [
                step
                for step in plan
                if step.startswith("SCAN") and not step.startswith(("SCAN e", "SCAN json"))
            ]
            assert all("w" == step[5:6] and name in ("everything", "many kinds") for step in scans), plan


async def test_many_kinds_are_read_in_one_walk(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    many = [
        artifact(n, type=f"type{n % 90}", produced_by=f"p{n % 2}", created_us=n * 7 % 30) for n in range(180)
    ]
    await store.append(batch(1, many))
    query = ArtifactQuery(produced_by=("p1",), start_us=3)
    expected = [(seq, entry) for seq, entry in enumerate(many, 1) if query.selects(entry)]

    assert expected == await store.read(query, 0, 1000)
    assert sorted(expected, key=lambda e: (e[1].created_us, e[1].id)) == await store.page(query, 0, 0)
    assert len(expected) == await store.count(query)
    await store.close()


async def test_workflow_of_an_earlier_epoch_has_one_row_that_counts(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    for epoch, open_ in enumerate((0, 1, 0), 1):
        store = opened(place)
        assert epoch == await store.acquire()
        await store.append(batch(epoch, workflows=[workflow(open=open_, updated_us=100 * epoch)]))
        newest = [workflow(open=open_, updated_us=100 * epoch)]
        assert newest == await store.workflows(["wf-1"])
        assert (newest if not open_ else []) == await store.settled_before(1_000, 10)
        if open_:
            assert 0 == await store.remove_workflows([(0, "wf-1")])
        if epoch < 3:
            await store.close()

    await store.remove_workflows([(0, "wf-1")])
    assert [] == await store.workflows(["wf-1"])
    assert [] == await store.settled_before(1_000, 10)
    await store.close()


async def test_ids_and_workflows_are_found_in_every_era(
    place: SQLitePersistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flock_ray.adapters.sqlite_append.ERA_BITS", 2)
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    for lsn in range(1, 21):
        await store.append(
            batch(
                lsn,
                [artifact(lsn)],
                first_seq=lsn,
                activations=[activation(("run", lsn), inputs=[lsn, 1])],
                workflows=[workflow(updated_us=lsn)],
            )
        )

    assert 20 == len(await store.get([key(n) for n in range(21)]))
    assert [*range(1, 21)] == [
        seq for seq, _ in await store.read(ArtifactQuery(correlation_id="wf-1"), 0, 99)
    ]
    assert [key(("run", n)) for n in range(1, 21)] == [row.id for row in await store.consumptions([key(1)])]
    assert [key(("run", n)) for n in range(1, 21)] == [row.id for row in await store.activations("wf-1", 99)]
    assert 20 == await store.remove_workflows([(0, "wf-1")])
    with closing(sqlite3.connect(shard_file(place))) as connection:
        tables = ("artifacts", "activations", "workflows", "postings")
        assert [0] * 4 == [
            connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables
        ]
    await store.close()


async def test_folders_are_for_their_user_alone(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)

    assert [0o700, 0o700] == [path.stat().st_mode & 0o777 for path in (place.path, place.path / "board")]


def test_relative_path_counts_from_where_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = SQLitePersistence("boards/../data")
    monkeypatch.chdir("/")

    assert tmp_path / "data" == place.path
    assert f"SQLitePersistence({str(tmp_path / 'data')!r}, timeout=5.0)" == repr(place)


def test_no_two_boards_share_a_folder_and_none_leaves_the_place(tmp_path: Path) -> None:
    names = [
        "a",
        "A",
        "a.",
        ".a",
        "..",
        ".",
        "",
        "a/b",
        "/etc",
        "a\x00b",
        "a%",
        "Ä",
        "ä",
        "x" * 100,
        "x" * 5000,
    ]
    names += [board_folder(tmp_path, "A").name, "a" * 60, "A" * 60, "A" * 61]

    folders = [board_folder(tmp_path, name) for name in names]

    assert len(names) == len({folder.name.lower() for folder in folders})
    assert {tmp_path} == {folder.parent for folder in folders}
    assert all(len(folder.name) <= 100 and folder.name not in (".", "..") for folder in folders)


@pytest.mark.parametrize("num_shards", [0, -1, 257])
async def test_impossible_number_of_shards_is_refused(place: SQLitePersistence, num_shards: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 256"):
        await place.prepare("board", num_shards)

    assert not place.path.exists()


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ("/dev/sda / ext4 rw 0 0\ntmpfs {} tmpfs rw 0 0\n", "in memory"),
        ("server:/x {} nfs4 rw 0 0\n/dev/sda / ext4 rw 0 0\n", "network file system"),
        ("tmpfs {}/other tmpfs rw 0 0\n/dev/sda / ext4 rw 0 0\n", None),
        ("", None),
    ],
)
def test_disks_that_lose_boards_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, expected: str | None
) -> None:
    listing = tmp_path / "mounts"
    listing.write_text(mounts.format(tmp_path))
    monkeypatch.setattr(sqlite_files, "_MOUNTS", listing)

    found = risks(tmp_path / "boards")

    assert (expected is not None) == bool(found)
    assert all(expected is not None and expected in text for text in found)
