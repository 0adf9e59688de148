"""Upstream's store classes: names for where a board is kept, given as `Flock(store=...)`."""

from __future__ import annotations

import os
from typing import Any

from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.errors import ConfigurationError

__all__ = ["InMemoryBlackboardStore", "SQLiteBlackboardStore"]

_READS = {
    "agent_history_summary",
    "fetch_graph_artifacts",
    "get",
    "get_by_type",
    "list",
    "list_by_type",
    "publish",
    "query_artifacts",
    "record_consumptions",
    "summarize_artifacts",
}
_UPKEEP = {"delete_before": "retention does that", "vacuum": "files are kept small as they are written"}


class _Alias:
    """What both classes share: upstream's calls that have another place here."""

    async def ensure_schema(self) -> None:
        """Do nothing: a board is created when a Flock opens it."""

    async def close(self) -> None:
        """Do nothing: the board closes its files."""

    def __getattr__(self, name: str) -> Any:
        """Say where one of upstream's calls went."""
        if name in _READS:
            raise ConfigurationError(f"A store object does not read: use flock.store.{name}(...).")
        if name in _UPKEEP:
            raise ConfigurationError(
                f"{type(self).__name__}.{name}() does not exist: {_UPKEEP[name]}; drop the call."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class InMemoryBlackboardStore(_Alias):
    """Upstream's name for a memory board: `Flock(store=InMemoryBlackboardStore())` is `Flock()`.

    Also `FLOCK_PERSISTENCE` does not make it durable.
    """


class SQLiteBlackboardStore(_Alias, SQLitePersistence):
    """Upstream's name for `SQLitePersistence`. Upstream's path is a file; here it becomes a folder."""

    def __init__(self, db_path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        """Say where; nothing is opened or created yet.

        Args:
            db_path: A folder, or where one will be created; a file there is left alone and refused.
            timeout: How long to wait for a lock on a file, in seconds.

        Raises:
            ConfigurationError: There is a file of that name, for example a database of Flock; or `:memory:`.
        """
        name = os.fspath(db_path)
        if name == ":memory:" or name.startswith("file:"):
            raise ConfigurationError(
                f"SQLiteBlackboardStore({name!r}): give a path on disk, or use InMemoryBlackboardStore()."
            )
        if os.path.isfile(name):
            raise ConfigurationError(
                f"{name} is a file, and boards are kept in folders: move it away if it is a database of Flock "
                "(flock_ray does not read those), or give another path. Nothing was changed."
            )
        super().__init__(name, timeout=timeout)
