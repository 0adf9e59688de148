"""Large payloads: no shard keeps them, everybody reads them, and what is lost is said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Artifact, BatchSpec, Context, JoinSpec, flock_type, now
from flock_ray.adapters.memory_payloads import MemoryPayloads
from flock_ray.context_provider import CorrelatedContextProvider
from flock_ray.core import wire
from flock_ray.core.claims import claim_for, is_claim
from flock_ray.core.rows import ERASED
from flock_ray.core.system_types import WorkflowError
from flock_ray.erasing import copies
from flock_ray.errors import BackpressureError, PayloadLostError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.kept import Kept, kill, no_threads, seen_events

__all__ = ["no_threads"]

LIMIT = 1024
BIG = "x" * 5000


@pytest.fixture(autouse=True)
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOCK_INLINE_PAYLOAD_BYTES", str(LIMIT))


@pytest.fixture(params=["memory board", "kept"])
def kept(request: pytest.FixtureRequest) -> Kept | None:
    return Kept() if request.param == "kept" else None


@flock_type(name="large.Page")
class Page(BaseModel):
    n: int = 0
    text: str = BIG


@flock_type(name="large.Summary")
class Summary(BaseModel):
    n: int = 0
    length: int = 0


@flock_type(name="large.Book")
class Book(BaseModel):
    pages: list[str]


def held_in(flock: VirtualFlock) -> int:
    """The longest payload in any shard's memory."""
    assert flock.local is not None
    longest = 0
    for shard in flock.local.shards:
        assert shard is not None
        envelopes = [*shard.core.index, *(e for _, e in copies(shard.core, shard._forwards()))]
        longest = max([longest, *(len(e.payload) for e in envelopes)])
    return longest


def held_for(flock: VirtualFlock) -> int:
    """Bytes that the shards' payload stores hold."""
    assert flock.local is not None
    return sum(shard._payloads.num_bytes for shard in flock.local.shards)  # type: ignore[union-attr]  # all live


def lose_all(flock: VirtualFlock) -> None:
    """Every node dies on which payloads are; the shards live on."""
    assert flock.local is not None
    for shard in flock.local.shards:
        assert shard is not None
        assert isinstance(shard._payloads, MemoryPayloads)
        shard._payloads.die()
        shard._payloads = MemoryPayloads()


def summing(flock: VirtualFlock) -> None:
    flock.agent("sum").consumes(Page).publishes(Summary).runs(
        lambda page: Summary(n=page.n, length=len(page.text))
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_a_large_payload_goes_through_agents_and_stays_in_no_shard(kept: Kept | None, shards: int) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept, shards=shards) as flock:
            flock.agent("copy").consumes(Summary).publishes(Page).runs(
                lambda s: Page(n=s.n + 1, text=BIG + str(s.n))
            )
            flock.agent("sum").consumes(Page, where=lambda p: p.n == 0).publishes(Summary).runs(
                lambda page: Summary(n=page.n, length=len(page.text))
            )
            pages = [Page(n=0, text=BIG + "!") for _ in range(6)]
            artifacts = [await flock.publish(p) for p in pages]
            await flock.run_until_idle()
            assert held_in(flock) <= LIMIT
            assert sorted(s.length for s in await flock.store.get_by_type(Summary)) == [5001] * 6
            made = await flock.store.get_by_type(Page)
            assert sorted(p.text[5000:] for p in made) == ["!"] * 6 + ["0"] * 6
            again = await flock.store.get(artifacts[0].id)
            assert again is not None
            assert again.view_as(Page) == pages[0]

    run_virtual(main())


def test_streams_contexts_and_searches_have_the_payloads(kept: Kept | None) -> None:
    seen: list[int] = []

    async def main() -> None:
        async with VirtualFlock(persistence=kept) as flock:

            async def look(ctx: Context, summary: Summary) -> None:
                seen.extend(len(a.payload["text"]) for a in ctx.artifacts if a.type == "large.Page")

            summing(flock)
            flock.agent("look").consumes(Summary).with_context(CorrelatedContextProvider()).runs(look)
            await flock.publish(Page(), correlation_id="w")
            await flock.run_until_idle()
            async for artifact in flock.stream(Page):
                assert isinstance(artifact, Artifact)
                assert artifact.view_as(Page).text == BIG
                break
            found, total = await flock.store.query_artifacts(limit=10)
            assert total == 2
            assert [len(a.payload["text"]) for a in found if a.type == "large.Page"] == [5000]

    run_virtual(main())
    assert seen == [5000]


