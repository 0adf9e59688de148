"""Approvals in two shards that are killed, snapshotted and rebuilt after every event: each case ends once."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any

import msgspec
import pytest

from flock_ray.core.approval_desk import request_id
from flock_ray.core.approval_orders import ApprovalAnswer, ApprovalOrder
from flock_ray.core.approval_terms import ApprovalAsk, ApprovalTerms
from flock_ray.core.approvals import Case
from flock_ray.core.ids import derive_id, slot_of
from flock_ray.core.records import ApprovalDecided
from flock_ray.core.state import MATCH_AGENT, RELEASE
from flock_ray.core.wire import Completion, Envelope, GrantBatch, Posting
from tests.unit.core.failing_board import FailingBoard, Shard
from tests.unit.core.permits import permit

SHOWN = b"s" * 32
MINUTE = 60_000_000
TERMS = ApprovalTerms(("ann", "bob"), 2, 5 * MINUTE)


class ApprovalBoard(FailingBoard):
    """A board on which things wait for people."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, str]] = []
        """(case, workflow) of everything that was asked for."""
        self.terms: dict[bytes, ApprovalTerms] = {}
        self.ended: defaultdict[bytes, list[str]] = defaultdict(list)
        """By case: how it ended, as who decided was told."""
        self.released: Counter[bytes] = Counter()
        self.cancelled: set[str] = set()
        super().__init__({"plain": None})

    def grant(self, concurrency: int = 50) -> None:
        self.grants += 1
        for shard in self.shards:
            grants = [permit(name, "worker", concurrency, concurrency) for name in ("plain", MATCH_AGENT)]
            shard.core.dispatch.grant(GrantBatch(self.grants, 1e6, grants), self.now)
            self.commit(shard)

    def ask(self, workflow: str = "w", terms: ApprovalTerms = TERMS) -> bytes:
        key = derive_id(b"case", b"%d" % len(self.asked))
        self.asked.append((key, workflow))
        self.terms[key] = terms
        slot = slot_of(workflow)
        ask = ApprovalAsk(key, "Trade", 1, SHOWN, "trader", ("trader",), None, "", terms)
        envelope = Envelope(
            request_id(key, 0), "ApprovalRequest", 1, b"{}", workflow, slot, "orchestrator#trader", self.now
        )
        self.look_up()
        shard = self.shard_of(slot)
        shard.core.publish(Posting(envelope, approval=ask), self.now)
        self.commit(shard)
        return key

    def home(self, key: bytes) -> tuple[Shard, int]:
        slot = slot_of(dict(self.asked)[key])
        return self.shard_of(slot), slot

    def case(self, key: bytes) -> Case | None:
        shard, slot = self.home(key)
        return shard.core.slots[slot].approvals.get(key)

    def decide(self, key: bytes, kind: Any, by: str, decision: bytes = b"", **more: Any) -> ApprovalAnswer:
        shard, slot = self.home(key)
        known = self.case(key)
        shown = known.ask.shown if known is not None else SHOWN
        if kind == "edit" and known is not None:
            more["edited"] = self.edited(known, slot)
        order = ApprovalOrder(slot, key, kind, by, (), shown, decision or f"{kind} {by}".encode(), **more)
        self.look_up()
        answer = shard.core.decide_approval(order, self.now)
        self.commit(shard)
        if answer.outcome:
            self.ended[key].append(answer.outcome)
        again = shard.core.decide_approval(order, self.now)  # the answer was lost
        assert again.status != "ok" or (answer.status == "ok" and again.outcome == "")
        self.commit(shard)
        return answer

    def edited(self, known: Case, slot: int) -> Posting:
        shown = derive_id(known.ask.shown, b"edit") * 2
        ask = msgspec.structs.replace(known.ask, shown=shown)
        envelope = Envelope(
            request_id(known.id, known.round + 1), "ApprovalRequest", 1, b"{}", known.correlation_id, slot,
            "orchestrator#trader", self.now,
        )  # fmt: skip
        return Posting(envelope, approval=ask)

    def release_all(self) -> None:
        """Do what a worker does with what was approved, and repeat the answer."""
        for place, task in list(self.running.items()):
            if not task.subscription.startswith(RELEASE):
                continue
            del self.running[place]
            [request] = task.inputs
            key = next(k for k, _ in self.asked for r in range(99) if request_id(k, r) == request.id)
            made = msgspec.structs.replace(request, id=key, type="Trade", created_us=self.now)
            completion = Completion(task.id, task.attempt, task.slot, (Posting(made),), run_us=1)
            shard = self.shards[place[0]]
            self.look_up()
            for _ in range(2):
                self.released[key] += shard.core.complete(completion, self.now)
                self.commit(shard)

    def cancel(self, workflow: str) -> None:
        super().cancel(workflow)
        self.cancelled.add(workflow)

    def made(self, type_name: str) -> list[bytes]:
        return [
            e.id
            for shard in self.shards
            for seq in range(1, shard.core.index.head + 1)
            if (e := shard.core.index.at(seq)) is not None and e.type == type_name
        ]

    def events(self, kind: str) -> list[str]:
        return [
            event.detail
            for shard in self.shards
            for event in shard.core.events.read(0, 10_000, kinds=frozenset({kind}))[0]
        ]

    def check_approvals(self) -> None:
        for shard in self.shards:
            self.check_rebuilt(shard)
            rebuilt = self.rebuilt(shard)
            for index, slot in shard.core.slots.items():
                other = rebuilt.slots[index]
                assert msgspec.to_builtins(list(slot.approvals.values())) == msgspec.to_builtins(
                    list(other.approvals.values())
                )
                assert msgspec.to_builtins(slot.shadows) == msgspec.to_builtins(other.shadows)
                waiting = Counter(c.correlation_id for c in slot.approvals.values() if not c.ask.terms.shadow)
                for workflow in slot.workflows.values():
                    assert workflow.waiting == waiting[workflow.id]


