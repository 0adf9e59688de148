"""Best of n: run the engine five times, keep what scores highest; one failing try does no harm."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

from pydantic import BaseModel

from flock_ray import EvalResult, Flock, flock_type


@flock_type
class Word(BaseModel):
    text: str


@flock_type
class Anagram(BaseModel):
    text: str
    vowels_apart: int


def shuffle(word: Word) -> Anagram:
    letters = list(word.text)
    random.shuffle(letters)
    if letters[0] == "q":
        raise ValueError("not with a q in front")
    changes = sum((a in "aeiou") != (b in "aeiou") for a, b in pairwise(letters))
    return Anagram(text="".join(letters), vowels_apart=changes)


def score(result: EvalResult) -> float:
    return float(result.artifacts[0].payload["vowels_apart"])


async def main() -> None:
    async with Flock() as flock:
        flock.agent("poet").consumes(Word).publishes(Anagram).runs(shuffle).best_of(5, score)
        await flock.publish(Word(text="equation"))
        await flock.run_until_idle(timeout=60)
        for anagram in await flock.store.get_by_type(Anagram):
            print(anagram.text, anagram.vowels_apart)


if __name__ == "__main__":
    asyncio.run(main())
