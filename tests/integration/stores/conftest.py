from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import asyncpg
import pytest

from flock_ray.adapters.postgres import PostgresPersistence
from tests.servers import PostgresServer, ServerMissingError


@pytest.fixture(scope="session")
def new_postgres_server() -> Iterator[Callable[..., PostgresServer]]:
    """Start servers of their own; without PostgreSQL tests skip loudly, and in CI they fail."""
    made: list[PostgresServer] = []

    def start(*options: str) -> PostgresServer:
        try:
            made.append(PostgresServer(*options))
        except ServerMissingError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        made[-1].start()
        return made[-1]

    yield start
    for server in made:
        server.remove()


@pytest.fixture(scope="session")
def postgres_server(new_postgres_server: Callable[..., PostgresServer]) -> PostgresServer:
    """The PostgreSQL server of the test run; tests leave it running."""
    return new_postgres_server()


@pytest.fixture
def postgres_schema() -> str:
    """A schema of the test's own."""
    return f"s_{secrets.token_hex(6)}"


@pytest.fixture
def postgres(postgres_server: PostgresServer, postgres_schema: str) -> PostgresPersistence:
    """An empty place in PostgreSQL."""
    return PostgresPersistence(postgres_server.url(), schema=postgres_schema)


class Sql:
    """A connection of the test's own; `{schema}` in a statement is the test's schema."""

    def __init__(self, url: str, connection: asyncpg.Connection[asyncpg.Record], schema: str) -> None:
        self.connection = connection
        self._url = url
        self._schema = f'"{schema}"'

    async def run(self, statement: str) -> str:
        return await self.connection.execute(statement.replace("{schema}", self._schema))

    async def rows(self, statement: str, *values: object) -> list[asyncpg.Record]:
        return await self.connection.fetch(statement.replace("{schema}", self._schema), *values)

    async def value(self, statement: str, *values: object) -> object:
        return (await self.rows(statement, *values))[0][0]

    async def until(self, statement: str) -> None:
        """Wait until a query is true; not inside the test's transaction, which sees `pg_stat_activity` as it was."""
        watching = await asyncpg.connect(self._url)
        try:
            async with asyncio.timeout(20):
                while not await watching.fetchval(statement.replace("{schema}", self._schema)):  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.01)
        finally:
            await watching.close()


@pytest.fixture
async def postgres_sql(postgres_server: PostgresServer, postgres_schema: str) -> AsyncIterator[Sql]:
    """A second way to the test's schema, with the rights of a superuser."""
    connection = await asyncpg.connect(postgres_server.url())
    yield Sql(postgres_server.url(), connection, postgres_schema)
    await connection.close()
