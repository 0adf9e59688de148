"""Fan-outs of one shard: how far they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.scatter_status import scatter_rows

if TYPE_CHECKING:
    from flock_ray.core.shard import ShardCore

__all__ = ["ShardFans"]

_encode = msgspec.msgpack.Encoder().encode


class ShardFans:
    """The part of `Shard` that knows fan-outs."""

    core: ShardCore

    async def _durable(self) -> None:
        raise NotImplementedError  # ShardReaders'

    async def scatters(self, workflow: str) -> bytes:
        """Return the fan-outs of a workflow whose home is here: a msgpack list of `core.scatter_status.ScatterRow`."""
        await self._durable()
        return _encode(scatter_rows(self.core, workflow))
