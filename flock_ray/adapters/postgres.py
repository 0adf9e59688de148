"""PostgreSQL: keeps a board's journal, artifacts and audit log in one transaction per micro-batch."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from flock_ray.adapters import postgres_sql as sql
from flock_ray.adapters.audit_trail import AuditReport
from flock_ray.adapters.postgres_audit import verify_audit
from flock_ray.adapters.postgres_connections import Address, Connection, close_connection
from flock_ray.adapters.postgres_errors import SETTINGS_ERRORS, settings_error
from flock_ray.adapters.postgres_index import PostgresStore
from flock_ray.adapters.postgres_migrations import (
    TIMEOUT_S,
    grant_rights,
    known_migrations,
    migrate,
    pending_migrations,
)
from flock_ray.core.audit import AuditHead
from flock_ray.core.retention import Retention, RetentionPolicy
from flock_ray.errors import ConfigurationError, FlockError

if TYPE_CHECKING:
    from pydantic import PostgresDsn

__all__ = ["PostgresPersistence"]

_FORMAT = 1
"""Of frames' checksums and `meta` columns; a board of a higher one was written by a newer version."""

_MIN_SERVER = 140000
_SCHEMA = re.compile(r"(?!pg_)[A-Za-z_][A-Za-z0-9_]{0,62}")

_PROBE = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS encoding,
    current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit, pg_is_in_recovery() AS standby
