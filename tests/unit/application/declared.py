"""The flock that the tests of applications share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.application import FlockApplication, WorkflowContext
from flock_ray.testing import VirtualFlock


@flock_type(name="app.Question")
class Question(BaseModel):
    text: str
    seconds: float = 0
    parts: int = 1


@flock_type(name="app.Part")
class Part(BaseModel):
    text: str
    number: int


@flock_type(name="app.Answer")
class Answer(BaseModel):
    text: str


def ask(text: str = "why", **fields: Any) -> Question:
    return Question(text=text, **fields)


def called(workflow_id: str, **fields: Any) -> WorkflowContext:
    return WorkflowContext(workflow_id=workflow_id, **fields)


class Runs:
    """What the agents did: the texts of the questions that were really answered."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.stopped: list[str] = []


def flock_with(runs: Runs | None = None, **options: Any) -> VirtualFlock:
    """One agent that takes `seconds` for each of its parts, and answers with all of them."""
    noted = runs or Runs()
    flock = VirtualFlock(**options)

    async def answer(question: Question) -> list[Answer]:
        answers = []
        try:
            for number in range(question.parts):
                await asyncio.sleep(question.seconds)
                answers.append(Answer(text=f"{question.text} {number}"))
        except asyncio.CancelledError:
            noted.stopped.append(question.text)
            raise
        if question.text == "fail":
            raise ValueError("secret detail")
        noted.answered.append(question.text)
        return answers

    shown = lambda made: made.text != "nothing 0"  # noqa: E731
    flock.agent("answerer").consumes(Question).publishes(Answer, fan_out=(1, 1000), where=shown).runs(answer)
    return flock


def application(flock: VirtualFlock | Callable[[], Any] | None = None, **options: Any) -> FlockApplication:
    given = {"input_type": Question, "output_types": (Answer,), **options}
    return FlockApplication(flock or flock_with, **given)
