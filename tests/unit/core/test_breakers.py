"""Circuit breakers: what opens them, exactly how many probe, what closes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flock_ray.core.breakers import Breaker
from flock_ray.core.wire import BreakerSpec

SPEC = BreakerSpec(failure_threshold=3, recovery_us=1_000, half_open_attempts=2)
RATE = BreakerSpec(
    failure_threshold=4, recovery_us=1_000, half_open_attempts=1, failure_rate=0.5, window_us=100
)


def fed(spec: BreakerSpec, outcomes: Sequence[bool | None], *, step_us: int = 1) -> Breaker:
    breaker = Breaker()
    for position, failed in enumerate(outcomes):
        breaker.ended(spec, position * step_us, probe=0, failed=failed)
    return breaker


def opened() -> Breaker:
    return fed(SPEC, [True, True, True])


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([True, True], "closed"),
        ([True, True, True], "open"),
        ([True, True, False, True, True], "closed"),
        ([True, True, None, True], "open"),
        ([False] * 10, "closed"),
    ],
)
def test_consecutive_failures_open_it(outcomes: list[bool | None], state: str) -> None:
    assert state == fed(SPEC, outcomes).state


def test_open_it_lets_nothing_through_until_the_recovery_time_is_over() -> None:
    breaker = opened()

    assert 0 == breaker.allowance(SPEC, 1_001)
    assert 1_002 == breaker.free_us()
    assert 2 == breaker.allowance(SPEC, 1_002)


def test_half_open_it_closes_when_all_probes_succeeded() -> None:
    breaker = opened()
    probes = [breaker.admit(SPEC, 1_002), breaker.admit(SPEC, 1_002)]
    assert [1, 1] == probes
    assert 0 == breaker.allowance(SPEC, 1_002)

    assert not breaker.ended(SPEC, 1_003, probe=1, failed=False)
    assert breaker.state == "half_open"
    assert 0 == breaker.allowance(SPEC, 1_003)
    assert breaker.ended(SPEC, 1_004, probe=1, failed=False)

    assert ("closed", 0, 1_004) == (breaker.state, breaker.failures, breaker.changed_us)


def test_half_open_one_failure_opens_it_again_for_the_whole_recovery_time() -> None:
    breaker = opened()
    breaker.admit(SPEC, 1_002)

    assert breaker.ended(SPEC, 1_010, probe=1, failed=True)

    assert ("open", 2_010) == (breaker.state, breaker.until_us)


def test_a_probe_without_an_outcome_gives_its_place_to_another() -> None:
    breaker = opened()
    breaker.admit(SPEC, 1_002)
    breaker.admit(SPEC, 1_002)

    breaker.ended(SPEC, 1_003, probe=1, failed=None)

    assert 1 == breaker.allowance(SPEC, 1_003)


def test_a_probe_of_a_former_round_says_nothing() -> None:
    breaker = opened()
    first = breaker.admit(SPEC, 1_002)
    late = breaker.admit(SPEC, 1_002)
    breaker.ended(SPEC, 1_003, probe=first, failed=True)
    assert 2 == breaker.admit(SPEC, 2_003)

    for outcome in (False, None, True):
        assert not breaker.ended(SPEC, 2_004, probe=late, failed=outcome)

    assert ("half_open", 1) == (breaker.state, breaker.allowance(SPEC, 2_004))


def test_attempts_that_began_before_it_opened_say_nothing_while_it_is_not_closed() -> None:
    breaker = opened()
    assert not breaker.ended(SPEC, 500, probe=0, failed=False)
    assert not breaker.ended(SPEC, 500, probe=0, failed=True)
    assert ("open", 1_002) == (breaker.state, breaker.until_us)
    breaker.admit(SPEC, 1_002)

    assert not breaker.ended(SPEC, 1_003, probe=0, failed=True)

    assert breaker.state == "half_open"


def test_closing_it_by_hand_forgives_the_failures_so_far_also_when_it_is_closed() -> None:
    breaker, spec = Breaker(), BreakerSpec(2)
    breaker.ended(spec, 1, probe=0, failed=True)

    assert not breaker.force(False, 2)
    assert not breaker.ended(spec, 3, probe=0, failed=True)
    assert breaker.ended(spec, 4, probe=0, failed=True)


def test_opened_by_hand_it_stays_open_until_it_is_closed_by_hand() -> None:
    breaker = Breaker()

    assert breaker.force(True, 10)
    assert not breaker.force(True, 11)
    assert 0 == breaker.allowance(SPEC, 10**15)
    assert 0 == breaker.free_us()
    assert breaker.force(False, 12)
    assert not breaker.force(False, 13)

    assert ("closed", 12) == (breaker.state, breaker.changed_us)


def test_by_hand_an_open_one_stays_open_and_a_half_open_one_closes() -> None:
    breaker = opened()
    assert breaker.force(True, 10)
    assert 0 == breaker.allowance(SPEC, 5_000)
    other = opened()
    probe = other.admit(SPEC, 1_002)

    assert other.force(False, 1_003)
    assert not other.ended(SPEC, 1_004, probe=probe, failed=True)

    assert ("closed", 0) == (other.state, other.failures)


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([True, True, True], "closed"),
        ([True, False, True, False], "closed"),
        ([True, False, False, True], "open"),
        ([True, False, False, False, True, True], "open"),
        ([False, False, False, True], "closed"),
    ],
)
def test_a_rate_of_failures_opens_it_from_the_least_number_of_outcomes_on(
    outcomes: list[bool], state: str
) -> None:
    assert state == fed(RATE, outcomes).state


def test_outcomes_that_left_the_window_do_not_count() -> None:
    breaker = fed(RATE, [True, True, True])

    breaker.ended(RATE, 200, probe=0, failed=True)

    assert breaker.state == "closed"


def test_a_rate_is_compared_as_it_was_written() -> None:
    spec = BreakerSpec(failure_threshold=10, failure_rate=0.7, window_us=1_000)

    assert fed(spec, [False] * 3 + [True] * 7).state == "open"


@given(outcomes=st.lists(st.sampled_from([True, False, None]), max_size=30), threshold=st.integers(1, 5))
def test_it_opens_exactly_when_the_oracle_says_so(outcomes: list[bool | None], threshold: int) -> None:
    text = "".join({True: "F", False: "s", None: ""}[o] for o in outcomes)

    breaker = fed(BreakerSpec(failure_threshold=threshold), outcomes)

    assert ("F" * threshold in text) == (breaker.state == "open")


@given(
    events=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=40),
    threshold=st.integers(1, 6),
    rate=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
)
def test_a_rate_is_that_of_the_window_or_a_tenth_more(
    events: list[tuple[int, bool]], threshold: int, rate: float
) -> None:
    spec = BreakerSpec(failure_threshold=threshold, failure_rate=rate, window_us=100)
    breaker, now_us, seen = Breaker(), 0, list[tuple[int, bool]]()
    for gap_us, failed in events:
        now_us += gap_us
        seen.append((now_us, failed))
        opens = breaker.ended(spec, now_us, probe=0, failed=failed)
        # A step of outcomes leaves as a whole: any beginning of the window between the two is right.
        verdicts = set()
        for since in range(now_us - 111, now_us - 99):
            inside = [bad for at, bad in seen if at > since]
            verdicts.add(failed and len(inside) >= threshold and sum(inside) / len(inside) >= rate)
        assert opens in verdicts
        if opens:
            return


def test_it_comes_back_from_a_snapshot_as_it_was() -> None:
    breaker = opened()
    breaker.admit(SPEC, 1_002)

    assert breaker == msgspec.msgpack.decode(msgspec.msgpack.encode(breaker), type=Breaker)


@dataclass
class Attempt:
    probe: int
    failed: bool | None = None


class Machine(RuleBasedStateMachine):
    """Whatever happens: exactly so many probes, and only they close it."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now_us = 0
        self.running: list[Attempt] = []
        self.rounds: dict[int, list[Attempt]] = {}

    @rule(gap_us=st.integers(0, 1_500))
    def wait(self, gap_us: int) -> None:
        self.now_us += gap_us

    @precondition(lambda self: self.breaker.allowance(SPEC, self.now_us) > 0)
    @rule()
    def start(self) -> None:
        attempt = Attempt(self.breaker.admit(SPEC, self.now_us))
        self.running.append(attempt)
        if attempt.probe:
            self.rounds.setdefault(attempt.probe, []).append(attempt)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 50), failed=st.sampled_from([True, False, None]))
    def end(self, which: int, failed: bool | None) -> None:
        attempt = self.running.pop(which % len(self.running))
        attempt.failed = failed
        before = self.breaker.state
        changed = self.breaker.ended(SPEC, self.now_us, probe=attempt.probe, failed=failed)
        assert changed == (before != self.breaker.state)
        if before == "half_open" and self.breaker.state == "closed":
            good = [a for a in self.rounds[self.breaker.round] if a.failed is False]
            assert len(good) == SPEC.half_open_attempts
        if attempt.probe and failed is None:
            self.rounds[attempt.probe].remove(attempt)

    @rule(open_=st.booleans())
    def force(self, open_: bool) -> None:
        self.breaker.force(open_, self.now_us)

    @invariant()
    def no_round_has_more_probes_than_it_may(self) -> None:
        for probes in self.rounds.values():
            assert len(probes) <= SPEC.half_open_attempts

    @invariant()
    def it_can_always_go_on(self) -> None:
        """Half-open, something may start or is on its way: no state is for ever."""
        if self.breaker.state == "half_open":
            on_the_way = [a for a in self.running if a.probe == self.breaker.round]
            assert on_the_way or self.breaker.allowance(SPEC, self.now_us) > 0


Machine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestMachine = Machine.TestCase
