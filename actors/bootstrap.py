"""The composition root: starts or joins Ray, and creates or joins a board's actors."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flock_ray.actors.gateway_process import start_early
from flock_ray.actors.handles import ActorLink, PatientLink, RayPeers, actor_name
from flock_ray.actors.processes import MAX_PENDING, BoardPlan, RouterActor, ShardActor
from flock_ray.board import BoardLinks
from flock_ray.config import RayConfig
from flock_ray.errors import ConfigurationError, FlockError
from flock_ray.ports import PeerGoneError

_started_here = False


def ensure_ray(config: RayConfig) -> None:
    """Use the Ray of this process, join the one that the address names, or start a local one.

    Order: an initialised Ray, `config.address`, `RAY_ADDRESS` (set inside `ray job submit`), local.
    """
    global _started_here
    if ray.is_initialized():
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    # Ray says at every start that token authentication is on. It is meant to be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": config.log_to_driver}
    if address:
        ray.init(address=address, **options)
        return
    if config.num_cpus is not None:
        options["num_cpus"] = config.num_cpus
    # `local` and not the default: a cluster that happens to run here is not ours to use.
    ray.init(address="local", include_dashboard=False, **options)
    _started_here = True


def cluster_cpus() -> int:
    """Return the number of logical CPUs of the cluster, at least 1."""
    resources: dict[str, float] = cast(Any, ray).cluster_resources()
    return max(1, int(resources.get("CPU", 1)))


def stop_ray() -> None:
    """Stop Ray if `ensure_ray` started it."""
    global _started_here
    if _started_here and ray.is_initialized():
        _started_here = False
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class RayBoard:
    """A board's actors as this driver sees them."""

    links: BoardLinks
    plan: BoardPlan
    created: bool
    """This driver created the board (and did not join one)."""

    async def close(self) -> None:
        """End the board: workers, shards, router."""
        router = self.links.router
        with_router = asyncio.wait_for(router.close(), 10.0)
        try:
            await with_router
        except Exception:  # a router that is gone or hangs: its workers end themselves
            logging.getLogger(__name__).debug("router did not close", exc_info=True)
        for link in (*self.links.shards, router):
            await asyncio.to_thread(link.kill)


async def open_board(plan: BoardPlan) -> RayBoard:
    """Join the board of the namespace, or create it when there is none."""
    joined = await join_board(plan.namespace)
    if joined is not None:
        return joined
    options: dict[str, Any] = {
        "namespace": plan.namespace, "num_cpus": 0, "max_concurrency": MAX_PENDING, "get_if_exists": True,
    }  # fmt: skip
    if plan.detached:
        options["lifetime"] = "detached"
    here = {}
    if plan.persistence is not None and plan.persistence.mode == "sqlite":
        # Its files are on this machine.
        node = ray.get_runtime_context().get_node_id()
        here = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
    # First: nothing else takes so long to start.
    start_early(plan.namespace, plan.models, plan.default_model or plan.embeds_with)
    shards: list[ActorLink] = []
    restarts = -1 if plan.durable else 0
    for index in range(plan.num_shards):
        name = actor_name(plan.namespace, "shard", index)
        handle = ShardActor.options(name=name, max_restarts=restarts, **here, **options).remote(index, plan)
        shards.append(_shard_link(plan, name, handle))
    name = actor_name(plan.namespace, "router", 0)
    router = PatientLink(
        name, plan.namespace, RouterActor.options(name=name, max_restarts=-1, **options).remote(plan)
    )
    board = RayBoard(BoardLinks(shards, router, RayPeers(plan.namespace).worker), plan, True)
    try:
        await asyncio.gather(*(shard.start_up() for shard in shards), router.describe())
    except FlockError:  # a shard can't recover: leave nothing behind
        await board.close()
        raise
    return board


def _shard_link(plan: BoardPlan, name: str, handle: Any = None) -> ActorLink:
    """Link to a shard; one that keeps everything is waited for while it comes back."""
    kind = PatientLink if plan.durable else ActorLink
    return kind(name, plan.namespace, handle)


async def join_board(namespace: str) -> RayBoard | None:
    """Join the board of a namespace; None when there is none."""
    name = actor_name(namespace, "router", 0)
    try:
        handle = await asyncio.to_thread(ray.get_actor, name, namespace)
    except ValueError:
        return None
    router = PatientLink(name, namespace, handle)
    try:
        plan: BoardPlan = await router.describe()
    except PeerGoneError as error:
        raise ConfigurationError(
            f"The board {namespace!r} is shutting down or broken ({error}). Choose another namespace, or try again."
        ) from error
    names = [actor_name(namespace, "shard", index) for index in range(plan.num_shards)]
    shards = [_shard_link(plan, n) for n in names]
    return RayBoard(BoardLinks(shards, router, RayPeers(namespace).worker), plan, False)
