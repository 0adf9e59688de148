from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.index import BoardIndex, CountQuery
from flock_ray.core.wire import Envelope

TYPES, WORKFLOWS, TAGS = ("A", "B"), ("w1", "w2"), ((), ("x",), ("x", "y"))
envelopes = st.tuples(
    st.sampled_from(TYPES), st.sampled_from(WORKFLOWS), st.sampled_from(TAGS), st.sampled_from("pq")
)
queries = st.builds(
    CountQuery,
    st.sampled_from(TYPES),
    st.none(),
    st.sampled_from(TAGS),
    st.none() | st.sampled_from("pq"),
)


def fill(entries: list[tuple[str, str, tuple[str, ...], str]]) -> tuple[BoardIndex, list[Envelope]]:
    index = BoardIndex()
    made = [
        Envelope(n.to_bytes(16, "big"), name, 1, b"", workflow, 0, producer, 0, tags)
        for n, (name, workflow, tags, producer) in enumerate(entries)
    ]
    for envelope in made:
        index.add(envelope)
    return index, made


@settings(deadline=None, max_examples=60)
@given(
    st.lists(envelopes, max_size=30), st.lists(envelopes, max_size=10), queries, st.sets(st.integers(1, 40))
)
def test_counts_stay_equal_to_a_scan_through_additions_and_evictions(
    before: list[tuple[str, str, tuple[str, ...], str]],
    after: list[tuple[str, str, tuple[str, ...], str]],
    query: CountQuery,
    gone: set[int],
) -> None:
    # Given a query that was asked once, so that its count is kept up to date
    index, made = fill(before + after)
    early, _ = fill(before)
    early.count(query)
    for envelope in made[len(before) :]:
        early.add(envelope)
    # When artifacts come and go
    for seq in gone:
        early.remove([seq])
        early.remove([seq])  # twice is once
    # Then the kept count is what a scan finds, and so is every other answer
    left = [e for n, e in enumerate(made, 1) if n not in gone]
    assert early.count(query) == sum(1 for e in left if e.type == query.type and query.selects(e))
    assert len(early) == len(left)
    assert [e for _, e in early.read(0)] == left
    assert [e for _, e in early.read(0, type_name="A")] == [e for e in left if e.type == "A"]
    assert early.types() == {t: n for t in TYPES if (n := sum(1 for e in left if e.type == t))}
    assert all((e.id in early) == (e in left) and early.get(e.id) == (e if e in left else None) for e in made)
    assert index.head == early.head


def test_positions_survive_the_compaction_of_a_long_evicted_prefix() -> None:
    # Given 3,000 artifacts of which the first 2,500 are evicted
    index, made = fill([("A", "w1", (), "p")] * 3000)
    for seq in range(1, 2501):
        index.remove([seq])
    # Then memory was given back, and every position still means the same artifact
    assert len(index._entries) < 3000
    assert index.head == 3000
    assert [seq for seq, _ in index.read(0)] == list(range(2501, 3001))
    assert index.at(2501) is made[2500]
    assert index.at(2500) is None
    assert index.position(made[2999].id) == 3000
    assert next(index.read(2900, type_name="A"))[0] == 2901
