"""A debate: two agents answer each other until the time is up, then a third one decides.

Two agents that consume what the other publishes never stop by themselves. Two things end it here:
`where=` lets nobody answer the last round, and `max_agent_iterations` stops a loop that was not foreseen.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from examples.llm.stage import perform
from flock_ray import Flock, When, WorkflowError, flock_type

ROUNDS = 4


@flock_type
class Motion(BaseModel):
    text: str


@flock_type
class Argument(BaseModel):
    side: Literal["for", "against"]
    text: str = Field(max_length=400)
    round: int = Field(
        ge=1, description="The round of the argument that is answered plus 1; 1 for the first."
    )


@flock_type
class Ruling(BaseModel):
    winner: Literal["for", "against"]
    reason: str


def declare(flock: Flock) -> None:
    flock.agent("proposer").description("Opens the debate for the motion.").consumes(Motion).publishes(
        Argument
    )
    (
        flock.agent("opponent")
        .description("Speaks against the motion. Answers the argument; its own side is 'against'.")
        .consumes(Argument, where=lambda argument: argument.side == "for" and argument.round < ROUNDS)
        .publishes(Argument)
        .max_agent_iterations(2 * ROUNDS)
    )
    (
        flock.agent("defender")
        .description("Speaks for the motion. Answers the argument; its own side is 'for'.")
        .consumes(Argument, where=lambda argument: argument.side == "against" and argument.round < ROUNDS)
        .publishes(Argument)
        .max_agent_iterations(2 * ROUNDS)
    )
    (
        flock.agent("judge")
        .description("Weighs the arguments and decides.")
        .consumes(
            Motion, activation=When.correlation(Argument).count_at_least(ROUNDS), name="when all have spoken"
        )
        .publishes(Ruling)
    )


async def play(flock: Flock) -> None:
    declare(flock)
    motion = await flock.publish(Motion(text="Tabs are better than spaces"))
    await flock.run_until_idle(timeout=300)
    for artifact in await flock.store.list(correlation_id=motion.correlation_id):
        if artifact.type == "Argument":
            print(f"{artifact.payload['round']}. {artifact.payload['side']}: {artifact.payload['text']}")
        if artifact.type == "Ruling":
            print(f"the judge: {artifact.payload['winner']} wins. {artifact.payload['reason']}")
    for error in await flock.store.get_by_type(WorkflowError):
        print(error.error_type, error.error_message)


if __name__ == "__main__":
    perform(play, "debate")
