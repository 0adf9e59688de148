"""Calls to language models that no result of a run brings along: asked for at the gateways, or told by them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from flock_ray.core.model_calls import ModelCall
from flock_ray.core.spending import LostAttempt

if TYPE_CHECKING:
    from flock_ray.core.shard import ShardCore

__all__ = ["CallsOf", "GatewayBooks", "ShardSpending", "decode_attempts", "decode_calls", "encode"]

logger = logging.getLogger(__name__)


class CallsOf(msgspec.Struct, array_like=True, frozen=True):
    """Calls that were made for one agent and workflow."""

    slot: int
    agent: str
    workflow: str
    calls: tuple[ModelCall, ...]
    activation: bytes = b""
    """Of a lost attempt; empty: they were made for no run."""
    attempt: int = 0


encode = msgspec.msgpack.Encoder().encode
decode_attempts = msgspec.msgpack.Decoder(list[LostAttempt]).decode
decode_calls = msgspec.msgpack.Decoder(list[CallsOf]).decode


class GatewayBooks(Protocol):
    """A gateway that knows what attempts have asked."""

    async def calls_of(self, blob: bytes) -> bytes:
        """Take LostAttempts, end what still runs for them, and answer with the CallsOf that they have asked."""
        ...


class ShardSpending:
    """The part of `Shard` that finds out what lost attempts have used."""

    core: ShardCore
    gateways: Callable[[], Sequence[GatewayBooks]] | None = None
    """Every gateway there may be; None: there are none, as in tests."""

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        raise NotImplementedError  # Shard's

    async def spent(self, blob: bytes) -> bool:
        """Take CallsOf that a gateway has answered for nobody's run; answers once they are in the journal."""
        known: bool = await self._enqueue("spent", decode_calls(blob), len(blob))
        return known

    def _apply_spent(self, subject: list[CallsOf], now_us: int) -> bool:
        known = True
        for of in subject:
            lost = (of.activation, of.attempt) if of.activation else None
            known &= self.core.spent(of.slot, of.agent, of.workflow, of.calls, now_us, lost=lost)
        return known

    def _ask_what_was_spent(self) -> None:
        """Ask the gateways what attempts without a result have used; call after an append."""
        lost, self.core.lost_attempts = self.core.lost_attempts, []
        if lost and self.gateways is not None:
            for gateway in self.gateways():
                self._spawn(self._account(gateway, encode(lost)))

    async def _account(self, gateway: GatewayBooks, blob: bytes) -> None:
        try:
            found = decode_calls(await gateway.calls_of(blob))
            if found:
                await self._enqueue("spent", found, len(found))
        except (
            Exception
        ) as error:  # a gateway that is not there has nothing to tell; the shard may be closing
            logger.debug("what lost attempts have used is not known: %s", type(error).__name__)
