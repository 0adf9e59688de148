"""Best of n with a judge: four drafts at the same time, until one is good enough.

The judge is a function here: it gives the same mark to the same draft every time, and costs nothing.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from examples.llm.stage import perform
from flock_ray import EvalResult, Flock, WorkflowError, flock_type

BANNED = frozenset(("best", "amazing", "revolutionary", "unique"))


@flock_type
class Product(BaseModel):
    name: str
    about: str


@flock_type
class Slogan(BaseModel):
    text: str = Field(max_length=80)


def judge(result: EvalResult) -> float:
    """Give up to 10 points: short, with the product's name left out, and without advertisers' words."""
    text = str(result.artifacts[0].payload["text"]).lower()
    words = text.replace(".", " ").replace("!", " ").split()
    return 10.0 - abs(len(words) - 5) - 3 * sum(word in BANNED for word in words) - text.count("!")


def declare(flock: Flock) -> None:
    (
        flock.agent("copywriter")
        .description("Writes one slogan for the product: about five words, honest, without superlatives.")
        .consumes(Product)
        .publishes(Slogan)
        .best_of(4, judge, good_enough=9.5)
    )


async def play(flock: Flock) -> None:
    declare(flock)
    product = await flock.publish(
        Product(name="Lumo", about="a lamp that goes out when nobody is in the room")
    )
    await flock.run_until_idle(timeout=300)
    for artifact in await flock.store.list(correlation_id=product.correlation_id):
        if artifact.type == "Slogan":
            print(artifact.payload["text"])
    for error in await flock.store.get_by_type(WorkflowError):
        print(error.error_type, error.error_message)


if __name__ == "__main__":
    perform(play, "slogans")
