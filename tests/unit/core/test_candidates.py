"""Candidates in two shards that are killed, snapshotted and rebuilt: each is matched at most once, and none is lost."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from flock_ray.core.candidates import AT_ONCE, waiting_of
from flock_ray.core.ids import slot_of
from flock_ray.core.records import Completed, Offered
from flock_ray.core.state import MATCH_AGENT
from flock_ray.core.wire import (
    Completion,
    Envelope,
    ErrorInfo,
    Match,
    Posting,
    Refusal,
    SubscriptionSpec,
    Task,
)
from tests.unit.core import failing_board
from tests.unit.core.failing_board import FailingBoard
from tests.unit.core.journaled import Journaled

SECOND = 1_000_000
ASKING = "plain/T"


class CandidateBoard(FailingBoard):
    """A board whose only subscription asks again every ten seconds; `ripe` says what matches by now."""

    def __init__(self, every_us: int = 10 * SECOND) -> None:
        self.every_us = every_us
        self.store: dict[bytes, Envelope] = {}
        self.all_tasks: dict[bytes, Task] = {}
        self.ripe: set[bytes] = set()
        self.refused: set[bytes] = set()
        super().__init__({"plain": None})

    def install(self) -> None:
        def asking(name: str) -> SubscriptionSpec:
            return SubscriptionSpec(f"{name}/T", name, (name,), "single", reevaluate_us=self.every_us)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(failing_board, "subscription", asking)
            super().install()

    def grant(self, concurrency: int = 50) -> None:
        self.limits[MATCH_AGENT] = None
        super().grant(concurrency)
        del self.limits[MATCH_AGENT]

    def put(self, workflow: str = "w", *, candidates: tuple[str, ...] = (ASKING,), **more: Any) -> bytes:
        number = self.published.total()
        self.published["plain"] += 1
        key = b"%016d" % number
        envelope = Envelope(key, "plain", 1, b"{}", workflow, slot_of(workflow), "external", self.now)
        shard = self.shard_of(envelope.slot)
        self.look_up()
        self.store[key] = envelope
        shard.core.publish(Posting(envelope, candidates=candidates, **more), self.now)
        self.commit(shard)
        return key

    def wait(self, us: int) -> None:
        super().wait(us)
        for shard in self.shards:
            self.step(shard)

    def step(self, shard: Journaled) -> None:
        for due in shard.core.offers_due(self.now, 8):
            shard.core.offer(due, [self.store[key] for key in due.ids if key in self.store], self.now)
        self.commit(shard)

    def looks(self) -> list[tuple[int, bytes]]:
        """Return the looks at candidates that a worker has."""
        return [place for place, task in self.running.items() if task.agent == MATCH_AGENT]

    def look(self, place: tuple[int, bytes], *, error: bool = False) -> None:
        """Answer as a worker does: with what matches by now, or is refused."""
        task = self.running.pop(place)
        found = [
            Posting(e, (Match(ASKING),) if e.id in self.ripe else (), offered=ASKING,
                    refusals=(Refusal(ASKING, "where[0]", "boom"),) if e.id in self.refused else ())
            for e in task.inputs if e.id in self.ripe | self.refused
        ]  # fmt: skip
        failed = ErrorInfo("BoomError", "boom") if error else None
        answer = Completion(task.id, task.attempt, task.slot, () if error else tuple(found), failed, run_us=1)
        self.look_up()
        shard = self.shards[place[0]]
        for _ in range(2):  # a worker repeats what was not answered
            shard.core.complete(answer, self.now)
            self.commit(shard)

    def runs(self) -> Counter[bytes]:
        """Return how often each artifact was, or is, an input of the agent."""
        ended = Counter(r.completion.id for r in self.log if isinstance(r, Completed))
        assert set(ended.values()) <= {1}
        return Counter(e.id for t in self.all_tasks.values() if t.agent == "plain" for e in t.inputs)

    def commit(self, shard: Journaled) -> None:
        super().commit(shard)
        self.all_tasks.update({task.id: task for task in self.running.values()})

    def done_runs(self) -> list[bytes]:
        """Return the runs of the agent whose result was committed."""
        ended = [r.completion.id for r in self.log if isinstance(r, Completed)]
        return [key for key in ended if self.all_tasks[key].agent == "plain"]

    def run_some(self, rng: random.Random | None) -> None:
        """End runs of the agent: one, or all."""
        places = [place for place, task in self.running.items() if task.agent == "plain"]
        for place in places if rng is None else places[:1]:
            self.end(place, "ok")

    def waiting(self) -> set[bytes]:
        return {
            key
            for shard in self.shards
            for slot in shard.core.slots.values()
            for waiting in slot.candidates.values()
            for key in waiting.entries
        }

    def events(self, kind: str) -> list[Any]:
        found = []
        for shard in self.shards:
            events, _ = shard.core.events.read(0, 1000, kinds=frozenset({kind}))
            found += events
        return found

    def check(self) -> None:
        for shard in self.shards:
            self.check_rebuilt(shard)
            rebuilt = shard.rebuilt()
            assert rebuilt.num_candidates == shard.core.num_candidates
            for index, slot in shard.core.slots.items():
                assert msgspec.to_builtins(slot.candidates) == msgspec.to_builtins(
                    rebuilt.slots[index].candidates
                )


def test_what_does_not_match_is_offered_again_until_it_does_and_then_never() -> None:
    board = CandidateBoard()
    one, two = board.put(), board.put()

    for _ in range(3):
        board.wait(10 * SECOND)
        (place,) = board.looks()
        assert [e.id for e in board.running[place].inputs] == [one, two]
        board.look(place)
    board.ripe = {one}
    board.wait(10 * SECOND)
    board.look(board.looks()[0])
    assert board.runs() == {one: 1}
    board.wait(10 * SECOND)
    (place,) = board.looks()
    assert [e.id for e in board.running[place].inputs] == [two]
    board.check()
    assert [event.artifact_ids for event in board.events("candidate.matched")] == [(one,)]


def test_a_candidate_does_not_keep_its_workflow_from_settling() -> None:
    board = CandidateBoard()
    board.put("w")
    (shard,) = [s for s in board.shards if slot_of("w") in s.core.slots]
    workflow = shard.core.slots[slot_of("w")].workflows["w"]

    assert workflow.settled
    assert shard.core.idle
    board.wait(10 * SECOND)
    assert workflow.settled  # not while a worker looks at it, either
    shard.rotate()
    assert "w" not in shard.core.slots[slot_of("w")].workflows
    board.ripe = board.waiting()
    board.look(board.looks()[0])
    assert board.runs().total() == 1
    assert not shard.core.slots[slot_of("w")].workflows["w"].settled
    board.check()


def test_many_candidates_are_looked_at_some_at_once() -> None:
    board = CandidateBoard()
    for _ in range(2 * AT_ONCE + 1):
        board.put()

    board.wait(10 * SECOND)
    sizes = []
    while looks := board.looks():
        (place,) = looks
        sizes.append(len(board.running[place].inputs))
        board.look(place)
        for shard in board.shards:
            board.step(shard)

    assert sizes == [AT_ONCE, AT_ONCE, 1]


def test_a_candidate_that_left_the_board_is_dropped_and_said_so() -> None:
    board = CandidateBoard()
    kept, gone, erased = board.put(), board.put(), board.put()
    del board.store[gone]
    board.store[erased] = msgspec.structs.replace(board.store[erased], payload=b"null")

    board.wait(10 * SECOND)

    assert board.waiting() == {kept}
    assert {key for event in board.events("candidate.gone") for key in event.artifact_ids} == {gone, erased}
    board.check()


def test_all_of_them_may_be_gone() -> None:
    board = CandidateBoard()
    board.put()
    board.store.clear()

    board.wait(10 * SECOND)

    assert (board.waiting(), board.looks()) == (set(), [])
    assert [slot.candidates for s in board.shards for slot in s.core.slots.values() if slot.candidates] == []
    board.check()


def test_a_predicate_that_raises_later_refuses_the_artifact() -> None:
    board = CandidateBoard()
    board.refused = {board.put()}

    board.wait(10 * SECOND)
    board.look(board.looks()[0])

    assert board.waiting() == set()
    assert [event.detail for event in board.events("match.refused")] == ["plain/T: where[0]: boom"]


def test_a_look_that_fails_is_repeated_in_the_next_round() -> None:
    board = CandidateBoard()
    key = board.put()
    board.wait(10 * SECOND)

    board.look(board.looks()[0], error=True)

    assert board.looks() == []
    board.wait(10 * SECOND)
    board.ripe = {key}
    board.look(board.looks()[0])
    assert board.runs() == {key: 1}


@pytest.mark.parametrize("looked_at", [False, True])
def test_nothing_of_a_cancelled_workflow_is_offered(looked_at: bool) -> None:
    board = CandidateBoard()
    key = board.put("w")
    other = board.put("v")
    board.ripe = {key}
    if looked_at:
        board.wait(10 * SECOND)
    board.cancel("w")
    board.wait(10 * SECOND)
    for place in board.looks():
        board.look(place)

    assert board.runs() == {}
    assert board.waiting() == {other}
    board.check()


def test_an_agent_gets_a_candidate_of_two_subscriptions_once() -> None:
    board = CandidateBoard()
    board.limits["plain"] = None
    (shard,) = [s for s in board.shards if slot_of("w") in s.core.slots]
    table = shard.core.table
    second = SubscriptionSpec("plain/second", "plain", ("plain",), "single", reevaluate_us=10 * SECOND)
    for one in board.shards:
        one.core.install(
            msgspec.structs.replace(
                table, version=table.version + 1, subscriptions=(*table.subscriptions, second)
            ),
            board.now,
        )
        board.commit(one)
    key = board.put(candidates=(ASKING, second.id))
    assert len(waiting_of(shard.core.slots[slot_of("w")], key)) == 2

    board.ripe = {key}
    board.wait(10 * SECOND)
    board.look(next(p for p in board.looks() if board.running[p].subscription == ASKING))

    assert waiting_of(shard.core.slots[slot_of("w")], key) == []
    board.check()


def test_a_deploy_that_asks_more_often_holds_at_once() -> None:
    board = CandidateBoard(every_us=1000 * SECOND)
    board.put()
    board.every_us = SECOND
    board.install()

    board.wait(SECOND)

    assert len(board.looks()) == 1
    board.check()


def test_candidates_of_a_subscription_that_is_gone_are_dropped_and_said_so() -> None:
    board = CandidateBoard()
    board.put()
    board.every_us = 0
    board.install()

    board.wait(10 * SECOND)

    assert (board.waiting(), board.looks()) == (set(), [])
    assert len(board.events("candidate.dropped")) == 1
    board.check()


def test_there_are_not_more_than_a_shard_can_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flock_ray.core.candidates.MAX_CANDIDATES", 2)
    board = CandidateBoard()

    for _ in range(3):
        board.put("w")

    assert len(board.waiting()) == 2
    (event,) = board.events("candidate.dropped")
    assert event.artifact_ids == (b"%016d" % 2,)


def test_nothing_is_offered_while_the_board_is_halted() -> None:
    board = CandidateBoard()
    board.put()
    for shard in board.shards:
        shard.core.pause("board", "", on=True, by="", reason="", now_us=board.now)
        board.commit(shard)

    board.wait(30 * SECOND)
    assert board.looks() == []
    assert all(shard.core.next_offer_us() is None for shard in board.shards)
    for shard in board.shards:
        shard.core.pause("board", "", on=False, by="", reason="", now_us=board.now)
        board.commit(shard)
    board.wait(0)
    assert len(board.looks()) == 1


def test_a_delayed_artifact_is_not_offered_before_its_time() -> None:
    board = CandidateBoard()
    board.put(not_before_us=board.now + 35 * SECOND)

    board.wait(30 * SECOND)
    assert board.looks() == []
    board.wait(20 * SECOND)
    assert len(board.looks()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_every_candidate_is_matched_once_whatever_dies(seed: int) -> None:
    rng = random.Random(seed)
    board = CandidateBoard(every_us=5 * SECOND)
    published: list[bytes] = []
    for _ in range(80):
        shard = rng.choice(board.shards)
        action = rng.choice(
            ["put", "put", "wait", "wait", "look", "look", "kill", "snapshot", "rotate", "lose", "run"]
        )
        if action == "put":
            published.append(board.put(f"w{rng.randrange(6)}"))
            board.ripe |= set(rng.sample(published, len(published) // 3))
        elif action == "wait":
            board.wait(rng.choice([0, SECOND, 5 * SECOND, 60 * SECOND]))
        elif action == "look" and (looks := board.looks()):
            board.look(rng.choice(looks), error=rng.random() < 0.1)
        elif action == "kill":
            board.restart(shard)
        elif action == "snapshot":
            board.snapshot(shard, rng)
        elif action == "rotate":
            shard.rotate()
        elif action == "lose":
            board.lose(shard)
        elif action == "run":
            board.run_some(rng)
        if rng.random() < 0.2:
            board.check()
    board.ripe = set(published)
    for _ in range(40):
        board.wait(5 * SECOND)
        for place in board.looks():
            board.look(place)
        board.run_some(None)
    board.check()

    assert board.waiting() == set()
    committed = Counter(e.id for key in board.done_runs() for e in board.all_tasks[key].inputs)
    assert committed == Counter(published)
    offered = [r for r in board.log if isinstance(r, Offered)]
    assert not any(r.gone for r in offered)
