"""`ScriptedModel`: a language model whose answers a test writes down."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from flock_ray.errors import ConfigurationError
from flock_ray.model import ModelReply, ModelRequest, ToolCall, Usage

__all__ = ["ScriptedModel"]

Answer = Any
"""Text, a pydantic model or other JSON value, a ToolCall or a list of them, a ModelReply, or an
exception to raise."""
Script = Callable[[ModelRequest], Any] | Iterable[Answer] | Mapping[str, Any] | str | BaseModel | None

CHARS_PER_TOKEN = 4


class ScriptedModel:
    """Answers from a script; keeps every request, for a test to look at.

    Time is the running loop's: on a `VirtualTimeLoop` delays take none.
    """

    def __init__(
        self,
        script: Script = None,
        *,
        delay_s: float = 0.0,
        piece_chars: int = 8,
        model: str | None = None,
    ) -> None:
        """Write down the answers.

        Args:
            script: A function of the request (sync or async), or answers in order; a mapping gives a script
                per agent, with "*" for all others. One text or model is the answer to everything.
                A list may hold functions, too. When a list is used up, calls raise ConfigurationError.
            delay_s: Seconds that each answer takes.
            piece_chars: Length of the pieces in which an answer is streamed, from 1.
            model: What answers say they come from; None: the model that was asked.
        """
        self.requests: list[ModelRequest] = []
        """What was asked, in order of arrival."""
        self.running = 0
        """Calls that have not been answered yet."""
        self.most_running = 0
        """Most calls at the same time so far."""
        self.cancelled = 0
        """Calls that were given up by their caller."""
        self._by_agent = script if isinstance(script, Mapping) else {"*": script}
        self._lists: dict[str, Iterator[Answer]] = {}
        self._delay_s = delay_s
        self._piece_chars = piece_chars
        self._model = model

    def requests_of(self, agent: str) -> list[ModelRequest]:
        """Return what one agent asked, in order."""
        return [request for request in self.requests if request.caller.agent == agent]

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        """Answer as the script says; an exception in it is raised.

        Raises:
            ConfigurationError: The script has no answer for this call.
        """
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self._delay_s)
            answer = self._next(request)
            while callable(answer) and not isinstance(answer, type):
                answer = answer(request)
                if inspect.isawaitable(answer):
                    answer = await answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(answer, BaseException):
            raise answer
        reply = self._reply(request, answer)
        if on_text is not None:
            for start in range(0, len(reply.text), self._piece_chars):
                on_text(reply.text[start : start + self._piece_chars])
        return reply

    def _next(self, request: ModelRequest) -> Answer:
        agent = request.caller.agent
        key = agent if agent in self._by_agent else "*"
        if key not in self._by_agent:
            raise ConfigurationError(
                f"The ScriptedModel has no answers for agent {agent!r}: add some, or '*'."
            )
        script = self._by_agent[key]
        if isinstance(script, (str, bytes, BaseModel, ModelReply, ToolCall, BaseException)) or callable(
            script
        ):
            return script
        if script is None:
            raise ConfigurationError("The ScriptedModel has no script: ScriptedModel(['an answer']).")
        answers = self._lists.setdefault(key, iter(script))
        for answer in answers:
            return answer
        raise ConfigurationError(
            f"The ScriptedModel has no more answers for agent {agent!r}: this was call {len(self.requests)}."
        )

    def _reply(self, request: ModelRequest, answer: Answer) -> ModelReply:
        if isinstance(answer, ModelReply):
            return answer
        calls = [answer] if isinstance(answer, ToolCall) else answer
        if isinstance(calls, (list, tuple)) and calls and all(isinstance(call, ToolCall) for call in calls):
            return self._made(request, "", list(calls))
        return self._made(request, _text(answer), [])

    def _made(self, request: ModelRequest, text: str, calls: list[ToolCall]) -> ModelReply:
        asked = sum(len(str(message.get("content") or "")) for message in request.messages)
        return ModelReply(
            text=text,
            tool_calls=calls,
            finish_reason="tool_calls" if calls else "stop",
            model=self._model or request.model,
            usage=Usage(
                input_tokens=asked // CHARS_PER_TOKEN,
                output_tokens=len(text) // CHARS_PER_TOKEN,
                cost_usd=0.0,
            ),
            latency_s=self._delay_s,
            request_hash=f"scripted-{len(self.requests)}",
        )


def _text(answer: Answer) -> str:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, BaseModel):
        return answer.model_dump_json(by_alias=False)
    return json.dumps(_plain(answer))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=False)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
