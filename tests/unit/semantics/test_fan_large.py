"""Fan-outs whose chunks are too large for shards: they hold claims, workers the payloads."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from flock_ray import FanInStrategy, FanOutStrategy, flock_type
from flock_ray.engines import posting
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual

LIMIT = 1024


@flock_type(name="fan.large.Book")
class Book(BaseModel):
    text: str


@flock_type(name="fan.large.Page")
class Page(BaseModel):
    index: int
    text: str


@flock_type(name="fan.large.Copy")
class Copy(BaseModel):
    text: str


def copied(page: Page) -> Copy:
    return Copy(text=page.text.upper())


@flock_type(name="fan.large.Bound")
class Bound(BaseModel):
    text: str


def as_bound(pages: list[Copy] | list[Bound]) -> Bound:
    return Bound(text="".join(page.text for page in pages))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("strategy", [FanInStrategy.MERGE, FanInStrategy.REDUCE])
def test_large_chunks_are_cut_worked_on_and_merged(
    kept: bool, strategy: FanInStrategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOCK_INLINE_PAYLOAD_BYTES", str(LIMIT))
    monkeypatch.setattr(posting, "NEAR_BYTES", LIMIT)

    async def main() -> None:
        text = "".join(f"word{n} " for n in range(10_000))
        persistence = MemoryPersistence() if kept else None
        async with VirtualFlock(shards=3, persistence=persistence) as flock:
            flock.agent("cut").consumes(Book).fan_out(Page, strategy=FanOutStrategy.BY_SIZE, chunk_size=5_000)
            flock.agent("copy").consumes(Page).publishes(Copy).runs(copied)
            flock.agent("bind").fan_in(
                Copy,
                into=Bound,
                strategy=strategy,
                merge_fn=as_bound,
                combine=as_bound if strategy is FanInStrategy.REDUCE else None,
                width=4,
            )
            await flock.publish(Book(text=text))
            await flock.run_until_idle()
            [result] = await flock.store.get_by_type(Bound)
            assert result.text == text.upper()
            held = [shard for shard in flock.local.shards if shard is not None]  # type: ignore[union-attr]
            for shard in held:
                for envelope in shard.core.index:
                    assert len(envelope.payload) <= LIMIT
            # What is large stays on the shard to which the fan-out reports.
            pages = [a for a in await flock.store.list() if a.type == "fan.large.Page"]
            assert len({page.partition_key for page in pages}) == 1

    run_virtual(main())
