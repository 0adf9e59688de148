"""How a Flock comes to its board: on Ray, or in the virtual host of `flock_ray.testing`."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flock_ray.board import Board
from flock_ray.deployment import CloudpickleCodec

if TYPE_CHECKING:
    from flock_ray.config import FlockSettings, RayConfig
    from flock_ray.core.registry import TypeRegistry
    from flock_ray.gateway.settings import GatewayPlan
    from flock_ray.ports import Persistence

logger = logging.getLogger("flock_ray")

INLINE_BYTES = 1_000_000

DEFAULT_BOARD = "default"
"""Name of a board that is kept somewhere and was given none."""


@dataclass(slots=True)
class Opened:
    """An open board."""

    board: Board
    close: Callable[[bool], Awaitable[None]]
    """Lets go of it; ends it when this client owns it, or when told to."""
    owns: bool
    """The board ends with this client."""


async def open_on_ray(
    settings: FlockSettings,
    ray_config: RayConfig,
    registry: TypeRegistry,
    *,
    persistence: Persistence | None = None,
    no_output: bool = False,
    models: GatewayPlan | None = None,
    embeds_with: str | None = None,
) -> Opened:
    """Join or start Ray, join or create the board, and say what it keeps unless `no_output`."""
    import asyncio

    # Before Ray is imported, for a Ray that this process starts: messages of ours travel inline up to this
    # size instead of through the object store (30 us of CPU per item less). A cluster sets it for itself.
    os.environ.setdefault("RAY_max_direct_call_object_size", str(INLINE_BYTES))
    from flock_ray.actors.bootstrap import cluster_cpus, ensure_ray, open_board, stop_ray
    from flock_ray.actors.clock import SystemClock
    from flock_ray.actors.gateway_process import embeddings_link
    from flock_ray.actors.limits import ShardSettings
    from flock_ray.actors.payloads import RayPayloads
    from flock_ray.actors.pools import RouterSettings
    from flock_ray.actors.processes import BoardPlan
    from flock_ray.gateway.settings import GatewayPlan

    private = f"default-{uuid.uuid4().hex[:12]}"
    namespace = settings.namespace or (private if persistence is None else DEFAULT_BOARD)
    num_shards = settings.shards or 1
    if persistence is not None:  # first: what is wrong here is said before anything starts
        num_shards = await persistence.prepare(namespace, settings.shards)
    # In this thread: Ray installs signal handlers, which only the main thread may.
    ensure_ray(ray_config)
    cpus = cluster_cpus()
    per_shard = None if settings.max_artifacts is None else max(1, settings.max_artifacts // num_shards)
    plan = BoardPlan(
        namespace=namespace,
        num_shards=num_shards,
        detached=settings.detached,
        shard=ShardSettings(
            max_artifacts=per_shard,
            max_open=settings.max_open,
            inline_payload_bytes=settings.inline_payload_bytes,
        ),
        router=RouterSettings(
            max_shared_workers=settings.max_workers or cpus,
            heartbeat_deadline_s=settings.heartbeat_deadline.total_seconds(),
        ),
        max_payload_bytes=settings.max_payload_bytes,
        persistence=persistence,
        models=(models or GatewayPlan()).fitted(cpus),
        default_model=settings.model,
        inline_payload_bytes=settings.inline_payload_bytes,
        embeds_with=embeds_with,
    )
    opened = await open_board(plan)
    board = Board(
        opened.links,
        owner=uuid.uuid4().hex,
        registry=registry,
        codec=CloudpickleCodec(),
        clock=SystemClock(),
        monotonic=time.monotonic,
        max_payload_bytes=settings.max_payload_bytes,
        publish_timeout_s=settings.publish_timeout.total_seconds(),
        payloads=RayPayloads(plan.namespace),
        inline_payload_bytes=opened.plan.inline_payload_bytes,
    )
    owns = opened.created and not opened.plan.detached
    embeddings = board.edge.embeddings = embeddings_link(
        f"driver:{uuid.uuid4().hex}", opened.plan.namespace, opened.plan.models
    )

    async def close(end: bool) -> None:
        embeddings.close()
        if owns or end:
            await opened.close()
        await asyncio.to_thread(stop_ray)

    if not no_output:
        kind = "a board of this process" if owns else f"board {plan.namespace!r}"
        kept = opened.plan.persistence
        promise = (
            "in memory: nothing survives the loss of its shards" if kept is None else f"kept in {kept!r}"
        )
        logger.warning("flock_ray: %s, %s", kind, promise)
        for warning in [] if kept is None else kept.warnings():
            logger.warning("flock_ray: %s", warning)
    return Opened(board, close, owns)
