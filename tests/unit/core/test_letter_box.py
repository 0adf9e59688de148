from __future__ import annotations

import os
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from flock_ray.core.letter_box import LetterBox
from flock_ray.core.state import Letter
from flock_ray.core.wire import Envelope


def letter_of(key: bytes, workflow: str = "w", at_us: int = 1) -> Letter:
    envelope = Envelope(key, "DeadLetter", 1, b"", workflow, 7, "orchestrator#a", at_us, ("q", "tenant:t"),
                        parents=(os.urandom(16),), activation_id=os.urandom(16), via=("a",))  # fmt: skip
    return Letter(envelope, "q", "a", "a/Order", at_us, envelope.parents, (), 0, "", "ConnectionError")


@given(st.lists(st.tuples(st.sampled_from("pdce"), st.integers(0, 9)), max_size=60))
def test_a_box_is_a_dict_of_letters(steps: list[tuple[str, int]]) -> None:
    box, known = LetterBox(Letter), dict[bytes, Letter]()
    for what, number in steps:
        key = b"%016d" % number
        if what == "p":
            known[key] = box[key] = letter_of(key, f"w{number % 3}", number)
        elif what == "d":
            assert (box.pop(key, None) is None) == (known.pop(key, None) is None)
        elif key in known:
            letter = box[key]
            letter.cancelled = what == "c"
            letter.replaced[key] = b"new"
            assert box[key] == known[key]  # a copy, until it is put back
            known[key] = box[key] = letter
        assert dict(box) == known
        assert list(box) == list(known)
        assert [one.envelope.id for one in box.newest_first()] == list(reversed(known))
        assert box.of_workflow("w1") == [e for e in known.values() if e.envelope.correlation_id == "w1"]


def test_ten_thousand_open_letters_take_little_memory() -> None:
    """They took a kilobyte each."""
    box, size = LetterBox(Letter), 10_000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(size):
        letter = letter_of(os.urandom(16), f"workflow-{number:030}", number)
        box[letter.envelope.id] = letter
    del letter
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 550 * size


def test_names_of_workflows_that_are_part_of_others_are_told_apart() -> None:
    box = LetterBox(Letter)
    for name in ("a", "ab", "q", "\ud800"):
        key = os.urandom(16)
        if name != "\ud800":
            box[key] = letter_of(key, name)
    assert [one.envelope.correlation_id for one in box.of_workflow("a")] == ["a"]
    assert [one.envelope.correlation_id for one in box.of_workflow("q")] == ["q"]
    assert box.of_workflow("\ud800") == []
