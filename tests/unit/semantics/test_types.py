"""Artifact types on a board: stable names, versions, subclasses, same-named classes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Artifact, flock_type, upcaster
from flock_ray.errors import TypeRegistrationError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Order, Seen


@flock_type(name="types.Invoice", version=2)
class Invoice(BaseModel):
    cents: int


@upcaster(Invoice, from_version=1)
def euros_to_cents(old: dict[str, Any]) -> dict[str, Any]:
    return {"cents": int(old["euros"] * 100)}


@flock_type(name="types.Animal")
class Animal(BaseModel):
    name: str


@flock_type(name="types.Dog")
class Dog(Animal):
    breed: str = "mixed"


def test_an_old_version_reaches_predicates_and_agents_brought_up_to_date() -> None:
    async def main() -> tuple[list[Any], int]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Invoice, where=lambda i: i.cents > 100).runs(seen.one)
            old = Artifact(type="types.Invoice", version=1, payload={"euros": 2.5})
            stored = await flock.publish(old)
            await flock.run_until_idle()
        return list(seen), stored.version

    assert run_virtual(main()) == ([Invoice(cents=250)], 2)


def test_w12_a_decorated_subclass_is_a_type_of_its_own() -> None:
    async def main() -> tuple[list[Any], list[str]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("animals").consumes(Animal).runs(lambda m: seen.append(("animals", m)))
            flock.agent("dogs").consumes(Dog).runs(lambda m: seen.append(("dogs", m)))
            await flock.publish(Dog(name="Rex"))
            await flock.publish(Animal(name="Tom"))
            await flock.run_until_idle()
            return sorted(seen, key=lambda pair: pair[0]), [
                a.name for a in await flock.store.get_by_type(Animal)
            ]

    seen, animals = run_virtual(main())
    assert seen == [("animals", Animal(name="Tom")), ("dogs", Dog(name="Rex"))]
    assert animals == ["Tom"]


def test_w12_two_classes_under_one_name_are_refused() -> None:
    class Other(BaseModel):
        pass

    with pytest.raises(TypeRegistrationError, match=r"market\.Order"):
        flock_type(name="market.Order")(Other)


def test_dicts_and_artifacts_are_published_by_type_name() -> None:
    async def main() -> list[int]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).runs(lambda o: seen.append(o.n))
            await flock.publish({"type": "market.Order", "payload": {"n": 1}})
            await flock.publish({"type": "market.Order", "n": 2})
            await flock.publish(Artifact.from_model(Order(n=3)))
            await flock.run_until_idle()
        return sorted(seen)

    assert run_virtual(main()) == [1, 2, 3]
