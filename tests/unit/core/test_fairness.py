"""Shares of an agent's time between tenants: by work, by weight, and at no cost for those who have one tenant."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.core import fairness
from flock_ray.core.dispatch import Dispatcher, ReadyQueue
from flock_ray.core.fairness import FairLevel, Prices, checked_weights, cost_of
from flock_ray.core.model_calls import ModelCall
from flock_ray.core.pauses import Pause, Pauses
from flock_ray.core.state import Activation
from flock_ray.core.wire import Envelope, GrantBatch
from flock_ray.errors import ConfigurationError
from tests.unit.core.permits import permit


def activation_of(number: int, tenant: str = "", priority: int = 0) -> Activation:
    key = number.to_bytes(16, "big")
    tags = (f"tenant:{tenant}",) if tenant else ()
    envelope = Envelope(key, "t", 1, b"{}", f"w{number}", 0, "external", number, tags)
    return Activation(key, "agent", "agent/sub", 0, f"w{number}", (envelope,), number, priority)


def tenant_of(activation: Activation) -> str:
    tags = activation.inputs[0].tags
    return tags[0].partition(":")[2] if tags else ""


class Job(NamedTuple):
    at_us: int
    tenant: str
    cost_us: int
    priority: int = 0
    tokens: int = 0


class Run(NamedTuple):
    job: Job
    began_us: int
    ended_us: int

    @property
    def latency_us(self) -> int:
        return self.ended_us - self.job.at_us


def simulate(
    jobs: Iterable[Job], servers: int, *, until_us: int | None = None, weights: dict[str, float] | None = None
) -> list[Run]:
    """Run jobs on workers of one agent, as the dispatcher hands them out; returns those that ended, in order."""
    dispatcher = Dispatcher(lambda _: True, weights_of=lambda _: weights or {})
    dispatcher.grant(GrantBatch(1, 1e12, [permit("agent", "w", 10**6, servers)]), 0)
    # As for agents whose runs are long: nothing is read ahead.
    for _ in range(20):
        warm = activation_of(0)
        dispatcher.release(warm, 10**9)
    arrivals = deque(sorted(jobs))
    by_id: dict[bytes, Job] = {}
    activations: dict[bytes, Activation] = {}
    running: list[tuple[int, int, bytes]] = []
    done: list[Run] = []
    began: dict[bytes, int] = {}
    now = 0
    while arrivals or running:
        due = [arrivals[0].at_us] if arrivals else []
        due += [running[0][0]] if running else []
        now = max(now, min(due))
        if until_us is not None and now > until_us:
            break
        while running and running[0][0] <= now:
            _, _, key = heappop(running)
            job, activation = by_id.pop(key), activations.pop(key)
            calls = (ModelCall("m", output_tokens=job.tokens),) if job.tokens else ()
            dispatcher.release(activation, job.cost_us, calls)
            done.append(Run(job, began.pop(key), now))
        while arrivals and arrivals[0].at_us <= now:
            job = arrivals.popleft()
            number = len(done) + len(by_id) + 1
            activation = activation_of(number, job.tenant, job.priority)
            by_id[activation.id], activations[activation.id] = job, activation
            dispatcher.push(activation)
        for tasks in dispatcher.take(now, 1).values():
            for task in tasks:
                began[task.id] = now
                heappush(running, (now + by_id[task.id].cost_us, len(began), task.id))
    return done


def p99(runs: list[Run], tenant: str) -> int:
    times = sorted(run.latency_us for run in runs if run.job.tenant == tenant)
    return times[len(times) * 99 // 100]


def work(runs: list[Run], tenant: str) -> int:
    return sum(run.job.cost_us for run in runs if run.job.tenant == tenant)


def steady(tenant: str, every_us: int, count: int, cost_us: int, seed: int) -> list[Job]:
    draw = random.Random(seed)
    at, jobs = 0.0, []
    for _ in range(count):
        at += draw.expovariate(1 / every_us)
        jobs.append(Job(int(at), tenant, int(cost_us * draw.uniform(0.5, 1.5))))
    return jobs


def test_a_backlog_of_10000_of_one_tenant_does_not_double_the_p99_of_another() -> None:
    # Given a tenant that uses 30 % of eight replicas
    quiet = steady("quiet", 41_000, 2_000, 100_000, seed=1)
    alone = p99(simulate(quiet, 8), "quiet")
    # When another one puts 10,000 runs there at once
    backlog = [Job(0, "loud", cost, 0) for _, _, cost, *_ in steady("loud", 1, 10_000, 100_000, seed=2)]
    runs = simulate(backlog + quiet, 8)
    # Then the first hardly notices, and the second still gets the rest
    assert len(runs) == 12_000
    assert p99(runs, "quiet") < 2 * alone
    # And without tenants it would have waited for all of them
    nobody = [job._replace(tenant="") for job in backlog + quiet]
    late = {run.job.at_us: run.latency_us for run in simulate(nobody, 8)}
    assert max(late.values()) > 100 * alone


def test_shares_are_by_work_and_not_by_count() -> None:
    # Given two backlogs, one of runs that take ten times as long
    jobs = [Job(0, "long", 1_000_000)] * 500 + [Job(0, "short", 100_000)] * 5_000
    # When both wait all the time
    runs = simulate(jobs, 4, until_us=60_000_000)
    # Then both get the same time
    assert work(runs, "long") == pytest.approx(work(runs, "short"), rel=0.1)


def test_tokens_count_as_work_where_they_are_known() -> None:
    jobs = [Job(0, "much", 100_000, 0, 1_000)] * 2_000 + [Job(0, "little", 100_000, 0, 100)] * 2_000
    runs = simulate(jobs, 1, until_us=110_000_000)
    much, little = (sum(run.job.tenant == tenant for run in runs) for tenant in ("much", "little"))
    assert little == pytest.approx(10 * much, rel=0.15)
    assert cost_of(5, ()) == 5
    assert cost_of(5, [ModelCall("m", input_tokens=2, output_tokens=1)]) == 30_000


def test_weights_are_shares() -> None:
    jobs = [Job(0, tenant, 50_000) for tenant in ("two", "one", "half") for _ in range(5_000)]
    runs = simulate(jobs, 4, until_us=60_000_000, weights={"two": 2.0, "half": 0.5})
    one = work(runs, "one")
    assert work(runs, "two") == pytest.approx(2 * one, rel=0.05)
    assert work(runs, "half") == pytest.approx(one / 2, rel=0.05)


def test_who_was_idle_has_saved_nothing_up_and_who_was_alone_owes_nothing() -> None:
    # Given a tenant that had the agent for itself for 100 s, with more to come
    jobs = [Job(0, "early", 100_000)] * 4_000
    # When another one comes with as much
    jobs += [Job(100_000_000, "late", 100_000)] * 4_000
    runs = [run for run in simulate(jobs, 2, until_us=110_000_000) if run.began_us >= 100_000_000]
    # Then from there on both get the same
    assert work(runs, "early") == pytest.approx(work(runs, "late"), rel=0.05)


def test_a_tenant_that_was_away_while_two_others_were_served_gets_its_share_and_no_more() -> None:
    # Given three tenants, of which one goes away after its first run
    jobs = [Job(0, tenant, 100_000) for tenant in "ab" for _ in range(4_000)] + [Job(0, "c", 100_000)]
    # When it comes back after 100 s with as much as the others
    jobs += [Job(100_000_000, "c", 100_000)] * 4_000
    runs = [run for run in simulate(jobs, 2, until_us=130_000_000) if run.began_us >= 100_000_000]
    # Then it gets a third
    assert work(runs, "c") == pytest.approx(work(runs, "a"), rel=0.05)
    # And so does one that comes for the first time
    runs = simulate([job for job in jobs if job.at_us or job.tenant != "c"], 2, until_us=130_000_000)
    late = [run for run in runs if run.began_us >= 100_000_000]
    assert work(late, "c") == pytest.approx(work(late, "a"), rel=0.05)


def test_a_tenant_that_comes_back_again_and_again_gets_no_more_than_its_share() -> None:
    # Given one tenant with a backlog, and one that asks for a burst of ten whenever its last one is over
    jobs = [Job(0, "steady", 100_000)] * 5_000
    jobs += [Job(int(at * 1e6), "bursts", 100_000) for at in range(0, 200, 2) for _ in range(10)]
    runs = simulate(jobs, 1, until_us=200_000_000)
    assert work(runs, "bursts") == pytest.approx(work(runs, "steady"), rel=0.06)


def test_a_higher_priority_goes_first_whoever_it_is_of() -> None:
    jobs = [Job(0, "a", 1_000, 0)] * 100 + [Job(0, "b", 1_000, 0)] * 100 + [Job(0, "a", 1_000, 5)] * 100
    order = [(run.job.priority, run.job.tenant) for run in simulate(jobs, 1)]
    assert order[:100] == [(5, "a")] * 100
    # And below it the tenants take turns, as if the first had had nothing
    assert [order[100:].count((0, tenant)) for tenant in "ab"] == [100, 100]
    assert 45 <= order[100:200].count((0, "a")) <= 55


def test_as_long_as_there_is_one_tenant_it_is_a_plain_queue() -> None:
    for tenant in ("", "acme"):
        queue = ReadyQueue(lambda: pytest.fail("nobody needs prices"))
        for number in range(100):
            queue.push(activation_of(number, tenant, number % 3))
        assert not queue.fair
        assert all(type(level) is deque for level in queue._levels.values())
        assert sorted(int.from_bytes(queue.pop().id, "big") for _ in range(100)) == list(range(100))
    # One after the other is as good as one
    queue.push(activation_of(1, "other"))
    queue.pop()
    queue.push(activation_of(2))
    assert not queue.fair


def test_an_agent_forgets_its_tenants_when_nothing_of_them_is_left() -> None:
    dispatcher = Dispatcher(lambda _: True)
    dispatcher.grant(GrantBatch(1, 10.0, [permit("agent", "w", 10, 10)]), 0)
    held = [activation_of(number, "ab"[number % 2]) for number in range(4)]
    for activation in held:
        dispatcher.push(activation)
    assert dispatcher.ready["agent"].fair
    dispatcher.take(0, 1)
    dispatcher.push(activation_of(9, "a"))
    assert dispatcher.ready["agent"].fair  # it runs
    dispatcher.take(0, 1)
    for activation in list(dispatcher.leases["w"].values()):
        dispatcher.release(activation, 10)
    dispatcher.push(activation_of(10, "a"))
    assert not dispatcher.ready["agent"].fair


def test_memory_is_bounded_whatever_number_of_tenants_come_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "MAX_IDLE", 50)
    monkeypatch.setattr(fairness, "MAX_MEANS", 50)
    dispatcher = Dispatcher(lambda _: True)
    dispatcher.grant(GrantBatch(1, 10.0, [permit("agent", "w", 1, 1)]), 0)
    for _ in range(20):
        dispatcher.release(activation_of(0), 10**9)
    # Given an agent that is never idle, when each of many tenants has one run
    dispatcher.push(activation_of(0, "first"))
    for number in range(1, 20_000):
        dispatcher.push(activation_of(number, f"t{number}"))
        dispatcher.take(0, 1)
        for activation in list(dispatcher.leases["w"].values()):
            dispatcher.release(activation, 1_000)
    # Then few are remembered
    queue = dispatcher.ready["agent"]
    [level] = queue._levels.values()
    assert isinstance(level, FairLevel)
    assert len(level._flows) <= 2 and len(level._idle) <= 51 and len(level._heap) <= 2
    assert len(dispatcher.prices("agent")._means) <= 50
    assert sum(map(len, dispatcher._charges.values())) <= 1


def test_a_thousand_priorities_do_not_stay() -> None:
    queue = ReadyQueue()
    for priority in range(1_000):
        queue.push(activation_of(priority, "ab"[priority % 2], priority))
    assert [queue.pop().priority for _ in range(1_000)] == list(reversed(range(1_000)))
    queue.push(activation_of(1))
    queue.pop()
    assert len(queue._levels) < 40


def test_what_is_set_aside_or_gone_is_not_charged() -> None:
    pauses = Pauses()
    gone: set[str] = set()
    dispatcher = Dispatcher(lambda a: a.correlation_id not in gone, pauses=pauses)
    dispatcher.grant(GrantBatch(1, 10.0, [permit("agent", "w", 100, 1)]), 0)
    for _ in range(20):
        dispatcher.release(activation_of(0), 10**9)
    # Given two tenants, and that one's first hundred are cancelled or paused
    for number in range(1, 101):
        dispatcher.push(activation_of(number, "a"))
        gone.add(f"w{number}") if number % 2 else pauses.put(Pause("workflow", f"w{number}", 0))
    for number in range(101, 121):
        dispatcher.push(activation_of(number, "ab"[number % 2]))
    order = ""
    for _ in range(20):
        [[task]] = dispatcher.take(0, 1).values()
        activation = dispatcher.leases["w"][task.id]
        order += tenant_of(activation)
        dispatcher.release(activation, 1_000)
    # Then its others are not late for that
    assert 4 <= order[:10].count("a") <= 6
    # And what was set aside comes back in its old order
    for number in range(2, 101, 2):
        pauses.lift("workflow", f"w{number}")
        dispatcher.resumed("workflow", f"w{number}")
    assert dispatcher.ready["agent"].count == 50


@given(
    ops=st.lists(
        st.one_of(
            st.tuples(
                st.just("push"), st.sampled_from(["", "a", "b", "c"]), st.integers(0, 2), st.booleans()
            ),
            st.just(("pop", "", 0, False)),
        ),
        max_size=200,
    )
)
def test_nothing_is_lost_priorities_hold_and_tenants_are_served_in_order(
    ops: list[tuple[str, str, int, bool]],
) -> None:
    queue = ReadyQueue()
    waiting: dict[tuple[int, str], deque[bytes]] = {}
    for number, (op, tenant, priority, front) in enumerate(ops):
        if op == "push":
            activation = activation_of(number, tenant, priority)
            queue.push(activation, front=front)
            line = waiting.setdefault((priority, tenant), deque())
            (line.appendleft if front else line.append)(activation.id)
        elif queue.count:
            activation = queue.pop()
            assert activation.priority == max(p for (p, _), line in waiting.items() if line)
            assert waiting[activation.priority, tenant_of(activation)].popleft() == activation.id
        assert queue.count == sum(map(len, waiting.values()))
        assert sorted(a.id for a in queue) == sorted(key for line in waiting.values() for key in line)
        assert (queue.oldest_us() is None) == (not queue.count)


@given(
    costs=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 1_000), min_size=2),
    weights=st.fixed_dictionaries(dict.fromkeys("abcd", st.sampled_from([0.5, 1.0, 2.0, 5.0]))),
)
def test_two_that_always_wait_never_drift_apart(costs: dict[str, int], weights: dict[str, float]) -> None:
    """Shares differ by no more than two runs of each, whatever the runs cost: one is charged before that is known."""
    level, prices = FairLevel(), Prices()
    prices.weights = weights
    for number in range(150):
        for tenant in costs:
            level.push(activation_of(number, tenant), tenant)
    had = dict.fromkeys(costs, 0.0)
    for _ in range(120):
        activation, flow, paid = level.pop(prices)
        tenant = tenant_of(activation)
        level.settle(flow, paid, costs[tenant])
        prices.note(tenant, costs[tenant])
        had[tenant] += costs[tenant] / weights[tenant]
        if level.count < 20:
            break
        for one in costs:
            for other in costs:
                limit = 2 * (costs[one] / weights[one] + costs[other] / weights[other]) + 4
                if one in level._flows and other in level._flows:
                    assert abs(had[one] - had[other]) <= limit


def test_weights_are_checked_where_they_are_declared() -> None:
    assert checked_weights(None) == ()
    assert checked_weights({"b": 2, "a": 0.5, "c": 1}) == (("a", 0.5), ("b", 2.0))
    for wrong in ({"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": float("inf")}, {"a": True}, {"a": "2"}, {"": 1},
                  {"a b": 1}, ["a"], {f"t{n}": 2.0 for n in range(1_001)}):  # fmt: skip
        with pytest.raises(ConfigurationError):
            checked_weights(wrong)


def test_what_is_forgotten_is_charged_to_nobody() -> None:
    """Throwing out what was cancelled once charged its tenant for every run that stayed."""
    # Given two tenants of which as much waits, and one of them has cancelled most of it
    queue = ReadyQueue()
    cancelled = {n.to_bytes(16, "big") for n in range(100, 150)}
    for n in range(10):
        queue.push(activation_of(n, "kept"))
        queue.push(activation_of(n + 50, "other"))
    for n in range(100, 150):
        queue.push(activation_of(n, "kept"))
    # When that is thrown out
    queue.keep(lambda activation: activation.id not in cancelled)
    # Then the others take turns as if it had never been there
    assert queue.count == 20
    order = [tenant_of(queue.pop()) for _ in range(20)]
    assert order == ["kept", "other"] * 10


def test_a_tenant_of_which_nothing_is_left_comes_back_where_it_was() -> None:
    queue = ReadyQueue()
    for n in range(4):
        queue.push(activation_of(n, "one"))
        queue.push(activation_of(n + 50, "two"))
    first = [tenant_of(queue.pop()) for _ in range(4)]
    queue.keep(lambda activation: tenant_of(activation) == "two")
    queue.push(activation_of(9, "one"))
    assert first == ["one", "two", "one", "two"]
    assert [tenant_of(queue.pop()) for _ in range(3)] == ["two", "one", "two"]


def test_a_plain_queue_forgets_what_is_not_wanted() -> None:
    queue = ReadyQueue()
    for n in range(6):
        queue.push(activation_of(n, priority=n % 2))
    queue.keep(lambda activation: activation.created_us > 2)
    assert [queue.pop().created_us for _ in range(queue.count)] == [3, 5, 4]
