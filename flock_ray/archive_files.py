"""Files of an archive: Parquet, written whole or not at all, on a local path or behind an fsspec URL.

    <archive>/board=<name>/day=<YYYY-MM-DD>/<artifacts|activations|workflows>-<shard>-<copy>.parquet

The day is that of the workflow's last change, in UTC. Rows name their copy, which grows with time: what was
archived twice, because a crash came before its removal from the board, is told apart by it.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from flock_ray.core.ids import derive_id
from flock_ray.core.rows import ActivationRow, WorkflowRow
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError

KINDS: dict[str, dict[str, str]] = {
    "artifacts": {
        "id": "VARCHAR", "type": "VARCHAR", "version": "BIGINT", "payload": "VARCHAR", "correlation_id": "VARCHAR",
        "slot": "INTEGER", "produced_by": "VARCHAR", "created_at": "TIMESTAMP", "tags": "VARCHAR[]",
        "visibility": "VARCHAR", "partition_key": "VARCHAR", "parents": "VARCHAR[]", "activation_id": "VARCHAR",
        "priority": "BIGINT", "via": "VARCHAR[]", "position": "BIGINT",
    },
    "activations": {
        "id": "VARCHAR", "agent": "VARCHAR", "subscription": "VARCHAR", "slot": "INTEGER",
        "correlation_id": "VARCHAR", "inputs": "VARCHAR[]", "outputs": "VARCHAR[]", "created_at": "TIMESTAMP",
        "ended_at": "TIMESTAMP", "run_us": "BIGINT", "attempt": "BIGINT", "status": "VARCHAR",
        "error_type": "VARCHAR", "error_message": "VARCHAR",
    },
    "workflows": {
        "correlation_id": "VARCHAR", "slot": "INTEGER", "created_at": "TIMESTAMP", "updated_at": "TIMESTAMP",
        "errors": "BIGINT", "cancelled": "BOOLEAN", "artifacts": "BIGINT",
    },
}  # fmt: skip
"""Columns of each kind of file; every file also has `archived_at` and `copy`."""

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)(::|://)")


def artifact_row(position: int, envelope: Envelope) -> tuple[Any, ...]:
    """Return the values of an artifact, in the order of its columns."""
    visibility, run = envelope.visibility, envelope.activation_id
    return (
        id_text(envelope.id), envelope.type, envelope.version, envelope.payload.decode("utf-8", "replace"),
        envelope.correlation_id, envelope.slot, envelope.produced_by, envelope.created_us, list(envelope.tags),
        None if visibility is None else visibility.decode("utf-8", "replace"), envelope.partition_key,
        [id_text(key) for key in envelope.parents], None if run is None else id_text(run), envelope.priority,
        list(envelope.via), position,
    )  # fmt: skip


def activation_row(row: ActivationRow) -> tuple[Any, ...]:
    """Return the values of an activation, in the order of its columns."""
    return (
        id_text(row.id), row.agent, row.subscription, row.slot, row.correlation_id,
        [id_text(key) for key in row.inputs], [id_text(key) for key in row.outputs], row.created_us, row.ended_us,
        row.run_us, row.attempt, row.status, row.error_type, row.error_message,
    )  # fmt: skip


def workflow_row(row: WorkflowRow) -> tuple[Any, ...]:
    """Return the values of a workflow, in the order of its columns."""
    return (
        row.id, row.slot, row.created_us, row.updated_us, row.errors, row.cancelled, sum(row.counts.values())
    )  # fmt: skip


def id_text(key: bytes) -> str:
    """Return an id as users know it."""
    return str(uuid.UUID(bytes=key)) if len(key) == 16 else key.hex()


class ArchivePlace(Protocol):
    """Where an archive is."""

    def files(self, board: str, kind: str) -> list[str]:
        """Return the files of one kind that a board has, as DuckDB names them."""
        ...

    def write(self, board: str, day: str, name: str, make: Callable[[str], None]) -> None:
        """Have `make` write a file at a local path, and show it under its name only when it is complete."""
        ...

    def replace(self, file: str, make: Callable[[str], None]) -> None:
        """Put a new content in the place of a file's, at once."""
        ...

    def connect(self) -> Any:
        """Return a DuckDB connection that can read the files."""
        ...

    def allowed(self, file: str) -> list[str]:
        """Return every name under which DuckDB may open a file."""
        ...

    def locked(self, board: str, *, exclusive: bool) -> Any:
        """Return a context: writers of a board share it, whoever rewrites files is alone in it."""
        ...


def open_place(archive: str) -> ArchivePlace:
    """Return the place that a path or fsspec URL names; nothing is created yet.

    Raises:
        ConfigurationError: It is a URL, and fsspec or what it needs for this kind of URL is not installed.
    """
    url = _URL.match(archive)
    if url is None or (url[2] == "://" and url[1].lower() in ("file", "local")):
        # Not by way of fsspec: here a lock and an fsync are to be had.
        return LocalPlace(Path(os.path.abspath(archive if url is None else archive[url.end() :])))
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-not-found,import-untyped,unused-ignore]  # optional
    except ImportError:
        raise ConfigurationError(
            f"An archive at {url[0]}... needs fsspec: pip install fsspec (and the package for {url[1]!r}, as s3fs for "
            "s3), or give a local path."
        ) from None
    try:
        system, root = url_to_fs(archive)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"fsspec can't open an archive at {url[0]}...: {error}") from None
    return RemotePlace(system, root)


