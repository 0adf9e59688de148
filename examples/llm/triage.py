"""Ticket triage: tickets find their desk by what they mean, and each desk drafts a reply.

Routing compares the meaning of a ticket with what a desk says of itself, so nobody calls a language model to decide who
gets what. A ticket that fits nobody goes to the front desk.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from examples.llm.stage import perform
from flock_ray import Flock, WorkflowError, flock_type

DESKS = {
    "billing": "money, invoices, payments and refunds",
    "tech": "errors and crashes of the app, login problems",
    "sales": "prices, offers and larger plans",
}
TICKETS = [
    "I was charged twice, please refund the second payment",
    "The app shows an error and then crashes when I login",
    "What is the price of the larger plan?",
    "Your office plants look lovely",
]


@flock_type
class Ticket(BaseModel):
    text: str


@flock_type
class Draft(BaseModel):
    to: str = Field(description="The desk that answers.")
    text: str = Field(max_length=300)


def declare(flock: Flock) -> None:
    for desk, about in DESKS.items():
        (
            flock.agent(desk)
            .description(f"Drafts a short reply of the {desk} desk, which knows about {about}.")
            .consumes(Ticket, semantic_match=about, semantic_threshold=0.2, delivery="exclusive", priority=1)
            .publishes(Draft)
        )
    # Of the exclusive subscriptions that match, the one of the highest priority gets the ticket.
    (
        flock.agent("front")
        .description("Drafts a short reply of the front desk, which knows a little about everything.")
        .consumes(Ticket, delivery="exclusive")
        .publishes(Draft)
    )


async def play(flock: Flock) -> None:
    declare(flock)
    tickets = await flock.publish_many([Ticket(text=text) for text in TICKETS])
    await flock.run_until_idle(timeout=300)
    drafts = {a.envelope.parents[0]: a for a in await flock.store.list_by_type("Draft")}
    for ticket in tickets:
        draft = drafts.get(ticket.id.bytes)
        if draft is not None:
            print(f"{draft.produced_by}: {ticket.payload['text']} -> {draft.payload['text']}")
    print(await flock.why(tickets[0]))
    for error in await flock.store.get_by_type(WorkflowError):
        print(error.error_type, error.error_message)


if __name__ == "__main__":
    perform(play, "triage")
