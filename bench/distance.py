"""A server that is not on this machine: a TCP proxy, in a process of its own, that holds everything back for a while.

python -m bench.distance PORT DELAY_MS     # prints its own port
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


class _Pipe(asyncio.Protocol):
    """One direction of a connection."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.sink: asyncio.Transport | None = None
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connect_to(self, sink: asyncio.Transport) -> None:
        self.sink = sink
        for data in self._early:
            self.data_received(data)
        self._early = []

    def data_received(self, data: bytes) -> None:
        if self.sink is None:
            self._early.append(data)
        else:
            asyncio.get_running_loop().call_later(self.delay_s, self.sink.write, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.sink is not None:
            self.sink.close()


async def _serve(target: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def pair(near: _Pipe) -> None:
        transport, far = await loop.create_connection(lambda: _Pipe(delay_s), "127.0.0.1", target)
        assert near.transport is not None
        near.connect_to(transport)
        far.connect_to(near.transport)

    class Near(_Pipe):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            tasks.add(task := asyncio.ensure_future(pair(self)))
            task.add_done_callback(tasks.discard)

    server = await loop.create_server(lambda: Near(delay_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def away(port: int, round_trip_ms: float) -> Iterator[int]:
    """Put a distance before a port of this machine; gives the port to use."""
    command = [sys.executable, "-m", "bench.distance", str(port), str(round_trip_ms / 2)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))