def test_what_waits_for_people_is_unsettled_and_published_once_when_they_approve() -> None:
    board = ApprovalBoard()
    key = board.ask()
    assert board.made("Trade") == []
    shard, slot = board.home(key)
    workflow = shard.core.slots[slot].workflows["w"]
    assert (workflow.waiting, workflow.open, workflow.settled) == (1, 0, False)
    assert shard.core.idle  # only people can change the board

    assert board.decide(key, "approve", "ann") == ApprovalAnswer("ok")
    assert board.made("Trade") == []
    assert board.decide(key, "approve", "bob") == ApprovalAnswer("ok", "approved")
    assert (workflow.waiting, workflow.open) == (0, 1)
    board.release_all()

    assert board.made("Trade") == [key]
    assert workflow.settled
    board.check_approvals()


def test_late_votes_change_nothing_and_are_events() -> None:
    board = ApprovalBoard()
    key = board.ask()
    board.decide(key, "reject", "ann", comment="no")
    assert board.decide(key, "approve", "bob") == ApprovalAnswer("gone")
    assert board.made("Trade") == []
    assert board.made("ApprovalRejected") == [derive_id(key, b"rejected")]
    assert "approve by bob: gone" in board.events("approval.refused")


def test_a_timeout_rejects_once_and_a_vote_behind_it_is_late() -> None:
    board = ApprovalBoard()
    key = board.ask()
    board.decide(key, "approve", "ann")
    board.wait(5 * MINUTE)
    assert board.decide(key, "approve", "bob").status == "gone"
    board.release_all()
    assert board.made("Trade") == []
    assert len(board.made("ApprovalRejected")) == len(board.made("ApprovalOutcome")) == 1


def test_a_vote_just_before_the_timeout_wins() -> None:
    board = ApprovalBoard()
    key = board.ask()
    board.decide(key, "approve", "ann")
    board.now += 5 * MINUTE  # the timer is due, and the vote is in the micro-batch before it
    assert board.decide(key, "approve", "bob").outcome == "approved"
    board.wait(1)
    board.release_all()
    assert board.made("Trade") == [key]
    assert board.made("ApprovalRejected") == []


@pytest.mark.parametrize(
    ("terms", "made"), [(TERMS, 0), (msgspec.structs.replace(TERMS, on_timeout="approve"), 1)]
)
def test_the_declaration_says_what_a_timeout_does(terms: ApprovalTerms, made: int) -> None:
    board = ApprovalBoard()
    board.ask(terms=terms)
    board.wait(5 * MINUTE)
    board.release_all()
    assert len(board.made("Trade")) == made
    board.check_approvals()


def test_others_decide_after_an_escalation_anew_and_with_as_much_time() -> None:
    board = ApprovalBoard()
    key = board.ask(terms=msgspec.structs.replace(TERMS, on_timeout="escalate", escalate_to=("cfo",)))
    board.decide(key, "approve", "ann")
    board.wait(5 * MINUTE)
    case = board.case(key)
    assert case is not None and case.escalated and case.approvers == ("cfo",) and case.current == []
    assert board.decide(key, "approve", "bob").status == "forbidden"
    board.wait(4 * MINUTE)
    assert board.decide(key, "approve", "cfo").outcome == "approved"


