from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from flock_ray.core.model_limits import Observed
from flock_ray.gateway.provider import Answer
from flock_ray.gateway.settings import ModelSettings
from flock_ray.model import Caller, ModelReply, ModelRequest, Usage

MODEL = "openai/gpt-4.1-mini"


def request(text: str = "hello", *, agent: str = "a", tenant: str = "", **more: Any) -> ModelRequest:
    """Ask something."""
    return ModelRequest(
        **{
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "caller": Caller(agent=agent, tenant=tenant),
            **more,
        }
    )


class FakeProvider:
    """Answers after a while; what is an exception in the script is raised."""

    def __init__(
        self,
        script: Iterable[Any] = (),
        *,
        delay_s: float = 1.0,
        answer: Callable[[ModelRequest], Any] | None = None,
    ) -> None:
        self.script = list(script)
        self.delay_s = delay_s
        self.answer = answer
        self.starts: list[tuple[float, ModelRequest]] = []
        self.running = self.most_running = self.cancelled = 0

    async def call(
        self, request: ModelRequest, settings: ModelSettings, on_text: Callable[[str], None] | None
    ) -> Answer:
        self.starts.append((asyncio.get_running_loop().time(), request))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            made = self.script.pop(0) if self.script else None
            if self.answer is not None and made is None:
                made = self.answer(request)
            if on_text is not None and isinstance(made, tuple):
                pieces, made = made
                for piece in pieces:
                    on_text(piece)
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(made, BaseException):
            raise made
        if isinstance(made, Answer):
            return made
        text = made if isinstance(made, str) else "fine"
        if on_text is not None:
            for word in text.split(" "):
                on_text(word)
            text = "".join(text.split(" "))
        reply = ModelReply(text=text, usage=Usage(input_tokens=10, output_tokens=5), latency_s=self.delay_s)
        return Answer(reply, Observed(), Observed())
