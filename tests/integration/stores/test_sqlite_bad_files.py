"""SQLite boards whose files, folders or disks are not as they should be."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from flock_ray.adapters.sqlite import SQLitePersistence, SQLiteStore
from flock_ray.adapters.sqlite_schema import FORMAT
from flock_ray.core.rows import SHARD, ArtifactQuery
from flock_ray.errors import ConfigurationError, StoreCorruptError, StoreUnavailableError
from tests.unit.adapters.store_rows import activation, artifact, batch, key, snapshot, workflow

EVERYTHING = ArtifactQuery()
PAYLOAD = b'"the payload of artifact one"'


@pytest.fixture
def place(tmp_path: Path) -> SQLitePersistence:
    return SQLitePersistence(tmp_path / "boards", timeout=0.2)


def shard_file(place: SQLitePersistence, shard: int = 0) -> Path:
    return place.path / "board" / f"shard-{shard:04}.db"


def opened(place: SQLitePersistence, shard: int = 0) -> SQLiteStore:
    store = place.store("board", shard, range(256))
    assert isinstance(store, SQLiteStore)
    return store


async def written(place: SQLitePersistence) -> None:
    """Make a board with two batches, a snapshot and an artifact, and close it."""
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    one = artifact(1, payload=PAYLOAD, tags=("tag-of-one",))
    await store.append(
        batch(
            1,
            [one],
            frame=b"frame number one",
            activations=[activation("run", inputs=[1], agent="agent-of-run")],
            workflows=[workflow(counts={"type-in-counts": 1})],
        )
    )
    await store.append(batch(2, frame=b"frame number two"))
    await store.save_snapshots(
        [snapshot(SHARD, 1, b"the shared state"), snapshot(7, 1, b"the state of seven")]
    )
    await store.close()


def flip(file: Path, text: bytes) -> None:
    """Change one bit in the middle of a text that the file holds once."""
    data = bytearray(file.read_bytes())
    assert 1 == data.count(text)
    data[data.index(text) + len(text) // 2] ^= 1
    file.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_program(file: Path) -> None:
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no SQLite file": (lambda file: file.write_bytes(b"Dear diary, " * 500), "is not a SQLite file"),
    "short file": (lambda file: file.write_bytes(b"SQLite format 3\x00"), "is not a SQLite file"),
    "file of another program": (other_program, "of another program"),
    "newer format": (newer, "newer flock_ray"),
}


@pytest.mark.parametrize("name", ["board.db", "shard-0000.db"])
@pytest.mark.parametrize("case", STRANGE)
async def test_strange_file_is_refused_and_left_alone(place: SQLitePersistence, case: str, name: str) -> None:
    await written(place)
    make, expected = STRANGE[case]
    make(place.path / "board" / name)
    before = contents(place.path)

    for _ in range(2):
        with pytest.raises(ConfigurationError, match=expected) as caught:
            await place.prepare("board", 1)

        if name == "board.db":
            with pytest.raises(ConfigurationError, match=expected):
                await place.find("board")
    assert name in str(caught.value)
    assert 1 == str(caught.value).count(". ") + str(caught.value).endswith(".")
    assert before.items() <= contents(place.path).items()


@pytest.mark.parametrize("case", STRANGE)
async def test_shard_refuses_a_strange_file(place: SQLitePersistence, case: str) -> None:
    await written(place)
    make, expected = STRANGE[case]
    make(shard_file(place))
    before = contents(place.path)
    store = opened(place)

    with pytest.raises(StoreCorruptError, match=expected):
        await store.acquire()

    await store.close()
    assert before.items() <= contents(place.path).items()


async def test_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="choose a folder"):
            await SQLitePersistence(path).prepare("board", 1)

    assert "mine" == (tmp_path / "file").read_text()


@contextmanager
def without_rights() -> Iterator[None]:
    """Give up the rights of root, to which no folder is closed."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


async def test_folder_without_rights_is_refused() -> None:
    with TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        with without_rights(), pytest.raises(ConfigurationError, match="choose a folder that you may write"):
            await SQLitePersistence(Path(name) / "boards").prepare("board", 1)
        assert [] == os.listdir(name)


@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
@pytest.mark.parametrize("name", ["board.db", "shard-0000.db"])
async def test_file_that_may_not_be_written_is_refused(name: str, folder_mode: int) -> None:
    with TemporaryDirectory() as root:
        place = SQLitePersistence(Path(root) / "boards")
        await place.prepare("board", 1)
        folder = place.path / "board"
        for file in folder.iterdir():
            file.chmod(0o444 if file.name == name else 0o666)
        for path, mode in ((Path(root), 0o755), (place.path, 0o755), (folder, folder_mode)):
            path.chmod(mode)
        with without_rights(), pytest.raises(ConfigurationError, match="rights"):
            await place.prepare("board", 1)
        folder.chmod(0o700)


async def test_missing_shard_is_neither_made_anew_nor_taken_for_empty(place: SQLitePersistence) -> None:
    await written(place)
    shard_file(place).unlink()
    store = opened(place)

    with pytest.raises(ConfigurationError, match=r"shard-0000\.db of board 'board' is missing"):
        await place.prepare("board", None)
    with pytest.raises(StoreCorruptError, match="missing"):
        await store.acquire()

    await store.close()
    assert not shard_file(place).exists()


