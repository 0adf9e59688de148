"""A shard's line to the Redis server that owns its keys: finds it, keeps a few connections, bounds every call.

All keys of a shard lie on one server, so one address at a time is enough, in a cluster too. After a failover
(of Sentinel or a cluster) the address is looked up again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias

from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.crc import key_slot

from flock_ray.adapters.redis_errors import code_of, moved, translate
from flock_ray.adapters.redis_scripts import Script
from flock_ray.adapters.redis_url import Address, RedisTarget
from flock_ray.errors import ConfigurationError, StoreUnavailableError

__all__ = ["Command", "RedisLink"]

Command: TypeAlias = Sequence[bytes | str | int | float]
_AnyConnection: TypeAlias = Connection | UnixDomainSocketConnection
_READERS = 8
"""Most connections that read at once, beside one that writes."""


class RedisLink:
    """Connections to the server that owns a key. Belongs to one event loop."""

    def __init__(self, target: RedisTarget, key: bytes, timeout: float, *, preparing: bool = False) -> None:
        """Say where to look; connects at the first call.

        Args:
            target: The servers.
            key: One of the keys; in a cluster its slot decides which node is asked.
            timeout: Longest time of one call, in seconds, looking up and connecting included.
            preparing: A server that can't be reached is a wrong setting.
        """
        self._target = target
        self._key = key
        self._timeout = timeout
        self._preparing = preparing
        self._cluster = target.mode == "cluster"
        self._tls = issubclass(target.connection_class, SSLConnection)
        self._address: Address | None = None
        self._nodes: list[Address] = []
        self._idle: list[_AnyConnection] = []
        self._busy: set[_AnyConnection] = set()
        self._generation = 0
        self._readers = asyncio.Semaphore(_READERS)
        self._closed = False
        self._found = False
        """A Sentinel or a cluster said where the server is: that it is not there is no wrong setting."""
        self.version = ""
        """Version of the server; empty before the first call, and when it does not tell."""

    @property
    def is_cluster(self) -> bool:
        """Whether keys are spread over nodes; known after the first call."""
        return self._cluster

    @property
    def where(self) -> str:
        """The server for messages."""
        if self._address is None or self._target.mode == "single":
            return self._target.shown
        return f"{self._address[0]}:{self._address[1]} ({self._target.shown})"

    async def read(self, *commands: Command) -> list[Any]:
        """Send commands in one round trip and return their replies.

        Raises:
            StoreUnavailableError: The server can't be reached or is not ready; retryable.
            ConfigurationError: It refuses the user, the password or a command.
        """
        async with self._readers:
            return await self._call(commands)

    async def write(self, *commands: Command) -> list[Any]:
        """As `read`, without waiting for readers; the commands may be sent twice."""
        return await self._call(commands)

    async def script(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Any], *more: Command
    ) -> list[Any]:
        """Run a script, sending its text if the server does not know it, and commands behind it.

        Returns:
            The script's reply, then those of the commands.

        Raises:
            StoreUnavailableError: It may have run or not; retryable.
            ConfigurationError: The server refuses the user, the password or the script.
        """
        call = [len(keys), *keys, *args]
        try:
            return await self._call([("EVALSHA", script.sha, *call), *more])
        except _UnknownScriptError:
            return await self._call([("EVAL", script.text, *call), *more])

    async def close(self) -> None:
        """Cut every connection; safe to repeat."""
        self._closed = True
        await self._drop()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("This store is closed. Open another one.")

    async def _call(self, commands: Sequence[Command]) -> list[Any]:
        self._check_open()
        try:
            async with asyncio.timeout(self._timeout):
                for last in (False, True):
                    generation = self._generation
                    try:
                        return await self._exchange(commands)
                    except (redis_errors.RedisError, OSError) as error:
                        if last or not moved(error) or isinstance(error, redis_errors.TimeoutError):
                            raise
                        self._cluster |= code_of(error) == "MOVED"
                        await self._relocate(generation)
                raise AssertionError
        except redis_errors.NoScriptError:
            raise _UnknownScriptError from None
        except (redis_errors.RedisError, OSError) as error:
            translated = translate(
                error, self.where, preparing=self._preparing and not self._found, tls=self._tls
            )
            if moved(error):
                await self._drop()
        raise translated

    async def _relocate(self, generation: int) -> None:
        """Forget the address, unless another call did so meanwhile."""
        if generation == self._generation:
            await self._drop()

    async def _drop(self) -> None:
        self._generation += 1
        if self._target.mode != "single" or self._cluster:
            self._address = None
        idle, self._idle = self._idle, []
        for connection in (*idle, *self._busy):
            await connection.disconnect(nowait=True)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = await self._take()
        replies: list[Any] = []
        try:
            await connection.send_packed_command(_packed(commands), check_health=False)
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except redis_errors.ResponseError as error:
                    replies.append(error)
        except BaseException:
            # A reply may still be on its way: nobody else must read it.
            await connection.disconnect(nowait=True)
            raise
        finally:
            self._give_back(connection)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _give_back(self, connection: _AnyConnection) -> None:
        self._busy.discard(connection)
        if connection.is_connected:
            self._idle.append(connection)

    async def _take(self) -> _AnyConnection:
        self._check_open()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_connected:
                self._busy.add(connection)
                return connection
        if self._address is None and self._target.addresses:
            self._address = await self._locate()
        return await self._connect(self._address)

    async def _connect(self, address: Address | None) -> _AnyConnection:
        """Open a connection, and see that its server is what the target says."""
        connection = self._make(address, self._target.options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py does not say
            await self._examine(connection, address)
            # It may have been closed meanwhile.
            self._check_open()
        except BaseException:
            self._busy.discard(connection)
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _examine(self, connection: _AnyConnection, address: Address | None) -> None:
        """Ask a server what it is, and refuse one that can't be the right one."""
        if self._target.mode == "single" and self._cluster:
            return
        await connection.send_command("HELLO", check_health=False)
        try:
            reply = await connection.read_response()
        except redis_errors.NoPermissionError:
            return
        facts = _pairs(reply)
        self.version = facts.get("version", "")
        if facts.get("role") in ("replica", "slave"):
            raise redis_errors.ReadOnlyError("replica")
        if facts.get("mode") == "sentinel":
            raise ConfigurationError(
                f"At {self._target.shown} a Sentinel answers: "
                "write redis+sentinel://host:port/service with the name of its service."
            )
        if facts.get("mode") == "cluster" and not self._cluster and address is not None:
            self._cluster = True
            raise redis_errors.ConnectionError("the server belongs to a cluster: find the node of the key")

    def _make(self, address: Address | None, options: dict[str, Any]) -> _AnyConnection:
        place = {} if address is None else {"host": address[0], "port": address[1]}
        arguments = {
            **options,
            **place,
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            "protocol": 2,
            "decode_responses": False,
        }
        connection = self._target.connection_class(**arguments)
        self._busy.add(connection)
        return connection

    async def _locate(self) -> Address:
        """Find the server that owns the key now."""
        if not self._cluster and self._target.mode == "single":
            return self._target.addresses[0]
        ask = self._ask_node if self._cluster else self._ask_sentinel
        known = dict.fromkeys([*self._target.addresses, *self._nodes])
        failure: BaseException | None = None
        for address in known:
            try:
                async with asyncio.timeout(self._timeout / (len(known) + 1)):
                    found = await ask(address)
            except (redis_errors.RedisError, OSError) as error:
                # What one of them answers tells more than that another is not there.
                if failure is None or code_of(error):
                    failure = error
                continue
            if found is not None:
                self._found = True
                return found
        if failure is not None:
            raise failure
        if self._cluster:
            raise redis_errors.ClusterDownError("no node owns the slot")
        raise self._unknown_service()

    def _unknown_service(self) -> Exception:
        message = f"The sentinels at {self._target.shown} know no master of this name"
        if self._preparing:
            return ConfigurationError(f"{message}: correct the service in the URL.")
        return StoreUnavailableError(f"{message}. Repeating the call is safe.")

    async def _ask(self, address: Address, options: dict[str, Any], *command: str) -> Any:
        connection = self._make(address, options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py does not say
            await connection.send_command(*command, check_health=False)
            return await connection.read_response()
        finally:
            self._busy.discard(connection)
            await connection.disconnect(nowait=True)

    async def _ask_sentinel(self, address: Address) -> Address | None:
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._target.service)
        try:
            reply = await self._ask(address, self._target.sentinel_options, *command)
        except redis_errors.ResponseError as error:
            if "unknown command" not in str(error):
                raise
            raise ConfigurationError(
                f"What answers at {address[0]}:{address[1]} is no Sentinel: correct the port, or write redis://."
            ) from None
        return (reply[0].decode(), int(reply[1])) if reply else None

    async def _ask_node(self, address: Address) -> Address | None:
        """Ask a node who owns the slot; an answer without a host means the node that was asked."""
        slot = key_slot(self._key)
        options = {name: value for name, value in self._target.options.items() if name != "db"}
        owner: Address | None = None
        nodes: list[Address] = []
        for first, final, *servers in await self._ask(address, options, "CLUSTER", "SLOTS"):
            places = [((host or b"").decode() or address[0], int(port)) for host, port, *_ in servers]
            nodes += places
            if first <= slot <= final:
                owner = places[0]
        self._nodes = list(dict.fromkeys(nodes))
        return owner


def _packed(commands: Sequence[Command]) -> bytes:
    """Encode commands for the wire; redis-py takes several times as long for thousands of arguments."""
    pieces: list[bytes] = []
    for command in commands:
        pieces.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = argument if isinstance(argument, bytes) else str(argument).encode()
            pieces += (b"$%d\r\n" % len(data), data, b"\r\n")
    return b"".join(pieces)


class _UnknownScriptError(Exception):
    """The server does not have the text of a script."""


def _pairs(reply: Any) -> dict[str, str]:
    """Read the flat list that HELLO answers."""
    texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in reply]
    return dict(zip(texts[::2], texts[1::2], strict=False))
