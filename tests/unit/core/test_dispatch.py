from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flock_ray.core.dispatch import SOLO_AFTER_CRASHES, Dispatcher, ReadyQueue
from flock_ray.core.pauses import Pause, Pauses
from flock_ray.core.state import Activation
from flock_ray.core.wire import GrantBatch
from tests.unit.core.permits import permit

AGENTS = ("fast", "slow")
WORKERS = ("w1", "w2", "w3")


def activation_of(number: int, agent: str = "fast", priority: int = 0) -> Activation:
    return Activation(number.to_bytes(16, "big"), agent, f"{agent}/sub", 0, "w", (), number, priority)


class DispatchMachine(RuleBasedStateMachine):
    """Any order of grants, completions, deaths and hand-backs: permits are conserved."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[bytes, Activation] = {}
        self.dispatcher = Dispatcher(lambda a: self.open.get(a.id) is a)
        self.number = 0
        self.seq = 0
        self.credit: dict[tuple[str, str], int] = {}
        self.whole = True
        """No worker was dropped since the last grant."""

    @rule(agent=st.sampled_from(AGENTS), priority=st.integers(0, 2), crashes=st.integers(0, 3))
    def push(self, agent: str, priority: int, crashes: int) -> None:
        self.number += 1
        activation = activation_of(self.number, agent, priority)
        activation.crashes = crashes
        self.open[activation.id] = activation
        self.dispatcher.push(activation)

    @rule(
        permits=st.dictionaries(
            st.tuples(st.sampled_from(AGENTS), st.sampled_from(WORKERS)), st.integers(1, 4)
        )
    )
    def grant(self, permits: dict[tuple[str, str], int]) -> None:
        self.seq += 1
        grants = [permit(agent, worker, n, n) for (agent, worker), n in permits.items()]
        assert self.dispatcher.grant(GrantBatch(self.seq, 10.0, grants), 0)
        assert not self.dispatcher.grant(GrantBatch(self.seq, 10.0, []), 0), (
            "a repeated batch changes nothing"
        )
        self.credit = permits
        self.whole = True

    @precondition(lambda self: self.seq > 1)
    @rule(other=st.booleans())
    def renew(self, other: bool) -> None:
        self.seq += 1
        batch = GrantBatch(self.seq, 10.0, [], renews=self.seq - 1 - other)
        taken = self.dispatcher.grant(batch, 0)
        assert taken == (self.whole and not other), "only what is held whole is renewed"
        if not taken:  # the router sends all of it
            self.grant(self.credit)

    @rule()
    def take(self) -> None:
        for worker, tasks in self.dispatcher.take(1, 1).items():
            for task in tasks:
                assert self.open[task.id].worker == worker
                assert self.open[task.id].attempt == task.attempt
        for (agent, worker), credit in self.credit.items():
            used = sum(1 for a in self.open.values() if a.agent == agent and a.worker == worker)
            assert used <= max(credit, self.before.get((agent, worker), 0))
        for worker in WORKERS:
            suspects = [
                a for a in self.open.values() if a.worker == worker and a.crashes >= SOLO_AFTER_CRASHES
            ]
            assert len(suspects) <= 1, "one that may kill workers runs with no other of its kind"

    @rule(pick=st.randoms(use_true_random=False))
    def end(self, pick: object) -> None:
        running = [a for a in self.open.values() if a.worker is not None]
        if running:
            activation = running[getattr(pick, "randrange")(len(running))]  # noqa: B009  # a Random, untyped
            self.dispatcher.release(activation, 1000)
            del self.open[activation.id]

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: str) -> None:
        held = self.dispatcher.revoke(worker)
        assert not [a for a in self.open.values() if a.worker == worker]
        for activation in held:
            self.dispatcher.push(activation, front=True)
        self.whole = self.whole and all(key[1] != worker for key in self.credit)
        self.credit = {key: n for key, n in self.credit.items() if key[1] != worker}

    @invariant()
    def permits_in_use_are_those_of_running_attempts(self) -> None:
        self.before: dict[tuple[str, str], int] = {}
        for agent, holdings in self.dispatcher._permits.by_agent.items():
            for worker, holding in holdings.items():
                used = sum(1 for a in self.open.values() if a.agent == agent and a.worker == worker)
                assert holding.used == used
                self.before[agent, worker] = used

    @invariant()
    def nothing_is_ready_and_running_or_neither(self) -> None:
        ready = [a for queue in self.dispatcher.ready.values() for a in queue]
        waiting = [a.id for a in ready if self.open.get(a.id) is a]
        running = [a.id for a in self.open.values() if a.worker is not None]
        assert sorted(waiting + running) == sorted(self.open)

    def teardown(self) -> None:
        # In the end enough permits and completions leave nothing behind.
        self.grant({(agent, worker): 4 for agent in AGENTS for worker in WORKERS})
        for _ in range(len(self.open) + 1):
            self.take()
            for activation in [a for a in self.open.values() if a.worker is not None]:
                self.dispatcher.release(activation, 1000)
                del self.open[activation.id]
        assert not self.open
        assert self.dispatcher.running() == {}


DispatchMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestDispatch = DispatchMachine.TestCase


def test_ready_queue_gives_highest_priority_first_then_oldest() -> None:
    queue = ReadyQueue()
    for number, priority in enumerate((0, 2, 1, 2, 0)):
        queue.push(activation_of(number, priority=priority))
    again = queue.pop()
    queue.push(again, front=True)
    assert [int.from_bytes(queue.pop().id, "big") for _ in range(5)] == [1, 3, 2, 0, 4]


def test_permits_run_out_by_themselves() -> None:
    # Given permits for 10 s
    dispatcher = Dispatcher(lambda _: True)
    dispatcher.grant(GrantBatch(1, 10.0, [permit("fast", "w1", 5, 5)]), 0)
    dispatcher.push(activation_of(1))
    # When nobody renews them, then nothing is handed out after that
    assert dispatcher.take(10_000_001, 1) == {}
    assert dispatcher.permits_expired(10_000_001)
    assert sum(len(tasks) for tasks in dispatcher.take(10_000_000, 1).values()) == 1


def test_a_short_queue_spreads_over_all_workers() -> None:
    dispatcher = Dispatcher(lambda _: True)
    dispatcher.grant(GrantBatch(1, 10.0, [permit("fast", worker, 100, 100) for worker in WORKERS]), 0)
    for number in range(6):
        dispatcher.push(activation_of(number))
    assert {worker: len(tasks) for worker, tasks in dispatcher.take(0, 1).items()} == dict.fromkeys(
        WORKERS, 2
    )


def test_one_slow_run_stops_reading_ahead_only_for_a_few_round_trips() -> None:
    dispatcher = Dispatcher(lambda _: True)
    dispatcher.grant(GrantBatch(1, 10.0, [permit("fast", "w1", 1000, 1)]), 0)
    for number in range(60_000):
        dispatcher.push(activation_of(number))

    def round_trip(run_us: int) -> int:
        dispatcher.take(0, 1)
        held = list(dispatcher.leases["w1"].values())
        for activation in held:
            dispatcher.release(activation, run_us)
        return len(held)

    def trips_until_full() -> int:
        return next(trips for trips in range(100) if round_trip(20) == 1000)

    # Given an agent whose first run takes a minute and all others 20 us, then it soon has all it may have
    assert round_trip(60_000_000) == 1
    assert trips_until_full() < 20
    # When one run in between takes a minute, then it soon has that again
    dispatcher.take(0, 1)
    dispatcher.release(next(iter(dispatcher.leases["w1"].values())), 60_000_000)
    assert trips_until_full() < 10
    # When all runs take long, then few wait behind them
    for _ in range(40):
        last = round_trip(1_000_000)
    assert last == 1


def test_what_limits_have_let_through_runs_though_its_workflow_is_paused() -> None:
    # Given a paused workflow, one activation of which the limits of its agent count already
    pauses = Pauses()
    pauses.put(Pause("workflow", "w", 0))
    dispatcher = Dispatcher(lambda _: True, pauses=pauses)
    dispatcher.grant(GrantBatch(1, 10.0, [permit("fast", "w1", 5, 5)]), 0)
    held, admitted = activation_of(1), activation_of(2)
    admitted.admitted = True
    for activation in (held, admitted):
        dispatcher.push(activation)
    # Then that one runs: waiting, it would hold up other workflows of the agent
    assert [task.id for task in dispatcher.take(0, 1)["w1"]] == [admitted.id]
