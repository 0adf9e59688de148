"""Boards in Redis or Valkey, alone, under Sentinel or as a cluster."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from flock_ray.adapters.audit_trail import AuditReport
from flock_ray.adapters.redis_audit import Trail, verify_streams
from flock_ray.adapters.redis_link import RedisLink
from flock_ray.adapters.redis_rows import FORMAT, Keys, board_key
from flock_ray.adapters.redis_scripts import BOARD, HEAD
from flock_ray.adapters.redis_server import inspect_server
from flock_ray.adapters.redis_store import RedisStore
from flock_ray.adapters.redis_url import parse_redis_url
from flock_ray.core.audit import AuditHead
from flock_ray.core.retention import Retention, RetentionPolicy
from flock_ray.errors import ConfigurationError

__all__ = ["RedisPersistence", "RetentionPolicy"]


class RedisPersistence:
    """Keeps boards in Redis 7.0 or newer (or Valkey), as durable as the server's `appendfsync` makes them.

    One stream per shard holds the journal, not one per slot: a batch must become durable in one atomic script,
    and in a cluster a script only reaches keys of one hash tag, `{board:shard}`.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379",
        *,
        ttl: timedelta | None = None,
        retention_policy: RetentionPolicy = RetentionPolicy.KEEP_ALL,
        per_type: Mapping[str, timedelta] | None = None,
        archive: str | None = None,
        timeout: float = 10.0,
        wait_replicas: int = 0,
        enable_audit_log: bool = False,
    ) -> None:
        """Say where the boards are; connects at the first use.

        Args:
            url: `redis://[user:password@]host:6379/0`, `rediss://` (TLS), `unix:///path`,
                `redis+sentinel://host:26379,host:26379/service/0` or `redis+cluster://host:6379,host:6379`;
                a cluster behind `redis://` is noticed.
            ttl: How long settled workflows are kept; needs another policy than KEEP_ALL.
            retention_policy: What happens to settled workflows.
            per_type: Times by artifact type; see `Retention`.
            archive: Folder or fsspec URL for ARCHIVE_COMPLETED, and for `flock.archive`.
            timeout: Longest time of one call, in seconds.
            wait_replicas: How many replicas must have a batch before it counts as written. 0: a failover
                can lose the last acknowledged batches.
            enable_audit_log: Whether every publish from outside, ended activation, decision, erasure and removal
                is written to a hash-chained stream. It is in memory like all of Redis, and never trimmed. Redis
                can't keep whoever has the password from changing it: `verify_audit` finds that.

        Raises:
            ConfigurationError: The URL or a number makes no sense. The message shows no secret.
        """
        if not 0 < timeout < float("inf"):
            raise ConfigurationError("timeout must be a number of seconds above zero.")
        if wait_replicas < 0:
            raise ConfigurationError("wait_replicas must be zero or more.")
        self.retention = Retention(ttl, retention_policy, per_type or {}, archive)
        """How long settled workflows are kept; applied by the board, never by Redis' own expiry."""
        self._target = parse_redis_url(url)
        self._url = url
        self._timeout = timeout
        self._wait_replicas = wait_replicas
        self._audited = enable_audit_log
        self._incarnations: dict[str, bytes] = {}
        self._warnings: list[str] = []

    def __repr__(self) -> str:
        """Show the server without user, password and options."""
        return f"RedisPersistence({self._target.shown!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle everything but what can be made from the URL."""
        return {name: value for name, value in self.__dict__.items() if name != "_target"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the URL again."""
        self.__dict__.update(state)
        self._target = parse_redis_url(self._url)

    @property
    def mode(self) -> str:
        """Name of the durability."""
        return "redis"

    async def prepare(self, board: str, num_shards: int | None) -> int:
        """Create what a new board needs, and read the server's settings; see `Persistence`.

        A crash on the way leaves a board that the next `prepare` completes.
        """
        line = self._line(board_key(board), preparing=True)
        try:
            warnings = await inspect_server(line)
            shards, incarnation, ready = await self._record(line, board, num_shards)
            if num_shards not in (None, shards):
                raise ConfigurationError(
                    f"The board {board!r} at Redis {self._target.shown} has {shards} shards, not {num_shards}: "
                    f"use shards={shards}, or another name for a new board."
                )
            for shard in range(shards):
                warnings += await self._prepare_shard(line, Keys(board, shard), incarnation, ready=ready)
            if not ready:
                await line.write(("HSET", board_key(board), "ready", "1"))
        finally:
            await line.close()
        self._incarnations[board] = incarnation
        self._warnings = list(dict.fromkeys(warnings))
        return shards

    async def find(self, board: str) -> int | None:
        """Return the number of shards of a stored board; None when there is none, or no `prepare` finished it."""
        key = board_key(board)
        line = self._line(key, preparing=True)
        try:
            (kind,) = await line.read(("TYPE", key))
            if kind == b"none":
                return None
            if kind != b"hash":
                raise self._foreign(line, key)
            (fields,) = await line.read(("HMGET", key, "v", "n", "i", "ready", "format"))
            if fields.pop() != b"flock_ray" or None in fields:
                raise self._foreign(line, key)
            shards, _, ready = self._understood(line, board, fields)
        finally:
            await line.close()
        return shards if ready else None

    def store(self, board: str, shard: int, slots: Collection[int]) -> RedisStore:
        """Return the store of one shard; connects at its first call."""
        keys = Keys(board, shard)
        line = self._line(keys.head)
        # The answer to WAIT must come before the call itself is given up.
        wait_s = self._timeout / 2
        trail = Trail(board, shard) if self._audited else None
        known = self._incarnations.get(board, b"")
        return RedisStore(line, keys, known, self._wait_replicas, wait_s, trail=trail)

    async def verify_audit(self, board: str, *, noted: Mapping[int, AuditHead] | None = None) -> AuditReport:
        """Find entries of a board's audit log that were changed, removed, added or reordered; changes nothing.

        Args:
            board: Name of the board; it may be in use meanwhile.
            noted: Heads by shard of an earlier report, kept where nobody of Redis can change them: without them
                a log that was cut, or written anew as a whole, is not found.

        Raises:
            ConfigurationError: There is no such board.
            StoreUnavailableError: The server does not answer; retryable.
        """
        shards = await self.find(board)
        if shards is None:
            raise ConfigurationError(
                f"There is no board {board!r} at Redis {self._target.shown}: correct its name, or the URL."
            )
        return await verify_streams(board, shards, self._line, noted or {})

    def warnings(self) -> list[str]:
        """Return what the last `prepare` found out about the durability of the server; empty when nothing."""
        return list(self._warnings)

    def _line(self, key: bytes, *, preparing: bool = False) -> RedisLink:
        return RedisLink(self._target, key, self._timeout, preparing=preparing)

    async def _record(self, line: RedisLink, board: str, num_shards: int | None) -> tuple[int, bytes, bool]:
        """Read the record of a board, making it for a new one: shards, incarnation, whether it is complete."""
        arguments = [FORMAT, num_shards or 1, secrets.token_hex(16)]
        (reply,) = await line.script(BOARD, [board_key(board)], arguments)
        if reply[0] != b"OK":
            raise self._foreign(line, board_key(board))
        return self._understood(line, board, reply[1:])

    def _understood(self, line: RedisLink, board: str, fields: Sequence[bytes]) -> tuple[int, bytes, bool]:
        """Read format, shards, incarnation and completeness of a board; returns all but the format."""
        version, shards, incarnation, ready = fields
        if not version.isdigit() or int(version) > FORMAT:
            raise ConfigurationError(
                f"The board {board!r} at Redis {line.where} was written by a newer version of flock_ray: "
                "upgrade flock_ray, or use another board name."
            )
        return int(shards), bytes(incarnation), ready == b"1"

    def _foreign(self, line: RedisLink, key: bytes) -> ConfigurationError:
        return ConfigurationError(
            f"The key {key.decode()!r} at Redis {line.where} was not written by flock_ray: "
            "use another board name or database."
        )

    async def _prepare_shard(
        self, line: RedisLink, keys: Keys, incarnation: bytes, *, ready: bool
    ) -> list[str]:
        """Make the head of a shard, or see that it is there; in a cluster on the shard's own node.

        Returns:
            Warnings about that node.
        """
        if not line.is_cluster:
            await self._make_head(line, keys, incarnation, ready=ready)
            return []
        own = self._line(keys.head, preparing=True)
        try:
            warnings = await inspect_server(own)
            await self._make_head(own, keys, incarnation, ready=ready)
        finally:
            await own.close()
        return warnings

    async def _make_head(self, line: RedisLink, keys: Keys, incarnation: bytes, *, ready: bool) -> None:
        (reply,) = await line.script(HEAD, [keys.head], [FORMAT, incarnation, "check" if ready else "make"])
        if reply[0] == b"LOST":
            raise ConfigurationError(
                f"Redis at {line.where} has lost {keys.place} ({keys.head.decode()}): restore a backup, "
                "or use another name for a new board."
            )
        if reply[0] != b"OK":
            raise ConfigurationError(
                f"The key {keys.head.decode()!r} at Redis {line.where} belongs to something else: "
                "use another board name or database."
            )
