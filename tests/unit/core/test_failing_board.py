"""Limits, retries and dead letters of the core under any sequence of events: the promises, and recovery."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.wire import LimitSpec, Rate
from tests.unit.core.failing_board import LIMITS, MAX_ATTEMPTS, THRIFTY, FailingBoard


def most_in(times: list[int], window: int) -> int:
    """Most of the times that lie in any window of this length."""
    return max((sum(start <= t < start + window for t in times) for start in times), default=0)


def check(board: FailingBoard) -> None:
    """Hold the board against what its limits promise."""
    for agent, limits in board.limits.items():
        spec = LIMITS[agent] if limits is not None else None
        if spec is None:
            continue
        running = [a for a in board.open() if a.agent == agent and a.admitted]
        assert not spec.concurrency or len(running) <= spec.concurrency
        keys = [a.lane for a in running]
        assert not spec.keyed_concurrency or all(keys.count(k) <= spec.keyed_concurrency for k in keys)
        for rate in spec.rates:
            for (name, key), times in board.admitted.items():
                if name == agent and bool(key) == rate.keyed:
                    assert most_in(times, rate.per_us) <= rate.limit
        if spec.singleton:
            lanes = [a.lane for a in board.open() if a.agent == agent and not a.redrives]
            assert len(lanes) == len(set(lanes))
    for activation in board.open():
        assert activation.failures < MAX_ATTEMPTS
    assert all(count == 1 for count in board.retried().values())
    assert all(count == 1 for count in board.redriven().values())
    firsts, retries = board.thrifty()
    for at in retries:
        width = THRIFTY.budget_window_us // 10
        recent = sum(at - THRIFTY.budget_window_us < t <= at for t in retries)
        known = sum(at - THRIFTY.budget_window_us - 2 * width < t <= at for t in firsts)
        assert recent <= max(THRIFTY.budget_min, int(THRIFTY.budget_ratio * known))


def act(board: FailingBoard, rng: random.Random) -> None:
    """Do one thing at random."""
    kind = rng.choices(
        ("publish", "end", "wait", "lose", "cancel", "letter", "restart", "snapshot", "force", "slow"),
        (30, 40, 15, 2, 1, 5, 2, 2, 1, 5),
    )[0]
    if kind == "publish":
        board.publish(rng.choice(list(board.limits)), rng.choice(["k1", "k2"]), rng.choice("uvwxyz"))
    elif kind == "end" and board.running:
        how = rng.choices(("ok", "retry", "fail", "wait"), (5, 4, 2, 1))[0]
        board.end(rng.choice(sorted(board.running)), how)
    elif kind == "wait":
        board.wait(rng.choice((1, 40, 300, 1100)))
    elif kind == "lose":
        board.lose(rng.choice(board.shards))
    elif kind == "cancel":
        board.cancel(rng.choice("uvwxyz"))
    elif kind == "letter" and (letters := board.letters()):
        shard, slot, letter = rng.choice(letters)
        board.look_up()
        if rng.random() < 0.3:
            shard.core.discard(slot, letter, "me", "no use", board.now)
            board.commit(shard)
        else:
            if rng.random() < 0.5:
                old = shard.core.slots[slot].letters[letter].inputs[0]
                shard.core.edit_letter(slot, letter, old, rng.randbytes(16), "me", board.now)
                board.commit(shard)
            answer = board.redrive(shard, slot, letter)
            assert answer in ("ok", "cancelled")
            if answer == "ok":
                assert board.redrive(shard, slot, letter) == "gone"
    elif kind == "restart":
        board.restart(rng.choice(board.shards))
    elif kind == "snapshot":
        shard = rng.choice(board.shards)
        shard.rotate() if rng.random() < 0.3 else board.snapshot(shard, rng)
    elif kind == "slow":
        board.slow = not board.slow
        board.deliver(0.5, rng)
    elif kind == "force":
        for shard in board.shards:
            shard.core.force_breaker("breaker", open_=rng.random() < 0.5, by="me", now_us=board.now)
            board.commit(shard)


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_promises_hold_and_recovery_finds_the_same_state(seed: int) -> None:
    rng = random.Random(seed)
    board = FailingBoard()
    for _ in range(rng.randrange(20, 120)):
        act(board, rng)
        check(board)
    for shard in board.shards:
        board.check_rebuilt(shard)


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_everything_ends_when_nothing_fails_any_more(seed: int) -> None:
    # Given a board with any past, whose breaker is not held open by hand
    rng = random.Random(seed)
    board = FailingBoard()
    for _ in range(60):
        act(board, rng)
    for shard in board.shards:
        shard.core.force_breaker("breaker", open_=False, by="me", now_us=board.now)
        board.commit(shard)
    board.slow = False
    board.deliver()
    # When every attempt succeeds
    for _ in range(400):
        for place in sorted(board.running):
            board.end(place, "ok")
        if not board.open():
            break
        board.wait(400)
    # Then nothing is left: no run, no permit, no count
    assert board.open() == []
    for shard in board.shards:
        assert shard.core.idle
        for slot in shard.core.slots.values():
            for lane in slot.lanes.values():
                assert lane.running == 0
                assert all(state.running == 0 for state in lane.keys.values())
            assert all(w.open == 0 and w.waiting == 0 for w in slot.workflows.values())


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_nothing_of_a_cancelled_workflow_runs_on(seed: int) -> None:
    # Given runs of one workflow that are open, wait, or are on their way between shards
    rng = random.Random(seed)
    board = FailingBoard()
    board.slow = rng.random() < 0.7
    for _ in range(15):
        board.publish(rng.choice(list(board.limits)), rng.choice(["k1", "k2"]), "w")
        if board.running and rng.random() < 0.3:
            board.end(rng.choice(sorted(board.running)), rng.choice(("retry", "wait", "fail")))
        if rng.random() < 0.2:
            board.deliver(0.5, rng)
    # When it is cancelled, whatever arrives when
    board.cancel("w")
    if rng.random() < 0.5:
        board.restart(rng.choice(board.shards))
    board.slow = False
    board.deliver()
    board.wait(5000)
    # Then nothing of it is open, and nobody counts it
    assert [a for a in board.open() if a.correlation_id == "w"] == []
    for shard in board.shards:
        assert all(w.open == 0 for slot in shard.core.slots.values() for w in slot.workflows.values())
        assert shard.core.idle


@pytest.mark.parametrize("agent", [name for name, limits in LIMITS.items() if limits is not None])
def test_a_deploy_without_limits_lets_everything_through(agent: str) -> None:
    board = FailingBoard({agent: LIMITS[agent]})
    for n in range(6):
        board.publish(agent, f"k{n}", "uvw"[n % 3])
    before = len(board.running)
    board.limits[agent] = None
    board.install()
    board.wait(1000)
    assert len(board.running) == len(board.open()) >= before


NEW = [name for name, limits in LIMITS.items() if limits is not None and not limits.singleton]


@given(st.sampled_from(NEW), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_limits_that_a_deploy_brings_hold_for_what_was_ready_before(name: str, seed: int) -> None:
    # Given an agent without limits, of which some runs run, some are ready, some wait to be tried again
    rng = random.Random(seed)
    board = FailingBoard({"agent": None})
    board.grant(concurrency=rng.randrange(4))
    for _ in range(20):
        board.publish("agent", "", rng.choice("uvwxyz"))
        if board.running and rng.random() < 0.3:
            board.end(rng.choice(sorted(board.running)), rng.choice(("ok", "retry")))
    before = set(board.running)
    # When a deploy brings limits, and whatever happens next
    limits = board.limits["agent"] = LIMITS[name]
    assert limits is not None
    board.slow = rng.random() < 0.5
    board.install()
    for _ in range(40):
        what = rng.choice(("end", "end", "wait", "lose", "restart", "publish", "deliver", "cancel", "rotate"))
        if what == "end" and board.running:
            board.end(rng.choice(sorted(board.running)), rng.choice(("ok", "ok", "retry")))
        elif what == "wait":
            board.wait(rng.choice((40, 400)))
        elif what == "lose":
            board.lose(rng.choice(board.shards))
        elif what == "restart":
            board.restart(rng.choice(board.shards))
        elif what == "publish":
            board.publish("agent", "", rng.choice("uvwxyz"))
        elif what == "deliver":
            board.deliver(0.7, rng)
        elif what == "cancel" and rng.random() < 0.2:
            board.cancel(rng.choice("uvwxyz"))
        elif what == "rotate":
            rng.choice(board.shards).rotate()
        # Then everything that begins now was let through, and never too much of it
        before &= set(board.running)
        through = [a for a in board.open() if a.admitted]
        assert {task for _, task in board.running.keys() - before} <= {a.id for a in through}
        assert len(through) <= (limits.concurrency or 99)
        assert len(through) <= (limits.keyed_concurrency or 99)
        for rate in limits.rates:
            assert most_in(board.admitted["agent", ""], rate.per_us) <= rate.limit
    for shard in board.shards:
        board.check_rebuilt(shard)
    # And all of it runs in the end
    for shard in board.shards:
        shard.core.force_breaker("agent", open_=False, by="me", now_us=board.now)
        board.commit(shard)
    board.slow = False
    board.deliver()
    for _ in range(400):
        for place in sorted(board.running):
            board.end(place, "ok")
        if not board.open():
            break
        board.wait(400)
    assert board.open() == []
    assert all(shard.core.idle for shard in board.shards)


@pytest.mark.parametrize("how", ["skip", "replace"])
def test_what_had_begun_before_a_deploy_gives_way_to_nothing(how: str) -> None:
    board = FailingBoard({"agent": None})
    board.publish("agent", "", "u")
    board.end(next(iter(board.running)), "retry")  # waits for its second attempt
    board.limits["agent"] = LimitSpec(singleton=how)
    board.install()
    board.publish("agent", "", "v")
    board.wait(200)
    assert sorted(a.failures for a in board.open()) == [0, 1]
    assert sorted(task.failures for task in board.running.values()) == [0, 1]


def test_a_million_idle_keys_are_forgotten() -> None:
    board = FailingBoard({"keyed": LimitSpec(rates=(Rate(1, 10, True),), keyed_concurrency=1, keyed=True,
                                             concurrency=1000)})  # fmt: skip
    for n in range(300):
        board.publish("keyed", f"customer {n}")
        for place in sorted(board.running):
            board.end(place, "ok")
        board.wait(20)
    [lane] = [lane for s in board.shards for slot in s.core.slots.values() for lane in slot.lanes.values()]
    assert len(lane.keys) < 5


def test_what_limits_would_let_through_is_wanted_although_there_is_no_worker() -> None:
    # Given agents with limits and no worker: nothing is let through, so nothing is ready
    board = FailingBoard()
    board.grant(concurrency=0)
    for n in range(9):
        for agent in board.limits:
            board.publish(agent, f"k{n % 3}", "uvw"[n % 3])
    wanted: Counter[str] = Counter()
    for shard in board.shards:
        wanted.update(shard.core.wanted(board.now))
    # Then the pools hear of what could run, and not of what could not
    assert dict(wanted) == {
        "plain": 9,
        "rate": 3,
        "keyed": 3,
        "both": 3,
        "breaker": 9,
        "skip": 3,
        "replace": 3,
        "thrifty": 9,
    }
    assert all(s.core.oldest_wanted_us("rate") for s in board.shards if "rate" in s.core.wanted(board.now))


def test_runs_that_are_replaced_while_they_wait_leave_memory() -> None:
    board = FailingBoard({"replace": LIMITS["replace"]})
    board.grant(concurrency=0)
    for _ in range(500):
        board.publish("replace", "k1")
    [waiting] = [w for s in board.shards for w in s.core._waiting.get("replace", {}).values()]
    assert len(board.open()) == 1
    assert waiting.count < 50


def test_a_key_whose_rate_is_used_up_goes_on_although_its_runs_last() -> None:
    board = FailingBoard({"keyed": LimitSpec(rates=(Rate(2, 1000, True),), keyed=True)})
    board.grant(concurrency=0)
    for _ in range(5):
        board.publish("keyed", "k1")
    board.grant()
    assert len(board.running) == 2  # both in one micro-batch, which blocks the key
    for started in (4, 5):
        [due] = [at for s in board.shards if (at := s.core.next_timer_us()) is not None]
        board.wait(due - board.now)
        assert len(board.running) == started
