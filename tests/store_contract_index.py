"""What every `ArtifactIndex` promises."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from flock_ray.core.rows import ERASED, ArtifactQuery, SettledPlace, Summary, WorkflowRow
from flock_ray.core.wire import Envelope
from flock_ray.ports import ShardStore
from tests.store_contract_journal import EVERYTHING, NewStore, StoreFixtures, acquired
from tests.unit.adapters.store_rows import (
    HOSTILE,
    PAYLOADS,
    activation,
    artifact,
    batch,
    full_artifact,
    key,
    visible,
    workflow,
)

QUERIES: dict[str, ArtifactQuery] = {
    "everything": EVERYTHING,
    "one type": ArtifactQuery(types=("Order",)),
    "any of the types": ArtifactQuery(types=("Order", "Note", "Unknown")),
    "a type twice": ArtifactQuery(types=("Order", "Order")),
    "unknown type": ArtifactQuery(types=("order",)),
    "one producer": ArtifactQuery(produced_by=("boss",)),
    "any of the producers": ArtifactQuery(produced_by=("boss", "clerk")),
    "workflow": ArtifactQuery(correlation_id="wf-1"),
    "unknown workflow": ArtifactQuery(correlation_id=""),
    "one tag": ArtifactQuery(tags=("eu",)),
    "all of the tags": ArtifactQuery(tags=("eu", "urgent")),
    "a tag twice": ArtifactQuery(tags=("eu", "eu")),
    "all of the tags, one unknown": ArtifactQuery(tags=("eu", "unknown")),
    "visibility": ArtifactQuery(visibility=("Private",)),
    "public": ArtifactQuery(visibility=("Public",)),
    "any of the visibilities": ArtifactQuery(visibility=("Private", "Public", "Labelled")),
    "from a time": ArtifactQuery(start_us=1_003),
    "until a time": ArtifactQuery(end_us=1_003),
    "at a time": ArtifactQuery(start_us=1_003, end_us=1_003),
    "empty span": ArtifactQuery(start_us=1_004, end_us=1_003),
    "type and tag": ArtifactQuery(types=("Order",), tags=("eu",)),
    "type, producer and time": ArtifactQuery(types=("Order", "Note"), produced_by=("clerk",), start_us=1_002),
    "workflow and types": ArtifactQuery(types=("Order", "Note"), correlation_id="wf-0"),
    "all conditions": ArtifactQuery(
        ("Order", "Note"), ("clerk", "boss"), "wf-0", ("eu",), ("Public", "Private"), 1_000, 1_005
    ),
}


def assortment() -> list[Envelope]:
    """Artifacts that differ in everything one can ask for; several share a creation time."""
    kinds = ("Public", "Private", "Public", "Labelled", "After")
    tags = ((), ("eu",), ("urgent", "eu"), ("eu", "urgent", "x"), ("urgent",))
    return [
        artifact(
            n,
            type=("Order", "Note", "Invoice")[n % 3],
            workflow=f"wf-{n % 4}",
            slot=n % 4,
            produced_by=("clerk", "boss")[n // 3 % 2],
            created_us=1_000 + (n * 7) % 11 // 2,
            tags=tags[n % 5],
            visibility=visible(kinds[n // 2 % 5]),
        )
        for n in range(60)
    ]


async def filled(new_store: NewStore, artifacts: Sequence[Envelope]) -> ShardStore:
    """Open a store that holds these artifacts at the feed positions from 1 on."""
    store = await acquired(new_store)
    half = len(artifacts) // 2
    await store.append(batch(1, artifacts[:half]))
    await store.append(batch(2, artifacts[half:], first_seq=half + 1))
    return store


def by_creation(entry: tuple[int, Envelope]) -> tuple[int, bytes]:
    return entry[1].created_us, entry[1].id


def summary_of(found: Sequence[Envelope]) -> Summary:
    """Count one by one."""
    total = Summary()
    for envelope in found:
        total.total += 1
        kind = "Public" if envelope.visibility is None else msgspec.json.decode(envelope.visibility)["kind"]
        for counts, name in (
            (total.by_type, envelope.type),
            (total.by_producer, envelope.produced_by),
            (total.by_visibility, kind),
            *((total.tag_counts, tag) for tag in envelope.tags),
        ):
            counts[name] = counts.get(name, 0) + 1
    times = [envelope.created_us for envelope in found] or [0]
    total.earliest_us, total.latest_us = min(times), max(times)
    return total


class IndexContract(StoreFixtures):
    async def test_envelopes_come_back_equal(self, new_store: NewStore) -> None:
        envelopes = [full_artifact(), artifact("plain"), artifact("negative", created_us=-5, priority=9)]
        store = await filled(new_store, envelopes)
        entries = list(enumerate(envelopes, 1))

        assert entries == await store.read(EVERYTHING, 0, 10)
        assert entries == sorted(await store.get([envelope.id for envelope in envelopes]))
        assert sorted(entries, key=by_creation) == await store.page(EVERYTHING, 0, 0)
        assert {e.id: e.payload for e in envelopes} == await store.bodies([e.id for e in envelopes])

    @pytest.mark.parametrize("name", QUERIES)
    async def test_queries_select_what_the_model_selects(self, new_store: NewStore, name: str) -> None:
        query, artifacts = QUERIES[name], assortment()
        store = await filled(new_store, artifacts)
        expected = [entry for entry in enumerate(artifacts, 1) if query.selects(entry[1])]
        paged = sorted(expected, key=by_creation)

        assert len(expected) == await store.count(query)
        assert summary_of([envelope for _, envelope in expected]) == await store.summarize(query)
        assert expected == await store.read(query, 0, 1000)
        assert paged == await store.page(query, 0, 0)
        for after, limit in ((0, 1), (0, 3), (7, 2), (59, 5), (60, 5), (1000, 5)):
            assert [e for e in expected if e[0] > after][:limit] == await store.read(query, after, limit)
        for limit, offset in ((1, 0), (3, 2), (0, 4), (5, 1000), (1000, 0), (1, len(expected))):
            assert paged[offset : offset + limit if limit else None] == await store.page(query, limit, offset)

    @pytest.mark.parametrize("name", QUERIES)
    async def test_the_newest_come_first_in_pages_of_any_size(self, new_store: NewStore, name: str) -> None:
        query, artifacts = QUERIES[name], assortment()
        store = await filled(new_store, artifacts)
        selected = [entry for entry in enumerate(artifacts, 1) if query.selects(entry[1])]
        newest = sorted(selected, key=by_creation, reverse=True)

        assert newest == await store.newest(query, 1000)
        assert newest[:4] == await store.newest(query, 4)
        for size in (1, 7, 64):
            pages: list[tuple[int, Envelope]] = []
            while page := await store.newest(query, size, by_creation(pages[-1]) if pages else None):
                assert len(page) <= size
                pages += page
            assert newest == pages

    async def test_empty_store_has_an_answer_to_everything(self, new_store: NewStore) -> None:
        store = await acquired(new_store)

        assert [] == await store.read(EVERYTHING, 0, 10)
        assert [] == await store.page(EVERYTHING, 0, 0)
        assert [] == await store.newest(EVERYTHING, 10)
        assert 0 == await store.count(EVERYTHING)
        assert Summary() == await store.summarize(EVERYTHING)
        assert [] == await store.activations("wf-1", 10)
        assert [] == await store.settled_before(2**60, 10)

    async def test_unknown_and_no_ids_find_nothing(self, new_store: NewStore) -> None:
        store = await filled(new_store, [artifact("a"), artifact("b")])
        for ids in ([], [key("unknown")], [b""], [key("a")[:15], key("a") + b"\x00"]):
            assert {} == await store.bodies(ids)
            assert [] == await store.get(ids)
            assert [] == await store.consumptions(ids)
            assert 0 == await store.erase(ids)
        assert [] == await store.workflows([])
        assert [] == await store.workflows(["unknown", ""])
        assert 0 == await store.remove_workflows([])
        assert 0 == await store.remove_workflows([(0, "unknown"), (-1, ""), (999, "wf-1")])

    async def test_known_ids_are_found_among_unknown_ones(self, new_store: NewStore) -> None:
        store = await filled(new_store, [artifact("a"), artifact("b", payload=b"2")])
        ids = {key("a"), key("unknown"), key("b")}

        assert {key("a"): b'{"n":1}', key("b"): b"2"} == await store.bodies(ids)
        assert [1, 2] == sorted(seq for seq, _ in await store.get(ids))
        assert [(1, artifact("a"))] == await store.get([key("a"), key("a")])

    async def test_positions_are_a_hint_for_bodies_and_nothing_more(self, new_store: NewStore) -> None:
        rows = [artifact("a"), artifact("b", payload=b"2"), artifact("c", payload=b"3")]
        store = await filled(new_store, rows)
        expected = {key("a"): b'{"n":1}', key("c"): b"3"}
        for near in ([1, 3], [3], [2, 2], [7, 0, -1], range(1, 2000)):
            assert expected == await store.bodies([key("a"), key("c"), key("unknown")], near)

    async def test_recent_ids_are_the_newest_in_the_order_of_the_feed(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        assert [] == await store.recent_ids(5)
        await store.append(batch(1, [artifact(n, created_us=-n) for n in range(10)], first_seq=3))

        assert [key(n) for n in (7, 8, 9)] == await store.recent_ids(3)
        assert [key(n) for n in range(10)] == await store.recent_ids(100_000)

    @pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
    async def test_any_text_comes_back_and_is_found_by_equality(self, new_store: NewStore, text: str) -> None:
        odd = artifact(
            "odd", type=text, workflow=text, produced_by=text, tags=(text,), partition_key=text, via=(text,)
        )
        near = text + "x"
        other = artifact("other", type=near, workflow=near, produced_by=near, tags=(near, near.upper()))
        run = activation(
            "run",
            workflow=text,
            inputs=["odd"],
            agent=text,
            subscription=text,
            error_type=text,
            error_message=text,
        )
        flow = workflow(text, counts={text: 1}, iterations={text: 2}, flags=((text, 3),))
        store = await acquired(new_store)
        await store.append(batch(1, [odd, other], activations=[run], workflows=[flow, workflow(near)]))

        for query in (
            ArtifactQuery(types=(text,)),
            ArtifactQuery(produced_by=(text,)),
            ArtifactQuery(correlation_id=text),
            ArtifactQuery(tags=(text,)),
            ArtifactQuery((text,), (text,), text, (text,), ("Public",)),
        ):
            assert [(1, odd)] == await store.read(query, 0, 10)
            assert [(1, odd)] == await store.page(query, 10, 0)
            assert summary_of([odd]) == await store.summarize(query)
        assert [run] == await store.activations(text, 10)
        assert [run] == await store.consumptions([odd.id])
        assert [flow] == await store.workflows([text])
        assert 0 == await store.count(ArtifactQuery(visibility=(text,)))
        assert 1 == await store.remove_workflows([(0, text)])
        assert [(2, other)] == await store.read(EVERYTHING, 0, 10)

    async def test_payloads_are_kept_byte_for_byte(self, new_store: NewStore) -> None:
        artifacts = [artifact(n, payload=payload) for n, payload in enumerate(PAYLOADS)]
        store = await filled(new_store, artifacts)

        assert {key(n): payload for n, payload in enumerate(PAYLOADS)} == await store.bodies(
            [entry.id for entry in artifacts]
        )
        assert list(PAYLOADS) == [entry.payload for _, entry in await store.read(EVERYTHING, 0, 100)]

    async def test_large_payload_is_kept(self, new_store: NewStore) -> None:
        large = artifact("large", payload=b'"' + b"0123456789abcdef" * 330_000 + b'"')
        store = await filled(new_store, [artifact("small"), large])

        assert {large.id: large.payload} == await store.bodies([large.id])

    async def test_workflows_have_a_row_per_slot_and_the_newest_counts(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        rows = [workflow("a", slot=3, open=2, waiting=1, delayed=4), workflow("a", slot=0), workflow("b")]
        await store.append(batch(1, workflows=rows))
        newer = workflow(
            "a",
            slot=3,
            updated_us=9_999,
            errors=2,
            cancelled=True,
            counts={"Order": 2, "🐦": 1},
            iterations={"clerk": 3},
            flags=(("f", 1), ("g", 0)),
        )
        await store.append(batch(2, workflows=[newer]))

        assert [rows[1], newer] == sorted(await store.workflows(["a"]), key=lambda row: row.slot)
        assert 3 == len(await store.workflows({"a", "b", "unknown"}))

    async def test_activations_are_listed_in_the_order_they_ended(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        runs = [activation(n, ended_us=2_000 + n // 2, workflow=f"wf-{n % 2}") for n in range(10)]
        full = activation(
            "full",
            ended_us=2_005,
            outputs=(key("out"),),
            run_us=12,
            attempt=3,
            status="failed",
            error_type="ValueError",
            error_message="no",
        )
        await store.append(batch(1, activations=runs[:5]))
        await store.append(batch(2, activations=[*runs[5:], full]))

        assert [*runs[1::2], full] == await store.activations("wf-1", 100)
        assert runs[0::2][:2] == await store.activations("wf-0", 2)
        assert [] == await store.activations("wf-2", 10)

    async def test_consumptions_are_found_by_any_input(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        joined = activation("joined", inputs=["a", "b"], ended_us=1)
        twice = activation("twice", inputs=["b", "b"], ended_us=2, workflow="other")
        lone = activation("lone", ended_us=3)
        await store.append(batch(1, activations=[joined, twice, lone]))

        assert [joined] == await store.consumptions([key("a")])
        assert [joined, twice] == await store.consumptions([key("b"), key("a")])
        assert [] == await store.consumptions([key("joined")])

    async def test_settled_workflows_are_listed_the_longest_ago_first(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        waiting = [
            workflow("open", open=1, updated_us=1),
            workflow("waiting", waiting=1, updated_us=1),
            workflow("delayed", delayed=1, updated_us=1),
            workflow("again", updated_us=2),
        ]
        settled = [workflow(f"s{n}", slot=n, updated_us=100 + n) for n in (3, 1, 2, 0)]
        await store.append(batch(1, workflows=waiting + settled))
        await store.append(batch(2, workflows=[workflow("again", open=1, updated_us=3)]))
        oldest_first = sorted(settled, key=lambda row: row.updated_us)

        assert oldest_first == await store.settled_before(1_000, 100)
        assert oldest_first[:3] == await store.settled_before(103, 100)
        assert oldest_first[:2] == await store.settled_before(1_000, 2)
        assert [] == await store.settled_before(100, 100)

    async def test_settled_workflows_are_listed_page_by_page_each_once(self, new_store: NewStore) -> None:
        # Given many that settled at the same time, and some before and after
        store = await acquired(new_store)
        rows = [workflow(f"w{n}", slot=n % 7, updated_us=100 + n // 40) for n in range(120)]
        await store.append(batch(1, workflows=rows))
        await store.append(batch(2, workflows=[workflow("w50", slot=1, open=1, updated_us=200)]))

        # When they are listed in pages, and the last row of a page goes meanwhile
        found: list[WorkflowRow] = []
        after: SettledPlace | None = None
        while page := await store.settled_before(1_000, 9, after):
            found += page
            after = page[-1].place
            await store.remove_workflows([(page[-1].slot, page[-1].id)])
            if len(page) < 9:
                break

        # Then each is listed once, the longest ago first
        assert {row.id for row in rows} - {"w50"} == {row.id for row in found}
        assert 119 == len(found)
        assert [row.updated_us for row in found] == sorted(row.updated_us for row in found)
        assert [] == await store.settled_before(1_000, 9, found[-1].place)

    async def test_settled_workflows_are_removed_with_all_that_is_theirs(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        await store.append(
            batch(
                1,
                [
                    artifact("a", workflow="done", tags=("eu",)),
                    artifact("b", workflow="done"),
                    artifact("c", workflow="done", slot=5, tags=("eu",)),
                    artifact("d", workflow="busy"),
                ],
                activations=[
                    activation("in", workflow="done", inputs=["a"]),
                    activation("elsewhere", workflow="done", inputs=["a", "c"], slot=5),
                ],
                workflows=[workflow("done"), workflow("done", slot=5), workflow("busy", open=1)],
            )
        )

        removed = await store.remove_workflows([(0, "done"), (0, "done"), (0, "busy"), (0, "unknown")])

        assert 2 == removed
        assert [3, 4] == [seq for seq, _ in await store.read(EVERYTHING, 0, 10)]
        assert [3] == [seq for seq, _ in await store.page(ArtifactQuery(tags=("eu",)), 0, 0)]
        assert {"eu": 1} == (await store.summarize(EVERYTHING)).tag_counts
        assert [5] == [row.slot for row in await store.workflows(["done"])]
        assert ["busy"] == [row.id for row in await store.workflows(["busy"])]
        assert [key("elsewhere")] == [row.id for row in await store.activations("done", 10)]
        assert [key("elsewhere")] == [row.id for row in await store.consumptions([key("a")])]
        assert {} == await store.bodies([key("a"), key("b")])
        assert [] == await store.get([key("a")])
        assert 0 == await store.remove_workflows([(0, "done"), (0, "busy")])
        assert ["done"] == [row.id for row in await store.settled_before(2**60, 10)]

    async def test_removed_workflow_can_start_again(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a", tags=("t",))], workflows=[workflow()]))
        await store.remove_workflows([(0, "wf-1")])

        again = batch(2, [artifact("a", tags=("t",))], first_seq=2, workflows=[workflow(open=1)])
        await store.append(again)

        assert [(2, artifact("a", tags=("t",)))] == await store.read(ArtifactQuery(tags=("t",)), 0, 10)
        assert [workflow(open=1)] == await store.workflows(["wf-1"])

    async def test_erasing_replaces_payloads_and_nothing_else(self, new_store: NewStore) -> None:
        envelopes = [full_artifact(), artifact("kept", payload=b'"kept"')]
        store = await filled(new_store, envelopes)

        assert 1 == await store.erase([envelopes[0].id, key("unknown"), envelopes[0].id])
        assert 1 == await store.erase({envelopes[0].id})

        reopened = await new_store()
        erased = msgspec.structs.replace(envelopes[0], payload=ERASED)
        assert [(1, erased), (2, envelopes[1])] == await reopened.read(EVERYTHING, 0, 10)
        assert [(1, erased)] == await reopened.page(ArtifactQuery(tags=("eu",)), 0, 0)
        assert {erased.id: ERASED, key("kept"): b'"kept"'} == await reopened.bodies([erased.id, key("kept")])
        assert [(1, erased)] == await reopened.get([erased.id])
