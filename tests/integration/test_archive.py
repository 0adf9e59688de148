"""The archive's files and queries: hostile content, hostile SQL, duplicates, places."""

from __future__ import annotations

import builtins
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flock_ray import archive_files
from flock_ray.archive import Archive, ArchiveChunk, write_chunk
from flock_ray.core.rows import ActivationRow, WorkflowRow
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError, StoreError

T0 = 1_767_225_600_000_000
HOSTILE = [
    "", "a\x00b", "'; DROP VIEW artifacts; --", '"\\', "\n\r\t", "../../etc/passwd", "\U0001f600", "%s{}$1?",
    "a" * 10_000,
]  # fmt: skip


def envelope(n: int, *, text: str = "t", payload: bytes = b'{"n":1}', tags: Sequence[str] = ()) -> Envelope:
    return Envelope(
        uuid.UUID(int=n).bytes, text, 3, payload, text, 5, text, T0 + n, tuple(tags), b'{"kind":"Private","agents":[]}',
        text, (uuid.UUID(int=n + 1).bytes,), uuid.UUID(int=n + 2).bytes, -7, (text, "b"),
    )  # fmt: skip


def write(
    folder: object,
    artifacts: Mapping[str, Sequence[Envelope]],
    *,
    board: str = "b",
    now_us: int = T0,
    shard: int = 0,
    day_us: int = T0,
) -> None:
    chunk = ArchiveChunk()
    for name, found in artifacts.items():
        flow = WorkflowRow(5, name, T0, day_us, counts={"t": len(found)})
        for position, artifact in enumerate(found, 1):
            chunk.add_artifact(flow, position, artifact)
        run = ActivationRow(uuid.uuid5(uuid.NAMESPACE_OID, name).bytes, name, name, 5, name, (), (), T0, T0)
        chunk.add_activation(flow, run)
        chunk.add_workflow(flow)
    write_chunk(str(folder), board, shard, chunk, now_us)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
async def test_any_text_comes_back_and_is_found_by_equality(tmp_path: Path, text: str) -> None:
    made = envelope(1, text=text, payload=b'{"s":"\xf0\x9f\x98\x80\\u0000"}', tags=(text, "z"))
    write(tmp_path, {text: [made], text + "x": [envelope(9, text=text + "x")]}, board=text)
    archive = Archive(str(tmp_path), text)

    (found,) = await archive.workflow(text)
    assert found.envelope == made
    for kind, column in (("artifacts", "type"), ("activations", "agent"), ("workflows", "correlation_id")):
        assert len(await archive.query(f"SELECT * FROM {kind} WHERE {column} = $t", {"t": text})) == 1
    assert await archive.erase([], tags=[text]) == {str(uuid.UUID(int=1))}
    assert [artifact.payload for artifact in await archive.workflow(text)] == [None]


@pytest.mark.parametrize("name", ["it's; --", "[a]*?", "spaces and \N{SNOWMAN}", "%2e"])
async def test_a_folder_of_any_name_is_an_archive(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, {"w": [envelope(1)]}, board="../up")

    assert len(await Archive(str(tmp_path / name), "../up").query("SELECT * FROM artifacts")) == 1
    assert await Archive(str(tmp_path / name), "up").query("SELECT * FROM artifacts") == []
    assert os.listdir(tmp_path) == [name]


async def test_what_was_archived_twice_is_there_once_and_the_newest_counts(tmp_path: Path) -> None:
    write(tmp_path, {"w": [envelope(1), envelope(2)]})
    write(
        tmp_path,
        {"w": [envelope(1), envelope(2, payload=b'"new"'), envelope(3)]},
        now_us=T0 + 5,
        day_us=T0 + 5,
    )
    write(tmp_path, {"v": [envelope(4)]}, now_us=T0 + 9, shard=1)
    archive = Archive(str(tmp_path), "b")

    rows = await archive.query("SELECT id, payload FROM artifacts ORDER BY id")
    assert [row["payload"] for row in rows] == ['{"n":1}', '"new"', '{"n":1}', '{"n":1}']
    assert await archive.query("SELECT count(*) AS n FROM workflows") == [{"n": 2}]
    assert await archive.query("SELECT count(*) AS n FROM activations") == [{"n": 2}]
    assert [row["artifacts"] for row in await archive.query("FROM workflows ORDER BY artifacts")] == [1, 3]


