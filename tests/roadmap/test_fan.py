"""Roadmap, "Fan-Out / Fan-In Patterns": the splitter and the collector, as printed."""

from __future__ import annotations

from pydantic import BaseModel

from flock_ray import FanInStrategy, FanOutStrategy, Flock, flock_type
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="roadmap.LargeDataset")
class LargeDataset(BaseModel):
    data: list[dict]  # type: ignore[type-arg]  # as the roadmap writes it


# Dynamic fan-out based on runtime data
@flock_type(name="roadmap.DatasetChunk")
class DatasetChunk(BaseModel):
    chunk_id: int
    data: list[dict]  # type: ignore[type-arg]  # as the roadmap writes it


@flock_type(name="roadmap.ProcessedChunk")
class ProcessedChunk(BaseModel):
    chunk_id: int
    total: int


@flock_type(name="roadmap.FinalResult")
class FinalResult(BaseModel):
    chunks: list[int]
    total: int


def combine(chunks: list[ProcessedChunk]) -> FinalResult:
    return FinalResult(chunks=[c.chunk_id for c in chunks], total=sum(c.total for c in chunks))


def declare(flock: Flock) -> None:
    splitter = flock.agent("splitter").consumes(LargeDataset).fan_out(
        into=DatasetChunk,
        strategy=FanOutStrategy.BY_SIZE,
        chunk_size=1000
    )  # fmt: skip

    # Fan-in with aggregation
    collector = flock.agent("collector").fan_in(
        from_type=ProcessedChunk,
        into=FinalResult,
        strategy=FanInStrategy.MERGE,
        merge_fn=lambda chunks: combine(chunks)
    )  # fmt: skip
    assert (splitter.name, collector.name) == ("splitter", "collector")


def process(chunk: DatasetChunk) -> ProcessedChunk:
    return ProcessedChunk(chunk_id=chunk.chunk_id, total=sum(row["n"] for row in chunk.data))


def test_a_data_set_is_split_processed_and_merged() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=4) as flock:
            declare(flock)
            flock.agent("processor").consumes(DatasetChunk).publishes(ProcessedChunk).runs(process)
            await flock.publish(LargeDataset(data=[{"n": n} for n in range(10_500)]))
            await flock.run_until_idle()

            [result] = await flock.store.get_by_type(FinalResult)
            assert result == FinalResult(chunks=list(range(11)), total=sum(range(10_500)))
            chunks = await flock.store.get_by_type(DatasetChunk)
            assert sorted(len(chunk.data) for chunk in chunks) == [500, *[1000] * 10]

    run_virtual(main())
