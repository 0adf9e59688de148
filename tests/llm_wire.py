"""How requests and answers of `tests.llm_server` look on the wire."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.llm_answers import ENDLESS, Answer
from tests.llm_http import Exchange


@dataclass(slots=True)
class Seen:
    """A request as it came."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    kind: str = ""
    """What it was answered with; empty: no answer was chosen yet."""
    status: int = 0
    cancelled: bool = False
    """Whether the client left before the answer was complete."""
    done: bool = False
    """Whether the answer was sent to its end."""
    began_s: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body.get("messages", [])
        return found

    @property
    def prompt(self) -> str:
        """All text of all messages."""
        return "\n".join(text_of(message.get("content")) for message in self.messages)

    @property
    def schema(self) -> dict[str, Any] | None:
        form = self.body.get("response_format") or {}
        return form.get("json_schema", {}).get("schema") if form.get("type") == "json_schema" else None


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content)
    return content or ""


def tokens(text: str) -> int:
    return (len(text) + 3) // 4


def embedding(text: str, dimensions: int) -> list[float]:
    """Return a unit vector: texts that share words are near each other."""
    vector = [0.0] * dimensions
    for word in text.lower().split() or [""]:
        mark = hashlib.blake2b(word.encode(), digest_size=8).digest()
        vector[mark[0] % dimensions] += 1.0 if mark[1] & 1 else -1.0
        vector[mark[2] % dimensions] += 0.5
    length = sum(value * value for value in vector) ** 0.5 or 1.0
    return [value / length for value in vector]


def _usage(seen: Seen, answer: Answer, text: str) -> dict[str, Any]:
    estimated = (tokens(seen.prompt), tokens(text) + 8 * len(answer.calls), 0)
    given, made, cached = answer.usage or estimated
    return {
        "prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id or f"call_{n}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.text},
        }
        for n, call in enumerate(answer.calls)
    ]


def _finish(answer: Answer) -> str:
    return answer.finish_reason or ("tool_calls" if answer.calls else "stop")


def _repeats(seen: Seen, answer: Answer) -> int:
    limit = seen.body.get("max_tokens") or seen.body.get("max_completion_tokens") or answer.repeats
    return int(min(limit, answer.repeats))


async def send_whole(exchange: Exchange, seen: Seen, answer: Answer, headers: dict[str, str]) -> None:
    if answer.body is not None:
        return exchange.reply(answer.status, answer.body, {**headers, "content-type": answer.content_type})
    if answer.first_token_s:
        await asyncio.sleep(answer.first_token_s)
    repeats = _repeats(seen, answer)
    if repeats >= ENDLESS:
        await asyncio.sleep(ENDLESS)  # the model never stops, and nothing is sent before it does
    text = answer.text + answer.repeat * repeats
    message = {"role": "assistant", "content": text or None, "refusal": answer.refusal or None}
    if answer.calls:
        message["tool_calls"] = _calls(answer)  # type: ignore[assignment]  # a list among texts
    body: dict[str, Any] = {
        "id": f"chatcmpl-{seen.number}", "object": "chat.completion", "created": 1_700_000_000,
        "model": seen.model, "choices": [{"index": 0, "message": message, "finish_reason": _finish(answer)}],
    }  # fmt: skip
    if not answer.no_usage:
        body["usage"] = _usage(seen, answer, text)
    data = json.dumps(body).encode()
    if answer.cut_after is None and answer.stall_after is None:
        return exchange.reply(answer.status, data, headers)
    exchange.start(answer.status, {"content-type": "application/json", **headers}, length=len(data))
    await exchange.send(data[: len(data) // 2])
    if answer.stall_after is not None:
        await asyncio.sleep(ENDLESS)
    exchange.cut()


def _deltas(seen: Seen, answer: Answer) -> Iterator[dict[str, Any]]:
    """Return the pieces of an answer."""
    pieces = answer.pieces
    if pieces is None:
        words = answer.text.split(" ")
        pieces = tuple(word if n == 0 else f" {word}" for n, word in enumerate(words)) if answer.text else ()
    yield from ({"content": piece} for piece in pieces)
    yield from ({"content": answer.repeat} for _ in range(_repeats(seen, answer)))
    if answer.refusal:
        yield {"refusal": answer.refusal}
    for index, call in enumerate(_calls(answer)):
        function = call["function"]
        head = {"name": function["name"], "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": head}]}
        half = len(function["arguments"]) // 2
        for part in (function["arguments"][:half], function["arguments"][half:]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}


async def send_stream(exchange: Exchange, seen: Seen, answer: Answer, headers: dict[str, str]) -> None:
    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = {
            "id": f"chatcmpl-{seen.number}", "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": seen.model, "choices": choices, **more,
        }  # fmt: skip
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    def delta(content: dict[str, Any], finish: str | None = None) -> bytes:
        return event([{"index": 0, "delta": content, "finish_reason": finish}])

    exchange.start(answer.status, {"content-type": "text/event-stream", **headers}, length=None)
    if answer.first_token_s:
        await asyncio.sleep(answer.first_token_s)
    await exchange.send(delta({"role": "assistant", "content": ""}))
    for number, content in enumerate(_deltas(seen, answer)):
        if number == answer.garbage_after:
            await exchange.send(b"data: {not json\n\n")
        if number == answer.cut_after:
            return exchange.cut()
        if number == answer.stall_after:
            await asyncio.sleep(ENDLESS)
        if answer.piece_s and number:
            await asyncio.sleep(answer.piece_s)
        elif number % 100 == 99:
            await asyncio.sleep(0)  # an endless answer must not stop the server
        await exchange.send(delta(content))
    await exchange.send(delta({}, _finish(answer)))
    if (seen.body.get("stream_options") or {}).get("include_usage") and not answer.no_usage:
        text = answer.text + answer.repeat * _repeats(seen, answer)
        await exchange.send(event([], usage=_usage(seen, answer, text)))
    await exchange.send(b"data: [DONE]\n\n")
    exchange.end()
