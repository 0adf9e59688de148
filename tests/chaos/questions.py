"""An agent that asks a model, for boards whose gateway dies: the model repeats a number."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

from flock_ray import flock_type
from tests.llm_wire import Seen, text_of

MODEL = "openai/test-model"


@flock_type(name="chaos.Question")
class Question(BaseModel):
    number: int


@flock_type(name="chaos.Answer")
class Answered(BaseModel):
    number: int


def answer(seen: Seen) -> str:
    """Answer with the number that was asked."""
    asked = re.findall(r'number"?\s*[:=]\s*(\d+)', " ".join(text_of(m.get("content")) for m in seen.messages))
    return f'{{"number": {asked[-1]}}}'


def answering(flock: Any) -> Any:
    """Declare the agent."""
    agent = flock.agent("answer").description("Repeat the number.")
    return agent.consumes(Question).publishes(Answered)
