"""Reading many large payloads at once."""

from __future__ import annotations

import pytest

from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.kept import Kept
from tests.unit.semantics.test_large_payloads import Page, _small_limit

__all__ = ["_small_limit"]


def test_a_long_stream_from_the_store_comes_in_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flock_ray.actors.readers.MAX_PAGE_BYTES", 100_000)
    kept = Kept()

    async def main() -> None:
        async with VirtualFlock(persistence=kept, namespace="pages") as flock:
            await flock.publish_many([Page(n=n) for n in range(300)])
        async with VirtualFlock(persistence=kept, namespace="pages") as flock:
            await flock.start()
            assert flock.local is not None
            blob, positions, _, _ = await flock.local.shard(0).read_at(0, None, None, 1000, 0)
            assert len(positions) == 64
            assert len(blob) < 64 * 6000
            assert len(await flock.store.list()) == 300
            board = flock._opened.board  # type: ignore[union-attr]  # it is open
            assert [e.id for e in await board.read()] == [
                e.id for e in await board.read(type_name="large.Page")
            ]
            assert len(await board.read()) == 300

    run_virtual(main())
