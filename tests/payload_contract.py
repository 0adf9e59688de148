"""The contract of payload stores: subclass `PayloadContract` and say what `processes` are.

A process is a `PayloadStore` of its own that can be killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import pytest

from flock_ray.core.claims import CLAIM_BYTES, MARK, claim_for
from flock_ray.errors import PayloadLostError

SIZES = (0, 1, 99_999, 100_001, 400_000, 1_000_001, 3_000_000)
"""Around what Ray sends inline by default, and what flock_ray has it send inline."""


class Process(Protocol):
    """A process with a payload store."""

    async def offer(self, payloads: Sequence[bytes]) -> Any:
        """As the port."""

    async def adopt(self, offer: Any, claims: Sequence[bytes]) -> None:
        """Adopt, and keep the handles."""

    async def keep(self, payloads: Sequence[bytes]) -> None:
        """Keep payloads, and the handles."""

    async def open(self) -> list[bytes | None]:
        """Open, in another process, what it holds."""
        ...

    async def drop(self) -> None:
        """Forget the handles."""

    async def kill(self) -> None:
        """End it at once."""


def made(size: int) -> bytes:
    return bytes(str(size), "ascii").ljust(size, b".")[:size]


class PayloadContract:
    """Everything that `PayloadStore` promises."""

    settle_s = 0.0
    """Pause between two looks at what is used: what is freed may take a while to be gone."""

    @pytest.fixture
    def start(self) -> Callable[[], Awaitable[Process]]:
        """Start a process."""
        raise NotImplementedError

    @pytest.fixture
    def used_bytes(self) -> Callable[[], int]:
        """Tell how much all processes hold together."""
        raise NotImplementedError

    async def test_what_is_adopted_outlives_who_offered_it(
        self, start: Callable[[], Awaitable[Process]]
    ) -> None:
        maker, owner = await start(), await start()
        payloads = [made(size) for size in SIZES]
        await owner.adopt(await maker.offer(payloads), [claim_for(p) for p in payloads])
        await maker.kill()
        assert await owner.open() == payloads

    async def test_what_is_kept_is_read(self, start: Callable[[], Awaitable[Process]]) -> None:
        owner = await start()
        payloads = [made(size) for size in SIZES]
        await owner.keep(payloads)
        assert await owner.open() == payloads

    async def test_what_its_owner_took_along_is_lost_sooner_or_later_and_nothing_waits(
        self, start: Callable[[], Awaitable[Process]]
    ) -> None:
        maker, owner = await start(), await start()
        payloads = [made(2_000_000), made(300_000)]
        await owner.adopt(await maker.offer(payloads), [claim_for(p) for p in payloads])
        await owner.kill()
        found = await owner.open()
        assert all(one in (None, payload) for one, payload in zip(found, payloads, strict=True))

    async def test_an_offer_of_the_dead_is_refused(self, start: Callable[[], Awaitable[Process]]) -> None:
        maker, owner = await start(), await start()
        payload = made(2_000_000)
        offer = await maker.offer([payload])
        await maker.kill()
        with pytest.raises(PayloadLostError):
            await owner.adopt(offer, [claim_for(payload)])

    @pytest.mark.parametrize(
        "claim",
        [
            claim_for(made(2_000_000)[:-1]), claim_for(made(1_999_999)), MARK, b"", MARK * CLAIM_BYTES,
            b"x" * CLAIM_BYTES,
        ],
        ids=["shorter", "other", "mark", "empty", "zeros", "text"],
    )  # fmt: skip
    async def test_a_payload_that_is_not_what_was_claimed_is_refused(
        self, start: Callable[[], Awaitable[Process]], claim: bytes
    ) -> None:
        maker, owner = await start(), await start()
        offer = await maker.offer([made(100_001), made(2_000_000)])
        with pytest.raises(PayloadLostError):
            await owner.adopt(offer, [claim_for(made(100_001)), claim])

    async def test_what_nobody_refers_to_is_freed(
        self, start: Callable[[], Awaitable[Process]], used_bytes: Callable[[], int]
    ) -> None:
        maker, owner = await start(), await start()
        payloads = [made(2_000_000) for _ in range(10)] + [made(150_000) for _ in range(10)]
        await owner.adopt(await maker.offer(payloads), [claim_for(p) for p in payloads])
        await maker.kill()  # what it offered goes, too
        held = await _settled(used_bytes, self.settle_s)
        await owner.drop()
        for _ in range(300):
            if used_bytes() <= held - sum(map(len, payloads)):
                break
            await asyncio.sleep(0.1)
        assert used_bytes() <= held - sum(map(len, payloads))


async def _settled(used_bytes: Callable[[], int], pause_s: float) -> int:
    """Wait until what was freed before is gone."""
    last = -1
    for _ in range(60):
        if (now := used_bytes()) == last:
            break
        last = now
        await asyncio.sleep(pause_s)
    return last