def test_gates_hold_claims_of_other_slots(kept: Kept | None) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept, shards=3) as flock:
            spec = JoinSpec(by=lambda x: x.n, within=timedelta(minutes=5))
            flock.agent("join").consumes(Page, Page, join=spec).publishes(Book).runs(
                lambda pages: Book(pages=[p.text for p in pages])
            )
            for number in range(8):
                await flock.publish(Page(n=number, text=f"{BIG}{number}"), correlation_id=f"a{number}")
                await flock.publish(Page(n=number, text=f"{BIG}{number}"), correlation_id=f"b{number}")
            await flock.run_until_idle()
            books = await flock.store.get_by_type(Book)
            assert sorted(b.pages[0][5000:] + b.pages[1][5000:] for b in books) == [
                f"{n}{n}" for n in range(8)
            ]
            assert held_in(flock) <= LIMIT

    run_virtual(main())


def test_the_maker_may_die_as_soon_as_it_was_told(kept: Kept | None) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept) as flock:
            flock.agent("write").consumes(Summary).publishes(Page).runs(lambda s: Page(n=s.n))
            flock.agent("bind").consumes(Page, batch=BatchSpec(size=2)).publishes(Book).runs(
                lambda pages: Book(pages=[p.text for p in pages])
            )
            await flock.publish(Summary(n=1))
            await flock.run_until_idle()
            assert flock.local is not None
            for worker in flock.local.workers.values():
                worker._claiming._store.die()  # type: ignore[union-attr]  # its process is gone
            flock._opened.board.claiming._store.die()  # type: ignore[union-attr]  # and the publisher's
            for worker in flock.local.workers.values():
                worker._claiming._store = MemoryPayloads()  # type: ignore[union-attr]
            flock._opened.board.claiming._store = MemoryPayloads()  # type: ignore[union-attr]
            await flock.publish(Page(n=2))
            await flock.run_until_idle()
            [book] = await flock.store.get_by_type(Book)
            assert [len(p) for p in book.pages] == [5000, 5000]

    run_virtual(main())


def test_what_is_lost_with_its_node_is_said_and_named() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("bind").consumes(Page, batch=BatchSpec(size=2)).publishes(Book).runs(
                lambda pages: Book(pages=[p.text for p in pages])
            )
            page = await flock.publish(Page(n=1), correlation_id="w")
            await flock.run_until_idle()
            lose_all(flock)
            await flock.publish(Page(n=2), correlation_id="w")
            await flock.run_until_idle()
            [error] = await flock.store.get_by_type(WorkflowError)
            assert error.error_type == "PayloadLostError"
            assert str(page.id) in error.error_message
            with pytest.raises(PayloadLostError, match=str(page.id)) as lost:
                await flock.store.get(page.id)
            assert lost.value.artifact_id == str(page.id)
            assert await seen_events(flock, "payload.lost") == [("payload.lost", "w")]

    run_virtual(main())


def test_a_durable_board_reads_back_what_is_lost_with_its_node() -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=Kept()) as flock:
            flock.agent("bind").consumes(Page, batch=BatchSpec(size=2)).publishes(Book).runs(
                lambda pages: Book(pages=[p.text for p in pages])
            )
            page = await flock.publish(Page(n=1))
            lose_all(flock)
            await flock.publish(Page(n=2))
            await flock.run_until_idle()
            [book] = await flock.store.get_by_type(Book)
            assert [len(p) for p in book.pages] == [5000, 5000]
            assert (await flock.store.get(page.id)) is not None
            assert await seen_events(flock, "payload.lost") == []
            assert held_in(flock) <= LIMIT

    run_virtual(main())


