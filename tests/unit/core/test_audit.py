from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.core.audit import (
    HASH_BYTES,
    AuditEntry,
    AuditFact,
    AuditHead,
    ChainVerifier,
    entry_hash,
    extend_chain,
)

FACTS = [AuditFact(n, "artifact.published", f"artifact-{n}", "ada", "Order") for n in range(1, 6)]


def chain(name: str = "board/0") -> tuple[list[AuditEntry], AuditHead]:
    return extend_chain(name, AuditHead(), FACTS)


def problems(entries: list[AuditEntry], head: AuditHead, name: str = "board/0") -> list[int]:
    verifier = ChainVerifier(name)
    return [problem.number for problem in (*verifier.check(entries), *verifier.finish(head))]


def test_entries_are_numbered_and_hashed() -> None:
    entries, head = chain()

    assert [1, 2, 3, 4, 5] == [entry.number for entry in entries]
    assert FACTS == [entry.fact for entry in entries]
    assert AuditHead(5, entries[-1].hash) == head
    assert all(len(entry.hash) == HASH_BYTES for entry in entries)


def test_sound_chain_has_no_problems() -> None:
    assert [] == problems(*chain())
    assert [] == problems([], AuditHead())


def test_chain_in_parts_equals_chain_at_once() -> None:
    first, head = extend_chain("board/0", AuditHead(), FACTS[:2])
    second, head = extend_chain("board/0", head, FACTS[2:])

    assert chain() == ([*first, *second], head)


def test_no_facts_leave_the_head() -> None:
    assert ([], AuditHead(3, b"x")) == extend_chain("board/0", AuditHead(3, b"x"), [])


def test_hash_is_stable_across_versions() -> None:
    expected = "b9dfbc027946"
    assert expected == entry_hash("board/0", 1, FACTS[0], b"").hex()[:12]


@pytest.mark.parametrize("field", ["at_us", "kind", "subject", "actor", "detail"])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_changed_entry_is_found(number: int, field: str) -> None:
    entries, head = chain()
    entry = entries[number - 1]
    values = {name: getattr(entry.fact, name) for name in entry.fact.__struct_fields__}
    values[field] = 99 if field == "at_us" else "forged"
    entries[number - 1] = AuditEntry(number, AuditFact(**values), entry.hash)

    assert [number] == problems(entries, head)


def test_entry_that_was_changed_together_with_its_hash_is_found() -> None:
    entries, head = chain()
    forged = AuditFact(1, "artifact.published", "other")
    entries[2] = AuditEntry(3, forged, entry_hash("board/0", 3, forged, entries[1].hash))

    assert [4] == problems(entries, head)


@pytest.mark.parametrize(
    ("kept", "found"), [((2, 3, 4, 5), [1]), ((1, 2, 5), [3]), ((1, 2, 3), [4]), ((), [1])]
)
def test_removed_entries_are_found(kept: tuple[int, ...], found: list[int]) -> None:
    entries, head = chain()

    assert found == problems([entry for entry in entries if entry.number in kept], head)


def test_swapped_entries_are_found() -> None:
    entries, head = chain()
    second, third = entries[1], entries[2]
    entries[1:3] = [AuditEntry(2, third.fact, third.hash), AuditEntry(3, second.fact, second.hash)]

    assert [2, 3, 4] == problems(entries, head)


def test_entry_that_is_there_twice_is_found() -> None:
    entries, head = chain()

    assert [2] == problems([*entries[:2], entries[1], *entries[2:]], head)


def test_added_entry_is_found() -> None:
    entries, head = chain()
    more, _ = extend_chain("board/0", head, FACTS[:1])

    assert [6] == problems(entries + more, head)


def test_newest_entry_replaced_is_found() -> None:
    entries, head = chain()
    forged, _ = extend_chain("board/0", AuditHead(4, entries[3].hash), FACTS[:1])

    assert [5] == problems(entries[:4] + forged, head)


def test_chain_of_another_shard_is_found() -> None:
    assert [1, 2, 3, 4, 5] == problems(*chain("board/1"))


@given(st.data())
def test_any_other_entries_are_found(data: st.DataObject) -> None:
    entries, head = chain()
    other = data.draw(st.lists(st.sampled_from(entries), max_size=6))

    assert (other == entries) == (problems(other, head) == [])
