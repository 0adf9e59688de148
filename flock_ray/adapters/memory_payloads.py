"""Payloads in memory: for boards that live in one process, and the model of the adapter for Ray."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from flock_ray.core.claims import fits
from flock_ray.errors import BackpressureError, PayloadLostError

__all__ = ["MemoryPayloads"]


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Held:
    payload: bytes
    by: MemoryPayloads


class MemoryPayloads:
    """The payloads of one process, which may be told to die. Handles of several may be mixed."""

    def __init__(self, *, max_bytes: int | None = None) -> None:
        """Hold nothing; `max_bytes` is the room there is, None: it never ends."""
        self._max_bytes = max_bytes
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()
        self.dead = False

    @property
    def num_bytes(self) -> int:
        """Bytes held: of the handles that anybody keeps."""
        return sum(len(held.payload) for held in self._held)

    def die(self) -> None:
        """Lose everything that is held, as a process does."""
        self.dead = True

    async def offer(self, payloads: Sequence[bytes]) -> list[_Held]:
        """Make payloads readable by others."""
        return await self.keep(payloads)

    async def adopt(self, offer: Sequence[_Held], claims: Sequence[bytes]) -> list[_Held]:
        """Hold what another process offers."""
        payloads: list[bytes] = []
        for held, claim in zip(offer, claims, strict=True):
            if held.by.dead:
                raise PayloadLostError("The process that offered the payload is gone. It makes it again.")
            if not fits(claim, held.payload):
                raise PayloadLostError(
                    "The payload is not the one that its claim stands for. Publish it again."
                )
            payloads.append(held.payload)
        return await self.keep(payloads)

    async def keep(self, payloads: Sequence[bytes]) -> list[_Held]:
        """Hold payloads of this process."""
        if self._max_bytes is not None and self.num_bytes + sum(map(len, payloads)) > self._max_bytes:
            raise BackpressureError(
                f"There is no room for {sum(map(len, payloads))} more bytes of payloads. Publish again later."
            )
        held = [_Held(payload, self) for payload in payloads]
        self._held.update(held)
        return held

    async def open(self, handles: Sequence[_Held], wait_s: float) -> list[bytes | None]:
        """Read payloads; None for those of a process that died."""
        return [None if held.by.dead else held.payload for held in handles]
