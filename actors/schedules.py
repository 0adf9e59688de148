"""Schedules of one shard: what is declared, and what operators do with them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.core.schedules import ScheduleInfo

if TYPE_CHECKING:
    from flock_ray.core.shard import ShardCore

__all__ = ["ShardSchedules"]

_encode = msgspec.msgpack.Encoder().encode
_decode_info = msgspec.msgpack.Decoder(ScheduleInfo).decode


class ShardSchedules:
    """The part of `Shard` that knows schedules."""

    core: ShardCore

    async def _durable(self) -> None:
        raise NotImplementedError  # ShardReaders'

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    async def set_schedule(self, blob: bytes) -> str:
        """Take a `ScheduleInfo`; answers `ok`, `gone` or `full` once it is in the journal."""
        answer: str = await self._enqueue("schedule", ("set", _decode_info(blob), ""), len(blob))
        return answer

    async def order_schedule(self, action: str, name: str, by: str) -> str:
        """Pause, resume, trigger or remove a schedule; answers once it is in the journal."""
        answer: str = await self._enqueue("schedule", (action, name, by), 0)
        return answer

    async def backfill_schedule(self, name: str, start_us: int, end_us: int, by: str) -> str:
        """Fire the times of a range that has passed; answers `gone`, `deaf`, `full` or how many, once journaled."""
        subject = ("backfill", (name, start_us, end_us), by)
        answer: str = await self._enqueue("schedule", subject, 0)
        return answer

    async def schedules(self) -> bytes:
        """Return all schedules of this shard: a msgpack list of `core.schedules.ScheduleRow`."""
        await self._durable()
        return _encode(list(self.core.schedule_rows()))

    def _apply_schedule(self, subject: tuple[str, Any, str], now_us: int) -> str:
        (action, what, by), core = subject, self.core
        if action == "set":
            return core.set_schedule(what, now_us)
        if action == "backfill":
            name, start_us, end_us = what
            return core.backfill_schedule(name, start_us, end_us, by, now_us)
        if action == "trigger":
            return core.trigger_schedule(what, by=by, now_us=now_us)
        if action == "remove":
            return core.remove_schedule(what, by=by, now_us=now_us)
        return core.pause_schedule(what, on=action == "pause", by=by, now_us=now_us)
