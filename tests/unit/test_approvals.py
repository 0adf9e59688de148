"""Approvals as a program declares and decides them, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import (
    ApprovalRejected,
    ApprovalRequest,
    ApprovalSpec,
    ApprovalTimeout,
    Artifact,
    Flock,
    TenantVisibility,
    WorkflowError,
    flock_type,
    only_for,
)
from flock_ray.core.registry import type_registry
from flock_ray.errors import (
    ApprovalError,
    ApprovalExpiredError,
    ArtifactNotFoundError,
    ConfigurationError,
    ForbiddenError,
)
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual


@flock_type(name="ApprovalTestIdea")
class Idea(BaseModel):
    symbol: str = "ACME"
    amount: float = 5_000.0


@flock_type(name="ApprovalTestOrder")
class Order(BaseModel):
    symbol: str
    amount: float


@flock_type(name="ApprovalTestFill")
class Fill(BaseModel):
    symbol: str


BOTH = ApprovalSpec(timeout=timedelta(minutes=5), approvers=["ann", "bob"], quorum=2)
ONE = ApprovalSpec(timeout=timedelta(minutes=5), approvers=["ann", "bob"])


def declare(flock: Flock, approval: Any = BOTH, **options: Any) -> list[str]:
    """A trader whose orders wait, and an exchange that fills them; returns what was filled."""
    filled: list[str] = []

    def fill(order: Order) -> Fill:
        filled.append(f"{order.symbol} {order.amount:g}")
        return Fill(symbol=order.symbol)

    trader = flock.agent("trader").consumes(Idea)
    trader.publishes(Order, approval=approval, **options).runs(
        lambda i: Order(symbol=i.symbol, amount=i.amount)
    )
    flock.agent("exchange").consumes(Order).publishes(Fill).runs(fill)
    return filled


def virtually(work: Coroutine[Any, Any, None]) -> None:
    with type_registry.isolated():
        run_virtual(work)


async def asked(flock: Flock, **options: Any) -> Any:
    """Publish an idea and return what waits because of it."""
    await flock.publish(Idea(), **options)
    await flock.run_until_idle()
    return (await flock.approvals.pending())[-1]


async def events(flock: VirtualFlock, family: str = "approval") -> list[tuple[str, str]]:
    found = []
    assert flock.local is not None
    for shard in flock.local.shards:
        assert shard is not None
        seen, _ = shard.core.events.read(0, 10_000, kinds=frozenset({family}))
        found += [(event.kind, event.detail) for event in seen]
    return found


# -- holding back and releasing ------------------------------------------------------------------


def test_what_was_approved_is_published_under_the_id_of_its_approval() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            filled = declare(flock)
            waiting = await asked(flock, correlation_id="w", tags={"desk:7"})
            assert waiting.artifact == {"symbol": "ACME", "amount": 5000.0}
            assert (waiting.agent, waiting.artifact_type) == ("trader", "ApprovalTestOrder")
            status = await flock.workflow_status("w")
            assert status.state == "waiting"
            assert "approval of ApprovalTestOrder" in status.waiting_for[0]
            assert "nobody has decided" in str(await flock.why(waiting.id))

            after = await flock.approvals.approve(waiting.id, by="ann", comment="fine")
            assert (after.state, after.approved_by) == ("pending", ("ann",))
            assert "ann says approve" in str(await flock.why(waiting.id))
            done = await flock.approvals.approve(waiting.id, by="bob")
            assert (done.state, done.approved_by) == ("approved", ("ann", "bob"))
            await flock.run_until_idle()

            assert filled == ["ACME 5000"]
            [order] = [a for a in await flock.store.list() if a.type == "ApprovalTestOrder"]
            assert order.id == waiting.id
            assert (order.produced_by, order.tags, order.correlation_id) == ("trader", {"desk:7"}, "w")
            assert [d.comment for d in done.decisions] == ["fine", ""]
            assert (await flock.workflow_status("w")).state == "completed"
            assert await flock.approvals.pending() == []

    virtually(main())


def test_only_what_needs_it_is_held_back() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            spec = ApprovalSpec(approvers=["ann"], when=lambda order: order.amount > 1000)
            filled = declare(flock, spec)
            await flock.publish_many([Idea(amount=10), Idea(amount=2000)])
            await flock.run_until_idle()
            assert filled == ["ACME 10"]
            [waiting] = await flock.approvals.pending()
            assert waiting.artifact == {"symbol": "ACME", "amount": 2000.0}

    virtually(main())


def test_a_condition_that_raises_publishes_nothing() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock, ApprovalSpec(approvers=["ann"], when=lambda order: order.nothing))
            await flock.publish(Idea())
            await flock.run_until_idle()
            assert filled == [] and await flock.approvals.pending() == []
            assert len(await flock.store.get_by_type(WorkflowError)) == 1

    virtually(main())


def test_nobody_sees_what_waits_but_approvers() -> None:
    seen: list[str] = []

    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ApprovalSpec(approvers=["ann"]), visibility=only_for("exchange"))

            def look(name: str) -> Any:
                def run(request: ApprovalRequest) -> None:
                    seen.append(f"{name} {request.artifact['symbol']}")

                return run

            for name in ("ann", "exchange", "spy"):
                flock.agent(name) if name != "exchange" else None
            flock.get_agent("ann").consumes(ApprovalRequest).runs(look("ann"))
            flock.get_agent("spy").consumes(ApprovalRequest).runs(look("spy"))
            flock.agent("spy2").consumes(Order).runs(lambda order: seen.append("spy2"))
            waiting = await asked(flock)
            assert seen == ["ann ACME"]
            # Nothing that others can list has the content
            told = str(await events(flock, "approval")) + str(await flock.why(waiting.id))
            assert "5000" not in told and "ACME" not in told
            await flock.approvals.approve(waiting, by="ann")
            await flock.run_until_idle()
            assert seen == ["ann ACME"]
            [order] = [a for a in await flock.store.list() if a.type == "ApprovalTestOrder"]
            assert order.visibility == only_for("exchange")

    virtually(main())


def test_a_request_is_no_wider_than_what_it_was_made_from() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ApprovalSpec(approvers=["ann"]))
            flock.get_agent("trader").tenant("acme")
            flock.agent("ann").consumes(ApprovalRequest).runs(lambda request: None)
            waiting = await asked(flock, visibility=TenantVisibility(tenant_id="acme"))
            text = str(await flock.why(waiting.request))
            assert "not matched" in text  # an agent of that name, of no tenant
            await flock.approvals.reject(waiting, by="ann")
            [rejected] = [a for a in await flock.store.list() if a.type == "ApprovalRejected"]
            assert rejected.visibility == TenantVisibility(tenant_id="acme")

    virtually(main())


def test_a_class_of_the_program_may_be_the_request() -> None:
    seen: list[Any] = []

    async def main() -> None:
        async with VirtualFlock() as flock:

            @flock_type(name="ApprovalRequest")
            class Mine(BaseModel):
                artifact: Order

            declare(flock, ApprovalSpec(approvers=["ann"]))
            flock.agent("ann").consumes(Mine, where=lambda r: r.artifact.amount > 1).runs(seen.append)
            await asked(flock)
            assert seen == [Mine(artifact=Order(symbol="ACME", amount=5000.0))]

    virtually(main())


def test_a_request_that_its_class_cannot_read_is_refused_visibly_and_can_still_be_decided() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:

            @flock_type(name="ApprovalRequest")
            class Mine(BaseModel):
                artifact: Fill
                more: int

            filled = declare(flock, ApprovalSpec(approvers=["ann"]))
            flock.agent("ann").consumes(Mine, where=lambda r: r.more > 1).runs(lambda r: None)
            waiting = await asked(flock)
            assert any(kind == "match.refused" for kind, _ in await events(flock, "match"))
            await flock.approvals.approve(waiting, by="ann")
            await flock.run_until_idle()
            assert filled == ["ACME 5000"]

    virtually(main())


# -- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "filled"),
    [
        (ApprovalSpec(approvers=["ann"], timeout=timedelta(hours=1)), []),
        (
            ApprovalSpec(approvers=["ann"], timeout=timedelta(hours=1), on_timeout=ApprovalTimeout.APPROVE),
            ["ACME 5000"],
        ),
    ],
)
def test_the_declaration_says_what_happens_when_nobody_decides(spec: ApprovalSpec, filled: list[str]) -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            made = declare(flock, spec)
            await asked(flock)
            await flock.run_until_idle(include_timers=True)
            assert made == filled

    virtually(main())


def test_an_escalation_asks_others() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            spec = ApprovalSpec(
                approvers=["ann"],
                timeout=timedelta(hours=1),
                on_timeout=ApprovalTimeout.ESCALATE,
                escalate_to=["cfo"],
            )
            filled = declare(flock, spec)
            waiting = await asked(flock)
            await asyncio.sleep(3700)
            now = await flock.approvals.get(waiting)
            assert (now.approvers, now.escalated) == (("cfo",), True)
            with pytest.raises(ForbiddenError):
                await flock.approvals.approve(now, by="ann")
            await flock.approvals.approve(now, by="cfo")
            await flock.run_until_idle()
            assert filled == ["ACME 5000"]

    virtually(main())


def test_a_cancelled_workflow_waits_for_nobody() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock)
            waiting = await asked(flock, correlation_id="w")
            await flock.cancel("w")
            assert await flock.approvals.pending() == []
            with pytest.raises(ArtifactNotFoundError):
                await flock.approvals.approve(waiting, by="ann")
            assert filled == []

    virtually(main())


# -- training mode -------------------------------------------------------------------------------


def test_shadows_block_nothing_and_show_how_often_people_agree() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            filled = declare(flock, "shadow")
            await flock.publish_many([Idea(symbol=f"s{n}") for n in range(4)], correlation_id=None)
            await flock.run_until_idle()
            assert len(filled) == 4
            assert await flock.approvals.pending() == []
            waiting = await flock.approvals.pending(shadow=True)
            assert [a.shadow for a in waiting] == [True] * 4
            for number, one in enumerate(waiting[:3]):
                await (flock.approvals.reject if number == 0 else flock.approvals.approve)(one, by="ann")
            [agreement] = await flock.approvals.agreement()
            assert (agreement.asked, agreement.approved, agreement.rejected, agreement.open) == (4, 2, 1, 1)
            assert agreement.rate == pytest.approx(2 / 3)
            assert await flock.store.get_by_type(ApprovalRejected) == []
            await asyncio.sleep(8 * 86_400)
            [agreement] = await flock.approvals.agreement(agent="trader")
            assert (agreement.expired, agreement.open) == (1, 0)
            assert len(filled) == 4

    virtually(main())


# -- declarations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "who decides"),
        ({"approvers": "ann"}, "list of up to"),
        ({"approvers": ["ann", "ann"]}, "different names"),
        ({"approvers": [" ann"]}, "different names"),
        ({"approvers": ["ann"], "quorum": 0}, "whole number"),
        ({"approvers": ["ann"], "quorum": True}, "whole number"),
        ({"approvers": ["ann"], "timeout": timedelta(0)}, "above zero"),
        ({"approvers": ["ann"], "timeout": 5}, "timedelta"),
        ({"approvers": ["ann"], "remind_every": timedelta(-1)}, "above zero"),
        ({"approvers": ["ann"], "on_timeout": "later"}, "ApprovalTimeout"),
        ({"approvers": ["ann"], "on_timeout": ApprovalTimeout.ESCALATE}, "go together"),
        ({"approvers": ["ann"], "escalate_to": ["cfo"]}, "go together"),
        ({"approvers": ["ann"], "when": True}, "function"),
        ({"approvers": ["ann"], "allow_edit": 1}, "True or False"),
        ({"shadow": True, "allow_edit": True}, "nothing waits"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ApprovalSpec(**options)


def test_what_is_no_declaration_is_refused() -> None:
    wrong: Any = True
    with pytest.raises(ConfigurationError, match='"shadow"'):
        Flock().agent("a").publishes(Order, approval=wrong)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, w: a.approve(w, by=""),
        lambda a, w: a.approve(w, by="x" * 201),
        lambda a, w: a.approve(w, by="ann", comment="x" * 5000),
        lambda a, w: a.approve(w, by="ann", shown="zz"),
        lambda a, w: a.approve("no id", by="ann"),
        lambda a, w: a.pending(limit=0),
        lambda a, w: a.delegate(w, by="ann", to=""),
    ],
)
def test_arguments_that_make_no_sense_are_refused(call: Any) -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            waiting = await asked(flock)
            with pytest.raises(ConfigurationError):
                await call(flock.approvals, waiting)

    virtually(main())


# -- restarts ------------------------------------------------------------------------------------


def test_a_restart_changes_nothing() -> None:
    kept = MemoryPersistence()

    async def before() -> Any:
        async with VirtualFlock(persistence=kept, namespace="b", shards=2) as flock:
            declare(flock)
            waiting = await asked(flock, correlation_id="w")
            await flock.approvals.approve(waiting, by="ann")
            return waiting

    async def after(waiting: Any) -> None:
        async with VirtualFlock(persistence=kept, namespace="b") as flock:
            filled = declare(flock)
            await flock.start()
            known = await flock.approvals.get(waiting.id)
            assert (known.approved_by, known.artifact, known.shown) == (
                ("ann",),
                waiting.artifact,
                waiting.shown,
            )
            with pytest.raises(ApprovalError, match="already"):
                await flock.approvals.approve(waiting, by="ann")
            await flock.approvals.approve(waiting, by="bob")
            await flock.run_until_idle()
            assert filled == ["ACME 5000"]

    async def later(waiting: Any) -> None:
        async with VirtualFlock(persistence=kept, namespace="b") as flock:
            known = await flock.approvals.get(waiting.id)
            assert (known.state, known.approved_by) == ("approved", ("ann", "bob"))
            with pytest.raises(ApprovalExpiredError):
                await flock.approvals.reject(waiting, by="bob")

    with type_registry.isolated():
        waiting = run_virtual(before())
        run_virtual(after(waiting))
        run_virtual(later(waiting))


def test_pages_go_on_behind_each_other_over_all_shards() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            declare(flock)
            for number in range(7):
                await flock.publish(Idea(symbol=f"s{number}"), correlation_id=f"w{number}")
            await flock.run_until_idle()
            seen, after = [], None
            while page := await flock.approvals.pending(limit=3, after=after):
                seen += [(a.artifact or {})["symbol"] for a in page]
                after = page[-1]
            assert sorted(seen) == [f"s{n}" for n in range(7)]
            assert [a.workflow for a in await flock.approvals.pending(workflow="w3")] == ["w3"]
            assert await flock.approvals.pending(agent="nobody") == []
            assert len(await flock.approvals.pending(artifact_type=Order)) == 7

    virtually(main())


def test_an_erased_request_is_not_released_but_an_error() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock, ONE)
            waiting = await asked(flock)
            request: Artifact = waiting.request
            await flock.erase(artifacts=[request], reason="asked for")
            await flock.approvals.approve(waiting, by="ann")
            await flock.run_until_idle()
            assert filled == []
            [error] = await flock.store.get_by_type(WorkflowError)
            assert "erased" in error.error_message

    virtually(main())
