"""Aggregates of the core under any sequence of events: decided once, on what was there, and found again by recovery."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.ballots import AggregateRule
from flock_ray.core.state import Gate
from tests.unit.core.voting_board import RULES, VotingBoard, sub_id

VALUES = (b"1", b"2", None)
OVERLAPPING = ("sliding",)
"""An input is in several windows, and so in several decisions."""


def act(board: VotingBoard, rng: random.Random) -> None:
    """Do one thing at random."""
    kind = rng.choices(
        ("ask", "vote", "finish", "wait", "lose", "cancel", "restart", "snapshot", "slow"),
        (12, 20, 40, 15, 2, 1, 3, 3, 4),
    )[0]
    workflow, value, key = rng.choice("uvwxyz"), rng.choice(VALUES), rng.choice((b"a", b"b"))
    partition = rng.choice((None, None, None, "p1", "p2"))
    if kind == "ask":
        board.ask(workflow, partition)
    elif kind == "vote":
        board.vote(workflow, value, key, partition)
    elif kind == "finish" and board.running:
        board.finish(rng.choice(sorted(board.running)), value, key, ok=rng.random() < 0.9)
    elif kind == "wait":
        board.wait(rng.choice((1, 40, 300, 1100)))
    elif kind == "lose":
        board.lose(rng.choice(board.shards))
    elif kind == "cancel":
        board.cancel(workflow)
    elif kind == "restart":
        board.restart(rng.choice(board.shards))
    elif kind == "snapshot":
        shard = rng.choice(board.shards)
        board.rotate(shard) if rng.random() < 0.3 else board.snapshot(shard, rng)
    elif kind == "slow":
        board.slow = not board.slow
        board.deliver(0.5, rng)


def check(board: VotingBoard) -> None:
    """Hold what was decided against the rules."""
    once = Counter[tuple[str, str]]()
    for task, decision in board.decided.values():
        rule, scope = RULES[task.agent]
        if rule.window is None and not rule.repeat and not decision.revision and scope == "workflow":
            once[task.agent, task.correlation_id] += 1
        if decision.reason == "count":
            assert len(task.inputs) == rule.count
        if task.agent in ("timed", "failing", "dropped") and decision.reason in ("timeout", "quiet"):
            assert len(task.inputs) >= rule.min_count
        if rule.window is not None and decision.until_us:
            assert decision.from_us < decision.until_us
        assert decision.ballots + decision.abstentions == len(task.inputs)
    assert not {place: n for place, n in once.items() if n > 1}, "an aggregate was decided twice"
    corrected = {agent for agent, (rule, _) in RULES.items() if rule.correct}
    twice = {p for p, n in board.consumed.items() if n > 1 and p[0] not in (*OVERLAPPING, *corrected)}
    assert not twice, "an input was counted in two decisions"


def finish_all(board: VotingBoard, rng: random.Random) -> None:
    """Let everything come to its end."""
    board.slow = False
    for _ in range(400):
        board.deliver()
        board.wait(1)
        for place in sorted(board.running):
            if place in board.running:
                board.finish(place, rng.choice(VALUES), b"a")
        if not board.running and not board.outgoing and not board.open():
            break
    else:
        raise AssertionError(f"it never ended: {board.open()}")


def gates_left(board: VotingBoard) -> list[Gate]:
    return [
        g
        for s in board.shards
        for slot in s.core.slots.values()
        for k in slot.gates.values()
        for g in k.values()
    ]


@given(st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_aggregates_decide_once_and_recovery_finds_the_same_state(seed: int) -> None:
    rng = random.Random(seed)
    board = VotingBoard()
    for _ in range(rng.randrange(20, 120)):
        act(board, rng)
        check(board)
    for shard in board.shards:
        board.check_rebuilt(shard)


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_nothing_is_stuck_and_every_count_comes_back_to_zero(seed: int) -> None:
    rng = random.Random(seed)
    board = VotingBoard()
    for _ in range(rng.randrange(10, 60)):
        act(board, rng)
    finish_all(board, rng)
    board.wait(5000)
    finish_all(board, rng)
    check(board)
    waiting = Counter[tuple[int, str]]()
    slots = [slot for shard in board.shards for slot in shard.core.slots.values()]
    cancelled = {w.id for slot in slots for w in slot.workflows.values() if w.cancelled}
    for gate in gates_left(board):
        rule = gate.spec.aggregate
        assert rule is not None and not rule.timeout_us, "a timeout was forgotten"
        # What was on its way to a gate when its workflow was cancelled waits there, as in all gates.
        assert {i.envelope.correlation_id for i in gate.items()} <= cancelled or not (
            rule.waits_for_quiet and gate.spec.scope == "workflow"
        ), "nobody noticed that all work has ended"
        waiting.update((item.home, item.envelope.correlation_id) for item in gate.items())
    for slot in slots:
        assert not slot.outbox
        for workflow in slot.workflows.values():
            counts = (workflow.open, workflow.delayed, workflow.waiting)
            assert counts == (0, 0, waiting.pop((slot.index, workflow.id), 0)), workflow
    assert not +waiting


def only(**rules: AggregateRule) -> VotingBoard:
    return VotingBoard({name: (rule, "workflow") for name, rule in rules.items()}, num_shards=1)


def test_what_only_feeds_a_decided_aggregate_is_withdrawn_also_where_a_limit_keeps_it() -> None:
    board = only(early=AggregateRule("majority", count=3))
    board.ask("w")
    board.ask("w")
    assert 4 == len(board.running)
    for place in sorted(p for p, t in board.running.items() if t.agent == "voter"):
        board.finish(place, b"1")
    assert ["early"] == [t.agent for t in board.running.values()]
    assert [("early", (b"1",))] == [(d.reason, d.choices) for d in board.decisions("early")]


def test_runs_that_somebody_else_waits_for_are_not_withdrawn() -> None:
    board = only(
        early=AggregateRule("majority", count=3), full=AggregateRule("collect_all", count=4, early=False)
    )
    board.ask("w")
    board.ask("w")
    for place in sorted(p for p, t in board.running.items() if t.agent == "voter"):
        board.finish(place, b"1")
    assert ["early", "slow-voter", "slow-voter"] == sorted(t.agent for t in board.running.values())


def test_an_aggregate_waits_for_another_one_that_leads_to_it() -> None:
    board = only(quiet=AggregateRule("majority"), second=AggregateRule("collect_all"))
    board.ask("w")
    while board.running:
        board.finish(min(board.running), b"1")
    assert [1] == [len(task.inputs) for task, _ in board.decided.values() if task.agent == "second"]


def test_what_comes_too_late_is_an_event_and_is_not_counted() -> None:
    board = only(full=AggregateRule("majority", count=2, early=False))
    for value in (b"1", b"1", b"2"):
        board.vote("w", value)
    events, _ = board.shards[0].core.events.read(0, 1000, kinds=frozenset({"aggregate"}))
    assert ["aggregate.decided", "aggregate.late"] == [event.kind for event in events]
    assert f"{sub_id('full')}: its group had been decided (by count)" in events[1].detail
    assert 1 == len(board.decided)


def test_a_late_input_corrects_a_decision_that_it_changes() -> None:
    board = only(corrected=AggregateRule("majority", count=3, early=False, correct=True))
    for value in (b"1", b"1", b"2", b"2", b"2"):
        board.vote("w", value)
    found = [(d.reason, d.choices, d.revision) for d in board.decisions("corrected")]
    assert [("count", (b"1",), 0), ("correction", (b"2",), 1)] == found


def test_a_settled_workflow_is_not_corrected_any_more() -> None:
    board = only(corrected=AggregateRule("collect_all", count=1, early=False, correct=True))
    board.vote("w", b"1")
    board.finish(min(board.running), None)
    board.vote("w", b"2")
    assert 1 == len(board.decided)


def test_too_few_inputs_are_a_dead_letter_that_can_be_redriven() -> None:
    board = only(failing=AggregateRule("collect_all", timeout_us=500, min_count=2, early=False))
    board.vote("w", b"1")
    board.wait(600)
    (letter,) = board.letters()
    assert not board.decided
    assert "ok" == board.redrive(*letter)


def test_an_early_decision_is_not_forgotten_by_a_restart() -> None:
    board = only(early=AggregateRule("majority", count=3))
    board.vote("w", b"1")
    board.rotate(board.shards[0])
    board.restart(board.shards[0])
    board.vote("w", b"1")
    assert [("early", (b"1",))] == [(d.reason, d.choices) for d in board.decisions("early")]
    board.restart(board.shards[0])
    board.vote("w", b"2")
    assert 1 == len({task.id for task, _ in board.decided.values()})
