from __future__ import annotations

import pickle
import secrets
import socket
import traceback
from collections.abc import AsyncIterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # ships no types
import pytest
from pydantic import PostgresDsn

from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.errors import ConfigurationError, StoreUnavailableError
from tests.integration.stores.conftest import Sql
from tests.servers import PostgresServer, free_port
from tests.unit.adapters.store_rows import artifact, batch

SECRET = "hunter2-secret"


async def refusal(
    persistence: PostgresPersistence, board: str = "board", num_shards: int | None = None
) -> str:
    """Return why `prepare` refuses: one sentence, without the password, also in the traceback."""
    with pytest.raises(ConfigurationError) as caught:
        await persistence.prepare(board, num_shards)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and text.count(". ") == 0
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return text


@pytest.fixture
async def user(postgres_server: PostgresServer, postgres_sql: Sql) -> AsyncIterator[str]:
    """A user with a password and without any right."""
    name = f"user_{secrets.token_hex(4)}"
    await postgres_sql.run(f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'")
    postgres_server.require_password(name)
    yield name
    await postgres_sql.run(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def test_wrong_password(postgres_server: PostgresServer, user: str) -> None:
    wrong = PostgresPersistence(postgres_server.url(user, f"{SECRET}x"))

    assert "refuses this user or password" in await refusal(wrong)


async def test_looking_for_a_board_says_the_same(postgres_server: PostgresServer, user: str) -> None:
    with pytest.raises(ConfigurationError, match="refuses this user or password"):
        await PostgresPersistence(postgres_server.url(user, f"{SECRET}x")).find("board")


async def test_looking_for_a_board_leaves_the_database_alone(
    postgres: PostgresPersistence, postgres_sql: Sql, postgres_schema: str
) -> None:
    assert await postgres.find("board") is None

    assert await postgres_sql.value("SELECT to_regnamespace($1)::text", postgres_schema) is None


async def test_wrong_user(postgres_server: PostgresServer) -> None:
    assert "user or password" in await refusal(
        PostgresPersistence(postgres_server.url("nobody-here", SECRET))
    )


async def test_wrong_database(postgres_server: PostgresServer) -> None:
    place = PostgresPersistence(postgres_server.url(password=SECRET, database="nowhere"))

    assert "no such database" in await refusal(place)


async def test_wrong_port() -> None:
    port = free_port()
    place = PostgresPersistence(f"postgresql://me:{SECRET}@127.0.0.1:{port}/db")

    assert f"Nothing listens at PostgreSQL at 127.0.0.1:{port}/db" in await refusal(place)


async def test_wrong_host() -> None:
    assert "host name" in await refusal(PostgresPersistence(f"postgresql://me:{SECRET}@nowhere.invalid/db"))


async def test_server_that_does_not_answer_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = PostgresPersistence(
            f"postgresql://me:{SECRET}@127.0.0.1:{mute.getsockname()[1]}/db", timeout=0.2
        )

        with pytest.raises(StoreUnavailableError) as caught:
            await place.prepare("board", 1)

    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_user_who_may_not_create_the_schema(postgres_server: PostgresServer, user: str) -> None:
    text = await refusal(PostgresPersistence(postgres_server.url(user, SECRET), schema="mine"))

    assert f"GRANT CREATE ON DATABASE postgres TO {user}" in text


async def test_user_without_rights_on_the_schema(
    postgres_server: PostgresServer, postgres_sql: Sql, postgres_schema: str, user: str
) -> None:
    await postgres_sql.run("CREATE SCHEMA {schema}")
    place = PostgresPersistence(postgres_server.url(user, SECRET), schema=postgres_schema)

    assert f'GRANT USAGE ON SCHEMA "{postgres_schema}"' in await refusal(place)

    await postgres_sql.run(f"GRANT USAGE ON SCHEMA {{schema}} TO {user}")
    assert f'GRANT CREATE, USAGE ON SCHEMA "{postgres_schema}" TO {user}' in await refusal(place)

    await postgres_sql.run(f"GRANT CREATE ON SCHEMA {{schema}} TO {user}")
    assert 1 == await place.prepare("board", 1)


async def test_user_without_rights_on_the_tables(
    postgres: PostgresPersistence,
    postgres_server: PostgresServer,
    postgres_sql: Sql,
    postgres_schema: str,
    user: str,
) -> None:
    await postgres.prepare("board", 1)
    await postgres_sql.run(f"GRANT USAGE ON SCHEMA {{schema}} TO {user}")

    text = await refusal(PostgresPersistence(postgres_server.url(user, SECRET), schema=postgres_schema))

    assert "lacks rights" in text and "migration_connection=" in text


@pytest.mark.parametrize(
    "table", ["schema_migrations (version bigint)", "artifacts (id int)", "boards (id int)"]
)
async def test_schema_of_another_program_is_left_alone(
    postgres: PostgresPersistence, postgres_sql: Sql, table: str
) -> None:
    await postgres_sql.run(f"CREATE SCHEMA {{schema}}; CREATE TABLE {{schema}}.{table}")

    assert "another program" in await refusal(postgres)

    tables = "SELECT count(*) FROM pg_class WHERE relnamespace = '{schema}'::regnamespace"
    assert 1 == await postgres_sql.value(tables)


async def test_schema_of_a_newer_version_is_left_alone(
    postgres: PostgresPersistence, postgres_sql: Sql
) -> None:
    await postgres.prepare("board", 1)
    await postgres_sql.run("INSERT INTO {schema}.schema_migrations VALUES (9999, '9999_future.sql', '')")

    assert "newer flock_ray (9999_future.sql)" in await refusal(postgres)


async def test_board_of_a_newer_version_is_left_alone(
    postgres: PostgresPersistence, postgres_sql: Sql
) -> None:
    await postgres.prepare("board", 1)
    await postgres_sql.run("UPDATE {schema}.boards SET format = 99")

    assert "newer flock_ray" in await refusal(postgres)


async def test_other_number_of_shards(postgres: PostgresPersistence) -> None:
    await postgres.prepare("board", 2)

    assert "has 2 shards, not 4" in await refusal(postgres, num_shards=4)
    assert "1 to 256" in await refusal(postgres, num_shards=0)


async def test_database_in_another_encoding(postgres_server: PostgresServer, postgres_sql: Sql) -> None:
    name = f"latin_{secrets.token_hex(4)}"
    await postgres_sql.run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")

    assert "UTF8" in await refusal(PostgresPersistence(postgres_server.url(database=name)))


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"connection": f"host=localhost password={SECRET}"}, "not a URL"),
        ({"connection": f"mysql://me:{SECRET}@localhost/db"}, "not a URL"),
        ({"connection": f"postgresql://me:{SECRET}/x@localhost/db"}, "%2F"),
        ({"connection": f"postgresql://me:{SECRET}?x@localhost/db"}, "%2F"),
        ({"connection": f"postgresql://me:{SECRET}#x@localhost/db"}, "%2F"),
        ({"schema": "a-b"}, "schema="),
        ({"schema": 'x"; DROP SCHEMA public; --'}, "schema="),
        ({"schema": "pg_mine"}, "schema="),
        ({"schema": "x" * 64}, "schema="),
        ({"schema": ""}, "schema="),
        ({"pool_size": 1}, "pool_size="),
        ({"timeout": 0.0}, "timeout="),
    ],
)
def test_parameters_out_of_range(given: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PostgresPersistence(**{"connection": "postgresql://localhost/db", **given})

    assert part in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("query", ["?sslmode=sideways", "?port=abc"])
async def test_url_that_the_driver_refuses(query: str) -> None:
    await refusal(PostgresPersistence(f"postgresql://me:{SECRET}@localhost/db{query}"))


def test_password_of_the_owner_does_not_travel() -> None:
    place = PostgresPersistence(
        "postgresql://a@db/shop", migration_connection=f"postgresql://o:{SECRET}@db/shop"
    )

    assert SECRET.encode() not in cloudpickle.dumps(place)


def test_password_is_not_shown() -> None:
    place = PostgresPersistence(
        f"postgresql://me:{SECRET}@db.example:5433/shop?sslmode=require&password={SECRET}",
        migration_connection=f"postgresql://owner:{SECRET}@db.example/shop",
    )
    store = place.store("board", 0, range(256))

    for shown in (repr(place), str(place), repr(store), repr(place._address)):
        assert SECRET not in shown
    assert '<PostgresPersistence: PostgreSQL at db.example:5433/shop, schema "flock">' == repr(place)
    assert (
        repr(place)
        == repr(pickle.loads(pickle.dumps(place)))
        == repr(cloudpickle.loads(cloudpickle.dumps(place)))
    )


async def test_url_of_pydantic_and_with_a_driver_is_taken(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    text = postgres_server.url()
    urls: tuple[str | PostgresDsn, ...] = (
        PostgresDsn(text),
        text.replace("postgresql:", "postgresql+asyncpg:"),
    )
    for number, url in enumerate(urls):
        assert 1 == await PostgresPersistence(url, schema=postgres_schema).prepare(f"board-{number}", None)


async def test_rights_taken_from_a_running_shard_can_be_given_back(
    postgres: PostgresPersistence,
    postgres_server: PostgresServer,
    postgres_sql: Sql,
    postgres_schema: str,
    user: str,
) -> None:
    await postgres_sql.run("SELECT 1")
    shards = PostgresPersistence(
        postgres_server.url(user, SECRET), schema=postgres_schema, migration_connection=postgres_server.url()
    )
    await shards.prepare("board", 1)
    store = shards.store("board", 0, range(256))
    await store.acquire()
    await postgres_sql.run(f"REVOKE INSERT ON {{schema}}.journal FROM {user}")

    with pytest.raises(StoreUnavailableError, match="refuses the board's user"):
        await store.append(batch(1, [artifact("a")]))

    await postgres_sql.run(f"GRANT INSERT ON {{schema}}.journal TO {user}")
    await store.append(batch(1, [artifact("a")]))
    await store.close()
