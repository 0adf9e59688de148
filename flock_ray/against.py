"""`flock check --against`: the types of a board, running or at rest, and what a deploy would break."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flock_ray.config import load_settings
from flock_ray.core.ids import owned_slots
from flock_ray.core.recorded import recorded_types
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.schema import TypeFinding, check_types, decode_types, describe_type, upcasters_of
from flock_ray.core.wire import TypeInfo
from flock_ray.errors import ConfigurationError
from flock_ray.opening import DEFAULT_BOARD
from flock_ray.persistence import persistence_from_url
from flock_ray.ports import Persistence

FROM_ENVIRONMENT = "-"
"""Stands for the URL in FLOCK_PERSISTENCE: a password belongs into no command line."""


def findings(recorded: Sequence[TypeInfo], registry: TypeRegistry) -> list[TypeFinding]:
    """Compare everything that is registered in this process with what a board has."""
    return check_types(recorded, [describe_type(entry) for entry in registry], upcasters_of(registry))


async def types_of_board(where: str, namespace: str | None) -> Sequence[TypeInfo]:
    """Return the types that a board records.

    Args:
        where: Namespace of a board on a running Ray, URL of a persistence, or `-` for that in FLOCK_PERSISTENCE.
        namespace: Name of the board in the persistence; None: FLOCK_NAMESPACE, else `default`.

    Raises:
        ConfigurationError: There is no such board.
        StoreUnavailableError: It does not answer; retryable.
    """
    if where != FROM_ENVIRONMENT and "://" not in where:
        if namespace not in (None, where):
            raise ConfigurationError(
                f"--against {where} names a board already: drop --namespace, or give a URL."
            )
        return await running_types(where)
    settings = load_settings(namespace=namespace)
    if where == FROM_ENVIRONMENT:
        if settings.persistence is None:
            raise ConfigurationError(
                "--against - reads FLOCK_PERSISTENCE, which is not set: set it to a URL."
            )
        where = settings.persistence.get_secret_value()
    return await stored_types(persistence_from_url(where), settings.namespace or DEFAULT_BOARD)


async def stored_types(persistence: Persistence, board: str) -> tuple[TypeInfo, ...]:
    """Read the types of a board at rest; the board may also be running, and is not disturbed."""
    num_shards = await persistence.find(board)
    if num_shards is None:
        raise ConfigurationError(f"No board {board!r} is kept in {persistence!r}: check --namespace.")
    store = persistence.store(board, 0, owned_slots(0, num_shards))  # every shard has the same table
    try:
        return recorded_types(await store.peek())
    finally:
        await store.close()


async def running_types(namespace: str) -> list[TypeInfo]:
    """Ask a board on a running Ray; starts no Ray."""
    from flock_ray.actors.bootstrap import ensure_ray
    from flock_ray.actors.handles import ActorLink, actor_name
    from flock_ray.config import load_ray_config
    from flock_ray.ports import PeerGoneError

    config = load_ray_config()
    if not (config.address or os.environ.get("RAY_ADDRESS")):
        config = config.model_copy(update={"address": "auto"})
    try:
        ensure_ray(config)
    except ConnectionError as error:
        raise ConfigurationError(
            f"No running Ray was found to look for the board {namespace!r}: set RAY_ADDRESS, or give a URL (sqlite:///...)."
        ) from error
    try:
        return decode_types(await ActorLink(actor_name(namespace, "shard", 0), namespace).recorded_types())
    except PeerGoneError as error:
        raise ConfigurationError(f"No board {namespace!r} runs on this Ray ({error}).") from error
