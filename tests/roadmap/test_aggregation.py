"""Roadmap, "Aggregation Patterns": the three snippets, as printed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from flock_ray import AggregationStrategy, Flock, flock_type
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual


@flock_type(name="roadmap.News")
class News(BaseModel):
    text: str


@flock_type(name="roadmap.NewsAnalysis")
class NewsAnalysis(BaseModel):
    category: str
    summary: str


@flock_type(name="roadmap.NewsDigest")
class NewsDigest(BaseModel):
    summaries: list[str]
    combined_analysis: str


@flock_type(name="roadmap.Content")
class Content(BaseModel):
    text: str


@flock_type(name="roadmap.ContentReview")
class ContentReview(BaseModel):
    is_safe: bool


@flock_type(name="roadmap.ModerationDecision")
class ModerationDecision(BaseModel):
    is_safe: bool
    tally: dict[str, int]


@flock_type(name="roadmap.TranslationCandidate")
class TranslationCandidate(BaseModel):
    text: str
    quality_score: float


@flock_type(name="roadmap.FinalTranslation")
class FinalTranslation(BaseModel):
    text: str


def declare_editor(flock: Flock) -> None:
    editor = flock.agent("editor").aggregates(
        NewsAnalysis,
        into=NewsDigest,
        strategy=AggregationStrategy.COLLECT_ALL,
        trigger_on_count=8,  # Wait for all 8 category analysts
        timeout=timedelta(seconds=30)
    )  # fmt: skip
    assert editor.name == "editor"


def declare_moderator(flock: Flock) -> None:
    moderator = flock.agent("moderator").aggregates(
        ContentReview,
        into=ModerationDecision,
        strategy=AggregationStrategy.MAJORITY_VOTE,
        field="is_safe"
    )  # fmt: skip
    assert moderator.name == "moderator"


def declare_selector(flock: Flock) -> None:
    selector = flock.agent("selector").aggregates(
        TranslationCandidate,
        into=FinalTranslation,
        strategy=AggregationStrategy.MAX_BY,
        score=lambda t: t.quality_score
    )  # fmt: skip
    assert selector.name == "selector"


def analyst(flock: Flock, category: str, seconds: float) -> None:
    async def analyse(news: News) -> NewsAnalysis:
        await asyncio.sleep(seconds)
        return NewsAnalysis(category=category, summary=f"{category}: {news.text}")

    flock.agent(category).consumes(News).publishes(NewsAnalysis).runs(analyse)


def answer(*_: Any, **__: Any) -> dict[str, Any]:
    # A model that makes the summaries up does no harm: they are taken from the inputs.
    return {"summaries": ["made up"], "combined_analysis": "all is well"}


def digest_of(seconds: list[float]) -> list[NewsDigest]:
    async def main() -> list[NewsDigest]:
        async with VirtualFlock(language_model=ScriptedModel(answer)) as flock:
            declare_editor(flock)
            for number, delay in enumerate(seconds):
                analyst(flock, f"category-{number}", delay)
            await flock.publish(News(text="rain"))
            await asyncio.sleep(100)
            return await flock.store.get_by_type(NewsDigest)

    return run_virtual(main())


def test_map_reduce_waits_for_all_analysts_and_the_model_writes_what_only_it_can() -> None:
    (digest,) = digest_of([float(8 - n) for n in range(8)])
    assert [f"category-{n}: rain" for n in reversed(range(8))] == digest.summaries
    assert "all is well" == digest.combined_analysis


def test_map_reduce_goes_on_without_a_slow_analyst_after_its_timeout() -> None:
    (digest,) = digest_of([1.0] * 7 + [50.0])
    assert 7 == len(digest.summaries)


def test_reviewers_vote() -> None:
    async def main() -> list[ModerationDecision]:
        async with VirtualFlock() as flock:
            declare_moderator(flock)
            for number, is_safe in enumerate((True, False, False)):
                flock.agent(f"reviewer-{number}").consumes(Content).publishes(ContentReview).runs(
                    lambda content, vote=is_safe: ContentReview(is_safe=vote)
                )
            await flock.publish(Content(text="hm"))
            await flock.run_until_idle()
            return await flock.store.get_by_type(ModerationDecision)

    assert [ModerationDecision(is_safe=False, tally={"true": 1, "false": 2})] == run_virtual(main())


def test_the_best_translation_is_selected() -> None:
    async def main() -> list[FinalTranslation]:
        async with VirtualFlock() as flock:
            declare_selector(flock)
            for number, score in enumerate((0.2, 0.9, 0.5)):
                flock.agent(f"translator-{number}").consumes(Content).publishes(TranslationCandidate).runs(
                    lambda content, n=number, s=score: TranslationCandidate(text=f"text {n}", quality_score=s)
                )
            await flock.publish(Content(text="hm"))
            await flock.run_until_idle()
            return await flock.store.get_by_type(FinalTranslation)

    assert [FinalTranslation(text="text 1")] == run_virtual(main())
