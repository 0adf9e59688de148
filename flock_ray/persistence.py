"""Where boards are kept: the choices, under one roof. Drivers of databases are loaded when one is used."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.core.retention import Retention
    from flock_ray.ports import Persistence, ShardStore

logger = logging.getLogger("flock_ray")

DEFAULT_ARCHIVE = "flock-archive"

__all__ = ["RetainedPersistence", "RetainedStore", "persistence_from_url", "persistence_of", "retained"]


def persistence_of(store: Any) -> Persistence | None:
    """Return what keeps a board; None for a memory board.

    Args:
        store: A persistence, or one of upstream's store objects (`flock_ray.stores`).

    Raises:
        ConfigurationError: It is neither.
    """
    from flock_ray.stores import InMemoryBlackboardStore

    if isinstance(store, InMemoryBlackboardStore):
        return None
    if not all(hasattr(store, name) for name in ("mode", "prepare", "store")):
        raise ConfigurationError(
            f"{type(store).__name__} keeps no boards: give SQLitePersistence, RedisPersistence, PostgresPersistence "
            "or SQLiteBlackboardStore, or nothing for a memory board."
        )
    kept: Persistence = store
    return kept


def persistence_from_url(url: str) -> Persistence:
    """Return the persistence that a URL names, with its defaults.

    Args:
        url: `sqlite:///relative/dir`, `sqlite:////absolute/dir`, `redis://`, `rediss://`, `redis+sentinel://`,
            `redis+cluster://` or `postgresql://`.

    Raises:
        ConfigurationError: It names no backend. The URL is not repeated: it may hold a password.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        from flock_ray.adapters.sqlite import SQLitePersistence

        return SQLitePersistence(url.removeprefix("sqlite://").removeprefix("/"))
    if scheme in ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster"):
        from flock_ray.adapters.redis import RedisPersistence

        return RedisPersistence(url)
    if scheme in ("postgres", "postgresql"):
        from flock_ray.adapters.postgres import PostgresPersistence

        return PostgresPersistence(url)
    raise ConfigurationError(
        f"No persistence has the scheme {scheme!r}: use sqlite:///dir, redis://host:6379 or postgresql://host/db."
    )


def retained(persistence: Persistence) -> Persistence:
    """Return a persistence whose shards apply its `retention`; itself when that keeps everything.

    Raises:
        ConfigurationError: It archives to a place that this process can't reach.
    """
    from flock_ray.core.retention import Retention, RetentionPolicy

    retention = getattr(persistence, "retention", None)
    if not isinstance(retention, Retention) or isinstance(persistence, RetainedPersistence):
        return persistence
    if retention.policy is RetentionPolicy.KEEP_ALL:
        return persistence
    if retention.policy is RetentionPolicy.ARCHIVE_COMPLETED and retention.archive is None:
        retention = dataclasses.replace(retention, archive=DEFAULT_ARCHIVE)
        logger.warning(
            "flock_ray: finished workflows are archived to the folder %r of each machine that runs shards: "
            "give archive= a place that all of them share",
            DEFAULT_ARCHIVE,
        )
    if retention.archive is not None:
        from flock_ray.archive_files import resolved

        retention = dataclasses.replace(retention, archive=resolved(retention.archive))
    return RetainedPersistence(persistence, retention)


class RetainedPersistence:
    """A persistence with the retention that its shards apply; everything else is as without."""

    def __init__(self, inner: Persistence, retention: Retention) -> None:
        """Wrap a persistence."""
        self.inner = inner
        self.retention = retention

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped one has."""
        if name.startswith("__") or name in ("inner", "retention"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        """Show the wrapped one."""
        return repr(self.inner)

    @property
    def mode(self) -> str:
        """Name of the durability."""
        return self.inner.mode

    async def prepare(self, board: str, num_shards: int | None) -> int:
        """Prepare the wrapped one."""
        return await self.inner.prepare(board, num_shards)

    async def find(self, board: str) -> int | None:
        """Ask the wrapped one."""
        return await self.inner.find(board)

    def store(self, board: str, shard: int, slots: Collection[int]) -> ShardStore:
        """Return a RetainedStore, from which the shard takes the store and the retention."""
        carried = RetainedStore(self.inner.store(board, shard, slots), self.retention, board)
        return cast("ShardStore", carried)

    def warnings(self) -> list[str]:
        """Return the warnings of the wrapped one."""
        return self.inner.warnings()


@dataclasses.dataclass(frozen=True, slots=True)
class RetainedStore:
    """A store on its way to its shard, which takes it out of here; no store itself."""

    inner: ShardStore
    retention: Retention
    board: str