def resolved(archive: str) -> str:
    """Return an archive's path or URL so that every process of this machine understands it alike."""
    place = open_place(archive)
    return str(place.root) if isinstance(place, LocalPlace) else archive


def connect() -> Any:
    """Return an empty DuckDB in memory that loads nothing from outside and writes nothing of its own."""
    import duckdb

    connection = duckdb.connect(":memory:", config={"temp_directory": ""})
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    return connection


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def write_rows(
    connection: Any, path: str, kind: str, rows: Sequence[tuple[Any, ...]], now_us: int, copy: str
) -> None:
    """Write rows of one kind to a Parquet file at a local path."""
    columns = KINDS[kind]
    selected = [
        f"make_timestamp(unnest(${n}::BIGINT[])) AS {name}"
        if sql_type == "TIMESTAMP"
        else f"unnest(${n}::{sql_type}[]) AS {name}"
        for n, (name, sql_type) in enumerate(columns.items(), 1)
    ]
    last = len(columns)
    selected += [f"make_timestamp(${last + 1}::BIGINT) AS archived_at", f"${last + 2}::VARCHAR AS copy"]
    values = [list(column) for column in zip(*rows, strict=True)]
    connection.execute(
        f"CREATE OR REPLACE TABLE rows AS SELECT {', '.join(selected)}", [*values, now_us, copy]
    )
    save(connection, "SELECT * FROM rows", path)


def save(connection: Any, query: str, path: str) -> None:
    """Write the result of a query to a Parquet file at a local path."""
    options = "FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false"
    connection.execute(f"COPY ({query}) TO {literal(path)} ({options})")


def board_folder(board: str) -> str:
    """Return the folder of a board: any name becomes one that every file system takes."""
    name = quote(board, safe="")
    return "board=" + (name if len(name) <= 200 else name[:100] + derive_id(board.encode()).hex())


class LocalPlace:
    """A folder on this machine, or one that is mounted on all machines of the board."""

    def __init__(self, root: Path) -> None:
        """Say where."""
        self.root = root

    def files(self, board: str, kind: str) -> list[str]:
        """Return a board's files of one kind."""
        return sorted(str(path) for path in (self.root / board_folder(board)).glob(f"day=*/{kind}-*.parquet"))

    def write(self, board: str, day: str, name: str, make: Callable[[str], None]) -> None:
        """Write a file: a crash leaves a part that nobody reads."""
        folder = self.root / board_folder(board) / f"day={day}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.replace(str(folder / name), make)

    def replace(self, file: str, make: Callable[[str], None]) -> None:
        """Replace a file; on the disk before it is seen."""
        target = Path(file)
        part = target.with_name(f".{target.name}.part")
        try:
            make(str(part))
            _sync(part)
            os.replace(part, target)
            _sync(target.parent)
        finally:
            part.unlink(missing_ok=True)

    def connect(self) -> Any:
        """Return a connection."""
        return connect()

    def allowed(self, file: str) -> list[str]:
        """Return the file itself."""
        return [file]

    @contextmanager
    def locked(self, board: str, *, exclusive: bool) -> Iterator[None]:
        """Lock the board's folder; who is alone in it also removes what crashes left."""
        folder = self.root / board_folder(board)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            if exclusive:
                for part in folder.glob("day=*/.*.part"):
                    part.unlink(missing_ok=True)
            yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RemotePlace:
    """A folder behind fsspec. Uploads are as atomic as the file system's `put`; object stores' are."""

    def __init__(self, system: Any, root: str) -> None:
        """Say where: an fsspec file system and a path in it."""
        self._system = system
        self._root = root.rstrip("/")

    def files(self, board: str, kind: str) -> list[str]:
        """Return a board's files of one kind."""
        folder = f"{self._root}/{board_folder(board)}"
        self._system.invalidate_cache()
        found = self._system.find(folder) if self._system.exists(folder) else []
        wanted = re.compile(rf"/day=[^/]+/{kind}-[^/]+\.parquet$")
        return sorted(self._system.unstrip_protocol(path) for path in found if wanted.search(path))

    def write(self, board: str, day: str, name: str, make: Callable[[str], None]) -> None:
        """Write a file here and upload it."""
        folder = f"{self._root}/{board_folder(board)}/day={day}"
        self._system.makedirs(folder, exist_ok=True)
        self.replace(f"{folder}/{name}", make)

    def replace(self, file: str, make: Callable[[str], None]) -> None:
        """Upload a file over another one."""
        with tempfile.TemporaryDirectory(prefix="flock-archive-") as folder:
            local = os.path.join(folder, "part")
            make(local)
            self._system.put_file(local, self._system._strip_protocol(file))

    def connect(self) -> Any:
        """Return a connection that reads through fsspec."""
        connection = connect()
        connection.register_filesystem(self._system)
        return connection

    def allowed(self, file: str) -> list[str]:
        """Return the file with and without the slash behind its protocol: DuckDB uses both."""
        protocol, _, path = file.partition("://")
        return [f"{protocol}://{path.lstrip('/')}", f"{protocol}:///{path.lstrip('/')}"]

    @contextmanager
    def locked(self, board: str, *, exclusive: bool) -> Iterator[None]:
        """Lock nothing: there is no lock that all file systems have."""
        yield
