"""Limits of models: never over them in any window, fair turns, and what providers tell."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.model_limits import FairQueue, ModelLimiter, Observed, Rates, Ticket


def ticket(agent: str = "a", tenant: str = "", tokens: int = 1) -> Ticket:
    return Ticket(tenant, agent, tokens)


def run(
    limiter: ModelLimiter, tickets: list[Ticket], *, takes_s: float = 0.0, until: float = 1e6
) -> list[float]:
    """Let everything start as early as it may; returns the times of the starts."""
    for one in tickets:
        assert limiter.enqueue(one)
    now, starts = 0.0, list[float]()
    running: list[tuple[float, Ticket]] = []
    while now < until:
        for ends, one in [entry for entry in running if entry[0] <= now]:
            running.remove((ends, one))
            limiter.finish(one, now)
        for one in limiter.admit(now):
            starts.append(now)
            running.append((now + takes_s, one))
        wait = limiter.wait_s(now)
        times = [ends for ends, _ in running] + ([now + wait] if wait is not None else [])
        if not times:
            return starts
        now = max(min(times), now + 1e-9)
    return starts


@given(
    rpm=st.integers(1, 40),
    arrivals=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 8)), min_size=1, max_size=60),
)
@settings(max_examples=60, deadline=None)
def test_no_window_of_a_minute_has_more_starts_than_the_limit(
    rpm: int, arrivals: list[tuple[float, int]]
) -> None:
    limiter = ModelLimiter(Rates(rpm=rpm))
    now, starts = 0.0, list[float]()
    for gap, count in arrivals:
        now += gap
        for _ in range(count):
            limiter.enqueue(ticket())
        starts += [now] * len(limiter.admit(now))
    while limiter.waiting:
        wait = limiter.wait_s(now)
        assert wait is not None and wait > 0
        now += wait
        starts += [now] * len(limiter.admit(now))

    assert len(starts) == sum(count for _, count in arrivals)
    for index, start in enumerate(starts):
        assert sum(1 for other in starts[index:] if other < start + 60.0) <= rpm


@given(
    tpm=st.integers(10, 1000),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=50),
    seed=st.integers(),
)
@settings(max_examples=60, deadline=None)
def test_no_window_of_a_minute_has_more_tokens_than_the_limit(tpm: int, sizes: list[int], seed: int) -> None:
    limiter = ModelLimiter(Rates(tpm=tpm))
    rng = random.Random(seed)
    for size in sizes:
        limiter.enqueue(ticket(tokens=size))
    now, starts = 0.0, list[tuple[float, int]]()
    while limiter.waiting:
        for one in limiter.admit(now):
            used = rng.randint(0, one.tokens)  # an answer uses at most what was expected
            starts.append((now, used))
            limiter.finish(one, now, tokens=used)
        now += limiter.wait_s(now) or 0.0

    for index, (start, _) in enumerate(starts):
        window = [used for other, used in starts[index:] if other < start + 60.0]
        assert sum(window) <= tpm or len(window) == 1 or min(sizes) > tpm or max(sizes) > tpm


def test_the_rate_is_reached_not_only_kept() -> None:
    starts = run(ModelLimiter(Rates(rpm=10)), [ticket() for _ in range(50)])

    assert len(starts) == 50
    assert starts[-1] < 4 * 60.2


def test_concurrency_is_kept_and_used() -> None:
    limiter = ModelLimiter(Rates(concurrency=3))
    tickets = [ticket() for _ in range(9)]

    assert run(limiter, tickets, takes_s=2.0) == [0.0] * 3 + [2.0] * 3 + [4.0] * 3
    assert limiter.in_flight == 0 or limiter.idle is False


def test_a_call_larger_than_the_whole_limit_starts_alone() -> None:
    limiter = ModelLimiter(Rates(tpm=100))
    starts = run(limiter, [ticket(tokens=10), ticket(tokens=500), ticket(tokens=10)])

    assert len(starts) == 3
    assert starts[1] >= 60.0 and starts[2] >= starts[1] + 60.0


def test_more_tokens_than_expected_hold_the_next_call_back() -> None:
    limiter = ModelLimiter(Rates(tpm=100))
    first, second = ticket(tokens=10), ticket(tokens=10)
    limiter.enqueue(first)
    assert limiter.admit(0.0) == [first]
    limiter.finish(first, 1.0, tokens=95)

    limiter.enqueue(second)
    assert limiter.admit(1.0) == []
    wait = limiter.wait_s(1.0)
    assert wait is not None and limiter.admit(1.0 + wait) == [second]


def test_the_queue_is_bounded_and_a_cancelled_call_leaves_it() -> None:
    limiter = ModelLimiter(Rates(concurrency=1), max_waiting=2)
    first, second, third, fourth = (ticket() for _ in range(4))
    limiter.enqueue(first)
    limiter.admit(0.0)
    assert limiter.enqueue(second) and limiter.enqueue(third) and not limiter.enqueue(fourth)

    assert limiter.cancel(second) and not limiter.cancel(second)
    assert limiter.enqueue(fourth)
    limiter.finish(first, 1.0)
    assert limiter.admit(1.0) == [third]


# -- turns ------------------------------------------------------------------------------------------


def test_tenants_take_turns_then_agents() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.push(ticket("busy", "big"))
    for _ in range(5):
        queue.push(ticket("quiet", "big"))
        queue.push(ticket("one", "small"))

    first = [queue.pop() for _ in range(20)]

    tenants = Counter(one.tenant for one in first if one)
    agents = Counter(one.agent for one in first if one)
    assert tenants["small"] == 5
    assert agents["quiet"] == 5


def test_who_was_idle_has_saved_nothing_up() -> None:
    queue = FairQueue()
    for _ in range(50):
        queue.push(ticket("a"))
        queue.pop()
    for _ in range(10):
        queue.push(ticket("a"))
        queue.push(ticket("b"))

    served = Counter(one.agent for one in (queue.pop() for _ in range(10)) if one)

    assert abs(served["a"] - served["b"]) <= 2


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("+-x"), st.sampled_from("ABC"), st.sampled_from("xyz")), max_size=200
    )
)
@settings(deadline=None)
def test_the_queue_loses_nothing_and_keeps_the_order_of_an_agent(steps: list[tuple[str, str, str]]) -> None:
    queue, waiting = FairQueue(), list[Ticket]()
    for what, tenant, agent in steps:
        if what == "+":
            waiting.append(ticket(agent, tenant))
            queue.push(waiting[-1])
        elif what == "-":
            one = queue.pop()
            assert (one is None) == (not waiting)
            if one is not None:
                same = [w for w in waiting if (w.tenant, w.agent) == (one.tenant, one.agent)]
                assert same[0] is one
                waiting.remove(one)
        elif waiting:
            assert queue.remove(waiting.pop())
        assert len(queue) == len(waiting)
        assert (queue.peek() is None) == (not waiting)


@given(
    backlog=st.dictionaries(st.sampled_from("ABCD"), st.integers(20, 60), min_size=2),
    served=st.integers(8, 40),
)
@settings(deadline=None)
def test_tenants_that_all_wait_are_served_alike(backlog: dict[str, int], served: int) -> None:
    queue = FairQueue()
    for tenant, count in backlog.items():
        for _ in range(count):
            queue.push(ticket("a", tenant))
    served = min(served, min(backlog.values()))
    counts = Counter(one.tenant for one in (queue.pop() for _ in range(served)) if one)

    assert max(counts.values()) - min(counts.get(tenant, 0) for tenant in backlog) <= 1


def test_names_that_come_and_go_take_no_memory() -> None:
    queue = FairQueue()
    for number in range(5000):
        queue.push(ticket(f"agent-{number}", f"tenant-{number}"))
        queue.pop()
    assert not queue._tenants

    for _ in range(3):  # somebody always waits
        queue.push(ticket("agent", "tenant"))
    for number in range(5000):
        queue.push(ticket(f"agent-{number}", f"tenant-{number}"))
        queue.push(ticket(f"agent-{number}", "one"))
        queue.pop()
        queue.pop()
    assert len(queue._tenants) < 200
    assert len(queue._tenants["one"].flows) < 200


# -- what providers tell ----------------------------------------------------------------------------


def test_a_refusal_keeps_everybody_back_for_as_long_as_the_provider_says() -> None:
    limiter = ModelLimiter(Rates())
    limiter.enqueue(first := ticket())
    limiter.admit(0.0)
    assert limiter.refused(first, 0.0, 7.0) == 7.0
    limiter.finish(first, 0.0)

    limiter.enqueue(second := ticket())
    assert limiter.admit(6.9) == []
    assert limiter.wait_s(6.0) == 1.0
    assert limiter.admit(7.0) == [second]


def test_calls_that_are_given_up_leave_nothing_behind() -> None:
    queue = FairQueue()
    queue.push(stays := ticket("stays"))
    for number in range(5000):  # one agent again and again, then agents and tenants that never come back
        queue.push(gone := ticket("a"))
        assert queue.remove(gone)
        queue.push(gone := ticket(f"agent {number}", f"tenant {number}"))
        queue.push(other := ticket(f"agent {number}"))
        assert queue.remove(gone) and queue.remove(other)

    heaps = [queue._heap, *(tenant.heap for tenant in queue._tenants.values())]
    flows = [tenant.flows for tenant in queue._tenants.values()]
    assert max(map(len, heaps)) < 300 and max(map(len, flows)) < 300 and len(queue._tenants) < 300
    assert queue.pop() is stays and queue.pop() is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.booleans()), max_size=60))
def test_giving_calls_up_does_not_change_whose_turn_it_is(made: list[tuple[str, str, bool]]) -> None:
    """With the heaps trimmed at every chance, the order is the one without trimming."""
    lazy, keen = FairQueue(), FairQueue()
    lazy._trim = lambda tenant: None  # type: ignore[method-assign]
    trim = keen._trim

    def always(tenant: object) -> None:
        keen._heap += [(-1.0, "nobody")] * 500
        trim(tenant)  # type: ignore[arg-type]

    keen._trim = always  # type: ignore[method-assign]
    order: list[list[str]] = [[], []]
    for out, queue in zip(order, (lazy, keen), strict=True):
        for number, (tenant, agent, stays) in enumerate(made):
            queue.push(one := ticket(agent, tenant, number + 1))
            if not stays:
                assert queue.remove(one)
            elif number % 3 == 0 and (found := queue.pop()) is not None:
                out.append(str(found.tokens))
        while (found := queue.pop()) is not None:
            out.append(str(found.tokens))
    assert order[0] == order[1]


def test_without_a_time_the_pause_doubles_up_to_a_minute() -> None:
    limiter, now = ModelLimiter(Rates()), 0.0
    waits = []
    for _ in range(9):
        limiter.enqueue(one := ticket())
        assert limiter.admit(now) == [one]
        waits.append(limiter.refused(one, now, None))
        limiter.finish(one, now)
        now += waits[-1] + 1
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    limiter.enqueue(one := ticket())
    limiter.admit(now)
    limiter.succeeded(one)
    assert limiter.refused(one, now, None) == 1


def started(limiter: ModelLimiter, num: int, now: float) -> list[Ticket]:
    for _ in range(num):
        limiter.enqueue(ticket())
    return limiter.admit(now)


def test_concurrency_is_halved_once_per_round_and_comes_back() -> None:
    limiter = ModelLimiter(Rates())
    running = started(limiter, 16, 0.0)
    assert len(running) == 16
    for one in running:  # all of them are refused together
        limiter.refused(one, 0.0, 1.0)
        limiter.finish(one, 0.0)

    again = started(limiter, 32, 1.0)
    assert len(again) == 8

    rounds = 0
    while len(again) < 32:
        rounds += 1
        for one in again:
            limiter.succeeded(one)
            limiter.finish(one, 1.0)
        again = limiter.admit(1.0)
        limiter.enqueue(ticket())
        again += started(limiter, 32, 1.0)
    assert 2 <= rounds <= 16


def test_what_ran_beside_refused_calls_is_no_news() -> None:
    limiter = ModelLimiter(Rates())
    running = started(limiter, 40, 0.0)
    for one in running[:30]:  # the round is as large as what runs when the first one comes back
        limiter.refused(one, 0.0, None)
    for one in running[30:]:
        limiter.succeeded(one)
    for one in running:
        limiter.finish(one, 0.0)
    assert len(started(limiter, 100, 60.0)) == 20


class Provider:
    """A provider in virtual time: what it refuses is told after the latency, like its answers."""

    def __init__(
        self, *, latency_s: float, share: float = 0.0, most: int | None = None, told: bool = False
    ) -> None:
        self.limiter, self.random = ModelLimiter(Rates()), random.Random(1)
        self.latency_s, self.share, self.most, self.told = latency_s, share, most, told
        self.ends: list[tuple[float, int, Ticket, bool]] = []
        self.answered = self.refused = 0

    def run(self, clients: int, seconds: float) -> None:
        """Let so many clients call without a pause."""
        now, idle, back = 0.0, clients, list[float]()
        while now < seconds:
            idle += sum(at <= now for at in back)
            back = [at for at in back if at > now]
            for _ in range(idle):
                self.limiter.enqueue(ticket())
            idle = 0
            for one in self.limiter.admit(now):
                full = self.most is not None and sum(not end[3] for end in self.ends) >= self.most
                refused = full or self.random.random() < self.share
                takes_s = 0.1 if full else self.latency_s * self.random.uniform(0.5, 1.5)
                self.ends.append((now + takes_s, one.number, one, refused))
            self.ends.sort()
            while self.ends and self.ends[0][0] <= now:
                _, _, one, refused = self.ends.pop(0)
                if refused:
                    self.refused += 1
                    back.append(now + self.limiter.refused(one, now, 0.05 if self.told else None))
                else:
                    self.answered += 1
                    self.limiter.succeeded(one)
                    idle += 1
                self.limiter.finish(one, now)
            now += 0.02


@pytest.mark.parametrize("latency_s", [1.0, 4.0])
@pytest.mark.parametrize("told", [False, True])
def test_refusals_at_random_do_not_take_the_throughput_away(latency_s: float, told: bool) -> None:
    seconds = 60 * latency_s
    provider = Provider(latency_s=latency_s, share=0.05, told=told)
    provider.run(100, seconds)
    without = 100 * seconds / latency_s
    assert provider.answered > 0.8 * without


def test_a_provider_with_a_limit_of_its_own_is_used_and_not_stormed() -> None:
    provider = Provider(latency_s=1.0, most=20)
    provider.run(200, 120.0)
    assert provider.answered > 0.7 * 20 * 120
    assert provider.refused < 0.3 * provider.answered


def test_what_headers_say_is_left_is_not_overrun() -> None:
    limiter = ModelLimiter(Rates())
    limiter.observe(Observed(limit=60, remaining=2, reset_s=58.0), Observed(), 0.0)
    for _ in range(5):
        limiter.enqueue(ticket())

    assert len(limiter.admit(0.0)) == 2
    wait = limiter.wait_s(0.0)
    assert wait is not None and 0.9 < wait <= 1.01
    assert len(limiter.admit(2.05)) == 2


def test_headers_of_tokens_hold_large_calls_back() -> None:
    limiter = ModelLimiter(Rates())
    limiter.observe(Observed(), Observed(limit=1000, remaining=100, reset_s=9.0), 0.0)
    limiter.enqueue(ticket(tokens=400))

    assert limiter.admit(0.0) == []
    wait = limiter.wait_s(0.0)
    assert wait is not None and 2.9 < wait < 3.1
    assert len(limiter.admit(wait + 0.01)) == 1


def test_long_calls_that_use_less_than_expected_do_not_hold_the_others_back_for_ever() -> None:
    # A call that ended after its minute was taken off twice: the limit was wrong from then on.
    limiter = ModelLimiter(Rates(tpm=100_000))
    for n in range(10):
        ticket = Ticket("", "agent", 32_000)
        limiter.enqueue(ticket)
        assert limiter.admit(n * 100.0) == [ticket]
        limiter.finish(ticket, n * 100.0 + 70, tokens=2_000)
