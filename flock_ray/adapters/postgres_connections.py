"""The way to a PostgreSQL server: its address, and the connections that one shard holds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias
from urllib.parse import urlsplit

import asyncpg

from flock_ray.adapters.postgres_errors import DRIVER_ERRORS, store_error
from flock_ray.errors import ConfigurationError, FlockError, StoreUnavailableError

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_DRIVER = re.compile(r"^(postgres(?:ql)?)\+\w+://")
_SETTINGS = {
    "application_name": "flock_ray",
    # The epoch check reads the newest committed version of a row: that is what this level does.
    "default_transaction_isolation": "read committed",
    "jit": "off",
}

# Plans of a write don't depend on its values; those of a read do.
_WRITING = {"plan_cache_mode": "force_generic_plan"}
# Before PostgreSQL has statistics of a young table it would rather collect and sort all rows than follow an index.
_READING = {"plan_cache_mode": "force_custom_plan", "enable_bitmapscan": "off"}


class Address:
    """Where a server is and who we are there. Only `url` holds the password: never print it."""

    def __init__(self, connection: object, timeout: float) -> None:
        """Take a URL (text or `pydantic.PostgresDsn`) and the limit of a network call in seconds.

        Raises:
            ConfigurationError: It is no such URL.
        """
        self.url = _DRIVER.sub(r"\1://", str(connection))
        self.timeout = timeout
        self.place = _place(self.url)
        """`PostgreSQL at host:port/database`."""

    def __repr__(self) -> str:
        """Show the place."""
        return f"<{self.place}>"

    async def connect(
        self, settings: Mapping[str, str] | None = None, *, timeout: float | None = None
    ) -> Connection:
        """Open a connection whose calls, and the server's work for them, end after the timeout.

        Raises:
            Exception: Whatever the driver raises; callers translate it.
        """
        limit = self.timeout if timeout is None else timeout
        limit_ms = str(max(1, round(limit * 1000)))
        return await asyncpg.connect(
            self.url,
            timeout=self.timeout,
            command_timeout=limit,
            max_cached_statement_lifetime=0,
            server_settings={
                **_SETTINGS,
                **(settings or {}),
                "statement_timeout": limit_ms,
                # A writer that was stopped inside a transaction must not keep its locks.
                "idle_in_transaction_session_timeout": limit_ms,
            },
        )


def _place(url: str) -> str:
    """Name the server without the secrets of its URL."""
    wrong = ConfigurationError(
        "connection= is not a URL: write postgresql://user:password@host:5432/database."
    )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("postgres", "postgresql"):
        raise wrong
    pairs = parts.query.split("&") if parts.query else []
    if (
        parts.fragment
        or ("@" in parts.path and "@" not in parts.netloc)
        or any("=" not in pair for pair in pairs)
    ):
        raise ConfigurationError(
            "connection= has one of / ? # @ in its user or password: write it as %2F, %3F, %23 or %40."
        )
    return f"PostgreSQL at {parts.netloc.rpartition('@')[2] or 'the local socket'}{parts.path}"


async def close_connection(connection: Connection, timeout: float) -> None:
    """Say goodbye to the server; cut the connection when that takes too long."""
    try:
        await connection.close(timeout=timeout)
    except Exception:  # whatever kept it from a goodbye, nothing of it must stay open
        connection.terminate()


class Connections:
    """The connections of one shard: one to write with, and some to read with. Opened when needed.

    A connection on which anything went wrong is cut, so the next call opens a new one.
    """

    def __init__(self, address: Address, size: int) -> None:
        """Hold at most `size` connections, at least two."""
        self._address = address
        self._writing = asyncio.Lock()
        self._reading = asyncio.Semaphore(size - 1)
        self._idle: dict[bool, list[Connection]] = {True: [], False: []}
        self._used: set[Connection] = set()
        self._closed = False

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        """Lend the connection for writing; one borrower at a time.

        Raises:
            StoreUnavailableError: The server does not answer; retryable.
            StoreCorruptError: The tables are damaged or gone.
            StoreError: The server refused the statement.
        """
        async with self._borrow(self._writing, writing=True) as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        """Lend a connection for reading; errors as for `write`."""
        async with self._borrow(self._reading, writing=False) as connection:
            yield connection

    @asynccontextmanager
    async def _borrow(
        self, limit: asyncio.Lock | asyncio.Semaphore, *, writing: bool
    ) -> AsyncIterator[Connection]:
        async with limit:
            if self._closed:
                raise StoreUnavailableError(
                    f"The store at {self._address.place} is closed. Open another one."
                )
            connection: Connection | None = None
            try:
                connection = await self._open(writing)
                yield connection
            except FlockError:
                self._give_back(connection, writing)
                raise
            except DRIVER_ERRORS as error:
                self._drop(connection)
                raise store_error(error, self._address.place) from None
            except BaseException:
                self._drop(connection)
                raise
            else:
                self._give_back(connection, writing)

    async def _open(self, writing: bool) -> Connection:
        idle = self._idle[writing]
        while idle:
            connection = idle.pop()
            if not connection.is_closed():
                break
        else:
            connection = await self._address.connect(_WRITING if writing else _READING)
        self._used.add(connection)
        if self._closed:
            connection.terminate()
        return connection

    def _drop(self, connection: Connection | None) -> None:
        if connection is not None:
            self._used.discard(connection)
            connection.terminate()

    def _give_back(self, connection: Connection | None, writing: bool) -> None:
        if connection is None:
            return
        self._used.discard(connection)
        if connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle[writing].append(connection)

    async def close(self) -> None:
        """Close what is idle and cut what is in use; safe to repeat."""
        self._closed = True
        for connection in list(self._used):
            connection.terminate()
        idle = [connection for connections in self._idle.values() for connection in connections]
        for connections in self._idle.values():
            connections.clear()
        await asyncio.gather(*(close_connection(connection, self._address.timeout) for connection in idle))
        # The event loop closes a cut connection in its next round.
        await asyncio.sleep(0)