async def test_missing_board_file_is_not_made_anew_over_data(place: SQLitePersistence) -> None:
    await written(place)
    (place.path / "board" / "board.db").unlink()

    with pytest.raises(ConfigurationError, match=r"board\.db is missing"):
        await place.prepare("board", 1)


async def test_looking_for_a_board_makes_no_folder(place: SQLitePersistence) -> None:
    assert None is await place.find("board")

    assert not place.path.exists()


async def test_creation_that_was_interrupted_is_finished(place: SQLitePersistence) -> None:
    await place.prepare("board", 3)
    (place.path / "board" / "board.db").unlink()
    shard_file(place, 1).write_bytes(b"")
    shard_file(place, 2).unlink()

    assert 3 == await place.prepare("board", 3)

    store = opened(place, 2)
    assert 1 == await store.acquire()
    await store.close()


async def test_file_of_another_shard_is_refused(place: SQLitePersistence) -> None:
    await place.prepare("board", 2)
    shutil.copy(shard_file(place, 1), shard_file(place, 0))
    store = opened(place, 0)

    with pytest.raises(StoreCorruptError, match="belongs to"):
        await store.acquire()

    await store.close()


async def test_folder_that_is_not_mounted_is_unavailable(place: SQLitePersistence) -> None:
    await written(place)
    away = place.path.rename(place.path.with_name("away"))
    store = opened(place)

    with pytest.raises(StoreUnavailableError, match="Mount the disk"):
        await store.acquire()

    away.rename(place.path)
    assert 2 == await store.acquire()
    await store.close()


LOADS: dict[str, tuple[bytes, str]] = {
    "frame": (b"frame number one", "table frames: lsn 1 "),
    "snapshot of the shard": (b"the shared state", "table snapshots: slot -1 "),
    "snapshot of a slot": (b"the state of seven", "table snapshots: slot 7 "),
}


@pytest.mark.parametrize("name", LOADS)
async def test_flipped_bit_is_found_by_load_and_named(place: SQLitePersistence, name: str) -> None:
    await written(place)
    text, expected = LOADS[name]
    flip(shard_file(place), text)
    store = opened(place)
    await store.acquire()

    with pytest.raises(StoreCorruptError, match=expected) as caught:
        await store.load()

    assert "shard-0000.db (shard 0 of board 'board')" in str(caught.value)
    await store.close()


@pytest.mark.parametrize("text", [PAYLOAD, b"clerk\xcd\x03\xe8"])
async def test_flipped_bit_in_an_artifact_is_found_and_named(place: SQLitePersistence, text: bytes) -> None:
    await written(place)
    flip(shard_file(place), text)
    store = opened(place)

    for ask in (
        lambda: store.bodies([key(1)]),
        lambda: store.get([key(1)]),
        lambda: store.read(EVERYTHING, 0, 1),
        lambda: store.page(EVERYTHING, 0, 0),
    ):
        with pytest.raises(StoreCorruptError, match=f"artifact {key(1).hex()} at feed position 1"):
            await ask()

    await store.close()


async def test_flipped_bit_in_a_derived_row_is_found(place: SQLitePersistence) -> None:
    await written(place)
    flip(shard_file(place), b"agent-of-run")
    flip(shard_file(place), b"type-in-counts")
    store = opened(place)

    with pytest.raises(StoreCorruptError, match="ActivationRow"):
        await store.activations("wf-1", 1)
    with pytest.raises(StoreCorruptError, match="WorkflowRow"):
        await store.workflows(["wf-1"])

    await store.close()


@pytest.mark.parametrize("statement", ["DELETE FROM frames WHERE lsn = 2", "UPDATE journal SET last_lsn = 3"])
async def test_lost_batch_is_found(place: SQLitePersistence, statement: str) -> None:
    await written(place)
    with closing(sqlite3.connect(shard_file(place))) as connection:
        connection.execute(statement)
        connection.commit()
    store = opened(place)
    await store.acquire()

    with pytest.raises(StoreCorruptError, match=r"lsn \d is missing"):
        await store.load()

    await store.close()


async def test_page_that_is_overwritten_is_found(place: SQLitePersistence) -> None:
    await written(place)
    file = shard_file(place)
    page = file.read_bytes().index(b"frame number one") // 4096
    with file.open("r+b") as data:
        data.seek(page * 4096)
        data.write(b"\xff" * 4096)
    store = opened(place)
    await store.acquire()

    with pytest.raises(StoreCorruptError, match=r"shard-0000\.db"):
        await store.load()

    await store.close()


async def test_full_database_is_unavailable_and_recovers(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    large = batch(1, [artifact(1, payload=b"1" * 300_000)])
    assert store._writer._connection is not None
    await store._writer.run(lambda connection: connection.execute("PRAGMA max_page_count = 60"))

    with pytest.raises(StoreUnavailableError, match="full"):
        await store.append(large)

    # The next call connects anew, without the limit.
    assert 0 == (await store.load()).last_lsn
    await store.append(large)
    assert 1 == await store.count(EVERYTHING)
    await store.close()


async def test_failing_writes_are_unavailable_and_recover(place: SQLitePersistence) -> None:
    await place.prepare("board", 1)
    store = opened(place)
    await store.acquire()
    await store.append(batch(1))
    large = batch(2, [artifact(1, payload=b"1" * 2_000_000)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(StoreUnavailableError):
            await store.append(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert 1 == (await store.load()).last_lsn
    await store.append(large)
    assert {key(1): large.artifacts[0][1].payload} == await store.bodies([key(1)])
    await store.close()
