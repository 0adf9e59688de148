"""Who decides about approvals, and the decisions that there are, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flock_ray import (
    ApprovalOutcome,
    ApprovalRejected,
    ApprovalRequest,
    ApprovalSpec,
    StaticPrincipals,
)
from flock_ray.errors import (
    ApprovalError,
    ApprovalExpiredError,
    ArtifactNotFoundError,
    ArtifactSchemaError,
    ConfigurationError,
    ForbiddenError,
)
from flock_ray.testing import VirtualFlock
from tests.unit.test_approvals import ONE, Fill, Order, asked, declare, events, virtually

# -- who decides ---------------------------------------------------------------------------------


def test_a_second_vote_of_the_same_person_does_not_count() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock)
            waiting = await asked(flock)
            await flock.approvals.approve(waiting, by="ann", decision_id="d1")
            same = await flock.approvals.approve(waiting, by="ann", decision_id="d1")
            assert len(same.decisions) == 1
            with pytest.raises(ApprovalError, match="has decided") as info:
                await flock.approvals.approve(waiting, by="ann")
            assert info.value.approval_id == str(waiting.id)
            await flock.run_until_idle()
            assert filled == []
            assert ("approval.refused", "approve by ann: voted") in await events(flock)

    virtually(main())


def test_votes_at_the_same_time_release_once() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock, ApprovalSpec(approvers=["a", "b", "c", "d"], quorum=2))
            waiting = await asked(flock)
            answers = await asyncio.gather(
                *(flock.approvals.approve(waiting, by=by) for by in "abcd"), return_exceptions=True
            )
            await flock.run_until_idle()
            assert filled == ["ACME 5000"]
            assert sum(isinstance(answer, ApprovalExpiredError) for answer in answers) == 2

    virtually(main())


def test_a_late_vote_is_refused_and_its_decision_again_is_not() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ONE)
            waiting = await asked(flock)
            await flock.approvals.approve(waiting, by="ann", decision_id="d1")
            with pytest.raises(ApprovalExpiredError, match="too late"):
                await flock.approvals.reject(waiting, by="bob")
            again = await flock.approvals.approve(waiting, by="ann", decision_id="d1")
            assert again.state == "approved"
            assert ("approval.refused", "reject by bob: gone") in await events(flock)
            with pytest.raises(ArtifactNotFoundError):
                await flock.approvals.approve("00000000-0000-0000-0000-000000000000", by="ann")

    virtually(main())


def test_who_may_not_decide_is_told_so() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ApprovalSpec(approvers=["ann", "trader", "eve"], quorum=1))
            waiting = await asked(flock, tags={"principal:eve"})
            for by in ("mallory", "trader", "eve"):
                with pytest.raises(ForbiddenError):
                    await flock.approvals.approve(waiting, by=by)
            assert (await flock.approvals.get(waiting)).decisions == ()
            rejected = await flock.approvals.reject(waiting, by="eve", comment="I was wrong")
            assert (rejected.state, rejected.reason) == ("rejected", "I was wrong")

    virtually(main())


def test_roles_come_from_the_directory() -> None:
    async def main() -> None:
        people = {"ann": ["risk"], "bob": ["legal", "risk"], "eve": []}
        async with VirtualFlock(principals=people) as flock:
            filled = declare(flock, ApprovalSpec(approvers=["risk", "legal"], quorum=2))
            waiting = await asked(flock)
            assert [a.id for a in await flock.approvals.pending(by="ann")] == [waiting.id]
            assert await flock.approvals.pending(by="eve") == []
            with pytest.raises(ForbiddenError, match="directory"):
                await flock.approvals.approve(waiting, by="risk")  # a role is nobody
            with pytest.raises(ForbiddenError, match="not one of the approvers"):
                await flock.approvals.approve(waiting, by="eve")
            with pytest.raises(ForbiddenError, match="directory"):
                await flock.approvals.delegate(waiting, by="ann", to="nobody")
            await flock.approvals.approve(waiting, by="bob")
            await flock.approvals.delegate(waiting, by="ann", to="eve")
            await flock.approvals.approve(waiting, by="eve")
            await flock.run_until_idle()
            assert filled == ["ACME 5000"]

    virtually(main())


def test_a_directory_may_have_to_be_asked() -> None:
    class Slow:
        async def roles_of(self, person: str) -> list[str] | None:
            await asyncio.sleep(1)
            return {"ann": ["risk"]}.get(person)

    async def main() -> None:
        async with VirtualFlock(principals=Slow()) as flock:
            declare(flock, ApprovalSpec(approvers=["risk"]))
            waiting = await asked(flock)
            assert (await flock.approvals.approve(waiting, by="ann")).state == "approved"

    virtually(main())


@pytest.mark.parametrize("given", [{"ann": "risk"}, {"": ["x"]}, ["ann"], {"ann": [1]}])
def test_a_directory_that_makes_no_sense_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="roles of each person"):
        StaticPrincipals(given)


# -- the other decisions -------------------------------------------------------------------------


def test_a_rejection_says_who_and_why_to_whom_the_artifact_would_have_come() -> None:
    heard: list[ApprovalRejected] = []

    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock)
            flock.agent("desk").consumes(ApprovalRejected).runs(heard.append)
            waiting = await asked(flock)
            await flock.approvals.reject(waiting, by="bob", comment="too much")
            await flock.run_until_idle()
            assert filled == []
            [one] = heard
            assert (one.outcome, one.reason, one.by, one.agent) == ("rejected", "too much", ["bob"], "trader")
            [outcome] = await flock.store.get_by_type(ApprovalOutcome)
            assert (outcome.outcome, outcome.shown) == ("rejected", waiting.shown)
            assert [d.shown for d in outcome.decisions] == [waiting.shown]

    virtually(main())


def test_changes_can_be_asked_for_and_made() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock, ONE)
            spec = ApprovalSpec(approvers=["ann"])
            flock.agent("second").consumes(
                ApprovalRejected, where=lambda r: r.outcome == "changes_requested"
            ).publishes(Order, approval=spec).runs(lambda r: Order(symbol="ACME", amount=float(r.reason)))
            waiting = await asked(flock)
            with pytest.raises(ConfigurationError, match="which changes"):
                await flock.approvals.request_changes(waiting, by="ann", comment=" ")
            assert (
                await flock.approvals.request_changes(waiting, by="ann", comment="100")
            ).state == "changes_requested"
            await flock.run_until_idle()
            [better] = await flock.approvals.pending()
            await flock.approvals.approve(better, by="ann")
            await flock.run_until_idle()
            assert filled == ["ACME 100"]

    virtually(main())


def test_an_edit_is_checked_and_resets_the_approvals() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            filled = declare(flock, ApprovalSpec(approvers=["ann", "bob", "cid"], quorum=2, allow_edit=True))
            waiting = await asked(flock)
            await flock.approvals.approve(waiting, by="ann")
            with pytest.raises(ArtifactSchemaError):
                await flock.approvals.edit(waiting, {"symbol": "ACME", "amount": "much"}, by="bob")
            with pytest.raises(ArtifactSchemaError, match="not a"):
                await flock.approvals.edit(waiting, Fill(symbol="x"), by="bob")
            edited = await flock.approvals.edit(
                waiting, Order(symbol="ACME", amount=1), by="bob", comment="less"
            )
            assert edited.artifact == {"symbol": "ACME", "amount": 1.0}
            assert (edited.approved_by, edited.shown != waiting.shown) == ((), True)
            with pytest.raises(ApprovalError, match="something else"):
                await flock.approvals.approve(waiting, by="cid")  # of what was shown before
            with pytest.raises(ForbiddenError, match="edited"):
                await flock.approvals.approve(edited, by="bob")
            await flock.approvals.approve(edited, by="ann")
            await flock.approvals.approve(edited, by="cid")
            await flock.run_until_idle()
            assert filled == ["ACME 1"]
            requests = await flock.store.get_by_type(ApprovalRequest)
            assert [r.edited_by for r in requests] == ["", "bob"]

    virtually(main())


def test_what_may_not_be_edited_is_not() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            waiting = await asked(flock)
            with pytest.raises(ForbiddenError, match="allow_edit"):
                await flock.approvals.edit(waiting, Order(symbol="x", amount=1), by="ann")

    virtually(main())


def test_comments_are_asked_for_where_the_declaration_says_so() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ApprovalSpec(approvers=["ann"], require_comment=True))
            waiting = await asked(flock)
            with pytest.raises(ConfigurationError, match="comment"):
                await flock.approvals.approve(waiting, by="ann")
            assert (await flock.approvals.approve(waiting, by="ann", comment="fine")).state == "approved"

    virtually(main())
