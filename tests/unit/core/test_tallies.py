"""What aggregates decide, and how early, against an oracle that tries everything that may still come."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.ballots import UNIT, AggregateRule, Ballot, Decision
from flock_ray.core.tallies import Tally

ABSTAINS = Ballot()
VALUES = (b"1", b"2", b"3")


def vote(value: bytes, weight: float = 1) -> Ballot:
    return Ballot((value,), round(weight * UNIT))


def outcome(decision: Decision) -> Any:
    return decision.outcome, decision.choices, decision.places


def decided(strategy: str, *ballots: Ballot, **options: Any) -> Any:
    return outcome(Tally(AggregateRule(strategy, **options), ballots).decide("count"))


ballots = st.lists(st.sampled_from([ABSTAINS, *map(vote, VALUES)]), max_size=6)
rules = st.one_of(
    st.builds(AggregateRule, st.just("majority"), tie=st.sampled_from(["first", "abstain", "ask"])),
    st.just(AggregateRule("unanimous")),
    st.builds(AggregateRule, st.just("quorum"), st.integers(1, 4)),
)


@given(rules, ballots, st.integers(0, 3))
@settings(max_examples=400, deadline=None)
def test_a_tally_is_certain_exactly_when_nothing_that_may_come_changes_the_outcome(
    rule: AggregateRule, came: list[Ballot], remaining: int
) -> None:
    state = Tally(rule, came).state(remaining)
    # Every vote that there was, one that there was not, and abstaining
    choices = [ABSTAINS, *map(vote, VALUES), vote(b"9")]
    ends = {outcome(Tally(rule, [*came, *more]).decide("")) for more in product(choices, repeat=remaining)}
    expected = "undecided" if len(ends) > 1 else "impossible" if next(iter(ends))[0] == "none" else "decided"
    assert expected == state


@given(
    st.lists(st.tuples(st.sampled_from(VALUES), st.sampled_from([0, 0.5, 1, 2])), max_size=5),
    st.integers(0, 2),
)
@settings(max_examples=200, deadline=None)
def test_a_weighted_tally_is_certain_only_when_nothing_changes_the_outcome(
    came: list[tuple[bytes, float]], remaining: int
) -> None:
    rule = AggregateRule("weighted", max_weight=2 * UNIT)
    votes = [vote(value, weight) for value, weight in came]
    if Tally(rule, votes).state(remaining) == "undecided":
        return
    choices = [ABSTAINS, *(vote(v, w) for v in (*VALUES, b"9") for w in (0, 0.5, 1, 2))]
    ends = {outcome(Tally(rule, [*votes, *more]).decide("")) for more in product(choices, repeat=remaining)}
    assert 1 == len(ends)


def test_weights_nobody_knows_the_limit_of_are_certain_only_at_the_end() -> None:
    tally = Tally(AggregateRule("weighted"), [vote(b"1", 100)])
    assert ("undecided", "decided") == (tally.state(1), tally.state(0))


@given(st.lists(st.sampled_from([ABSTAINS, *map(vote, VALUES)]), max_size=12))
def test_a_majority_is_the_most_frequent_value_and_of_equals_the_first(came: list[Ballot]) -> None:
    counts = Counter(ballot.choices[0] for ballot in came if ballot.choices)
    expected = ("decided", (counts.most_common(1)[0][0],), ()) if counts else ("none", (), ())
    assert expected == decided("majority", *came)  # most_common is stable


def test_sums_of_weights_are_exact() -> None:
    came = [vote(b"1", 0.1), vote(b"2", 0.3), vote(b"1", 0.2)]
    assert ("none", (), ()) == decided("weighted", *came, tie="abstain")


def test_a_tie_may_be_left_to_a_function() -> None:
    assert ("tied", (b"2", b"1"), ()) == decided("majority", vote(b"2"), vote(b"1"), tie="ask")


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=8), st.booleans())
def test_the_best_input_is_chosen_and_of_equals_the_first(scores: list[int | None], is_max: bool) -> None:
    came = [Ballot(score=None if score is None else float(score)) for score in scores]
    known = [(score, -place) for place, score in enumerate(scores) if score is not None]
    best = (max(known) if is_max else min((s, -p) for s, p in known)) if known else None
    expected = ("none", (), ()) if best is None else ("decided", (), (-best[1],) if is_max else (best[1],))
    if best is not None and not is_max:
        expected = ("decided", (), (next(p for p, s in enumerate(scores) if s == best[0]),))
    assert expected == decided("max_by" if is_max else "min_by", *came)


@given(st.lists(st.permutations(VALUES), min_size=1, max_size=6))
def test_rankings_are_summed_up_as_borda_counts_them(rankings: list[list[bytes]]) -> None:
    points = Counter[bytes]()
    for ranking in rankings:
        for place, value in enumerate(ranking):
            points[value] += len(ranking) - 1 - place
    _, choices, _ = decided("rank", *(Ballot(tuple(ranking)) for ranking in rankings))
    assert sorted(choices) == sorted(VALUES)
    assert sorted((points[c] for c in choices), reverse=True) == [points[c] for c in choices]


def test_a_ranking_that_is_tied_at_the_top_may_have_no_outcome() -> None:
    came = [Ballot((b"1", b"2", b"3")), Ballot((b"2", b"1", b"3"))]
    assert ("none", (), ()) == decided("rank", *came, tie="abstain")
    assert ("decided", (b"1", b"2", b"3"), ()) == decided("rank", *came)


def test_a_quorum_is_of_the_value_that_reached_it_first_whatever_came_behind() -> None:
    came = [vote(b"1"), vote(b"1"), vote(b"2"), vote(b"2"), vote(b"2")]
    assert ("decided", (b"1",), ()) == decided("quorum", *came, number=2)


@pytest.mark.parametrize(("seen", "state"), [(1, "undecided"), (2, "decided")])
def test_first_n_is_decided_by_number(seen: int, state: str) -> None:
    assert state == Tally(AggregateRule("first_n", 2), [ABSTAINS] * seen).state(None)


def test_nobody_knows_the_end_of_a_majority_without_a_number() -> None:
    assert "undecided" == Tally(AggregateRule("majority"), [vote(b"1")] * 50).state(None)