def test_an_escalation_that_nobody_answers_is_rejected() -> None:
    board = ApprovalBoard()
    board.ask(terms=msgspec.structs.replace(TERMS, on_timeout="escalate", escalate_to=("cfo",)))
    for _ in range(2):
        board.wait(5 * MINUTE)
    assert len(board.made("ApprovalRejected")) == 1
    assert len(board.events("approval.escalated")) == 1


def test_reminders_come_until_it_is_decided() -> None:
    board = ApprovalBoard()
    key = board.ask(terms=msgspec.structs.replace(TERMS, remind_us=MINUTE))
    for _ in range(3):
        board.wait(MINUTE)
    assert len(board.events("approval.reminded")) == 3
    board.decide(key, "reject", "ann")
    board.wait(5 * MINUTE)
    assert len(board.events("approval.reminded")) == 3


def test_an_edit_begins_anew_and_the_editor_may_not_approve() -> None:
    board = ApprovalBoard()
    key = board.ask(terms=msgspec.structs.replace(TERMS, allow_edit=True, approvers=("ann", "bob", "cid")))
    board.decide(key, "approve", "ann")
    assert board.decide(key, "edit", "bob").status == "ok"
    case = board.case(key)
    assert case is not None and case.current == [] and case.request == request_id(key, 1)
    assert board.decide(key, "approve", "bob", b"again").status == "own"
    assert board.decide(key, "approve", "ann", b"again").status == "ok"
    assert board.decide(key, "approve", "cid").outcome == "approved"
    board.check_approvals()
    [task] = board.running.values()
    assert task.subscription == f"{RELEASE}{case.ask.shown.hex()}"
    assert task.inputs[0].id == request_id(key, 1)


def test_a_decision_about_what_was_shown_before_an_edit_is_refused() -> None:
    board = ApprovalBoard()
    key = board.ask(terms=msgspec.structs.replace(TERMS, allow_edit=True))
    shard, slot = board.home(key)
    old = ApprovalOrder(slot, key, "approve", "ann", (), SHOWN, b"old")
    board.decide(key, "edit", "bob")
    assert shard.core.decide_approval(old, board.now).status == "stale"


def test_nobody_delegates_to_who_has_delegated() -> None:
    board = ApprovalBoard()
    key = board.ask()
    assert board.decide(key, "delegate", "ann", b"1", to="ann").status == "to_nobody"
    assert board.decide(key, "delegate", "ann", b"2", to="bob").status == "ok"
    assert board.decide(key, "delegate", "bob", b"3", to="ann").status == "to_nobody"
    assert board.decide(key, "delegate", "bob", b"4", to="cid").status == "ok"
    board.check_approvals()


def test_only_an_edit_changes_what_is_shown() -> None:
    board = ApprovalBoard()
    key = board.ask(terms=msgspec.structs.replace(TERMS, allow_edit=True))
    shard, slot = board.home(key)
    case = board.case(key)
    assert case is not None
    order = ApprovalOrder(slot, key, "approve", "ann", (), SHOWN, b"k", edited=board.edited(case, slot))
    assert shard.core.decide_approval(order, board.now).status == "ok"
    assert (case.round, case.ask.shown) == (0, SHOWN)


def test_what_comes_for_a_cancelled_workflow_waits_for_nobody_and_says_so() -> None:
    board = ApprovalBoard()
    board.ask()
    board.cancel("w")
    assert board.case(board.ask()) is None
    assert board.events("approval.cancelled")[-1] == "its workflow was cancelled before"
    board.check_approvals()


@pytest.mark.parametrize("wrong", ["slot", "id", "visibility", "workflow"])
def test_an_edit_that_is_not_the_next_request_of_its_case_is_refused(wrong: str) -> None:
    board = ApprovalBoard()
    key = board.ask(terms=msgspec.structs.replace(TERMS, allow_edit=True))
    shard, slot = board.home(key)
    case = board.case(key)
    assert case is not None
    posting = board.edited(case, slot)
    options: dict[str, dict[str, Any]] = {
        "slot": {"slot": slot + 2}, "id": {"id": b"i" * 16}, "visibility": {"visibility": b'{"kind":"Private"}'},
        "workflow": {"correlation_id": "other"},
    }  # fmt: skip
    envelope = msgspec.structs.replace(posting.envelope, **options[wrong])
    posting = msgspec.structs.replace(posting, envelope=envelope)
    order = ApprovalOrder(slot, key, "edit", "bob", (), SHOWN, b"k", edited=posting)
    assert shard.core.decide_approval(order, board.now).status == "stale"
    assert board.case(key) == case


