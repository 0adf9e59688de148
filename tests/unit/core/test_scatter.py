"""Fan-outs and fan-ins of the core: completeness, failures, nesting, and recovery after every event."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.ids import slot_of
from flock_ray.core.scatter import FanInRule, Marks, Part, chunk_key, common, shown, slot_of_part
from flock_ray.core.wire import Task
from tests.unit.core.scatter_board import RULES, ScatterBoard


def board_of(*names: str, limited: bool = False) -> ScatterBoard:
    return ScatterBoard({name: RULES[name] for name in names}, limited=limited)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 9, 27, 28, 70])
@pytest.mark.parametrize("name", ["merge", "partial", "most", "wait", "tree", "tree-wait", "hasty"])
def test_all_chunks_are_merged_once_in_order(name: str, size: int) -> None:
    board = board_of(name)
    board.begin("w", size)
    board.run_all()
    assert board.results[name, "w"] == [list(range(size))]
    assert not board.errors["w"]
    board.check_rest()


def test_several_fan_ins_close_one_fan_out() -> None:
    board = board_of("merge", "tree", "partial")
    board.begin("w", 11)
    board.run_all()
    assert {name: board.results[name, "w"] for name in board.rules} == {
        name: [list(range(11))] for name in board.rules
    }
    board.check_rest()


def fail_some(*indexes: int):  # type: ignore[no-untyped-def]
    def choose(task: Task) -> str:
        return "fail" if task.agent == "map" and task.inputs[0].scatter[-1].index in indexes else "ok"

    return choose


def test_a_chunk_that_failed_is_named_in_the_error() -> None:
    board = board_of("merge")
    board.begin("w", 9)
    board.run_all(fail_some(1, 3, 4))
    assert board.results["merge", "w"] == []
    [error] = [e for e in board.errors["w"] if b"FanInIncompleteError" in e.payload]
    assert b"6 of 9 chunks; missing 1, 3-4 (3 dead-lettered)" in error.payload
    assert error.scatter == ()
    board.check_rest()


def test_what_is_missing_is_missing_in_a_partial_result() -> None:
    board = board_of("partial", "tree", "most")
    board.begin("w", 10)
    board.run_all(fail_some(0, 6, 7))
    rest = [1, 2, 3, 4, 5, 8, 9]
    assert board.results["partial", "w"] == board.results["tree", "w"] == board.results["most", "w"] == [rest]
    board.check_rest()


def test_chunks_that_nobody_makes_anything_of_are_missing_without_a_timeout() -> None:
    board = board_of("partial")
    board.begin("w", 6)
    board.run_all(
        lambda task: "nothing" if task.agent == "map" and task.inputs[0].scatter[-1].index < 2 else "ok"
    )
    assert board.results["partial", "w"] == [[2, 3, 4, 5]]
    board.check_rest()


@pytest.mark.parametrize("name", ["wait", "tree-wait"])
def test_a_redriven_dead_letter_completes_a_fan_in_that_waits(name: str) -> None:
    board = board_of(name)
    board.begin("w", 7)
    board.run_all(fail_some(0, 3))
    assert board.results[name, "w"] == []
    letters = board.letters()
    assert len(letters) == 2
    assert board.redrive(*letters[0]) == "ok"
    board.run_all()
    assert board.results[name, "w"] == []
    assert board.redrive(*letters[1]) == "ok"
    board.run_all()
    assert board.results[name, "w"] == [list(range(7))]
    board.check_rest()


def test_a_redrive_after_the_end_changes_nothing_and_is_an_event() -> None:
    board = board_of("partial")
    board.begin("w", 4)
    board.run_all(fail_some(1))
    [letter] = board.letters()
    assert board.redrive(*letter) == "ok"
    board.run_all()
    assert board.results["partial", "w"] == [[0, 2, 3]]
    kinds = [e.kind for shard in board.shards for e in shard.core.events.read(0, 10**6)[0]]
    assert "fan_in.late" in kinds
    board.check_rest()


def test_the_first_success_withdraws_the_rest() -> None:
    board = board_of("first")
    board.begin("w", 30)
    while not board.results["first", "w"]:
        # Given that everything runs, one chunk succeeds
        place = next((p for p, t in board.running.items() if t.agent in ("first", "map")), None)
        board.finish(place or sorted(board.running)[0])
    maps = [t for t in board.running.values() if t.agent in ("map", "leaf")]
    assert maps == []
    board.run_all()
    assert len(board.results["first", "w"][0]) == 1
    board.check_rest()


def test_a_fan_in_whose_time_is_over_takes_what_is_there() -> None:
    board = board_of("hasty")
    board.begin("w", 8)
    for _ in range(400):
        ready = [
            p for p, t in board.running.items() if t.agent != "map" or t.inputs[0].scatter[-1].index != 4
        ]
        if not ready:
            break
        board.finish(sorted(ready)[0])
    assert board.results["hasty", "w"] == []
    board.wait(3_000)
    board.run_all()
    assert board.results["hasty", "w"] == [[0, 1, 2, 3, 5, 6, 7]]
    board.check_rest()


def test_a_cancelled_workflow_leaves_nothing() -> None:
    board = board_of("merge", "tree")
    board.begin("w", 20)
    for _ in range(15):
        board.finish(sorted(board.running)[0])
    board.cancel("w")
    board.run_all()
    assert board.results == {} or not any(board.results.values())
    board.check_rest()


def act(board: ScatterBoard, rng: random.Random) -> None:
    kind = rng.choices(
        ("begin", "end", "wait", "lose", "cancel", "letter", "restart", "snapshot", "slow"),
        (4, 60, 10, 2, 1, 5, 4, 4, 6),
    )[0]
    free = [name for name in "uvwxyz" if name not in board.sizes]
    if kind == "begin" and free:
        board.begin(free[0], rng.choice((0, 1, 3, 8, 15)))
    elif kind == "end" and board.running:
        place = rng.choice(sorted(board.running))
        how = rng.choices(("ok", "nothing", "retry", "fail"), (12, 1, 2, 1))[0]
        if board.running[place].gather is not None:
            how = "retry" if not board.running[place].failures and rng.random() < 0.3 else "ok"
        elif board.running[place].agent in ("split", "inner"):
            how = "retry" if how == "retry" and not board.running[place].failures else "ok"
        board.finish(place, how)
    elif kind == "wait":
        board.wait(rng.choice((1, 100, 1100)))
    elif kind == "lose":
        board.lose(rng.choice(board.shards))
    elif kind == "cancel":
        name = rng.choice("uvwxyz")
        if name in board.sizes:
            board.cancel(name)
            board.cancelled.add(name)
    elif kind == "letter" and (letters := board.letters()):
        shard, slot, letter = rng.choice(letters)
        workflow = shard.core.slots[slot].letters[letter].envelope.correlation_id
        if board.redrive(shard, slot, letter) == "ok":
            board.redriven_in.add(workflow)
    elif kind == "restart":
        board.restart(rng.choice(board.shards))
    elif kind == "snapshot":
        shard = rng.choice(board.shards)
        board.rotate(shard) if rng.random() < 0.3 else board.snapshot(shard, rng)
    elif kind == "slow":
        board.slow = not board.slow
        board.deliver(0.5, rng)


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=120, deadline=None)
def test_every_chunk_is_counted_once_whatever_happens(seed: int, limited: bool) -> None:
    # Given a board with any past
    rng = random.Random(seed)
    rules = dict(rng.sample(sorted(RULES.items()), 3))
    rules.pop("hasty", None)
    board = ScatterBoard(rules, limited=limited)
    for _ in range(rng.randrange(20, 160)):
        act(board, rng)
    for shard in board.shards:
        board.check_rebuilt(shard)
    # When nothing fails any more
    board.slow = False
    board.deliver()
    board.run_all()
    board.check_rest()
    # Then each fan-in has one result, of exactly what was delivered, or has said why not
    for workflow, size in board.sizes.items():
        if workflow in board.cancelled:
            continue
        delivered = sorted(board.delivered[workflow])
        for name, rule in rules.items():
            check_result(board, name, rule, workflow, size, delivered)


def check_result(
    board: ScatterBoard, name: str, rule: FanInRule, workflow: str, size: int, delivered: list[int]
) -> None:
    results = board.results[name, workflow]
    errors = [e for e in board.errors[workflow] if b"FanInIncompleteError" in e.payload]
    mine = [e for e in errors if e.produced_by == f"orchestrator#{name}"]
    assert len(results) + len(mine) <= 1
    assert len(results) + len(mine) == 1 or rule.on_failure == "wait"
    if rule.strategy == "first_success":
        assert not results or results[0][0] in delivered
        return
    if results:
        # A dead letter that was redriven after the fan-in was over has delivered, too late.
        late = workflow in board.redriven_in and rule.on_failure != "wait"
        assert set(results[0]) <= set(delivered) if late else results[0] == delivered
        assert results[0] == sorted(results[0])
        missing = size - len(results[0])
        assert rule.on_failure == "partial" or missing <= (1 - rule.min_fraction) * size
    if rule.on_failure == "wait" and len(delivered) == size:
        assert results == [list(range(size))]


def test_marks_are_a_set() -> None:
    marks = Marks()
    numbers = random.Random(1).sample(range(300), 100)
    assert all(marks.add(n) for n in numbers)
    assert not marks.add(numbers[0])
    assert [n for n in range(320) if n in marks] == sorted(numbers)
    assert marks.discard(numbers[0])
    assert not marks.discard(numbers[0])
    ranges = marks.missing(300)
    gone = [n for first, last in ranges for n in range(first, last + 1)]
    assert sorted([*gone, *numbers[1:]]) == list(range(300))
    assert marks.count == 99
    assert shown(((3, 3), (7, 9))) == "3, 7-9"


def test_chunks_are_even_over_slots_and_have_keys_of_their_slots() -> None:
    slots = [slot_of_part(Part(b"s" * 16, index, 250, "a")) for index in range(640)]
    assert {slots.count(slot) for slot in slots} == {10}
    assert all(slot_of(chunk_key(slot)) == slot for slot in range(256))


def test_what_inputs_share_is_the_common_beginning() -> None:
    class E:
        def __init__(self, *parts: Part) -> None:
            self.scatter = parts

    a, b, c = (Part(name * 16, 0, 0, "x") for name in (b"a", b"b", b"c"))
    assert common([E(a, b), E(a, c)]) == (a,)
    assert common([E(a), E(a)]) == (a,)
    assert common([E(a, b), E()]) == ()
    assert common([]) == ()
