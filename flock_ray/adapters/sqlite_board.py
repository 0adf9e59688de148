"""Creates the files of a SQLite board, and checks those that are there: never changes what is not ours."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flock_ray.adapters.sqlite_files import PASSING, board_folder, error_code, foreign
from flock_ray.adapters.sqlite_schema import APPLICATION_ID, BOARD_SCHEMA, FORMAT, SHARD_SCHEMA
from flock_ray.errors import ConfigurationError, StoreUnavailableError

MAX_SHARDS = 256

# A folder without rights, or a disk that is mounted read-only, is a matter of settings here.
_SETTINGS = {sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}


def prepare_board(path: Path, board: str, num_shards: int | None, timeout: float) -> int:
    """Create or check a board; returns its number of shards.

    Raises:
        ConfigurationError: As `Persistence.prepare`.
        StoreUnavailableError: As `Persistence.prepare`; retryable.
    """
    if num_shards is not None and not 1 <= num_shards <= MAX_SHARDS:
        raise ConfigurationError(f"A board has 1 to {MAX_SHARDS} shards: {num_shards} is not possible.")
    folder = board_folder(path, board)
    with _understood(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return _prepare(folder, board, num_shards, timeout)


def find_board(path: Path, board: str, timeout: float) -> int | None:
    """Return the number of shards of a board; None when there is none, or its creation is not finished.

    Raises:
        ConfigurationError: As `Persistence.find`.
        StoreUnavailableError: As `Persistence.find`; retryable.
    """
    folder = board_folder(path, board)
    with _understood(folder):
        file = folder / "board.db"
        if not file.exists() or not file.stat().st_size:
            return None
        _check(file, timeout)
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", timeout, uri=True)) as connection:
            row = connection.execute("SELECT name, num_shards FROM board").fetchone()
    return None if row is None else _number(folder, board, *row)


def _number(folder: Path, board: str, name: str, number: int) -> int:
    if name != board:
        raise ConfigurationError(f"The folder {folder} holds the board {name!r}: choose another folder.")
    return number


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """Turn errors of the system and of SQLite into ours."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"The SQLite folder {folder} can't be used ({error.strerror}): choose a folder that you may write."
        ) from error
    except sqlite3.Error as error:
        if error_code(error) in PASSING - _SETTINGS:
            raise StoreUnavailableError(
                f"The SQLite folder {folder} can't be used now ({error}): check locks and disk space, and repeat."
            ) from error
        raise ConfigurationError(
            f"The SQLite folder {folder} can't be used ({error}): check its rights, or choose another one."
        ) from error


def _prepare(folder: Path, board: str, num_shards: int | None, timeout: float) -> int:
    file = folder / "board.db"
    _check(file, timeout)
    with closing(sqlite3.connect(file, timeout, isolation_level=None)) as connection:
        # The lock on this file makes one process at a time look, create and decide.
        connection.execute("BEGIN IMMEDIATE")
        try:
            number = _create_or_check(connection, folder, board, num_shards, timeout)
        except BaseException:
            connection.rollback()
            raise
        connection.execute("COMMIT")
    return number


def _create_or_check(
    connection: sqlite3.Connection, folder: Path, board: str, num_shards: int | None, timeout: float
) -> int:
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        _create_tables(connection, BOARD_SCHEMA)
        _create_shards(folder, board, num_shards or 1, timeout)
        connection.execute("INSERT INTO board VALUES (1, ?, ?)", (board, num_shards or 1))
        _sync_folder(folder)
        _sync_folder(folder.parent)
        return num_shards or 1
    number = _number(folder, board, *connection.execute("SELECT name, num_shards FROM board").fetchone())
    if num_shards not in (None, number):
        raise ConfigurationError(
            f"The board {board!r} was created with {number} shards, not {num_shards}: ask for {number}, or for none."
        )
    for shard in range(number):
        file = folder / f"shard-{shard:04}.db"
        if not file.exists():
            raise ConfigurationError(
                f"The file {file} of board {board!r} is missing: restore it from a backup."
            )
        _check(file, timeout)
    return number


def _check(file: Path, timeout: float) -> None:
    """Refuse a file that is not ours or may not be written; an empty one is being created."""
    if not file.exists():
        return
    if not os.access(file, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ConfigurationError(f"The file {file} can't be written: give this user the rights to it.")
    if file.stat().st_size and (problem := foreign(file, timeout)):
        advice = "upgrade flock_ray" if "newer" in problem else "choose another folder, or move the file away"
        raise ConfigurationError(f"The file {file} {problem}: {advice}.")


def _create_tables(connection: sqlite3.Connection, schema: str) -> None:
    """Create tables inside the open transaction (`executescript` would commit it)."""
    for statement in filter(str.strip, schema.split(";")):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")


def _create_shards(folder: Path, board: str, number: int, timeout: float) -> None:
    for shard in range(number):
        file = folder / f"shard-{shard:04}.db"
        _check(file, timeout)
        with closing(sqlite3.connect(file, timeout, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                _create_tables(connection, SHARD_SCHEMA)
                connection.execute("INSERT INTO journal (id, board, shard) VALUES (1, ?, ?)", (board, shard))
            elif connection.execute("SELECT board, shard, epoch FROM journal").fetchone() != (
                board,
                shard,
                0,
            ):
                raise ConfigurationError(
                    f"The file {file} holds data, but {folder / 'board.db'} is missing: restore it from a backup."
                )
            connection.execute("COMMIT")
            # Only now: the header, which says whose file it is, must lie in the file and not in its log.
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise ConfigurationError(
                    f"The file system of {folder} has no shared memory: choose a local disk."
                )


def _sync_folder(folder: Path) -> None:
    """Make the names of new files durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
