"""Brings a schema up to the tables that this version knows: numbered SQL files, each applied once.

Shards of the version before run on while a migration is applied, so migrations expand or contract,
never both: one release adds what the next will need (a table, a nullable column, a view's column at
the end), and only a later release, when nobody uses it any more, removes the old. A file that was
released is never changed.
"""

from __future__ import annotations

import re
from hashlib import sha256
from importlib.resources import files

import msgspec

from flock_ray.adapters.postgres_connections import Address, Connection
from flock_ray.errors import ConfigurationError

TIMEOUT_S = 600.0
"""A migration may build an index over all rows, or wait for another process that does."""

_FILE = re.compile(r"(\d{4})_\w+\.sql")

_APPLIED = "SELECT number, name FROM {schema}.schema_migrations ORDER BY number"

_OURS = """
SELECT obj_description(to_regclass($1), 'pg_class') LIKE 'flock_ray:%' AS ours, to_regclass($1) IS NOT NULL AS there
"""

_MAY_CREATE = "SELECT has_schema_privilege($1, 'CREATE') AND has_schema_privilege($1, 'USAGE')"

_CREATE = """
CREATE TABLE {schema}.schema_migrations (
    number integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE {schema}.schema_migrations IS 'flock_ray: which migrations were applied';
"""

_RIGHTS = """
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role};
GRANT INSERT, UPDATE ON {schema}.boards, {schema}.shards TO {role};
GRANT INSERT, UPDATE, DELETE ON {schema}.journal, {schema}.snapshots, {schema}.artifact_rows,
    {schema}.artifact_tags, {schema}.activation_rows, {schema}.consumptions, {schema}.workflow_rows TO {role};
GRANT INSERT ON {schema}.audit TO {role};
REVOKE UPDATE, DELETE, TRUNCATE ON {schema}.audit FROM {role};
"""


class Migration(msgspec.Struct, frozen=True):
    """One numbered file."""

    number: int
    name: str
    text: str


def known_migrations() -> list[Migration]:
    """Return the migrations of this version, ascending."""
    found: list[Migration] = []
    for path in files("flock_ray.adapters").joinpath("migrations").iterdir():
        if match := _FILE.fullmatch(path.name):
            found.append(Migration(int(match[1]), path.name, path.read_text("utf-8")))
    return sorted(found, key=lambda migration: migration.number)


async def pending_migrations(connection: Connection, address: Address, schema: str) -> list[Migration]:
    """Return what has to be applied.

    Raises:
        ConfigurationError: The schema belongs to another program, or to a newer version of this one.
    """
    row = await connection.fetchrow(_OURS, f"{schema}.schema_migrations")
    assert row is not None
    if not row["there"]:
        return known_migrations()
    if not row["ours"]:
        raise _foreign(address, schema)
    applied = {r["number"]: r["name"] for r in await connection.fetch(_APPLIED.replace("{schema}", schema))}
    known = known_migrations()
    newer = max(applied, default=0)
    if newer > known[-1].number:
        raise ConfigurationError(
            f"{address.place}: schema {schema} was written by a newer flock_ray ({applied[newer]}): "
            "install that version here, or name another schema with schema=."
        )
    return [migration for migration in known if migration.number not in applied]


def _foreign(address: Address, schema: str) -> ConfigurationError:
    return ConfigurationError(
        f"{address.place}: schema {schema} has tables of another program: name a new schema with schema=."
    )


async def migrate(connection: Connection, address: Address, schema: str) -> None:
    """Apply what is pending, in one transaction; processes that come at once wait for each other.

    Args:
        connection: Of a role that may create the schema, or tables in it; with a timeout for long work.
        address: The server, for messages.
        schema: Quoted name of the schema.

    Raises:
        ConfigurationError: The schema belongs to another program, or to a newer version.
        asyncpg.PostgresError: The server refused; nothing was changed.
    """
    key = int.from_bytes(sha256(f"flock_ray migrations {schema}".encode()).digest()[:8], "big", signed=True)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", key)
        pending = await pending_migrations(connection, address, schema)
        if not pending:
            return
        # Waiting long for a table's lock would make every shard wait behind us.
        await connection.execute("SET LOCAL lock_timeout = '5s'")
        await _create_schema(connection, address, schema)
        for migration in pending:
            await connection.execute(migration.text.replace("{schema}", schema))
            await connection.execute(
                f"INSERT INTO {schema}.schema_migrations (number, name, sha256) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                sha256(migration.text.encode()).hexdigest(),
            )


async def _create_schema(connection: Connection, address: Address, schema: str) -> None:
    """Create the schema and the table of migrations where they are missing."""
    name = schema[1:-1]
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", name):
        if not await connection.fetchval("SELECT has_database_privilege(current_database(), 'CREATE')"):
            user, database = await _names(connection)
            raise ConfigurationError(
                f"{address.place}: user {user} may not create schema {schema}: run "
                f"CREATE SCHEMA {schema} AUTHORIZATION {user}, or GRANT CREATE ON DATABASE {database} TO {user}."
            )
        await connection.execute(f"CREATE SCHEMA {schema}")
    elif not await connection.fetchval(_MAY_CREATE, name):
        user, _ = await _names(connection)
        raise ConfigurationError(
            f"{address.place}: user {user} may not create tables in schema {schema}: run "
            f"GRANT CREATE, USAGE ON SCHEMA {schema} TO {user}."
        )
    if not await connection.fetchval("SELECT to_regclass($1)", f"{schema}.schema_migrations"):
        await connection.execute(_CREATE.replace("{schema}", schema))


async def _names(connection: Connection) -> tuple[str, str]:
    row = await connection.fetchrow("SELECT quote_ident(current_user), quote_ident(current_database())")
    assert row is not None
    return row[0], row[1]


async def grant_rights(owner: Connection, schema: str, role: str) -> None:
    """Give the role of the shards what it needs and no more: it may only read and append the audit log.

    Args:
        owner: Connection of the role that owns the tables.
        schema: Quoted name of the schema.
        role: Name of the shards' role.
    """
    quoted = await owner.fetchval("SELECT quote_ident($1)", role)
    async with owner.transaction():
        # Two GRANTs on one table at once fail with "tuple concurrently updated".
        await owner.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"flock_ray rights {schema}")
        await owner.execute(_RIGHTS.replace("{schema}", schema).replace("{role}", quoted))
