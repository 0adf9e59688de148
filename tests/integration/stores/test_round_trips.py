"""A batch is one message to the server and one answer, with an audit log too: that is what a publisher waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.redis import RedisPersistence
from flock_ray.core.rows import Decision
from tests.proxy import Proxy
from tests.redis_server import RedisServer, redis_server
from tests.servers import PostgresServer
from tests.unit.adapters.store_rows import activation, artifact, batch, workflow


class Counting(Proxy):
    """Counts how often it is the server's turn to say something."""

    trips = 0
    _asked = False

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        to_server = sink.get_extra_info("peername")[1] == self._target
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if to_server and not self._asked:
                    self.trips += 1
                self._asked = to_server
                sink.write(data)
                await sink.drain()
        sink.close()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["postgres", "redis"])
async def far(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Counting, str]]:
    """A server behind a proxy that counts, and its URL there."""
    server: Any = request.getfixturevalue("postgres_server" if request.param == "postgres" else "redis")
    if isinstance(server, PostgresServer):
        proxy, url = Counting(server.port), server.url()
    else:
        proxy, url = Counting(server.port), server.url
    await proxy.start()
    yield proxy, url.replace(f":{server.port}", f":{proxy.port}")
    await proxy.stop()


@pytest.mark.parametrize("audited", [False, True])
async def test_a_batch_is_one_round_trip(
    far: tuple[Counting, str], postgres_schema: str, *, audited: bool
) -> None:
    # Given the writer of a board that has written before
    proxy, url = far
    place: Any = (
        PostgresPersistence(url, schema=postgres_schema, enable_audit_log=audited)
        if url.startswith("postgres")
        else RedisPersistence(url, enable_audit_log=audited)
    )
    board = f"trips-{postgres_schema}-{audited}"
    await place.prepare(board, 1)
    store = place.store(board, 0, range(256))
    await store.acquire()

    async def append(lsn: int) -> None:
        runs = [activation(f"run-{lsn}", inputs=[lsn])]
        came = [artifact(lsn, tags=("eu",))]
        said = [Decision(1, "x", "y")]
        await store.append(
            batch(lsn, came, first_seq=lsn, activations=runs, workflows=[workflow()], decisions=said)
        )

    await append(1)
    await append(2)

    # When it appends, then each batch is one message and one answer
    before = proxy.trips
    for lsn in range(3, 13):
        await append(lsn)
    assert proxy.trips - before == 10
    await store.close()
