"""A custom engine: upstream's `EngineComponent`, unchanged. Rules instead of a language model."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel

from flock_ray import Context, EngineComponent, EvalInputs, EvalResult, Flock, flock_type


@flock_type
class Message(BaseModel):
    text: str


@flock_type
class Mood(BaseModel):
    emoji: str


class EmojiEngine(EngineComponent):
    """Maps the first word that it knows to an emoji."""

    table: dict[str, str] = {"great": "😀", "sad": "😢"}

    async def evaluate(self, agent: Any, ctx: Context, inputs: EvalInputs, output_group: Any) -> EvalResult:
        message = inputs.first_as(Message)
        words = message.text.lower().split() if message is not None else []
        emoji = next((self.table[word] for word in words if word in self.table), "😐")
        return EvalResult.from_object(Mood(emoji=emoji), agent=agent)


async def main() -> None:
    async with Flock() as flock:
        flock.agent("mood").consumes(Message).publishes(Mood).with_engines(EmojiEngine())
        await flock.publish_many([Message(text="A great day"), Message(text="So sad"), Message(text="Well")])
        await flock.run_until_idle(timeout=60)
        print(*sorted(mood.emoji for mood in await flock.store.get_by_type(Mood)))


if __name__ == "__main__":
    asyncio.run(main())
