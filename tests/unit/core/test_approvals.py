"""The state machine of approvals by itself: who may decide, and what decides."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.core.approval_terms import ApprovalAsk, ApprovalTerms
from flock_ray.core.approvals import (
    APPROVED,
    CHANGES,
    MAX_VOTES,
    REJECTED,
    Case,
    Vote,
    refusal,
    shown_hash,
    standing,
    verdict,
)
from flock_ray.core.wire import Envelope

SHOWN = shown_hash("Trade", 1, {"amount": 1})


def case(approvers: tuple[str, ...] = ("ann", "bob"), quorum: int = 2, **terms: Any) -> Case:
    spec = ApprovalTerms(approvers, quorum, 10, **terms)
    ask = ApprovalAsk(b"t" * 16, "Trade", 1, SHOWN, "trader", ("intern", "trader"), None, "", spec)
    header = Envelope(b"r" * 16, "ApprovalRequest", 1, b"", "w", 0, "", 0)
    return Case(ask, header, 0, 10, approvers, quorum)


def say(
    one: Case, kind: Any, by: str, roles: tuple[str, ...] = (), *, key: bytes = b"", comment: str = ""
) -> str:
    key = key or f"{kind} {by} {len(one.votes)}".encode()
    why = refusal(one, kind, by, roles, one.ask.shown, key, comment)
    if not why:
        covers = standing(one, by, roles)
        one.votes.append(Vote(kind, by, covers, 1, one.ask.shown, key, one.round, comment))
    return why


def test_a_hash_covers_type_version_and_content_whatever_the_order_of_keys() -> None:
    assert shown_hash("A", 1, {"x": 1, "y": [2.5, None]}) == shown_hash("A", 1, {"y": [2.5, None], "x": 1})
    others = [
        ("B", 1, {"x": 1}),
        ("A", 2, {"x": 1}),
        ("A", 1, {"x": 2}),
        ("A", 1, {"x": "1"}),
        ("A", 1, {"x": True}),
    ]
    assert len({shown_hash("A", 1, {"x": 1}), *(shown_hash(*other) for other in others)}) == 6


def test_both_have_to_approve() -> None:
    one = case()
    assert say(one, "approve", "ann") == ""
    assert verdict(one) == ("", "")
    assert say(one, "approve", "bob") == ""
    assert verdict(one) == (APPROVED, "")


def test_a_second_vote_of_the_same_person_does_not_count() -> None:
    one = case()
    assert say(one, "approve", "ann") == ""
    for kind in ("approve", "reject", "abstain", "changes", "delegate", "edit"):
        assert say(one, kind, "ann") in ("voted", "no_edit")
    assert len(one.votes) == 1
    assert verdict(one) == ("", "")


def test_the_same_decision_again_is_known() -> None:
    one = case()
    assert say(one, "approve", "ann", key=b"k") == ""
    assert say(one, "approve", "ann", key=b"k") == "known"


def test_two_members_of_one_role_are_not_both_of_two_roles() -> None:
    one = case(("risk", "legal"))
    assert say(one, "approve", "ann", ("risk",)) == ""
    assert say(one, "approve", "cid", ("risk",)) == ""
    assert verdict(one) == ("", "")
    assert say(one, "approve", "dan", ("legal",)) == ""
    assert verdict(one) == (APPROVED, "")


def test_one_person_with_both_roles_counts_once() -> None:
    one = case(("risk", "legal"))
    assert say(one, "approve", "ann", ("risk", "legal")) == ""
    assert verdict(one) == ("", "")
    assert say(one, "approve", "bob", ("risk",)) == ""
    assert verdict(one) == (APPROVED, "")  # bob for risk, ann for legal


def test_a_quorum_above_the_list_of_roles_takes_several_of_one_role() -> None:
    one = case(("managers",), quorum=2)
    assert say(one, "approve", "ann", ("managers",)) == ""
    assert verdict(one) == ("", "")
    assert say(one, "approve", "bob", ("managers",)) == ""
    assert verdict(one) == (APPROVED, "")


def test_one_rejection_rejects_with_its_comment() -> None:
    one = case()
    say(one, "approve", "ann")
    say(one, "reject", "bob", comment="too risky")
    assert verdict(one) == (REJECTED, "too risky")


def test_asked_for_changes_it_ends() -> None:
    one = case()
    say(one, "changes", "bob", comment="round it")
    assert verdict(one) == (CHANGES, "round it")


def test_when_nobody_is_left_who_could_approve_it_is_rejected() -> None:
    one = case()
    say(one, "approve", "ann")
    say(one, "abstain", "bob")
    assert verdict(one)[0] == REJECTED


def test_a_role_can_always_have_another_member() -> None:
    one = case(("risk", "legal"))
    say(one, "abstain", "ann", ("risk",))
    say(one, "abstain", "bob", ("legal",))
    assert verdict(one) == ("", "")


def test_who_is_no_approver_may_not_decide() -> None:
    assert say(case(), "approve", "eve") == "forbidden"
    assert say(case(), "approve", "eve", ("ANN", "ann ")) == "forbidden"
    assert say(case(), "approve", "eve", ("ann",)) == ""  # a role of that name


@pytest.mark.parametrize("who", ["trader", "intern"])
def test_who_took_part_may_not_approve_but_may_say_no(who: str) -> None:
    one = case((who, "ann"))
    assert say(one, "approve", who) == "own"
    assert say(one, "reject", who) == ""
    assert say(case((who, "ann"), separation=False), "approve", who) == ""


def test_who_edited_may_not_approve() -> None:
    one = case(allow_edit=True)
    one.editors = ("ann",)
    assert say(one, "approve", "ann") == "own"
    assert say(one, "approve", "bob") == ""


def test_what_was_not_looked_at_is_not_approved() -> None:
    one = case()
    assert refusal(one, "approve", "ann", (), b"x" * 32, b"k", "") == "stale"


def test_comments_are_asked_for() -> None:
    one = case(require_comment=True)
    assert [say(one, kind, "ann", comment=" ") for kind in ("approve", "reject", "changes")] == [
        "comment"
    ] * 3
    assert say(one, "abstain", "ann") == ""
    assert say(one, "approve", "bob", comment="fine") == ""


def test_only_what_may_be_edited_is() -> None:
    assert say(case(), "edit", "ann") == "no_edit"
    assert say(case(allow_edit=True), "edit", "ann") == ""
    assert say(case(allow_edit=True, shadow=True), "edit", "ann") == "no_edit"


def test_a_delegate_speaks_for_the_one_and_that_one_no_more() -> None:
    one = case()
    one.delegations = (("ann", "eve", ("ann",)),)
    assert say(one, "approve", "ann") == "forbidden"
    assert say(one, "approve", "eve") == ""
    assert verdict(one) == ("", "")
    assert say(one, "approve", "bob") == ""
    assert verdict(one) == (APPROVED, "")


def test_to_delegate_to_another_approver_does_not_make_two_of_one() -> None:
    one = case()
    one.delegations = (("ann", "bob", ("ann",)),)
    assert say(one, "approve", "bob") == ""
    assert verdict(one)[0] != APPROVED


def test_anybody_decides_when_nobody_is_named() -> None:
    one = case((), quorum=1, shadow=True)
    assert say(one, "approve", "whoever") == ""
    assert verdict(one) == (APPROVED, "")


def test_a_case_does_not_grow_for_ever() -> None:
    one = case()
    vote = Vote("edit", "ann", (), 0, SHOWN, b"", 0)
    one.votes = [vote] * MAX_VOTES
    assert say(one, "approve", "bob") == "full"


people = st.sampled_from(["ann", "bob", "cid", "dan"])
roles = st.lists(st.sampled_from(["ann", "risk", "legal"]), max_size=2).map(tuple)


@given(
    approvers=st.lists(st.sampled_from(["ann", "bob", "risk", "legal"]), min_size=1, max_size=4, unique=True),
    quorum=st.integers(1, 4),
    votes=st.lists(st.tuples(people, roles), max_size=6),
)
def test_it_is_approved_exactly_when_enough_people_speak_for_different_approvers(
    approvers: list[str], quorum: int, votes: list[tuple[str, tuple[str, ...]]]
) -> None:
    one = case(tuple(approvers), quorum)
    yes: dict[str, tuple[str, ...]] = {}
    for by, of in votes:
        if say(one, "approve", by, of) == "":
            yes[by] = standing(one, by, of)
    needed = min(quorum, len(approvers))
    # Every way to give people different approvers, by trying all of them
    best = max(
        len({name for name in chosen if name})
        if len([n for n in chosen if n]) == len({n for n in chosen if n})
        else 0
        for chosen in itertools.product(*[(*covers, "") for covers in yes.values()])
    )
    assert (verdict(one)[0] == APPROVED) == (len(yes) >= quorum and best >= needed)
