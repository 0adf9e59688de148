"""Roadmap, "Advanced Retry & Error Handling": the dead letter queue for poison messages, as printed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from flock_ray import DeadLetterQueue, Flock, flock_type
from flock_ray.core.registry import type_registry
from flock_ray.testing import VirtualFlock, run_virtual


def declare(flock: Flock) -> Any:
    agent = flock.agent("processor").retry(
        max_attempts=3,
        dead_letter=DeadLetterQueue(
            destination="failed_artifacts",
            include_trace=True,
            alert_webhook="https://alerts.example.com"
        )
    )  # fmt: skip
    return agent


def test_a_poison_message_goes_to_the_queue_with_its_trace_and_an_alert_and_the_rest_goes_on() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:

            @flock_type(name="roadmap.Message")
            class Message(BaseModel):
                text: str

            @flock_type(name="roadmap.Done")
            class Done(BaseModel):
                text: str

            def process(message: Message) -> Done:
                if message.text == "poison":
                    raise TimeoutError("it never ends")
                return Done(text=message.text)

            declare(flock).consumes(Message).publishes(Done).runs(process)

            await flock.publish_many([Message(text=t) for t in ("one", "poison", "two")])
            await flock.run_until_idle(include_timers=True)

            assert sorted(done.text for done in await flock.store.get_by_type(Done)) == ["one", "two"]
            [letter] = await flock.dead_letters.list(queue="failed_artifacts")
            details = await flock.dead_letters.get(letter.id)
            assert [attempt.number for attempt in details.letter.attempts] == [1, 2, 3]
            assert all("in process" in attempt.traceback for attempt in details.letter.attempts)
            # The address is not called from a virtual flock; this is what it would get.
            [(webhook, message)] = flock.alerts
            assert webhook.label == "https://alerts.example.com"
            assert [entry["id"] for entry in message["letters"]] == [str(letter.id)]

    with type_registry.isolated():
        run_virtual(main())
