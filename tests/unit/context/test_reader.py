"""Reading the newest artifacts of a board, compared with sorting everything."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flock_ray import only_for
from flock_ray.actors import searching
from flock_ray.actors.searching import ShardSearch
from flock_ray.adapters.memory import MemoryStore
from flock_ray.context import reader as reading
from flock_ray.context.reader import BoardReader, age
from flock_ray.context.view import ContextView
from flock_ray.core import recency
from flock_ray.core.index import BoardIndex
from flock_ray.core.recency import Recency
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.rows import ArtifactQuery
from flock_ray.core.visibility import AgentIdentity, encode_visibility
from flock_ray.core.wire import Envelope
from flock_ray.errors import StoreUnavailableError
from flock_ray.filters import FilterConfig
from flock_ray.ports import PeerGoneError
from flock_ray.testing import run_virtual

AGENT = AgentIdentity(name="me")
HIDDEN = encode_visibility(only_for("you"))


class MemoryShard(ShardSearch):
    """The searching half of a shard without a store."""

    def __init__(self, envelopes: list[Envelope]) -> None:
        super().__init__()
        self.core: Any = SimpleNamespace(index=BoardIndex())
        self._keeper = None
        self._workflows: dict[str, list[int]] = {}
        self.num_calls = 0
        for envelope in envelopes:
            self.add(envelope)

    def add(self, envelope: Envelope) -> None:
        seq = self.core.index.add(envelope)
        self._workflows.setdefault(envelope.correlation_id, []).append(seq)

    async def ready(self) -> None:
        self.num_calls += 1

    def _seqs_of(self, workflow: str) -> list[int]:
        return self._workflows.get(workflow, [])


class StoredShard(MemoryShard):
    """One that answers from a store."""

    def __init__(self, envelopes: list[Envelope]) -> None:
        super().__init__([])
        store = MemoryStore()
        store.disk.artifacts = dict(enumerate(envelopes, 1))
        self._keeper: Any = SimpleNamespace(store=store)


def envelope(n: int, created_us: int, **fields: Any) -> Envelope:
    defaults: dict[str, Any] = {"type": "A", "payload": b"{}", "correlation_id": "w", "produced_by": "p"}
    return Envelope(
        id=(n * 2654435761 % 2**32).to_bytes(16, "big"), version=1, slot=0, created_us=created_us,
        **{**defaults, **fields},
    )  # fmt: skip


CHOICES: dict[str, Sequence[Any]] = {
    "type": "AAB", "correlation_id": "wwx", "produced_by": "pq", "tags": [(), ("t",), ("t", "u")],
    "payload": [b"xx", b"xx", b"xx", b"x" * 40], "visibility": [None, HIDDEN],
    "step": range(3), "late": [0, 0, 0, 1, 5, -50], "shard": range(4),
}  # fmt: skip
CODES = math.prod(map(len, CHOICES.values()))


def chosen(code: int) -> dict[str, Any]:
    """Return what a number says: hypothesis draws one for an artifact much faster than each of its fields."""
    found = {}
    for name, values in CHOICES.items():
        code, at = divmod(code, len(values))
        found[name] = values[at]
    return found


@st.composite
def boards(draw: st.DrawFn) -> list[list[Envelope]]:
    """Shards whose feeds are nearly in the order of creation, or not at all."""
    count = draw(st.integers(0, 60))
    shards: list[list[Envelope]] = [[] for _ in range(draw(st.integers(1, 4)))]
    base = 0
    for n, code in enumerate(draw(st.lists(st.integers(0, CODES - 1), min_size=count, max_size=count))):
        fields = chosen(code)
        base += fields.pop("step")
        created_us, shard = base - fields.pop("late"), fields.pop("shard") % len(shards)
        shards[shard].append(envelope(n, created_us, **fields))
    return shards


queries = st.builds(
    ArtifactQuery,
    types=st.sampled_from([(), ("A",), ("A", "B")]),
    produced_by=st.sampled_from([(), ("p",)]),
    correlation_id=st.sampled_from([None, "w", "x", "unknown"]),
    tags=st.sampled_from([(), ("t",), ("t", "u")]),
    start_us=st.sampled_from([None, 0, 10, 30]),
    end_us=st.sampled_from([None, 20, 40]),
)


@pytest.fixture(autouse=True, scope="module")
def _small_pages() -> Iterator[None]:
    """Make every limit small, so that small boards reach it."""
    with (
        mock.patch.object(searching, "CHUNK", 7),
        mock.patch.object(searching, "FIRST_CHUNK", 2),
        mock.patch.object(reading, "PAGE", 5),
        mock.patch.object(recency, "BLOCK", 3),
    ):
        yield


def oracle(
    shards: list[list[Envelope]], query: ArtifactQuery, before: tuple[int, bytes] | None
) -> list[Envelope]:
    found = [e for shard in shards for e in shard if query.selects(e) and (before is None or age(e) < before)]
    return sorted(found, key=age)


@given(boards(), queries, st.integers(1, 30), st.one_of(st.none(), st.integers(0, 60)), st.booleans())
def test_the_newest_of_all_shards_are_those_that_sorting_everything_finds(
    shards: list[list[Envelope]], query: ArtifactQuery, limit: int, start: int | None, stored: bool
) -> None:
    links = [(StoredShard if stored else MemoryShard)(shard) for shard in shards]
    reader = BoardReader(links.__getitem__, len(links))
    before = None if start is None else (start, b"\x80" * 16)

    found = asyncio.run(reader.newest(query, limit, before=before))

    assert found == oracle(shards, query, before)[-limit:]


@example([[envelope(0, 0), envelope(1, 0)], [envelope(2, -4, payload=b"x" * 40)]], ArtifactQuery(), 4)
@given(boards(), queries, st.integers(2, 200))
def test_a_read_ends_when_its_bytes_are_used_up_and_keeps_the_newest(
    shards: list[list[Envelope]], query: ArtifactQuery, max_bytes: int
) -> None:
    links = [MemoryShard(shard) for shard in shards]
    everything = oracle(shards, query, None)
    with mock.patch.object(reading, "MIN_REPLY_BYTES", 1):
        found = asyncio.run(
            BoardReader(links.__getitem__, len(links), max_bytes=max_bytes).newest(query, 1000)
        )

    assert found == everything[len(everything) - len(found) :]
    assert bool(found) == bool(everything)
    assert len(found) <= 1 or sum(len(e.payload) for e in found) <= max_bytes
    left = everything[: len(everything) - len(found)]
    assert not left or sum(len(e.payload) for e in [*found, left[-1]]) > max_bytes


@given(boards(), st.integers(1, 30), st.sets(st.sampled_from("AB")), st.sets(st.integers(0, 59), max_size=5))
def test_a_view_shows_the_newest_that_are_visible_not_excluded_and_not_inputs(
    shards: list[list[Envelope]], limit: int, left_out: set[str], inputs: set[int]
) -> None:
    links = [MemoryShard(shard) for shard in shards]
    excluded = {envelope(n, 0).id for n in inputs}
    view = ContextView(
        BoardReader(links.__getitem__, len(links)),
        (AGENT,),
        now_us=10**9,
        registry=TypeRegistry(),
        exclude=excluded,
    )
    everything = oracle(shards, ArtifactQuery(correlation_id="w"), None)
    wanted = [
        e for e in everything if e.visibility is None and e.type not in left_out and e.id not in excluded
    ][-limit:]

    found = asyncio.run(view.newest(FilterConfig(correlation_id="w"), limit=limit, exclude_types=left_out))

    assert [a.envelope for a in found] == wanted
    assert view.ledger == {e.id: e for e in wanted}


@given(st.lists(st.integers(0, 100), max_size=40), st.sets(st.integers(1, 40)), st.integers(1, 5))
def test_a_bound_is_never_below_what_is_there(times: list[int], evicted: set[int], chunk: int) -> None:
    index = BoardIndex()
    bounds = Recency(index)
    for n, created_us in enumerate(times):
        index.add(envelope(n, created_us))
        if n % 3 == 0:
            bounds.catch_up(chunk)
    index.remove(evicted)
    while not bounds.catch_up(chunk):
        pass
    for seq, found in index.read(0):
        bound = bounds.bound_us(seq)
        assert bound is not None
        assert found.created_us <= bound
        later = bounds.bound_us(index.head)
        assert later is not None and bound <= later


def test_a_large_board_is_not_walked_for_its_newest() -> None:
    shard = MemoryShard([envelope(n, n) for n in range(5000)])
    asked = []
    read_back = BoardIndex.read_back

    def counting(index: BoardIndex, before: int, **options: Any) -> Iterator[tuple[int, Envelope]]:
        for entry in read_back(index, before, **options):
            asked.append(entry[0])
            yield entry

    with mock.patch.object(BoardIndex, "read_back", counting):
        found = asyncio.run(BoardReader(lambda _: shard, 1).newest(ArtifactQuery(), 10))

    assert [e.created_us for e in found] == list(range(4990, 5000))
    assert len(asked) < 200


class Restarting:
    """A shard that is away for some calls."""

    def __init__(self, shard: MemoryShard, times: int, *, final: bool = False) -> None:
        self._shard = shard
        self.left = times
        self._final = final

    async def search_newest(self, *args: Any) -> Any:
        if self.left:
            self.left -= 1
            raise PeerGoneError("shard 0 restarts", final=self._final)
        return await self._shard.search_newest(*args)


def test_a_shard_that_restarts_is_waited_for() -> None:
    link = Restarting(MemoryShard([envelope(1, 1)]), 3)
    assert run_virtual(BoardReader(lambda _: link, 1).newest(ArtifactQuery(), 5)) == [envelope(1, 1)]


@pytest.mark.parametrize(("times", "final"), [(10**6, False), (1, True)])
def test_a_shard_that_does_not_come_back_is_a_retryable_error(times: int, final: bool) -> None:
    link = Restarting(MemoryShard([]), times, final=final)
    with pytest.raises(StoreUnavailableError, match="the context can't be read"):
        run_virtual(BoardReader(lambda _: link, 1).newest(ArtifactQuery(), 5))
    assert StoreUnavailableError.retryable
    assert final == (link.left == 0)


def test_a_view_stops_looking_where_almost_nothing_is_visible() -> None:
    shard = MemoryShard([envelope(n, n, visibility=HIDDEN) for n in range(300)])
    view = ContextView(BoardReader(lambda _: shard, 1), (AGENT,), now_us=10**9, registry=TypeRegistry())
    with mock.patch("flock_ray.context.view.MAX_SCANNED", 120):
        assert asyncio.run(view.newest(limit=10)) == []
    assert view.cut == ["a read ended with 0 artifacts after it had looked at 210"]
