"""Map-reduce over a real text corpus, the topics of Python's own manual: its words are counted, with progress shown."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pydoc_data.topics import topics

from pydantic import BaseModel

from flock_ray import FanInStrategy, FanOutStrategy, Flock, flock_type


@flock_type
class Corpus(BaseModel):
    texts: list[str]


@flock_type
class Passage(BaseModel):
    texts: list[str]


@flock_type
class Words(BaseModel):
    counts: dict[str, int]


@flock_type
class WordCount(BaseModel):
    passages: int
    counts: dict[str, int]


def count(passage: Passage) -> Words:
    found = Counter(word.lower() for text in passage.texts for word in re.findall(r"[A-Za-z]+", text))
    return Words(counts=found)


def add(parts: list[Words]) -> WordCount:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.counts)
    return WordCount(passages=len(parts), counts=total)


def add_further(parts: list[WordCount]) -> WordCount:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.counts)
    return WordCount(passages=sum(part.passages for part in parts), counts=total)


async def main() -> None:
    corpus = Corpus(texts=[text for _, text in sorted(topics.items())])
    async with Flock(shards=2) as flock:
        # Texts are put together until they are 8,000 characters: about as much work for everybody.
        flock.agent("cutter").consumes(Corpus).fan_out(
            Passage, strategy=FanOutStrategy.BY_WEIGHT, weight=len, max_weight=8_000
        )
        flock.agent("counter").consumes(Passage).publishes(Words).runs(count)
        # In a tree: nobody ever has more than 8 parts in hand.
        flock.agent("adder").fan_in(
            Words, into=WordCount, strategy=FanInStrategy.REDUCE, merge_fn=add, combine=add_further, width=8
        )
        artifact = await flock.publish(corpus)
        async with flock.print_progress(artifact):
            await flock.run_until_idle(timeout=120)

        [result] = await flock.store.get_by_type(WordCount)
        progress = await flock.progress(artifact)
        words = Counter(result.counts)
        print(f"all passages counted: {progress.done == progress.total == result.passages}")
        print("most common:", ", ".join(word for word, _ in words.most_common(3)))
        expected = sum(len(re.findall(r"[A-Za-z]+", text)) for text in corpus.texts)
        print(f"no word lost: {words.total() == expected}")


if __name__ == "__main__":
    asyncio.run(main())
