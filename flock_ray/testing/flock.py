"""`VirtualFlock`: a Flock whose board lives in the running event loop."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from flock_ray.actors.limits import ShardSettings
from flock_ray.board import Board
from flock_ray.core.ids import owned_slots
from flock_ray.flock import Flock
from flock_ray.opening import DEFAULT_BOARD, Opened
from flock_ray.testing.local import FOREVER_S, LocalBoard
from flock_ray.testing.virtual_time import VirtualClock


class VirtualFlock(Flock):
    """A Flock for tests: same methods and semantics, no Ray, no threads, no pickling.

    On a `VirtualTimeLoop` (`run_virtual`) time is virtual. Sync functions run on the loop: one that never
    returns can't be timed out here.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        """Declare a flock; options as for `Flock`."""
        super().__init__(model, **options)
        self.local: LocalBoard | None = None
        """The board's parts, for tests that look inside; None before the first use."""

    @classmethod
    def of(cls, flock: Flock, **options: Any) -> VirtualFlock:
        """Return a virtual flock with the agents that are declared on a real one."""
        virtual = cls(flock.model, **options)
        virtual._builders = dict(flock._builders)
        return virtual

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
            shard_settings=ShardSettings(max_artifacts=per_shard, max_open=settings.max_open),
            max_workers=settings.max_workers or 1,
            max_payload_bytes=settings.max_payload_bytes,
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
        )

        async def close(end: bool) -> None:
            await local.close()

        return Opened(board, close, True)
