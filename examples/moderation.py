"""Content moderation by vote: nine reviewers, one decision, and nobody works on after it is certain.

The reviewers disagree now and then. As soon as five of nine agree, the moderator decides and the reviews that still
run, or wait, are withdrawn: nobody else would read them.
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from flock_ray import AggregationStrategy, Flock, flock_type

REVIEWERS = 9
STRICT = {0, 3}
"""Reviewers who find everything unsafe."""


@flock_type
class Content(BaseModel):
    id: int
    text: str


@flock_type
class ReviewRequest(BaseModel):
    content_id: int
    text: str
    reviewer: int


@flock_type
class ContentReview(BaseModel):
    content_id: int
    is_safe: bool
    remark: str


@flock_type
class ModerationDecision(BaseModel):
    content_id: int
    """Of the reviews, which all have the same."""
    is_safe: bool
    """What was voted about."""
    tally: dict[str, int]
    remarks: list[str]
    """Every `remark` there is."""


def invite(content: Content) -> list[ReviewRequest]:
    return [ReviewRequest(content_id=content.id, text=content.text, reviewer=n) for n in range(REVIEWERS)]


async def review(request: ReviewRequest) -> ContentReview:
    await asyncio.sleep(0.05)  # a model would think here
    is_safe = request.reviewer not in STRICT and "bomb" not in request.text
    return ContentReview(
        content_id=request.content_id, is_safe=is_safe, remark=f"reviewer {request.reviewer}"
    )


async def main() -> None:
    async with Flock() as flock:
        flock.agent("chair").consumes(Content).publishes(ReviewRequest, fan_out=REVIEWERS).runs(invite)
        flock.agent("reviewer").consumes(ReviewRequest).publishes(ContentReview).runs(review).concurrency(1)
        flock.agent("moderator").aggregates(
            ContentReview,
            into=ModerationDecision,
            strategy=AggregationStrategy.MAJORITY_VOTE,
            field="is_safe",
            trigger_on_count=REVIEWERS,
        )
        for number, text in enumerate(("a recipe for pancakes", "how to build a bomb")):
            await flock.publish(Content(id=number, text=text), correlation_id=f"content-{number}")
            await flock.run_until_idle()
        for decision in sorted(await flock.store.get_by_type(ModerationDecision), key=lambda d: d.content_id):
            verdict = "safe" if decision.is_safe else "unsafe"
            votes = sum(decision.tally.values())
            print(f"content {decision.content_id}: {verdict}, decided by {votes} of {REVIEWERS} votes")
        reviews = await flock.store.count(ContentReview)
        print(f"reviews made: {reviews} of {2 * REVIEWERS}")


if __name__ == "__main__":
    asyncio.run(main())
