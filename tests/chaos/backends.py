"""The backends that chaos runs on, each with its ways to fail."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.redis import RedisPersistence
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.ports import Persistence
from tests.redis_server import RedisServer, need_redis
from tests.servers import PostgresServer, ServerMissingError


@dataclass
class Backend:
    """A server that a board can be kept in."""

    name: str
    server: PostgresServer | RedisServer | None
    folder: Path

    @property
    def url(self) -> str:
        """Of the persistence, for another process."""
        if isinstance(self.server, PostgresServer):
            return self.server.url()
        if isinstance(self.server, RedisServer):
            return f"redis://127.0.0.1:{self.server.port}"
        return f"sqlite:///{self.folder / 'boards'}"

    def persistence(self, port: int | None = None) -> Persistence:
        """Return where boards go; with a port, through a proxy."""
        if isinstance(self.server, PostgresServer):
            url = self.server.url()
            return PostgresPersistence(
                url.replace(f":{self.server.port}/", f":{port or self.server.port}/"), timeout=3
            )
        if isinstance(self.server, RedisServer):
            return RedisPersistence(f"redis://127.0.0.1:{port or self.server.port}", timeout=3)
        return SQLitePersistence(str(self.folder / "boards"))

    def crash(self) -> None:
        """Kill the server with -9 and start it again on what it had stored."""
        if isinstance(self.server, PostgresServer):
            self.server.restart(kill=True)
        elif isinstance(self.server, RedisServer):
            self.server.kill()
            self.server.start()


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[Backend]:
    """Start a backend; without its program the test is skipped loudly, and fails in CI."""
    if name == "sqlite":
        yield Backend(name, None, folder)
    elif name == "redis":
        need_redis()
        redis = RedisServer(folder, {"appendfsync": "always"})
        redis.start()
        try:
            yield Backend(name, redis, folder)
        finally:
            redis.stop()
    else:
        try:
            postgres = PostgresServer()
        except ServerMissingError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        try:
            postgres.start()
            yield Backend(name, postgres, folder)
        finally:
            postgres.remove()
