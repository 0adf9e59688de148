"""`VirtualFlock`: a Flock whose board lives in the running event loop."""

from __future__ import annotations

import asyncio
import uuid
from random import Random
from typing import TYPE_CHECKING, Any

from flock_ray.actors.limits import ShardSettings
from flock_ray.board import Board
from flock_ray.core.ids import owned_slots
from flock_ray.embeddings import set_default
from flock_ray.engines.records import RecordingModel
from flock_ray.engines.services import Services
from flock_ray.errors import BoardClosedError
from flock_ray.flock import Flock
from flock_ray.gateway.budgets import LedgerLink
from flock_ray.gateway.gateway import Gateway
from flock_ray.mcp.hub import McpHub
from flock_ray.opening import DEFAULT_BOARD, Opened
from flock_ray.testing.embeddings import InlineEmbeddings
from flock_ray.testing.local import FOREVER_S, LocalBoard, inline
from flock_ray.testing.paying import PayingModel
from flock_ray.testing.virtual_time import VirtualClock

if TYPE_CHECKING:
    from flock_ray.model import Model

SCRIPTED_MODEL = "test/scripted"
"""Name of the model when a flock has a `language_model` and no name for it."""


class VirtualFlock(Flock):
    """A Flock for tests: same methods and semantics, no Ray, no threads, no pickling.

    On a `VirtualTimeLoop` (`run_virtual`) time is virtual. Sync functions run on the loop: one that never
    returns can't be timed out here.
    """

    def __init__(
        self, model: str | None = None, *, language_model: Model | None = None, **options: Any
    ) -> None:
        """Declare a flock.

        Args:
            model: Default model of agents without an engine; None: "test/scripted", if there is a `language_model`.
            language_model: Answers every call to a model, such as a `ScriptedModel`; None: there are no models.
            options: As for `Flock`.
        """
        if language_model is not None and model is None:
            model = SCRIPTED_MODEL
        super().__init__(model, **options)
        self.language_model = language_model
        self._tool_servers = McpHub()
        self.local: LocalBoard | None = None
        """The board's parts, for tests that look inside; None before the first use."""
        self.alerts: list[Any] = []
        """(webhook, message) of alerts about dead letters: nothing is sent from here."""
        self._alert_outbox = self.alerts

    @classmethod
    def of(cls, flock: Flock, **options: Any) -> VirtualFlock:
        """Return a virtual flock with the agents that are declared on a real one."""
        given = {"embedder": flock.embedder, "context_provider": flock.context_provider}
        virtual = cls(flock.model, **{**given, **options})
        virtual._builders = dict(flock._builders)
        virtual._budget_rules = flock._budget_rules + virtual._budget_rules
        virtual._components = flock._components
        virtual._mcp_servers = dict(flock._mcp_servers)
        virtual._notifiers = flock._notifiers
        virtual.principals = virtual.principals or flock.principals
        return virtual

    def _shard(self, index: int) -> Any:
        if self.local is None:
            raise BoardClosedError("This Flock has no board yet.")
        return self.local.shard(index)

    async def _num_shards(self) -> int:
        return 0 if self.local is None else self.local.num_shards

    def _services(self, clock: VirtualClock) -> Services:
        """Return what the workers offer to engines."""
        model, plan = self.language_model, self._gateway_plan
        monotonic = asyncio.get_running_loop().time
        ledger = LedgerLink(self._shard, self._num_shards, monotonic=monotonic)
        if model is None and plan.cassette is not None:
            model = Gateway(plan, ledger=ledger, monotonic=monotonic)
        elif model is not None:
            model = PayingModel(model, plan, ledger, monotonic=monotonic)
        recording = None
        if model is not None:
            recording = RecordingModel(model, now_us=clock.now_us, capture=plan.capture, redact=plan.redact)
        return Services(
            model=recording, default_model=self.model, tool_servers=self._tool_servers, inline=True,
            draw=Random(0).random,
        )  # fmt: skip

    async def _open(self) -> Opened:
        settings = self._settings
        clock = VirtualClock()
        per_shard = (
            None
            if settings.max_artifacts is None
            else max(1, settings.max_artifacts // (settings.shards or 1))
        )
        num_shards, name = settings.shards or 1, settings.namespace or DEFAULT_BOARD
        keep = self.persistence
        if keep is not None:
            num_shards = await keep.prepare(name, settings.shards)
        local = self.local = LocalBoard(
            num_shards,
            store=None if keep is None else lambda i: keep.store(name, i, owned_slots(i, num_shards)),
            clock=clock,
            registry=self._registry,
            shard_settings=ShardSettings(
                max_artifacts=per_shard,
                max_open=settings.max_open,
                inline_payload_bytes=settings.inline_payload_bytes,
            ),
            max_workers=settings.max_workers or 1,
            max_payload_bytes=settings.max_payload_bytes,
            services=self._services(clock),
        )
        local.begin()
        board = Board(
            local.links(),
            owner=uuid.uuid4().hex,
            registry=self._registry,
            codec=local.codec,
            clock=clock,
            monotonic=lambda: asyncio.get_running_loop().time(),
            max_payload_bytes=settings.max_payload_bytes,
            publish_timeout_s=settings.publish_timeout.total_seconds(),
            long_call_s=FOREVER_S,
            payloads=local.payloads_of(),
            inline_payload_bytes=settings.inline_payload_bytes,
        )
        board.edge.offload = inline
        recording = local.services.model
        given = self.language_model
        # A scripted model has no vectors.
        through_gateway = isinstance(given, Gateway) or (given is None and recording is not None)
        embeddings = InlineEmbeddings(recording) if through_gateway and recording is not None else None
        board.edge.embeddings = embeddings
        set_default(embeddings)

        async def close(end: bool) -> None:
            await local.close()
            set_default(None)
            if self._tool_servers.is_running:
                await asyncio.to_thread(self._tool_servers.close)

        return Opened(board, close, True)
