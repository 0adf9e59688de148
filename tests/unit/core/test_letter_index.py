"""The index over open dead letters: it shows what the slots hold, in order, a page at a time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core import letter_index
from flock_ray.core.letter_index import LetterIndex, LetterQuery, decode_query, decode_rows, encode
from flock_ray.core.state import Letter, Slot
from flock_ray.core.wire import Envelope

SLOTS = 4


def letter(number: int, at_us: int, slot: int, queue: str = "q") -> Letter:
    key = number.to_bytes(16, "big")
    envelope = Envelope(key, "DeadLetter", 1, b"", f"w{number}", slot, "orchestrator#a", at_us)
    return Letter(envelope, queue, "agent", "sub", at_us, (b"i" * 16,), (), 0, "", "ValueError")


def put(slots: dict[int, Slot], entry: Letter) -> None:
    slots[entry.envelope.slot].letters[entry.envelope.id] = entry


def pages(index: LetterIndex, query: LetterQuery, limit: int) -> list[Letter]:
    """Walk over all pages, as a client does, through the wire."""
    for _ in index.catch_up():
        pass
    found: list[Letter] = []
    after: Any = query.after
    while after is not None:
        asked = decode_query(encode(msgspec.structs.replace(query, after=after, limit=limit)))
        part = decode_rows(encode(index.rows(asked)))
        assert len(part.rows) <= limit
        assert all(row.slot == row.letter.envelope.slot for row in part.rows)
        found += [row.letter for row in part.rows]
        after = part.seen
    return found


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "drop", "look"]), st.integers(0, SLOTS - 1), st.integers(0, 2)
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 7), st.integers(1, 9), st.randoms(use_true_random=False))
def test_pages_are_what_the_slots_hold_in_order(
    steps: list[Step], limit: int, chunk: int, random: Any
) -> None:
    letter_index.CHUNK, old = chunk, letter_index.CHUNK
    try:
        slots = {n: Slot(n) for n in range(SLOTS)}
        index, now_us, made = LetterIndex(slots), 1, 0
        for what, slot, later in steps:
            if what == "add":
                now_us += later  # time stands still, too: many letters of one moment
                made += 1  # ids are unique, in no order
                put(slots, letter(random.getrandbits(64) << 32 | made, now_us, slot))
            elif what == "drop" and slots[slot].letters:
                del slots[slot].letters[random.choice(list(slots[slot].letters))]
            elif what == "look":
                held = [entry for slot_ in slots.values() for entry in slot_.letters.values()]
                expected = sorted(held, key=lambda entry: (entry.at_us, entry.envelope.id))
                assert pages(index, LetterQuery(), limit) == expected
                assert len(index) == len(expected)
        held = [entry for slot_ in slots.values() for entry in slot_.letters.values()]
        for since, before in ((0, 0), (now_us // 2, 0), (0, now_us // 2 + 1), (2, now_us)):
            meant = [e for e in held if e.at_us >= since and (not before or e.at_us < before)]
            query = LetterQuery(since_us=since, before_us=before)
            assert pages(index, query, limit) == sorted(meant, key=lambda e: (e.at_us, e.envelope.id))
    finally:
        letter_index.CHUNK = old


def test_a_walk_ends_where_it_was_said_to_also_within_one_moment() -> None:
    slots = {n: Slot(n) for n in range(SLOTS)}
    for number in (10, 20, 30):
        put(slots, letter(number, 5, number % SLOTS))
    index = LetterIndex(slots)
    before = pages(index, LetterQuery(), 10)
    time_us, ids = index.end()

    # Letters of the same moment, on both sides of those that were there
    for number in (5, 15, 35):
        put(slots, letter(number, 5, number % SLOTS))
    put(slots, letter(40, 6, 0))

    assert pages(index, LetterQuery(end=(time_us, tuple(ids))), 2) == before
    assert len(pages(index, LetterQuery(), 2)) == 7


def test_filters_and_ids_find_what_they_name() -> None:
    slots = {n: Slot(n) for n in range(SLOTS)}
    for number in range(1, 9):
        put(slots, letter(number, number, number % SLOTS, "even" if number % 2 == 0 else "odd"))
    index = LetterIndex(slots)

    assert [e.at_us for e in pages(index, LetterQuery(queue="even"), 3)] == [2, 4, 6, 8]
    assert [e.at_us for e in pages(index, LetterQuery(workflow="w3"), 3)] == [3]
    assert pages(index, LetterQuery(agent="nobody"), 3) == []
    assert [row.letter.at_us for row in index.find([(7).to_bytes(16, "big"), b"x" * 16])] == [7]


@pytest.mark.parametrize("limit", [-1, 0, 10**9])
def test_a_page_is_bounded_whatever_is_asked(limit: int) -> None:
    slots = {0: Slot(0)}
    for number in range(1, 1500):
        put(slots, letter(number, number, 0))
    index = LetterIndex(slots)
    for _ in index.catch_up():
        pass
    assert 1 <= len(index.rows(LetterQuery(limit=limit)).rows) <= letter_index.MAX_PAGE