@pytest.mark.parametrize("snapshot_bytes", [1, 10**9])
def test_claims_survive_a_restart_and_payloads_come_from_the_store(
    snapshot_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()

    async def main() -> None:
        async with opened(kept, snapshot_bytes) as flock:
            for number in range(5):
                await flock.publish(Page(n=number), correlation_id="w")
            await flock.run_until_idle()
        journal = b"".join(
            part
            for disk in kept.disks()
            for part in (*disk.frames.values(), *(s.data for s in disk.snapshots.values()))
        )
        assert BIG.encode() not in journal
        stored = [e for disk in kept.disks() for e in disk.artifacts.values()]
        assert len(stored) == 5
        assert all(BIG.encode() in e.payload for e in stored)
        async with opened(kept, snapshot_bytes) as flock:
            assert held_in(flock) <= LIMIT
            await flock.publish(Page(n=5), correlation_id="w")
            await flock.run_until_idle()
            [book] = await flock.store.get_by_type(Book)
            assert [len(p) for p in book.pages] == [5000] * 6

    run_virtual(main())


@contextlib.asynccontextmanager
async def opened(kept: Kept, snapshot_bytes: int) -> AsyncIterator[VirtualFlock]:
    flock = VirtualFlock(persistence=kept)
    flock.agent("bind").consumes(Page, batch=BatchSpec(size=6)).publishes(Book).runs(
        lambda pages: Book(pages=[p.text for p in pages])
    )
    await flock.start()
    assert flock.local is not None
    for shard in flock.local.shards:
        shard._keeper._rotation._limit = shard._keeper._rotation._min_bytes = snapshot_bytes  # type: ignore[union-attr]
    yield flock
    await kill(flock)


def test_payloads_go_with_the_workflows_that_leave_memory() -> None:
    async def main() -> None:
        async with VirtualFlock(max_artifacts=1000) as flock:
            await flock.publish_many([Page(n=n) for n in range(300)])
            size = held_for(flock) // 300
            assert size > 5000
            for _ in range(6):
                await flock.publish_many([Page(n=n) for n in range(300)])
            await flock.run_until_idle()
            assert held_for(flock) <= 1000 * size

    run_virtual(main())


def test_what_is_erased_is_freed(kept: Kept | None) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept) as flock:
            page = await flock.publish(Page())
            await flock.publish(Page())
            before = held_for(flock)
            await flock.erase(artifacts=[page], reason="test")
            assert held_for(flock) <= before // 2
            found = await flock._opened.board.get(page.id.bytes)  # type: ignore[union-attr]
            assert found is not None
            assert found.payload == ERASED

    run_virtual(main())


def test_retries_and_redrives_read_the_payload_again(kept: Kept | None) -> None:
    failures = [True, True, True]

    async def main() -> None:
        async with VirtualFlock(persistence=kept) as flock:

            def work(page: Page) -> Summary:
                if failures and failures.pop():
                    raise ConnectionError("bad luck")
                return Summary(length=len(page.text))

            flock.agent("work").consumes(Page).publishes(Summary).runs(work).retry(
                max_attempts=2, dead_letter="dead"
            )
            await flock.publish(Page())
            await flock.run_until_idle()
            [letter] = await flock.dead_letters.list()
            edited = await flock.dead_letters.edit(letter.id, Page(text=BIG * 2))
            details = await flock.dead_letters.get(letter.id)
            assert [len(e.payload["text"]) for e in details.inputs if e] == [5000]
            await asyncio.sleep(1)
            assert held_in(flock) <= 5 * LIMIT  # the letter itself is small, and stays
            await flock.dead_letters.redrive(letter.id)
            await flock.run_until_idle()
            assert [s.length for s in await flock.store.get_by_type(Summary)] == [10_000]
            assert (await flock.store.get(edited.id)) is not None
            assert held_in(flock) <= LIMIT

    run_virtual(main())


def test_publishing_again_is_compared_by_digest(kept: Kept | None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept) as flock:
            first = await flock.publish(Page(n=1), idempotency_key="k")
            assert (await flock.publish(Page(n=1), idempotency_key="k")).id == first.id
            board = flock._opened.board  # type: ignore[union-attr]
            known = await board.get(first.id.bytes)
            assert known is not None
            assert await board.publish([wire.Posting(known)]) == [wire.DUPLICATE]
            other = wire.Posting(_with(known, known.payload.replace(b"x", b"y")))
            assert await board.publish([other]) == [wire.CONFLICT]
            board.claiming = None  # one whose limit is another sends it as it is
            assert await board.publish([wire.Posting(known), other]) == [wire.DUPLICATE, wire.CONFLICT]

    run_virtual(main())


def _with(envelope: wire.Envelope, payload: bytes) -> wire.Envelope:
    import msgspec

    return msgspec.structs.replace(envelope, payload=payload)


def test_hostile_claims_are_refused(kept: Kept | None) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept) as flock:
            page = await flock.publish(Page(n=1))
            board = flock._opened.board  # type: ignore[union-attr]
            known = await board.get(page.id.bytes)
            assert known is not None
            assert board.claiming is not None
            version = board.edge.table.version
            body = known.payload.replace(b"x", b"y")

            async def send(claim: bytes, payload: bytes, *, large: bool) -> Any:
                claimed = msgspec_replace(known, id=bytes(16), payload=claim)
                blob = wire.encode(wire.PublishBatch(version, [wire.Posting(claimed)]))
                link = board.shard(0)
                if not large:
                    return await link.publish(blob)
                offer = await board.claiming._store.offer([payload])  # type: ignore[union-attr]
                return await link.publish_large(blob, [(bytes(16), claim)], offer)

            for claim in (claim_for(body), claim_for(body)[:10], b"\x00", b"\x00" * 41):
                with pytest.raises(PayloadLostError):
                    await send(claim, body, large=False)
            for claim in (claim_for(known.payload), claim_for(body)[:10], b"\x00" * 41):
                with pytest.raises(PayloadLostError):
                    await send(claim, body, large=True)
            assert await board.get(bytes(16)) is None
            await send(claim_for(body), body, large=True)
            assert await board.get(bytes(16)) is not None

    run_virtual(main())


