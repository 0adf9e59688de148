"""Gateways as Ray actors: started by whoever needs one first, ended with their board or after a rest."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import sys
import threading
import time
from typing import Any

import ray

from flock_ray.actors.clock import SystemClock
from flock_ray.actors.embeddings import GatewayEmbeddings
from flock_ray.actors.gateway import GatewayHost
from flock_ray.actors.handles import ActorLink, RayPeers, actor_name
from flock_ray.actors.model_link import ModelLink
from flock_ray.actors.spending import CallsOf, encode
from flock_ray.core.breakers import State
from flock_ray.core.gateway_scaling import home_of
from flock_ray.core.ids import shard_of, slot_of
from flock_ray.engines.records import RecordingModel
from flock_ray.gateway.budgets import LedgerLink
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.settings import GatewayPlan
from flock_ray.ports import PeerGoneError

__all__ = ["embeddings_link", "model_link", "recorded", "start_early"]

START_TIMEOUT_S = 60.0
GONE_AFTER_S = 20.0
"""A gateway that finds no router for so long ends itself: its board is gone."""
SWEEP_S = 5.0
TELL_S = 1.0
"""How often shards are told of calls that were made for no run."""
REST_S = 120.0
"""A gateway other than the first ends after so long without a call."""
MAX_PENDING = 20_000
GC_THRESHOLDS = (50_000, 20, 100)

logger = logging.getLogger(__name__)

_BREAKER_EVENTS: dict[State, str] = {
    "open": "model.breaker_opened",
    "half_open": "model.breaker_half_open",
    "closed": "model.breaker_closed",
}


class RayGateway(GatewayHost):
    """A gateway in its own process."""

    def __init__(self, index: int, namespace: str, plan: GatewayPlan) -> None:
        """Create the gateway; it begins with the first `start_up`."""
        peers = RayPeers(namespace)
        ledger = LedgerLink(peers.shard, lambda: self._router.num_shards(), monotonic=time.monotonic)
        super().__init__(lambda: Gateway(plan, ledger=ledger, on_breaker=self._say), monotonic=time.monotonic)
        self._index = index
        self._router = peers.router()
        self._peers = peers
        self._num_shards = 0  # not asked for yet
        self._saying: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        # Who started it may die before the next call: then nobody else knows of this process.
        self._orphaned = threading.Timer(START_TIMEOUT_S, os._exit, (0,))
        self._orphaned.daemon = True
        self._orphaned.start()

    async def start_up(self) -> int:
        """Begin to work; safe to repeat. Returns the process id."""
        self._orphaned.cancel()
        if not self._tasks:
            _allow_connections()
            self._tasks = [
                asyncio.ensure_future(task)
                for task in (self._stay(), self._keep(), self._warm(), self._account())
            ]
        return os.getpid()

    async def _warm(self) -> None:
        try:
            await self.warm_up()
        except Exception as error:  # the first call tries again, and says what is wrong
            logger.warning("the model gateway can't be warmed up: %s", type(error).__name__)
        # litellm brings half a million objects that live for ever: no collection looks at them again.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    def _say(self, state: State, detail: str) -> None:
        """Put an event into the log of the first shard; it is lost while that is away, and the log has it anyway."""

        async def send() -> None:
            with contextlib.suppress(PeerGoneError):
                await self._peers.shard(0).note(_BREAKER_EVENTS[state], "", detail)

        task = asyncio.ensure_future(send())
        self._saying.add(task)
        task.add_done_callback(self._saying.discard)

    async def _tell_spent(self) -> None:
        """Tell the shards of calls that were made for no run; what is not taken is not counted."""
        unowned = self.book.take_unowned()
        if not unowned:
            return
        with contextlib.suppress(PeerGoneError):
            num_shards = self._num_shards = self._num_shards or int(await self._router.num_shards())
            for agent, workflow, calls in unowned:
                slot = slot_of(workflow)
                shard = self._peers.shard(shard_of(slot, num_shards))
                await shard.spent(encode([CallsOf(slot, agent, workflow, calls)]))

    async def _account(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            try:
                await self._tell_spent()
            except Exception as error:
                logger.warning("what was spent for no run can't be told: %s", type(error).__name__)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()
            if self._index and not self.open_calls and time.monotonic() - self.last_used > REST_S:
                _end()

    async def _stay(self) -> None:
        """Keep one call open to the router; when there is no router any more, the board is gone."""
        known, alone_since = "", None
        while True:
            try:
                known = await self._router.attend(known)
                alone_since = None
            except PeerGoneError as gone:
                now = time.monotonic()
                alone_since = alone_since if alone_since is not None else now
                # One that is started early may be there before the router.
                if (gone.final and known) or now - alone_since > GONE_AFTER_S:
                    _end()
                await asyncio.sleep(0.2)


def _allow_connections() -> None:
    """Let this process have as many open files as the system allows: each open call has a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS says infinite and means less
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # litellm's threads may run for ever


GatewayActor: Any = ray.remote(RayGateway)


def _actor(namespace: str, plan: GatewayPlan, index: int) -> Any:
    return GatewayActor.options(
        name=actor_name(namespace, "gateway", index), namespace=namespace, lifetime="detached", num_cpus=0,
        max_restarts=0, max_concurrency=MAX_PENDING, get_if_exists=True,
    ).remote(index, namespace, plan)  # fmt: skip


def model_link(client: str, namespace: str, plan: GatewayPlan) -> ModelLink:
    """Return a worker's way to the gateways of its board."""

    async def connect(index: int) -> ActorLink:
        name = actor_name(namespace, "gateway", index)
        try:
            handle = await asyncio.to_thread(_actor, namespace, plan, index)
        except ValueError as error:  # another worker has started it at this very moment
            raise PeerGoneError(f"{name} can't be started now") from error
        link = ActorLink(name, namespace, handle)
        try:
            await asyncio.wait_for(link.start_up(), START_TIMEOUT_S)
        except TimeoutError as error:
            raise PeerGoneError(f"{name} does not start") from error
        return link

    return ModelLink(client, plan, connect, monotonic=time.monotonic)


def recorded(model: ModelLink, plan: GatewayPlan) -> RecordingModel:
    """Return the model with its calls recorded as the plan says."""
    return RecordingModel(model, now_us=SystemClock().now_us, capture=plan.capture, redact=plan.redact)


def embeddings_link(client: str, namespace: str, plan: GatewayPlan) -> GatewayEmbeddings:
    """Return the way of an edge's embedders to the gateways of its board."""
    return GatewayEmbeddings(
        lambda: model_link(f"{client}:embeddings", namespace, plan), lambda link: recorded(link, plan)
    )


def start_early(namespace: str, plan: GatewayPlan, model: str | None) -> None:
    """Start the gateway of a board's default model while the board starts: importing litellm takes seconds."""
    if model is None:
        return
    key = plan.home_key(model)
    index = 0 if key is None or plan.cassette is not None else home_of(key, plan.num_gateways)
    try:
        _actor(namespace, plan, index).start_up.remote()
    except Exception as error:  # the first call starts it, or says what is wrong
        logger.warning("the model gateway did not start early: %s", type(error).__name__)
