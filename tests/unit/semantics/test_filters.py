"""Which artifacts a subscription takes: producers, tags, predicates, mode, priority, exclusive delivery."""

from __future__ import annotations

import asyncio
from collections import Counter

from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Payment, Seen


async def events_of(flock: VirtualFlock, *kinds: str) -> list[str]:
    """Return the details of all events so far of some kinds."""
    found: list[str] = []

    async def collect() -> None:
        async for event in flock.events(*kinds):
            found.append(event.detail)

    reader = asyncio.ensure_future(collect())
    await asyncio.sleep(0.01)
    reader.cancel()
    return found


def test_every_predicate_of_where_must_hold() -> None:
    async def main() -> list[int]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, where=[lambda o: o.n > 1, lambda o: o.region == "eu"]).runs(
                seen.one
            )
            await flock.publish_many([Order(n=1), Order(n=2), Order(n=3, region="us")])
            await flock.run_until_idle()
        return [order.n for order in seen]

    assert run_virtual(main()) == [2]


def test_a_predicate_that_raises_refuses_the_artifact_for_its_agent_only_and_says_so() -> None:
    async def main() -> tuple[list[tuple[str, int]], list[str], str]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("bad").consumes(Order, where=lambda o: 1 / o.total > 0).runs(seen.by("bad"))
            flock.agent("good").consumes(Order).runs(seen.by("good"))
            order = await flock.publish(Order(n=7))
            await flock.run_until_idle()
            return list(seen), await events_of(flock, "match.refused"), str(await flock.why(order))

    seen, refusals, why = run_virtual(main())
    assert seen == [("good", 7)]
    assert len(refusals) == 1
    assert "bad/" in refusals[0] and "ZeroDivisionError" in refusals[0]
    assert "NO  where[0]: ZeroDivisionError" in why


def test_from_agents_and_tags_limit_what_arrives() -> None:
    async def main() -> list[tuple[str, int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("left").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=o.n))
            flock.agent("right").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=-o.n))
            flock.agent("of_left").consumes(Parcel, from_agents=["left"]).runs(seen.by("of_left"))
            flock.agent("tagged").consumes(Parcel, tags={"vip", "vvip"}, from_agents=["right"]).runs(
                seen.by("tagged")
            )
            await flock.publish(Order(n=1), tags=["vip", "x"])
            await flock.publish(Order(n=2), tags=["x"])
            await flock.run_until_idle()
        return sorted(seen)

    assert run_virtual(main()) == [("of_left", 1), ("of_left", 2), ("tagged", -1)]


def test_mode_direct_only_runs_by_hand_and_events_only_by_artifacts() -> None:
    async def main() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            direct = flock.agent("direct").consumes(Order, mode="direct").runs(seen.by("direct"))
            flock.agent("events").consumes(Order, mode="events").runs(seen.by("events"))
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
            published = list(seen)
            await flock.invoke(direct, Order(n=2))
        return published, seen[len(published) :]

    assert run_virtual(main()) == ([("events", 1)], [("direct", 2)])


def test_higher_priority_runs_first_among_agents_and_among_artifacts() -> None:
    async def main() -> list[tuple[str, int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            for name, priority in (("low", 0), ("high", 10), ("mid", 5)):
                flock.agent(name).consumes(Order, priority=priority).runs(seen.by(name)).max_concurrency(1)
            await flock.start()
            urgent = flock.publish(Order(n=2), priority=100)
            await asyncio.gather(flock.publish(Order(n=1)), urgent)
            await flock.run_until_idle()
        return list(seen)

    seen = run_virtual(main())
    assert [name for name, n in seen if n == 1] == ["high", "mid", "low"]
    assert all(seen.index((name, 2)) < seen.index((name, 1)) for name in ("low", "mid", "high"))


def test_an_exclusive_artifact_goes_to_exactly_one_agent_of_the_highest_priority_spread_evenly() -> None:
    async def main() -> list[tuple[str, int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            for name in ("a", "b", "c"):
                flock.agent(name).consumes(Order, delivery="exclusive", priority=1).runs(seen.by(name))
            flock.agent("spare").consumes(Order, delivery="exclusive").runs(seen.by("spare"))
            flock.agent("fussy").consumes(
                Order, delivery="exclusive", priority=9, where=lambda o: o.n < 0
            ).runs(seen.by("fussy"))
            flock.agent("audit").consumes(Order).runs(seen.by("audit"))
            await flock.publish_many([Order(n=n) for n in range(600)])
            await flock.publish(Order(n=-1))
            await flock.run_until_idle()
        return list(seen)

    seen = run_virtual(main())
    shares = Counter(name for name, _ in seen)
    taken = sorted(n for name, n in seen if name != "audit")
    assert taken == [-1, *range(600)]
    assert (shares["audit"], shares["spare"], shares["fussy"]) == (601, 0, 1)
    assert all(150 < shares[name] < 250 for name in ("a", "b", "c"))


def test_why_names_the_agent_that_an_exclusive_artifact_went_to() -> None:
    async def main() -> tuple[list[str], dict[str, str]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            for name in ("a", "b"):
                flock.agent(name).consumes(Order, delivery="exclusive").runs(seen.by(name))
            order = await flock.publish(Order(n=1))
            await flock.run_until_idle()
            why = await flock.why(order)
        states = {answer.subscription.partition("/")[0]: answer.state for answer in why.answers}
        return [name for name, _ in seen], states

    (winner,), states = run_virtual(main())
    (loser,) = {"a", "b"} - {winner}
    assert states == {winner: "done", loser: "not matched"}


def test_an_agent_takes_an_artifact_once_even_when_two_of_its_subscriptions_match() -> None:
    async def main() -> list[tuple[str, int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).consumes(Order, where=lambda o: o.n > 0).runs(seen.by("a"))
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
        return list(seen)

    assert run_virtual(main()) == [("a", 1)]


def test_self_trigger_is_off_unless_switched_on() -> None:
    async def main(prevent: bool) -> int:
        async with VirtualFlock() as flock:
            (
                flock.agent("count").consumes(Order).publishes(Order)
                .runs(lambda o: Order(n=o.n - 1) if o.n > 0 else None)
                .prevent_self_trigger(prevent)
            )  # fmt: skip
            await flock.publish(Order(n=3))
            await flock.run_until_idle()
            return await flock.store.count(Order)

    assert run_virtual(main(prevent=True)) == 2
    assert run_virtual(main(prevent=False)) == 4


def test_chained_consumes_are_alternatives() -> None:
    async def main() -> list[tuple[str, int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).consumes(Payment).runs(seen.by("a"))
            await flock.publish_many([Order(n=1), Note(text="no"), Payment(n=2)])
            await flock.run_until_idle()
        return list(seen)

    assert run_virtual(main()) == [("a", 1), ("a", 2)]


def test_an_agent_that_loses_an_exclusive_artifact_still_gets_it_by_its_plain_subscription() -> None:
    async def scenario() -> None:
        seen = Seen()
        async with VirtualFlock() as flock:
            both = flock.agent("both").consumes(Order, delivery="exclusive")
            both.consumes(Order, name="plain").runs(seen.by("both"))
            flock.agent("winner").consumes(Order, delivery="exclusive", priority=5).runs(seen.by("winner"))
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
        assert sorted(name for name, _ in seen) == ["both", "winner"]

    run_virtual(scenario())