def msgspec_replace(envelope: wire.Envelope, **changes: Any) -> wire.Envelope:
    import msgspec

    return msgspec.structs.replace(envelope, **changes)


def test_a_full_object_store_holds_publishers_up_and_says_so(kept: Kept | None) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept, publish_timeout=timedelta(seconds=5)) as flock:
            await flock.start()
            assert flock.local is not None
            shard = flock.local.shards[0]
            assert shard is not None
            shard._payloads = MemoryPayloads(max_bytes=12_000)
            first = await flock.publish(Page(n=1))
            await flock.publish(Page(n=2))
            with pytest.raises(BackpressureError):
                await flock.publish(Page(n=3))
            waiting = asyncio.ensure_future(flock.publish(Page(n=4)))
            await asyncio.sleep(1)
            await flock.erase(artifacts=[first], reason="room")
            await waiting

    run_virtual(main())


def test_what_a_shard_gets_in_a_message_is_put_away(kept: Kept | None) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept) as flock:
            await flock.start()
            board = flock._opened.board  # type: ignore[union-attr]
            claiming, board.claiming = board.claiming, None
            page = await flock.publish(Page(n=1))
            await asyncio.sleep(0.1)
            assert held_in(flock) <= LIMIT
            board.claiming = claiming
            found = await flock.store.get(page.id)
            assert found is not None
            assert found.view_as(Page).text == BIG

    run_virtual(main())


def test_a_run_that_is_cancelled_before_its_input_is_here_never_begins(kept: Kept | None) -> None:
    ran: list[int] = []

    async def main() -> None:
        async with VirtualFlock(persistence=kept) as flock:
            flock.agent("run").consumes(Page).runs(lambda page: ran.append(page.n))
            await flock.publish(Summary())
            await flock.run_until_idle()
            await flock.publish(Page(n=0))
            await flock.run_until_idle()
            assert ran == [0]
            assert flock.local is not None
            [worker] = flock.local.workers.values()
            claiming = worker._claiming
            assert claiming is not None
            go, real = asyncio.Event(), claiming.fetch

            async def fetch(envelopes: Any) -> Any:
                await go.wait()
                return await real(envelopes)

            claiming.fetch = fetch  # type: ignore[method-assign]
            await flock.publish(Page(n=1), correlation_id="w")
            await asyncio.sleep(0.1)
            assert worker._fetching
            await flock.cancel("w")
            await asyncio.sleep(0.1)
            go.set()
            await flock.run_until_idle()
            assert ran == [0]

    run_virtual(main())


def test_a_small_payload_is_no_claim() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            await flock.publish(Summary(n=1))
            assert flock.local is not None
            assert flock.local.shards[0] is not None
            assert not any(is_claim(e.payload) for e in flock.local.shards[0].core.index)
            assert held_for(flock) == 0

    run_virtual(main())


def test_a_large_payload_that_matches_later_stays_in_no_shard(kept: Kept | None) -> None:
    """Also when it has left memory: a look at it must not bring it back there."""

    async def slowly(page: Page) -> Summary:
        await asyncio.sleep(10_000)
        return Summary(n=page.n, length=len(page.text))

    async def main() -> None:
        ripe = now() + timedelta(days=3)
        for turn in range(1 if kept is None else 2):
            flock = VirtualFlock(persistence=kept)
            flock.agent("sum").consumes(
                Page, where=lambda page: now() >= ripe and page.text == BIG, reevaluate=timedelta(days=1)
            ).publishes(Summary).runs(slowly).max_concurrency(3)
            async with flock:
                if not turn:
                    await flock.publish_many([Page(n=n) for n in range(3)])
                for _ in range(52 if turn or kept is None else 4):
                    await asyncio.sleep(7200)
                    assert held_in(flock) <= LIMIT
                if turn or kept is None:
                    assert [s.length for s in await flock.store.get_by_type(Summary)] == [5000] * 3

    run_virtual(main())
