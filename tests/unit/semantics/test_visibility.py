"""Who gets an artifact, and who may see what is made of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from flock_ray import (
    AfterVisibility,
    LabelledVisibility,
    PrivateVisibility,
    PublicVisibility,
    TenantVisibility,
    Visibility,
    WorkflowError,
    only_for,
)
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Payment, Seen


async def who_gets(visibility: Visibility) -> set[str]:
    seen = Seen()
    async with VirtualFlock() as flock:
        flock.agent("plain").consumes(Order).runs(seen.by("plain"))
        flock.agent("vip").consumes(Order).labels("gold", "eu").runs(seen.by("vip"))
        flock.agent("acme").consumes(Order).tenant("acme").runs(seen.by("acme"))
        await flock.publish(Order(n=1), visibility=visibility)
        await flock.run_until_idle()
    return {name for name, _ in seen}


def test_every_kind_of_visibility_delivers_to_exactly_those_it_names() -> None:
    assert run_virtual(who_gets(PublicVisibility())) == {"plain", "vip", "acme"}
    assert run_virtual(who_gets(PrivateVisibility(agents={"plain", "acme"}))) == {"plain", "acme"}
    assert run_virtual(who_gets(only_for("vip"))) == {"vip"}
    assert run_virtual(who_gets(LabelledVisibility(required_labels={"gold", "eu"}))) == {"vip"}
    assert run_virtual(who_gets(LabelledVisibility(required_labels={"gold", "us"}))) == set()
    assert run_virtual(who_gets(TenantVisibility(tenant_id="acme"))) == {"acme"}


def test_w8_an_artifact_that_becomes_visible_later_is_delivered_then_to_whom_it_then_is_for() -> None:
    async def main() -> tuple[list[tuple[str, int]], str, str, list[tuple[str, int]]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).runs(seen.by("a"))
            flock.agent("b").consumes(Order).runs(seen.by("b"))
            later = AfterVisibility(ttl=timedelta(days=30), then=only_for("b"))
            order = await flock.publish(Order(n=1), visibility=later, correlation_id="w")
            await flock.run_until_idle()
            await asyncio.sleep(29 * 86400)
            early, state, why = (
                list(seen),
                (await flock.workflow_status("w")).state,
                str(await flock.why(order)),
            )
            await asyncio.sleep(86401)
        return early, state, why, list(seen)

    early, state, why, late = run_virtual(main())
    assert (early, late) == ([], [("b", 1)])
    assert state == "waiting"
    assert "delayed (until 2026-01-31" in why


def test_outputs_take_a_declared_visibility_a_computed_one_or_only_for() -> None:
    async def main() -> dict[str, Visibility]:
        async with VirtualFlock() as flock:
            (
                flock.agent("a").consumes(Order)
                .publishes(Payment, visibility=lambda p: only_for("bank") if p.n else PublicVisibility())
                .publishes(Parcel).only_for("courier")
                .runs(lambda o: (Payment(n=o.n), Parcel(n=o.n)))
            )  # fmt: skip
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
            return {a.type: a.visibility for a in await flock.store.list()}

    made = run_virtual(main())
    assert made["market.Payment"] == only_for("bank")
    assert made["market.Parcel"] == only_for("courier")


def test_what_is_made_of_private_inputs_is_no_wider_unless_declared() -> None:
    async def main() -> tuple[Visibility, list[tuple[str, int]]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=o.n))
            flock.agent("spy").consumes(Parcel).runs(seen.by("spy"))
            await flock.publish(Order(n=1), visibility=only_for("a"))
            await flock.run_until_idle()
            (parcel,) = await flock.store.list_by_type("market.Parcel")
            return parcel.visibility, list(seen)

    assert run_virtual(main()) == (only_for("a"), [])


def test_w17_a_workflow_error_is_as_private_as_its_inputs() -> None:
    async def main() -> tuple[Visibility, list[str]]:
        seen: list[str] = []

        def fail(order: Order) -> None:
            raise ValueError(f"secret {order.n}")

        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).runs(fail)
            flock.agent("spy").consumes(WorkflowError).runs(lambda e: seen.append(e.error_message))
            await flock.publish(Order(n=7), visibility=only_for("a"))
            await flock.run_until_idle()
            (error,) = await flock.store.list_by_type("WorkflowError")
            return error.visibility, seen

    assert run_virtual(main()) == (only_for("a"), [])


def test_a_loop_guard_error_is_as_private_as_its_inputs() -> None:
    async def main() -> Visibility:
        async with VirtualFlock(max_agent_iterations=3) as flock:
            flock.agent("a").consumes(Order).publishes(Order).prevent_self_trigger(False).runs(lambda o: o)
            await flock.publish(Order(n=7), visibility=only_for("a"))
            await flock.run_until_idle()
            (error,) = await flock.store.list_by_type("WorkflowError")
            return error.visibility

    assert run_virtual(main()) == only_for("a")


def test_a_visibility_function_that_returns_something_else_fails_the_run_visibly() -> None:
    async def main() -> str:
        async with VirtualFlock() as flock:
            not_one: Any = lambda n: "all"  # noqa: E731  # typed Any on purpose: it returns no visibility
            flock.agent("a").consumes(Order).publishes(Note, visibility=not_one).runs(
                lambda o: Note(text="x")
            )
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
            assert await flock.store.count(Note) == 0
            (error,) = await flock.store.get_by_type(WorkflowError)
            return f"{error.error_type}: {error.error_message}"

    message = run_virtual(main())
    assert message.startswith("OutputContractError") and "return a visibility" in message
