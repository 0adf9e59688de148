from __future__ import annotations

import pytest

from flock_ray.core import lineage
from flock_ray.core.index import BoardIndex
from flock_ray.core.lineage import Lineage, runs_of
from flock_ray.core.wire import Envelope


def artifact(n: int, *, parents: tuple[int, ...] = (), run: int | None = None, by: str = "a") -> Envelope:
    return Envelope(
        n.to_bytes(16, "big"), "T", 1, b"{}", "w", 0, by, n, parents=tuple(p.to_bytes(16, "big") for p in parents),
        activation_id=None if run is None else run.to_bytes(16, "big"),
    )  # fmt: skip


def read(index: Lineage) -> None:
    while not index.catch_up(3):
        pass


def test_outputs_are_found_by_input_also_those_that_came_after_the_last_question() -> None:
    index = BoardIndex()
    made = Lineage(index)
    index.add(artifact(1))
    for n in range(2, 8):
        index.add(artifact(n, parents=(1,), run=n))
    read(made)
    index.add(artifact(8, parents=(1,), run=8))
    read(made)
    assert [e.created_us for e in made.made_from([artifact(1).id])] == [2, 3, 4, 5, 6, 7, 8]
    assert made.made_from([artifact(99).id]) == []


def test_artifacts_that_only_claim_parents_were_made_by_no_run() -> None:
    index = BoardIndex()
    index.add(artifact(2, parents=(1,)))
    made = Lineage(index)
    read(made)
    assert made.made_from([artifact(1).id]) == [] == runs_of(index)


def test_it_does_not_grow_with_what_was_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_MIN_ENTRIES", 100)
    index = BoardIndex()
    made = Lineage(index)
    for n in range(1, 5001):
        seq = index.add(artifact(n + 1, parents=(n,), run=n))
        if seq > 50:
            index.remove([seq - 50])
        if n % 10 == 0:
            read(made)
    assert len(made._made) <= 500
    assert [e.created_us for e in made.made_from([artifact(4990).id])] == [4991]


def test_the_runs_of_artifacts_say_who_made_them_and_how_they_ended() -> None:
    outputs = [artifact(2, parents=(1,), run=7), artifact(3, parents=(1,), run=7),
               artifact(4, parents=(1,), run=8, by="orchestrator#b")]  # fmt: skip
    one, failed = runs_of(outputs)
    assert (one.agent, one.status, len(one.outputs), one.inputs) == ("a", "completed", 2, (artifact(1).id,))
    assert (failed.agent, failed.status) == ("b", "failed")
