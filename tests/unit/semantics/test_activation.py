"""`activation=When...`: inputs wait for a condition on their workflow; none is lost."""

from __future__ import annotations

from flock_ray import BatchSpec, When
from flock_ray.core.conditions import Condition
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Payment, Seen


async def run_orders(activation: Condition, *after: object) -> tuple[list[int], list[int], str]:
    """Publish orders 0-4, then more; returns what ran before, after, and the workflow's state between."""
    seen = Seen()
    async with VirtualFlock() as flock:
        flock.agent("a").consumes(Order, activation=activation).runs(lambda o: seen.append(o.n))
        await flock.publish_many([Order(n=n) for n in range(5)], correlation_id="w")
        await flock.publish_many([Payment(n=9), Note(text="go")], correlation_id="another workflow")
        await flock.run_until_idle()
        before, state = list(seen), (await flock.workflow_status("w")).state
        await flock.publish_many(after, correlation_id="w")
        await flock.run_until_idle()
    return before, sorted(seen), state


def test_w2_inputs_that_come_before_the_condition_holds_are_kept() -> None:
    at_least = When.correlation(Payment).count_at_least(2)
    assert run_virtual(run_orders(at_least, Payment(n=1))) == ([], [], "waiting")
    assert run_virtual(run_orders(at_least, Payment(n=1), Payment(n=2))) == ([], [0, 1, 2, 3, 4], "waiting")


def test_the_artifact_that_makes_the_condition_true_is_delivered_too() -> None:
    before, after, state = run_virtual(run_orders(When.correlation(Order).count_at_least(3)))
    assert (sorted(before), after, state) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], "completed")


def test_fields_and_operators_decide_together() -> None:
    text = When.correlation(Note).any_field(field="text", predicate=lambda value: value == "go")
    paid = When.correlation(Payment).exists()
    assert run_virtual(run_orders(text & paid, Note(text="go")))[:2] == ([], [])
    assert run_virtual(run_orders(text & paid, Note(text="go"), Payment(n=1)))[:2] == ([], [0, 1, 2, 3, 4])
    assert run_virtual(run_orders(text | paid, Payment(n=1)))[:2] == ([], [0, 1, 2, 3, 4])
    assert sorted(run_virtual(run_orders(~paid))[0]) == [0, 1, 2, 3, 4]


def test_a_field_predicate_that_raises_is_refused_visibly_and_the_inputs_wait() -> None:
    async def main() -> tuple[list[int], str, str]:
        seen = Seen()
        bad = When.correlation(Note).any_field(field="text", predicate=lambda value: value > 1)
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, activation=bad).runs(lambda o: seen.append(o.n))
            await flock.publish_many([Order(n=1), Note(text="x")], correlation_id="w")
            await flock.run_until_idle()
            state = (await flock.workflow_status("w")).state
            async for event in flock.events("match.refused"):
                return list(seen), state, event.detail
        raise AssertionError

    seen, state, detail = run_virtual(main())
    assert (seen, state) == ([], "waiting")
    assert "TypeError" in detail and "activation" in detail


def test_held_inputs_go_on_into_a_batch() -> None:
    async def main() -> list[list[int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(
                Order, batch=BatchSpec(size=2), activation=When.correlation(Payment).exists()
            ).runs(lambda batch: seen.append([o.n for o in batch]))
            for model in (Order(n=1), Order(n=2), Payment(n=1)):
                await flock.publish(model, correlation_id="w")
            await flock.run_until_idle()
        return list(seen)

    assert run_virtual(main()) == [[1, 2]]
