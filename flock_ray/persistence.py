"""Where boards are kept: the choices, under one roof. Drivers of databases are loaded when one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.ports import Persistence

__all__ = ["persistence_from_url"]


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
