"""What a Redis server's settings mean for accepted artifacts."""

from __future__ import annotations

from typing import Any

from flock_ray.adapters.redis_link import RedisLink
from flock_ray.errors import ConfigurationError, StoreError

__all__ = ["inspect_server"]

_SETTINGS = ("appendonly", "appendfsync", "maxmemory-policy")
_OLDEST = (7, 0)


async def inspect_server(line: RedisLink) -> list[str]:
    """Read the settings of the server that a line leads to.

    Returns:
        A sentence for everything by which an accepted artifact could be lost.

    Raises:
        ConfigurationError: The server is too old, or may throw away a board to make room.
        StoreUnavailableError: It does not answer now; retryable.
    """
    settings = await _settings(line)
    _check_version(line)
    policy = settings.get("maxmemory-policy", "")
    if policy.startswith("allkeys-"):
        raise ConfigurationError(
            f"Redis at {line.where} has maxmemory-policy {policy} and would throw away accepted artifacts: "
            "set maxmemory-policy noeviction."
        )
    found: list[str] = []
    unknown = [name for name in _SETTINGS if name not in settings]
    if unknown:
        found.append(
            f"Redis at {line.where} does not tell {', '.join(unknown)}, so whether accepted artifacts "
            "survive a crash could not be checked: allow the user +config|get."
        )
    if policy.startswith("volatile-"):
        found.append(
            f"Redis at {line.where} has maxmemory-policy {policy}: flock_ray sets no expiry, so its keys stay, "
            "but somebody who sets one would lose them. Use noeviction."
        )
    if settings.get("appendonly") == "no":
        found.append(
            f"Redis at {line.where} has appendonly no: accepted artifacts since its last dump are lost "
            "when it stops. Set appendonly yes."
        )
    elif settings.get("appendfsync") == "everysec":
        found.append(
            f"Redis at {line.where} has appendfsync everysec: up to about a second of accepted artifacts "
            "is lost when its machine fails. Set appendfsync always if that matters."
        )
    elif settings.get("appendfsync") == "no":
        found.append(
            f"Redis at {line.where} has appendfsync no: what the operating system has not yet written "
            "is lost when its machine fails. Set appendfsync everysec or always."
        )
    return found


async def _settings(line: RedisLink) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _SETTINGS:
        try:
            (reply,) = await line.read(("CONFIG", "GET", name))
        except (ConfigurationError, StoreError) as error:
            # A managed server often forbids CONFIG or does not have it; anything worse shows at the first write.
            if error.retryable:
                raise
            break
        found |= {_text(reply[i]): _text(reply[i + 1]) for i in range(0, len(reply), 2)}
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _check_version(line: RedisLink) -> None:
    numbers = line.version.split(".")
    known = len(numbers) >= 2 and all(part.isdecimal() for part in numbers[:2])
    if known and (int(numbers[0]), int(numbers[1])) < _OLDEST:
        raise ConfigurationError(
            f"Redis at {line.where} is version {line.version}: use Redis 7.0, Valkey 7.2 or newer."
        )
