"""What a Redis URL says: where the servers are, and how to sign in. Shows no secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url

from flock_ray.errors import ConfigurationError

__all__ = ["Address", "RedisTarget", "parse_redis_url"]

Address = tuple[str, int]
"""Host and port."""

FORMS = (
    "redis://host:6379/0, rediss://..., unix:///path, redis+sentinel://host:26379,host:26379/service/0 "
    "or redis+cluster://host:6379,host:6379"
)
_HELP = f"The Redis URL cannot be read: write {FORMS}."
_MODES: dict[str, Literal["single", "sentinel", "cluster"]] = {
    "redis": "single",
    "rediss": "single",
    "unix": "single",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}


@dataclass(frozen=True)
class RedisTarget:
    """Servers and how to connect to them."""

    mode: Literal["single", "sentinel", "cluster"]
    shown: str
    """The URL without user, password and options: for messages."""
    addresses: tuple[Address, ...]
    """Servers, sentinels or nodes of a cluster to ask; empty for a Unix socket."""
    connection_class: type[Connection] | type[UnixDomainSocketConnection] = field(repr=False)
    options: dict[str, Any] = field(repr=False)
    """Arguments of a connection to a server, secrets among them."""
    service: str = ""
    """Name that the sentinels know the master by."""
    sentinel_options: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """Arguments of a connection to a sentinel."""


def parse_redis_url(url: str) -> RedisTarget:
    """Take a URL apart.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`; `rediss+...` is TLS.
            User, password, database and redis-py's `ssl_*` options stand where redis-py has them;
            sentinels have their own `sentinel_username` and `sentinel_password` options.

    Raises:
        ConfigurationError: It is none of these; the message does not repeat the URL.
    """
    try:
        return _parse(url)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, AttributeError):
        raise ConfigurationError(_HELP) from None


def _parse(url: str) -> RedisTarget:
    parts = urlsplit(url)
    mode = _MODES.get(parts.scheme)
    if mode is None:
        raise ConfigurationError(_HELP)
    if parts.scheme == "unix":
        options: dict[str, Any] = dict(parse_url(url))
        if not options.get("path"):
            raise ConfigurationError(_HELP)
        return RedisTarget(mode, f"unix://{options['path']}", (), options.pop("connection_class"), options)
    sign_in, _, hosts = parts.netloc.rpartition("@")
    addresses = tuple(_address(host, 26379 if mode == "sentinel" else 6379) for host in hosts.split(","))
    service, path = _service(parts.path) if mode == "sentinel" else ("", parts.path)
    sentinel: dict[str, Any] = {}
    query: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query):
        if mode == "sentinel" and name in ("sentinel_username", "sentinel_password"):
            sentinel[name.removeprefix("sentinel_")] = value
        else:
            query.append((name, value))
    scheme = "rediss" if parts.scheme.startswith("rediss") else "redis"
    database = path.strip("/")
    if database and not database.isdecimal():
        raise ConfigurationError(_HELP)
    plain = f"{scheme}://{sign_in}@localhost/{database}" if sign_in else f"{scheme}://localhost/{database}"
    options = dict(parse_url(f"{plain}?{urlencode(query, quote_via=quote)}"))
    options.pop("host", None)
    connection_class = options.pop("connection_class", Connection)
    names = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)
    suffix = "".join(f"/{part}" for part in (quote(service, safe=""), database) if part)
    if issubclass(connection_class, SSLConnection):
        sentinel |= {name: value for name, value in options.items() if name.startswith("ssl_")}
    shown = f"{parts.scheme}://{names}{suffix}"
    return RedisTarget(mode, shown, addresses, connection_class, options, service, sentinel)


def _address(text: str, default_port: int) -> Address:
    """Split `host:port`; an IPv6 address stands in brackets."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ConfigurationError(_HELP)
    return unquote(parts.hostname), default_port if parts.port is None else parts.port


def _service(path: str) -> tuple[str, str]:
    service, _, database = path.strip("/").partition("/")
    if not service:
        raise ConfigurationError(
            "A Sentinel URL names its service: write redis+sentinel://host:26379/service or .../service/0."
        )
    return unquote(service), database
