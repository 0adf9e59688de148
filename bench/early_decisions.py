"""What early decisions save: nine reviewers vote on each of many contents, by model calls of random length.

Virtual time and a scripted model: nothing here depends on the machine. The same votes are cast with `early=False`,
so the decisions can be compared.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

from pydantic import BaseModel

from flock_ray import AggregationStrategy, flock_type
from flock_ray.model import ModelRequest
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual

REVIEWERS = 9
AGREEMENT = 0.85
"""Share of the reviewers who see a content as it is."""
MEAN_CALL_S = 2.0
MIN_SAVING = 0.30
AT_ONCE = (REVIEWERS, 3, 1)
"""Calls of one content at the same time, at most."""


@flock_type(name="bench.Content")
class Content(BaseModel):
    number: int


@flock_type(name="bench.ReviewRequest")
class ReviewRequest(BaseModel):
    content: int
    reviewer: int


@flock_type(name="bench.Review")
class Review(BaseModel):
    content: int
    is_safe: bool


@flock_type(name="bench.Moderation")
class Moderation(BaseModel):
    content: int
    is_safe: bool
    ballots: int


def vote(content: int, reviewer: int) -> bool:
    rng = random.Random(f"{content}/{reviewer}")
    return (content % 2 == 0) == (rng.random() < AGREEMENT)


async def review(request: ModelRequest) -> dict[str, Any]:
    """Answer as a model would, after a while."""
    found = re.search(r'"content": ?(\d+), ?"reviewer": ?(\d+)', str(request.messages[-1]["content"]))
    assert found is not None
    content, reviewer = map(int, found.groups())
    await asyncio.sleep(random.Random(f"{reviewer}.{content}").expovariate(1 / MEAN_CALL_S))
    return {"content": content, "is_safe": vote(content, reviewer)}


async def _measure(contents: int, at_once: int, *, early: bool) -> dict[str, Any]:
    model = ScriptedModel(review)
    async with VirtualFlock(language_model=model) as flock:
        flock.agent("chair").consumes(Content).publishes(ReviewRequest, fan_out=REVIEWERS).runs(
            lambda content: [ReviewRequest(content=content.number, reviewer=n) for n in range(REVIEWERS)]
        )
        flock.agent("reviewer").consumes(ReviewRequest).publishes(Review).max_concurrency(at_once)
        flock.agent("moderator").aggregates(
            Review, into=Moderation, strategy=AggregationStrategy.MAJORITY_VOTE, field="is_safe",
            trigger_on_count=REVIEWERS, early=early,
        )  # fmt: skip
        began = asyncio.get_running_loop().time()
        for number in range(contents):
            await flock.publish(Content(number=number))
            await flock.run_until_idle()
        seconds = asyncio.get_running_loop().time() - began
        made = await flock.store.get_by_type(Moderation)
    return {
        "begun": len(model.requests),
        "answered": len(model.requests) - model.cancelled,
        "seconds": seconds,
        "decisions": {str(m.content): m.is_safe for m in made},
        "ballots": sum(m.ballots for m in made) / len(made),
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Count model calls with and without early decisions."""
    contents = 20 if quick else 200
    found: dict[str, Any] = {"contents": contents, "reviewers": REVIEWERS, "agreement": AGREEMENT}
    for at_once in AT_ONCE:
        early, full = (run_virtual(_measure(contents, at_once, early=e)) for e in (True, False))
        same = early.pop("decisions") == full.pop("decisions")
        found[str(at_once)] = {
            "early": early,
            "full": full,
            "same_decisions": same,
            "saved_begun": 1 - early["begun"] / full["begun"],
            "saved_answered": 1 - early["answered"] / full["answered"],
            "saved_time": 1 - early["seconds"] / full["seconds"],
        }
    return found


def rows(result: dict[str, Any]) -> list[tuple[str, str, str, str, str, bool]]:
    """Return the cells of the report's rows, each with its verdict.

    Calls that were answered are paid in full; those that had begun when the decision fell are cancelled.
    """
    found = []
    for at_once in map(str, AT_ONCE):
        part = result[at_once]
        found.append(
            (
                f"votes of {result['reviewers']} on {result['contents']} contents, {at_once} at once: answered, begun",
                f"{part['early']['answered']:,}, {part['early']['begun']:,} of {part['full']['answered']:,}",
                "",
                f"-{part['saved_answered']:.0%}, -{part['saved_begun']:.0%}",
                f"answered <= -{MIN_SAVING:.0%}, same decisions",
                part["same_decisions"] and part["saved_answered"] >= MIN_SAVING,
            )
        )
    return found


if __name__ == "__main__":
    print(json.dumps(run(quick=True), indent=2))