def test_a_cancelled_workflow_ends_its_approvals_and_what_was_approved_is_not_published() -> None:
    board = ApprovalBoard()
    waits, approved = board.ask(), board.ask()
    for by in ("ann", "bob"):
        board.decide(approved, "approve", by)
    board.cancel("w")
    board.release_all()
    assert board.made("Trade") == []
    assert board.decide(waits, "approve", "ann").status == "gone"
    assert len(board.events("approval.cancelled")) == 1
    board.check_approvals()


def test_shadows_hold_up_nothing_and_are_counted() -> None:
    board = ApprovalBoard()
    terms = ApprovalTerms((), 1, 5 * MINUTE, shadow=True)
    keys = [board.ask(f"w{n}", terms) for n in range(4)]
    for shard in board.shards:
        assert all(w.settled for slot in shard.core.slots.values() for w in slot.workflows.values())
        board.rotate(shard)
    board.decide(keys[0], "approve", "ann")
    board.decide(keys[1], "reject", "ann")
    board.decide(keys[2], "approve", "bob")
    board.wait(6 * MINUTE)
    rows = [row.count for shard in board.shards for row in shard.core.shadow_rows()]
    total = [sum(getattr(row, name) for row in rows) for name in ("asked", "approved", "rejected", "expired")]
    assert total == [4, 2, 1, 1]
    assert board.made("Trade") == [] and not board.running
    board.check_approvals()


def act(board: ApprovalBoard, rng: random.Random) -> None:
    """Do one thing at random."""
    kind = rng.choices(
        ("ask", "decide", "wait", "release", "restart", "cancel", "snapshot"), (4, 12, 3, 4, 2, 0.4, 1)
    )[0]
    if kind == "ask":
        options: dict[str, Any] = {
            "on_timeout": rng.choice(("reject", "approve", "escalate")), "escalate_to": ("cfo",),
            "remind_us": rng.choice((0, MINUTE)), "allow_edit": rng.random() < 0.5, "shadow": rng.random() < 0.2,
        }  # fmt: skip
        approvers = rng.choice((("ann", "bob"), ("ann",), ("ann", "bob", "cid")))
        board.ask(
            f"w{rng.randrange(6)}", ApprovalTerms(approvers, rng.randrange(1, 3), 3 * MINUTE, **options)
        )
    elif kind == "decide" and board.asked:
        key = rng.choice(board.asked)[0]
        what = rng.choices(
            ("approve", "reject", "abstain", "changes", "edit", "delegate"), (9, 1, 2, 1, 2, 1)
        )[0]
        more = {"to": rng.choice(("dan", "bob"))} if what == "delegate" else {}
        board.decide(
            key, what, rng.choice(("ann", "bob", "cid", "dan", "cfo")), b"%d" % rng.randrange(2**32), **more
        )
    elif kind == "wait":
        board.wait(rng.randrange(2 * MINUTE))
    elif kind == "release":
        board.release_all()
    elif kind == "restart":
        board.restart(rng.choice(board.shards))
    elif kind == "cancel":
        board.cancel(f"w{rng.randrange(6)}")
    elif kind == "snapshot":
        shard = rng.choice(board.shards)
        board.rotate(shard) if rng.random() < 0.5 else board.snapshot(shard, rng)


@pytest.mark.parametrize("seed", range(15))
def test_every_case_ends_once_whatever_dies(seed: int) -> None:
    rng, board = random.Random(seed), ApprovalBoard()
    for step in range(90):
        act(board, rng)
        if step % 9 == seed % 9:
            board.check_approvals()
    board.wait(20 * MINUTE)
    board.wait(20 * MINUTE)
    board.release_all()

    said = Counter((r.order.case, r.order.key) for r in board.log if isinstance(r, ApprovalDecided))
    assert set(said.values()) <= {1}
    assert not any(slot.approvals for shard in board.shards for slot in shard.core.slots.values())
    for key, workflow in board.asked:
        ends, terms = board.ended[key], board.terms[key]
        assert len(ends) <= 1
        if terms.shadow or ends in (["rejected"], ["changes_requested"]):
            assert board.released[key] == 0
        elif ends == ["approved"] or terms.on_timeout == "approve":
            assert board.released[key] == 1 or workflow in board.cancelled
        else:
            assert board.released[key] == 0