"""

_LOSSES = {
    "fsync": "fsync is off on {place}: when its machine fails, accepted artifacts are lost. Set fsync = on.",
    "full_page_writes": (
        "full_page_writes is off on {place}: when its machine fails, the database may be damaged. "
        "Set full_page_writes = on."
    ),
    "synchronous_commit": (
        "synchronous_commit is off on {place}: when it fails, artifacts accepted in the last moments are lost. "
        "Set synchronous_commit = on."
    ),
}


class PostgresPersistence:
    """Keeps boards in a schema of a PostgreSQL database (14 or newer). Pickles; shows no password."""

    mode = "postgres"

    def __init__(
        self,
        connection: str | PostgresDsn,
        *,
        schema: str = "flock",
        enable_audit_log: bool = False,
        pool_size: int = 4,
        timeout: float = 10.0,
        migration_connection: str | PostgresDsn | None = None,
        ttl: timedelta | None = None,
        retention_policy: RetentionPolicy = RetentionPolicy.KEEP_ALL,
        per_type: Mapping[str, timedelta] | None = None,
        archive: str | None = None,
    ) -> None:
        """Describe where boards are kept; nothing is connected yet.

        Args:
            connection: URL `postgresql://user:password@host:5432/database`, as every process of the board needs it.
            schema: Schema of the tables; made when missing. Boards of one schema know nothing of each other.
            enable_audit_log: Whether every publish from outside, ended activation, decision, erasure and removal
                is written to the append-only, hash-chained table `audit`.
            pool_size: Connections that each shard may hold, 2 to 100; one of them writes.
            timeout: Seconds after which a call to the server is given up; above 0.
            migration_connection: URL of the role that owns the tables; only `prepare` uses it. The role of
                `connection` then needs no right to create anything, and can't change the audit log. None: one role.
            ttl: How long workflows that are over are kept; needs another policy than KEEP_ALL.
            retention_policy: What happens to them then.
            per_type: Times by artifact type; see `Retention`.
            archive: Folder or fsspec URL for ARCHIVE_COMPLETED, and for `flock.archive`.

        Raises:
            ConfigurationError: A value is out of range, or the retention makes no sense.
        """
        if not _SCHEMA.fullmatch(schema) or schema == "information_schema":
            raise ConfigurationError(
                f"schema={schema[:80]!r} does not fit: take 1 to 63 letters, digits and _, no digit first, no pg_."
            )
        if not 2 <= pool_size <= 100:
            raise ConfigurationError(f"pool_size={pool_size} does not fit: take 2 to 100 connections.")
        if not 0 < timeout <= 3600:
            raise ConfigurationError(
                f"timeout={timeout} does not fit: take more than 0 and at most 3600 seconds."
            )
        self._address = Address(connection, timeout)
        self._owner = None if migration_connection is None else Address(migration_connection, timeout)
        self._schema = f'"{schema}"'
        self._audited = enable_audit_log
        self._pool_size = pool_size
        self.retention = Retention(ttl, retention_policy, per_type or {}, archive)
        """How long workflows that are over are kept; the board applies it."""
        self._warnings: list[str] = []

    def __repr__(self) -> str:
        """Show the place and the schema."""
        return f"<PostgresPersistence: {self._address.place}, schema {self._schema}>"

    def __getstate__(self) -> dict[str, object]:
        """Leave the owner's URL behind: only the process that called the constructor migrates."""
        return {**self.__dict__, "_owner": None}

    async def prepare(self, board: str, num_shards: int | None) -> int:
        """Create or migrate the schema and the board, and return its number of shards; safe while shards run.

        Args:
            board: Name of the board.
            num_shards: What was asked for, 1 to 256; None: what is stored, 1 for a new board.

        Raises:
            ConfigurationError: Wrong settings, missing rights, another program's or newer version's schema, or
                another number of shards; says what to do.
            StoreUnavailableError: The server does not answer now; retryable.
        """
        if num_shards is not None and not 1 <= num_shards <= 256:
            raise ConfigurationError(f"A board has 1 to 256 shards, not {num_shards}: correct the number.")
        async with self._settings() as (connection, role):
            await self._probe(connection)
            await self._bring_up(connection, role)
            return await self._prepare_board(connection, board, num_shards)

    async def find(self, board: str) -> int | None:
        """Return the number of shards of a stored board; None when there is none. Creates and changes nothing.

        Raises:
            ConfigurationError: Wrong settings, missing rights, or a schema of another program or a newer version.
            StoreUnavailableError: The server does not answer now; retryable.
        """
        async with self._settings() as (connection, role):
            if not await self._has_schema(connection, role):
                return None
            if len(await pending_migrations(connection, self._address, self._schema)) == len(
                known_migrations()
            ):
                return None
            found = await connection.fetchrow(self._sql(sql.FIND_BOARD), board)
            return None if found is None else self._checked(board, found)

    @asynccontextmanager
    async def _settings(self) -> AsyncIterator[tuple[Connection, str]]:
        """Lend a connection and the name of its role; failures say what is wrong with the settings."""
        connection: Connection | None = None
        role = ""
        try:
            connection = await self._address.connect()
            role = str(await connection.fetchval("SELECT session_user"))
            yield connection, role
        except SETTINGS_ERRORS as error:
            if role and getattr(error, "sqlstate", "") == "42501":
                raise self._without_rights(role) from None
            raise settings_error(error, self._address.place) from None
        finally:
            if connection is not None:
                await close_connection(connection, self._address.timeout)

    async def _probe(self, connection: Connection) -> None:
        """Note what could be lost on this server, and refuse one that can't work."""
        row = await connection.fetchrow(_PROBE)
        assert row is not None
        place = self._address.place
        if row["version"] < _MIN_SERVER:
            raise ConfigurationError(f"{place} is older than PostgreSQL 14: upgrade it.")
        if row["encoding"] != "UTF8":
            raise ConfigurationError(f"{place} is not in UTF8: create a database with ENCODING 'UTF8'.")
        if row["standby"]:
            raise ConfigurationError(
                f"{place} is a read-only standby: name the primary, or add target_session_attrs=primary to connection=."
            )
        self._warnings = [text.format(place=place) for name, text in _LOSSES.items() if row[name] == "off"]

    async def _bring_up(self, connection: Connection, role: str) -> None:
        """Migrate the schema when something is pending, and give the role its rights."""
        if self._owner is None:
            await self._has_schema(connection, role)
            if not await pending_migrations(connection, self._address, self._schema):
                return
        owner: Connection | None = None
        address = self._owner or self._address
        try:
            owner = await address.connect(timeout=max(TIMEOUT_S, address.timeout))
            await migrate(owner, address, self._schema)
            if self._owner is not None:
                await self._grant(owner, role)
        except SETTINGS_ERRORS as error:
            raise self._explain_migration(error, address) from None
        finally:
            if owner is not None:
                await close_connection(owner, address.timeout)

    async def _has_schema(self, connection: Connection, role: str) -> bool:
        """Say whether the schema is there.

        Raises:
            ConfigurationError: It is, and the role may not look into it.
        """
        usable = await connection.fetchval(
            "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = $1",
            self._schema[1:-1],
        )
        if usable is False:
            raise self._without_rights(role)
        return usable is not None

    async def _grant(self, owner: Connection, role: str) -> None:
        if role == await owner.fetchval("SELECT session_user"):
            raise ConfigurationError(
                "connection= and migration_connection= have the same user: give the shards a role of their own, "
                "or leave migration_connection out."
            )
        await grant_rights(owner, self._schema, role)

    def _explain_migration(self, error: Exception, address: Address) -> FlockError:
        state = getattr(error, "sqlstate", "")
        if state in ("42P07", "42710", "42723"):  # a table, an object or a function of that name is there
            return ConfigurationError(
                f"{address.place}: schema {self._schema} has tables of another program: name a new schema with schema=."
            )
        if state == "42501":
            return ConfigurationError(
                f"{address.place}: this user does not own the tables of schema {self._schema}: give the owner's URL "
                "as migration_connection=."
            )
        return settings_error(error, address.place)

    def _without_rights(self, role: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self._address.place}: user {role!r} lacks rights on schema {self._schema}: give the owner's URL as "
            f"migration_connection=, or run GRANT USAGE ON SCHEMA {self._schema} and the grants of "
            "docs/howto/postgres.md."
        )

    async def _prepare_board(self, connection: Connection, board: str, num_shards: int | None) -> int:
        async with connection.transaction():
            found = await connection.fetchrow(self._sql(sql.FIND_BOARD), board)
            if found is None:
                await connection.execute(self._sql(sql.CREATE_BOARD), board, num_shards or 1, _FORMAT)
                found = await connection.fetchrow(self._sql(sql.FIND_BOARD), board)
                assert found is not None
                await connection.execute(self._sql(sql.CREATE_SHARDS), found["id"], found["num_shards"])
        stored = self._checked(board, found)
        if num_shards is not None and num_shards != stored:
            raise ConfigurationError(
                f"Board {board!r} has {stored} shards, not {num_shards}: ask for {stored}, or take another name."
            )
        return stored

    def _checked(self, board: str, found: asyncpg.Record) -> int:
        """Return the number of shards of a board that this version can read."""
        if found["format"] > _FORMAT:
            raise ConfigurationError(
                f"{self._address.place}: board {board!r} was written by a newer flock_ray: install that version here."
            )
        return int(found["num_shards"])

    def _sql(self, template: str) -> str:
        return template.replace("{schema}", self._schema)

    def store(self, board: str, shard: int, slots: Collection[int]) -> PostgresStore:
        """Return the store of one shard, which connects at its first call; the shard fences all its slots."""
        return PostgresStore(
            self._address, self._schema, board, shard, pool_size=self._pool_size, audited=self._audited
        )

    def warnings(self) -> list[str]:
        """Return what could be lost on this server, as `prepare` found it."""
        return list(self._warnings)

    async def verify_audit(self, board: str, *, noted: Mapping[int, AuditHead] | None = None) -> AuditReport:
        """Verify the audit log of a board; see `postgres_audit.verify_audit`.

        Args:
            board: Name of the board.
            noted: Heads by shard of an earlier report, kept outside the database.

        Raises:
            ConfigurationError: There is no such board.
            StoreUnavailableError: The server does not answer; retryable.
        """
        return await verify_audit(self._address, self._schema, board, noted=noted)
