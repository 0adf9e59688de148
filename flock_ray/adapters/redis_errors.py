"""What an answer of Redis means to the caller: try again, correct the settings, or stop.

No message repeats text of the server or the client library: it may hold a password or a payload.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from redis import exceptions as redis_errors

from flock_ray.errors import (
    ConfigurationError,
    FlockError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)

__all__ = ["code_of", "moved", "translate"]

_SAFE = "Repeating the call is safe."
_PASSING = {
    "OOM": "is full (maxmemory, noeviction) and wrote nothing. Raise maxmemory or remove workflows",
    "READONLY": "is a replica now. The new master is looked up with the next call",
    "LOADING": "is still loading its data. Wait for it",
    "MASTERDOWN": "is a replica that has lost its master. Wait for the failover",
    "CLUSTERDOWN": "belongs to a cluster that is down. Wait for its failover, or see that every slot has a node",
    "MOVED": "no longer owns the keys of this shard. The new owner is looked up with the next call",
    "ASK": "is moving the keys of this shard to another node. Wait until that is over",
    "TRYAGAIN": "is moving the keys of this shard to another node. Wait until that is over",
    "BUSY": "is busy with a long script. Wait for it",
    "NOREPLICAS": "has fewer replicas than min-replicas-to-write and wrote nothing. Bring them back",
    "MISCONF": "cannot write to its disk and takes no writes. Make room there, or look at its log",
    "UNBLOCKED": "changed its role during the call",
}
_REFUSED = {
    "NOAUTH": "asks for a password: put user and password into the URL",
    "WRONGPASS": "refuses the user or the password: correct them in the URL",
    "NOPERM": "forbids the user what is needed: allow the keys ~flock:* and +@all -@dangerous +config|get",
    "DENIED": "is in protected mode: give it a password, or connect from its own machine",
}
_REFUSED_TEXTS = {
    "DB index is out of range": "has no such database: correct the number at the end of the URL",
    "invalid DB index": "has no such database: correct the number at the end of the URL",
    "Invalid Database": "has no such database: correct the number at the end of the URL",
    "cluster support disabled": "is no cluster: write redis:// in the URL",
    "SELECT is not allowed": "is a cluster, which only has database 0: remove the number at the end of the URL",
    "unknown command": "lacks a command that is needed: use Redis 7.0 or Valkey 7.2 or newer, unrestricted",
    "Unexpected flag in script shebang": "is too old: use Redis 7.0 or Valkey 7.2 or newer",
    "Error compiling script": "is too old: use Redis 7.0 or Valkey 7.2 or newer",
    "can't run this command": "forbids the user a command: allow +@all -@dangerous for the user",
    "invalid password": "refuses the password: correct it in the URL",
}


def code_of(error: BaseException) -> str:
    """Return the first word of an error reply, such as `OOM`; empty for what is none."""
    code = getattr(error, "status_code", None)
    if isinstance(code, str) and code:
        return code
    for kind, name in _CLASSES.items():
        if type(error) is kind:
            return name
    word = str(error).split(" ", 1)[0]
    return word if isinstance(error, redis_errors.RedisError) and word.isupper() else ""


_CLASSES: dict[type[BaseException], str] = {
    redis_errors.OutOfMemoryError: "OOM",
    redis_errors.ReadOnlyError: "READONLY",
    redis_errors.BusyLoadingError: "LOADING",
    redis_errors.MasterDownError: "MASTERDOWN",
    redis_errors.ClusterDownError: "CLUSTERDOWN",
    redis_errors.MovedError: "MOVED",
    redis_errors.AskError: "ASK",
    redis_errors.TryAgainError: "TRYAGAIN",
    redis_errors.NoPermissionError: "NOPERM",
    redis_errors.AuthenticationError: "WRONGPASS",
    redis_errors.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
    redis_errors.NoScriptError: "NOSCRIPT",
}


def moved(error: BaseException) -> bool:
    """Say whether another server may be the right one: look it up again before the next try."""
    if isinstance(error, (redis_errors.AuthenticationError, redis_errors.BusyLoadingError)):
        return False
    lost = isinstance(error, (redis_errors.ConnectionError, OSError, TimeoutError))
    return lost or code_of(error) in ("READONLY", "MOVED", "CLUSTERDOWN", "MASTERDOWN", "UNBLOCKED")


def translate(error: BaseException, where: str, *, preparing: bool = False, tls: bool = False) -> FlockError:
    """Say what an error of redis-py or of the operating system means.

    Args:
        error: What was raised.
        where: The server, for the message; holds no secret.
        preparing: A server that was never reached is a matter of wrong settings, not of waiting.
        tls: It was asked for TLS; one that does not speak it often says nothing at all.
    """
    if isinstance(error, FlockError):
        return error
    code = code_of(error)
    if code in _PASSING:
        return StoreUnavailableError(f"Redis at {where} {_PASSING[code]}. {_SAFE}")
    if code in _REFUSED:
        return ConfigurationError(f"Redis at {where} {_REFUSED[code]}.")
    text = str(error)
    for part, meaning in _REFUSED_TEXTS.items():
        if part in text:
            return ConfigurationError(f"Redis at {where} {meaning}.")
    if code == "WRONGTYPE":
        return StoreCorruptError(
            f"A key of the board at Redis {where} is not of the type that flock_ray wrote. "
            "Restore it from a backup; nothing was overwritten."
        )
    if isinstance(error, redis_errors.InvalidResponse):
        return ConfigurationError(f"What answers at {where} is not Redis: correct host and port in the URL.")
    if preparing and (reason := _unreachable(error)):
        return ConfigurationError(f"Redis cannot be reached at {where}: {reason}.")
    if isinstance(error, redis_errors.ResponseError):
        return StoreError(
            f"Redis at {where} answered with an unexpected error ({code or 'ERR'}). Look at its log."
        )
    if isinstance(error, (redis_errors.TimeoutError, TimeoutError)):
        check = "Check its health, and rediss:// against redis:// in the URL" if tls else "Check its health"
        return StoreUnavailableError(f"Redis at {where} does not answer in time. {check}. {_SAFE}")
    return StoreUnavailableError(
        f"The connection to Redis at {where} failed. Check its address and health. {_SAFE}"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _unreachable(error: BaseException) -> str:
    """Say why a server cannot be there; empty when it may only be away for a moment."""
    for cause in _chain(error):
        if isinstance(cause, socket.gaierror):
            return "the host name is unknown; correct it in the URL"
        if isinstance(cause, ssl.SSLError):
            return "TLS failed; check rediss:// against redis://, the port, and the ssl_* options"
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there; start Redis, or correct host and port in the URL"
        if isinstance(cause, FileNotFoundError):
            return "there is no such socket or file; start Redis, or correct the path in the URL"
        if isinstance(cause, PermissionError):
            return "the operating system forbids it; check the rights of the socket"
    return ""
