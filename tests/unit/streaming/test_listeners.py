"""Answers come in pieces only when somebody listens: streaming costs several times the CPU of a whole answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import LiteLLMEngine, flock_type
from flock_ray.actors.texts import LISTENED_S
from flock_ray.model import ModelReply, ModelRequest
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual
from flock_ray.token_streams import StreamPiece


@flock_type(name="listeners.Question")
class Question(BaseModel):
    text: str


@flock_type(name="listeners.Reply")
class Reply(BaseModel):
    text: str


ANSWER = '{"text":"one two three four"}'


class Asked(ScriptedModel):
    """Notes of each call whether its answer was wanted in pieces."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Reply(text="one two three four"), **options)
        self.streamed: list[bool] = []

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        self.streamed.append(on_text is not None)
        return await super().complete(request, on_text)


def answering(
    model: Asked, engine: LiteLLMEngine | None = None, idle: timedelta | None = None
) -> VirtualFlock:
    flock = VirtualFlock(language_model=model)
    agent = flock.agent("answerer").description("Answers.").consumes(Question).publishes(Reply)
    if engine is not None:
        agent.with_engines(engine)
    if idle is not None:
        agent.timeout(idle=idle)
    return flock


async def heard(flock: VirtualFlock, workflow: str) -> list[tuple[str, str]]:
    found: list[StreamPiece] = []
    async for piece in flock.stream_tokens(workflow):
        found.append(piece)
        if piece.kind in ("final", "failed"):
            break
    return [(piece.kind, piece.text) for piece in found]


def test_without_a_listener_the_answer_comes_whole_and_is_kept_for_a_later_one() -> None:
    async def test() -> None:
        model = Asked()
        async with answering(model) as flock:
            await flock.publish(Question(text="?"), correlation_id="w")
            await flock.run_until_idle()
            assert model.streamed == [False]
            assert await heard(flock, "w") == [("token", ANSWER), ("final", ANSWER)]

    run_virtual(test())


def test_with_a_listener_it_comes_in_pieces_and_stays_so_for_an_hour() -> None:
    async def test() -> None:
        model = Asked()
        async with answering(model) as flock:
            listening = asyncio.ensure_future(heard(flock, "w"))
            await asyncio.sleep(1)
            await flock.publish(Question(text="?"), correlation_id="w")
            await flock.run_until_idle()
            assert (await listening)[-1] == ("final", ANSWER)
            for pause_s, streamed in ((LISTENED_S / 2, True), (LISTENED_S, False)):
                await asyncio.sleep(pause_s)
                await flock.publish(Question(text=str(pause_s)))
                await flock.run_until_idle()
                assert model.streamed[-1] is streamed
        assert model.streamed[0] is True

    run_virtual(test())


def test_a_long_run_finds_out_that_somebody_has_begun_to_listen() -> None:
    async def test() -> None:
        model = Asked(delay_s=10.0)
        model._by_agent = {"*": iter(["no JSON", "nor this", ANSWER])}  # two repairs: three calls
        async with answering(model) as flock:
            await flock.publish(Question(text="?"), correlation_id="w")
            await asyncio.sleep(5)
            listening = asyncio.ensure_future(heard(flock, "w"))
            await flock.run_until_idle()
            await listening
        assert model.streamed == [False, False, True]  # what the first call said has told the worker

    run_virtual(test())


@pytest.mark.parametrize(
    ("engine", "idle", "streamed"),
    [
        (LiteLLMEngine(stream=True), None, True),
        (LiteLLMEngine(stream=False), None, False),
        (LiteLLMEngine(), timedelta(seconds=30), True),  # tokens are the signs of life
        (LiteLLMEngine(), None, False),
    ],
)
def test_who_wants_pieces_without_a_listener_says_so(
    engine: LiteLLMEngine, idle: timedelta | None, streamed: bool
) -> None:
    async def test() -> None:
        model = Asked()
        async with answering(model, engine, idle) as flock:
            await flock.publish(Question(text="?"))
            await flock.run_until_idle()
        assert model.streamed == [streamed]

    run_virtual(test())
