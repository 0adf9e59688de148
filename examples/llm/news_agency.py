"""A news agency: one event goes to several correspondents at once, and an editor waits for all of their reports.

Fanning out: the planner publishes three assignments in one answer, and the correspondents write at the same time.
Fanning in: the editor consumes three reports of the same event, which is one workflow. Two events don't mix.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from examples.llm.stage import perform
from flock_ray import Flock, WorkflowError, flock_type

ANGLES = 3


@flock_type
class Event(BaseModel):
    text: str


@flock_type
class Assignment(BaseModel):
    """What one correspondent finds out."""

    event: str
    angle: str = Field(description="One question about the event that the other assignments don't ask.")


@flock_type
class Report(BaseModel):
    angle: str
    facts: list[str] = Field(min_length=1, max_length=3)


@flock_type
class Bulletin(BaseModel):
    headline: str = Field(max_length=80)
    text: str = Field(description="What all reports say together, without repeating anything.")


def declare(flock: Flock) -> None:
    (
        flock.agent("planner")
        .description("Splits an event into assignments that can be worked on at the same time.")
        .consumes(Event)
        .publishes(Assignment, fan_out=ANGLES)
    )
    (
        flock.agent("correspondent")
        .description("Answers the question of the assignment in up to three facts.")
        .consumes(Assignment)
        .publishes(Report)
        .max_concurrency(ANGLES)
    )
    (
        flock.agent("editor")
        .description("Makes one bulletin of the reports.")
        .consumes(*[Report] * ANGLES)
        .publishes(Bulletin)
    )


EVENTS = ["The old lighthouse was sold.", "The night train runs again."]


async def play(flock: Flock) -> None:
    declare(flock)
    published = [await flock.publish(Event(text=text)) for text in EVENTS]
    await flock.run_until_idle(timeout=300)
    for event in published:
        for artifact in await flock.store.list(correlation_id=event.correlation_id):
            if artifact.type == "Bulletin":
                print(f"{artifact.payload['headline']}: {artifact.payload['text']}")
    for error in await flock.store.get_by_type(WorkflowError):
        print(error.error_type, error.error_message)
    for row in await flock.usage():
        print(f"{row.agent}: {row.calls} calls, {row.input_tokens} tokens in, {row.output_tokens} out")


if __name__ == "__main__":
    perform(play, "news_agency")
