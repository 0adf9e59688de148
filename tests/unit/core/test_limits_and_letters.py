"""Defects at the edges of limits, deploys, cancels and dead letters, each named after what it did."""

from __future__ import annotations

from flock_ray.core.wire import LimitSpec, Rate
from tests.unit.core.failing_board import LIMITS, FailingBoard


def bury(board: FailingBoard, agent: str, count: int, key: str = "") -> None:
    """Make dead letters, one after the other."""
    for n in range(count):
        board.publish(agent, key, f"w{n}")
        board.wait(400)
        for place in sorted(board.running):
            board.end(place, "fail")


def run_all(board: FailingBoard) -> int:
    """End everything well; returns how many runs that were."""
    runs = 0
    for _ in range(50):
        for place in sorted(board.running):
            board.end(place, "ok")
            runs += 1
        board.wait(400)
    return runs


def test_redriven_runs_of_singletons_and_debounced_agents_all_run() -> None:
    for name in ("skip", "replace", "debounce"):
        board = FailingBoard({name: LIMITS[name]})
        bury(board, name, 4, "k1")
        assert [board.redrive(*letter) for letter in board.letters()] == ["ok"] * 4
        assert run_all(board) == 4, name


def test_a_fresh_run_is_not_ended_by_a_redriven_one() -> None:
    board = FailingBoard({"replace": LIMITS["replace"]})
    bury(board, "replace", 1, "k1")
    board.publish("replace", "k1", "fresh")
    [fresh] = board.running
    [letter] = board.letters()
    assert board.redrive(*letter) == "ok"
    assert fresh in board.running


def test_a_letter_in_the_slot_of_its_limits_is_not_redriven_after_a_cancel() -> None:
    for name in ("plain", "both", "rate"):
        board = FailingBoard({name: LIMITS[name]})
        bury(board, name, 2)
        board.cancel("w0")
        answers = sorted(board.redrive(*letter) for letter in board.letters())
        assert answers == ["cancelled", "ok"], name
        for shard in board.shards:
            board.check_rebuilt(shard)


def test_a_singleton_that_a_deploy_brings_does_not_wait_for_what_has_ended() -> None:
    for name in ("skip", "replace"):
        board = FailingBoard({name: None})
        board.publish(name, "k1", "w")
        board.limits[name] = LimitSpec(singleton=name)
        board.install()
        for place in sorted(board.running):
            board.end(place, "ok")
        for n in range(3):
            board.publish(name, "", f"later {n}")
            assert len(board.running) == 1, name
            board.end(sorted(board.running)[0], "ok")
        for shard in board.shards:
            board.check_rebuilt(shard)


def test_a_rate_that_a_deploy_adds_or_removes_does_not_give_the_others_a_new_start() -> None:
    long, short = Rate(3, 1_000_000), Rate(50, 1000)
    for before, after in (((long,), (short, long)), ((short, long), (long,))):
        board = FailingBoard({"rate": LimitSpec(rates=before)})
        for _ in range(6):
            board.publish("rate")
        assert len(board.running) == 3
        board.limits["rate"] = LimitSpec(rates=after)
        board.install()
        board.wait(5000)
        assert len(board.running) == 3


def test_a_run_that_waits_for_its_budget_is_not_replaced_by_a_debounced_one() -> None:
    board = FailingBoard({"debounce": LIMITS["debounce"]})
    board.publish("debounce", "k1", "first")
    board.wait(400)
    board.end(sorted(board.running)[0], "wait")
    board.publish("debounce", "k1", "second")
    assert sorted(a.correlation_id for a in board.open()) == ["first", "second"]
    assert run_all(board) == 2


def test_a_key_that_is_free_again_is_wanted_although_there_is_no_worker() -> None:
    # Given a key whose rate is used up, and workers that left meanwhile
    limits = LimitSpec(rates=(Rate(1, 1000, True),), keyed_concurrency=1, keyed=True)
    board = FailingBoard({"keyed": limits})
    for _ in range(2):
        board.publish("keyed", "k1")
    board.end(sorted(board.running)[0], "ok")
    board.grant(concurrency=0)
    # When its time has come, then the pool hears of it
    board.wait(1100)
    assert sum(shard.core.wanted(board.now).get("keyed", 0) for shard in board.shards) == 1


def test_what_is_paused_asks_for_no_workers() -> None:
    board = FailingBoard({"plain": None, "rate": LIMITS["rate"]})
    board.grant(concurrency=0)
    for _ in range(3):
        for name in board.limits:
            board.publish(name)
    for kind, name in (("agent", "plain"), ("agent", "rate")):
        for shard in board.shards:
            shard.core.pause(kind, name, on=True, by="me", reason="", now_us=board.now)
            board.commit(shard)
            assert name not in shard.core.wanted(board.now)


def test_paused_runs_that_are_cancelled_leave_memory() -> None:
    board = FailingBoard({"plain": None, "replace": LIMITS["replace"]})
    for shard in board.shards:
        for name in board.limits:
            shard.core.pause("type", name, on=True, by="me", reason="", now_us=board.now)
        board.commit(shard)
    for n in range(300):
        board.publish("plain", workflow=f"w{n}")
        board.cancel(f"w{n}")
        board.publish("replace", "k1")
    held = sum(len(kept) for s in board.shards for kept in s.core._kept.values())
    held += sum(len(kept) for s in board.shards for kept in s.core.dispatch._aside.values())
    assert held < 300
