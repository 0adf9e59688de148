"""What `publishes(...)` promises and what a run that breaks the promise says."""

from __future__ import annotations

from typing import Any

from flock_ray import FanOutRange, WorkflowError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Payment


async def publish_order(declare: Any, returned: Any) -> tuple[list[int], str]:
    """Run one agent on one order; returns the numbers of its parcels and payments, and its error."""
    async with VirtualFlock() as flock:
        declare(flock.agent("a").consumes(Order)).runs(lambda order: returned)
        await flock.publish(Order(n=1), correlation_id="w")
        await flock.wait("w")
        made = [a.payload["n"] for a in await flock.store.list() if a.produced_by == "a"]
        errors = await flock.store.get_by_type(WorkflowError)
        return made, "".join(f"{e.error_type}: {e.error_message}" for e in errors)


def run(declare: Any, returned: Any) -> tuple[list[int], str]:
    return run_virtual(publish_order(declare, returned))


def test_several_types_in_one_or_several_publishes_are_all_published() -> None:
    both = (Parcel(n=1), Payment(n=2))
    assert run(lambda a: a.publishes(Parcel, Payment), both) == ([1, 2], "")
    assert run(lambda a: a.publishes(Parcel).publishes(Payment), both) == ([1, 2], "")


def test_a_type_declared_three_times_is_three_artifacts() -> None:
    assert run(lambda a: a.publishes(Parcel, Parcel, Parcel), [Parcel(n=n) for n in (1, 2, 3)]) == (
        [1, 2, 3],
        "",
    )
    made, error = run(lambda a: a.publishes(Parcel, Parcel, Parcel), Parcel(n=1))
    assert made == [] and error.startswith("OutputContractError") and "got 1 Parcel" in error


def test_fan_out_is_an_exact_number_or_a_range_that_is_capped_visibly() -> None:
    three = [Parcel(n=n) for n in (1, 2, 3)]
    assert run(lambda a: a.publishes(Parcel, fan_out=3), three) == ([1, 2, 3], "")
    assert run(lambda a: a.publishes(Parcel, fan_out=(1, 3)), three[:2]) == ([1, 2], "")
    assert run(lambda a: a.publishes(Parcel, fan_out=FanOutRange(min=1, max=2)), three) == ([1, 2], "")
    made, error = run(lambda a: a.publishes(Parcel, fan_out=4), three)
    assert made == []
    assert "Expected 4 Parcel; got 3 Parcel" in error


def test_a_wrong_type_is_named_with_what_was_expected_and_what_came() -> None:
    made, error = run(lambda a: a.publishes(Parcel), Payment(n=1))
    assert made == []
    assert "'a' returned a Payment, which it does not declare. Expected 1 Parcel; got 1 Payment" in error


def test_where_drops_outputs_and_validate_fails_the_run() -> None:
    three = [Parcel(n=n) for n in (1, 2, 3)]
    assert run(lambda a: a.publishes(Parcel, fan_out=3, where=lambda p: p.n != 2), three) == ([1, 3], "")
    made, error = run(
        lambda a: a.publishes(Parcel, fan_out=3, validate=[(lambda p: p.n < 3, "at most two parcels")]), three
    )
    assert (made, error) == ([], "OutputContractError: at most two parcels")


def test_capped_and_filtered_outputs_are_events() -> None:
    async def main() -> list[str]:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).publishes(Parcel, fan_out=(1, 2), where=lambda p: p.n > 1).runs(
                lambda o: [Parcel(n=n) for n in (1, 2, 3)]
            )
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
            kinds = []
            async for event in flock.events("output"):
                kinds.append(event.kind)
                if len(kinds) == 2:
                    return kinds
        raise AssertionError

    assert sorted(run_virtual(main())) == ["output.capped", "output.filtered"]


def test_an_agent_may_publish_nothing() -> None:
    assert run(lambda a: a.publishes(Parcel), None) == ([], "")
    assert run(lambda a: a, None) == ([], "")


def test_calls_gets_the_first_output() -> None:
    async def main() -> list[Any]:
        got: list[Any] = []
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).publishes(Note).runs(lambda o: Note(text="x")).calls(got.append)
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
        return got

    assert run_virtual(main()) == [Note(text="x")]