async def test_an_empty_archive_answers_and_is_not_created(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path / "none"), "b")

    assert await archive.query("SELECT a.id, r.agent FROM artifacts a JOIN activations r USING (id)") == []
    assert await archive.workflow("w") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{secret}')", "SELECT * FROM '{secret}'", "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM glob('{folder}/*')", "COPY artifacts TO '{folder}/out.csv'", "ATTACH '{folder}/x.db'",
        "COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "SET enable_external_access = true", "INSTALL httpfs", "LOAD httpfs", "SELECT 1; SELECT 2", "", "SELEC",
        "CREATE TABLE t (i INT)", "DROP VIEW artifacts", "EXPORT DATABASE '{folder}/out'", "PRAGMA database_list",
        "SELECT * FROM 'https://example.invalid/x.parquet'",
        "SELECT * FROM query('COPY artifacts TO ''{folder}/out''')",
        "WITH x AS (INSERT INTO artifacts VALUES (1) RETURNING *) SELECT * FROM x", "CALL pragma_version()",
        "SELECT nothing FROM artifacts",
    ],
)  # fmt: skip
async def test_a_query_reads_the_views_and_nothing_else(tmp_path: Path, sql: str) -> None:
    write(tmp_path / "a", {"w": [envelope(1)]})
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    files = contents(tmp_path)
    (file,) = (path for path in files if path.name.startswith("artifacts-"))

    with pytest.raises(ConfigurationError, match="archive"):
        await Archive(str(tmp_path / "a"), "b").query(sql.format(secret=secret, folder=tmp_path, file=file))
    assert contents(tmp_path) == files


async def test_a_result_that_is_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"w": [envelope(n) for n in range(30)]})
    archive = Archive(str(tmp_path), "b")

    assert len(await archive.query("SELECT id FROM artifacts", limit=30)) == 30
    with pytest.raises(ConfigurationError, match="more than 29 rows"):
        await archive.query("SELECT id FROM artifacts", limit=29)
    with pytest.raises(ConfigurationError, match="more than 10000 rows"):
        await archive.query("SELECT * FROM range(20000)")


async def test_days_are_folders_and_parts_of_crashed_writers_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"w": [envelope(1)]}, day_us=T0)
    write(tmp_path, {"v": [envelope(2)]}, day_us=T0 + 86_400_000_000)
    days = sorted(path.name for path in (tmp_path / "board=b").iterdir() if path.is_dir())
    part = tmp_path / "board=b" / days[0] / ".artifacts-0000-x.parquet.part"
    part.write_bytes(b"half of it")
    archive = Archive(str(tmp_path), "b")

    assert days == ["day=2026-01-01", "day=2026-01-02"]
    assert len(await archive.query("SELECT id FROM artifacts")) == 2
    assert await archive.erase([uuid.UUID(int=2).bytes]) == {str(uuid.UUID(int=2))}
    assert not part.exists()


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive_files, "_sync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, {"w": [envelope(1)]})
    assert [path.name for path in contents(tmp_path)] == [".lock"]


async def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    write(tmp_path, {"w": [envelope(1)]})
    (file,) = (path for path in contents(tmp_path) if path.name.startswith("artifacts-"))
    file.write_bytes(b"PAR1 no parquet")

    with pytest.raises(StoreError, match="can't be read"):
        await Archive(str(tmp_path), "b").query("SELECT * FROM artifacts")


async def test_erasing_keeps_every_other_row_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, {"w": [envelope(n, tags=("a", "b") if n % 2 else ("a",)) for n in range(10)]})
    archive = Archive(str(tmp_path), "b")
    before = await archive.query("SELECT * EXCLUDE (payload) FROM artifacts ORDER BY id")

    assert len(await archive.erase([], tags=["b", "a"])) == 5
    assert len(await archive.erase([], tags=["b", "a"])) == 5
    assert await archive.query("SELECT * EXCLUDE (payload) FROM artifacts ORDER BY id") == before
    rows = await archive.query("SELECT count(*) AS n FROM artifacts WHERE payload = 'null'")
    assert rows == [{"n": 5}]
    assert await archive.erase([], tags=["unknown"]) == set()


def test_a_url_without_fsspec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_fsspec(name: str, *args: Any) -> Any:
        if name.startswith("fsspec"):
            raise ImportError(name)
        return real(name, *args)

    for name in [name for name in sys.modules if name.startswith("fsspec")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", no_fsspec)
    with pytest.raises(ConfigurationError, match=r"pip install fsspec.*s3fs") as caught:
        archive_files.open_place("s3://user:password@bucket/archive")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("place", ["memory://bucket/{name}", "file://{folder}", "local://{folder}/new/one"])
async def test_an_archive_behind_fsspec_is_written_read_and_erased(place: str, tmp_path: Path) -> None:
    url = place.format(name=uuid.uuid4().hex, folder=tmp_path / "with a space")
    write(url, {"w": [envelope(1), envelope(2)]})
    write(url, {"w": [envelope(1), envelope(2)]}, now_us=T0 + 1)
    archive = Archive(url, "b")

    assert await archive.query("SELECT count(*) AS n FROM artifacts") == [{"n": 2}]
    assert await archive.erase([uuid.UUID(int=1).bytes]) == {str(uuid.UUID(int=1))}
    assert [artifact.payload for artifact in await archive.workflow("t")] == [None, {"n": 1}]
    (tmp_path / "secret").write_text("secret")
    for other in ("memory://other", str(tmp_path / "secret"), f"file://{tmp_path / 'secret'}"):
        with pytest.raises(ConfigurationError):
            await archive.query(f"SELECT * FROM read_text('{other}')")
    with pytest.raises(ConfigurationError, match="fsspec can't open"):
        archive_files.open_place("nosuchprotocol://x")
