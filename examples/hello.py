"""Hello: two agents that have never heard of each other, joined by a type.

Run it with `python examples/hello.py`. Nobody wires a graph: the greeter consumes `Guest` and
publishes `Greeting`, the translator consumes `Greeting`, and that is all the board needs to know.
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from flock_ray import Flock, flock_type


@flock_type
class Guest(BaseModel):
    name: str


@flock_type
class Greeting(BaseModel):
    text: str


@flock_type
class Salut(BaseModel):
    text: str


def greet(guest: Guest) -> Greeting:
    return Greeting(text=f"Hello, {guest.name}!")


def translate(greeting: Greeting) -> Salut:
    return Salut(text=greeting.text.replace("Hello", "Bonjour"))


async def main() -> None:
    async with Flock() as flock:
        flock.agent("greeter").consumes(Guest).publishes(Greeting).runs(greet)
        flock.agent("translator").consumes(Greeting).publishes(Salut).runs(translate)

        await flock.publish_many([Guest(name="Ada"), Guest(name="Grace")])
        await flock.run_until_idle(timeout=60)

        for salut in await flock.store.get_by_type(Salut):
            print(salut.text)


if __name__ == "__main__":
    asyncio.run(main())
