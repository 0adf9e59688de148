"""The files of SQLite boards: where they are, what marks them as ours, how they are opened, what their errors mean."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from socket import gethostname
from typing import TypeVar

from flock_ray.adapters.sqlite_schema import APPLICATION_ID, FORMAT
from flock_ray.errors import BoardClosedError, StoreCorruptError, StoreError, StoreUnavailableError

T = TypeVar("T")

WRITER_CACHE_KIB, READER_CACHE_KIB = 32 * 1024, 8 * 1024
CHECKPOINT_PAGES = 2000
"""Length at which the write-ahead log is copied into the file: 8 MiB."""
MAX_LOG_BYTES = 64 * 1024 * 1024
"""A write-ahead log that grew beyond this is cut back."""

_PLAIN_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,99}")


def board_folder(path: Path, board: str) -> Path:
    """Return the folder of a board; no two boards share one, also where case does not count in file names."""
    if _PLAIN_NAME.fullmatch(board):
        return path / board
    readable = re.sub(r"[^a-z0-9_-]", "_", board.lower())[:60]
    # A plain name has no `%`, so it never equals a derived one.
    return path / f"{readable}%{sha256(board.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class ShardFile:
    """One shard's file, and how to speak of it."""

    board: str
    shard: int
    path: Path

    def __str__(self) -> str:
        """Name it for an error message."""
        return f"{self.path} (shard {self.shard} of board {self.board!r})"

    def damaged(self, what: str) -> StoreCorruptError:
        """Make the error for something in the file that is not as it was written."""
        return StoreCorruptError(f"{self}: {what}. Restore it from a backup; nothing was overwritten.")


PASSING = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS,
}
"""Errors of a file that is all right: the same call may succeed later."""


def error_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary code; 0 for an error that is Python's own (text that is not UTF-8)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def meaning(error: sqlite3.Error, what: ShardFile) -> StoreError:
    """Translate an error of SQLite: what can pass is unavailable, anything else is damage."""
    if error_code(error) not in PASSING:
        return what.damaged(str(error))
    return StoreUnavailableError(
        f"{what} can't be used now: {error}. Check locks, disk space and rights; repeating is safe."
    )


def foreign(path: Path, timeout: float) -> str | None:
    """Say why a file is not one of ours, None when it is; changes nothing.

    The file is never opened without SQLite: to close it would drop the locks that connections of this
    process hold, and another process could then delete the log under them.

    Raises:
        sqlite3.Error: It can't be read.
    """
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", timeout, uri=True)) as connection:
            (owner,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        if error_code(error) != sqlite3.SQLITE_NOTADB:
            raise
        return "is not a SQLite file"
    if owner != APPLICATION_ID:
        return "is a SQLite file of another program"
    if version > FORMAT:
        return f"was written by a newer flock_ray (format {version}, this one reads up to {FORMAT})"
    return None


def set_up(connection: sqlite3.Connection, cache_kib: int) -> None:
    """Set what holds for one connection only."""
    for pragma in (
        "synchronous = FULL",
        # On macOS a plain fsync does not reach the disk; elsewhere these do nothing.
        "fullfsync = ON",
        "checkpoint_fullfsync = ON",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        f"journal_size_limit = {MAX_LOG_BYTES}",
        f"cache_size = -{cache_kib}",
        "secure_delete = FAST",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")


def open_shard(file: ShardFile, timeout: float, *, write: bool) -> sqlite3.Connection:
    """Connect to the file of a shard that `prepare` made; creates nothing.

    Raises:
        StoreUnavailableError: Its folder is not there: another machine, or a disk that is not mounted.
        StoreCorruptError: It is gone, is not ours, or belongs to another shard.
    """
    if not file.path.exists():
        if (file.path.parent / "board.db").exists():
            raise file.damaged("the file is missing")
        raise StoreUnavailableError(
            f"{file.path.parent} is not on {gethostname()}. Mount the disk, or run the board where it is."
        )
    if problem := foreign(file.path, timeout):
        raise file.damaged(f"the file {problem}")
    connection = sqlite3.connect(
        f"{file.path.as_uri()}?mode=rw", timeout, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        set_up(connection, WRITER_CACHE_KIB if write else READER_CACHE_KIB)
        if write:
            # After a failed fsync the log may hold what never reached the disk: copy it, and start a new one.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            connection.execute("PRAGMA query_only = ON")
        owner = connection.execute("SELECT board, shard FROM journal").fetchone()
        if owner != (file.board, file.shard):
            raise file.damaged(f"the file belongs to {owner}")
    except BaseException:
        connection.close()
        raise
    return connection


class Lane:
    """A connection, and the thread that it lives in; connects at the first call and after an error."""

    def __init__(self, file: ShardFile, timeout: float, *, write: bool) -> None:
        """Say which file; nothing is opened yet."""
        self._file = file
        self._timeout = timeout
        self._write = write
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        role = "writer" if write else "reader"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"flock-sqlite-{role}")

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job in the thread; whatever it leaves open is rolled back.

        Raises:
            StoreUnavailableError: The file is locked or can't be used now; retryable.
            StoreCorruptError: It is damaged.
            BoardClosedError: The lane was closed.
        """
        if self._closed:
            raise BoardClosedError("The store is closed: open another one.")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, job)

    def _run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = open_shard(self._file, self._timeout, write=self._write)
            return job(self._connection)
        except sqlite3.Error as error:
            self._disconnect()
            raise meaning(error, self._file) from error
        finally:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.rollback()

    def _disconnect(self) -> None:
        if self._connection is not None:
            with closing(self._connection):
                self._connection = None

    async def close(self) -> None:
        """Close the connection and end the thread; safe to repeat."""
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        except asyncio.CancelledError:
            self._thread.shutdown(wait=False)
            raise
        self._thread.shutdown()


async def in_thread(job: Callable[[], T]) -> T:
    """Run something that blocks in a thread that ends with it."""
    with ThreadPoolExecutor(1, thread_name_prefix="flock-sqlite-prepare") as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, job)


_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.s3fs", "lustre", "ceph", "glusterfs"}
_MOUNTS = Path("/proc/self/mounts")


def risks(path: Path) -> list[str]:
    """Say what about the disk of a folder could lose a board; looks where Linux lists its mounts."""
    if not _MOUNTS.exists():
        return []
    mounts = [line.split()[1:3] for line in _MOUNTS.read_text(errors="replace").splitlines()]
    place = os.path.realpath(path)
    holding = [(where, kind) for where, kind in mounts if Path(place).is_relative_to(where)]
    kind = max(holding, key=lambda mount: len(mount[0]), default=("", ""))[1]
    if kind in ("tmpfs", "ramfs"):
        return [f"{path} is in memory ({kind}): the board is lost when this machine restarts."]
    if kind in _NETWORK:
        return [f"{path} is on a network file system ({kind}): SQLite's locks are not safe there."]
    return []
