"""What the model of `tests.llm_server` answers: good answers and every bad one that providers give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any, NamedTuple

ENDLESS = 1_000_000_000


class Call(NamedTuple):
    """A tool call of the model."""

    name: str
    arguments: str | Mapping[str, Any] = "{}"
    """Text goes out as it is, valid JSON or not."""
    id: str = ""
    """Empty: numbered."""

    @property
    def text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, whole or broken; streamed when the request asks for a stream."""

    kind: str = "text"
    """What it is counted as."""
    text: str = ""
    pieces: tuple[str, ...] | None = None
    """How the text is cut when it is streamed; None: at spaces."""
    calls: tuple[Call, ...] = ()
    refusal: str = ""
    finish_reason: str | None = None
    """None: stop, or tool_calls."""
    usage: tuple[int, int, int] | None = None
    """Tokens in, out, and of those in the cached ones; None: estimated."""
    no_usage: bool = False
    status: int = 200
    error: Mapping[str, Any] | None = None
    """Body of an error: message, type, param, code."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Sent instead of everything else, with `content_type`."""
    content_type: str = "application/json"
    latency_s: float = 0.0
    """Before the first byte of the response, headers included."""
    first_token_s: float = 0.0
    """Between the headers and the first piece."""
    piece_s: float = 0.0
    """Between two pieces."""
    cut_after: int | None = None
    """Drop the connection after so many pieces (or, when not streamed, in the middle of the body)."""
    stall_after: int | None = None
    """Send nothing any more after so many pieces, and keep the connection."""
    garbage_after: int | None = None
    """After so many pieces send an event that is no JSON."""
    repeat: str = ""
    """Sent again and again after the text, up to max_tokens of the request or `repeats`."""
    repeats: int = 0
    drop: bool = False
    """Close the connection instead of answering."""


def text(answer: str, **more: Any) -> Answer:
    """Answer with text."""
    return Answer(text=answer, **more)


def json_answer(value: Any, **more: Any) -> Answer:
    """Answer with JSON text."""
    return Answer(kind="json", text=json.dumps(value), **more)


def tool_calls(*calls: Call | tuple[Any, ...], **more: Any) -> Answer:
    """Call tools: several are parallel calls."""
    return Answer(kind="tool_calls", calls=tuple(Call(*tuple[Any, ...](call)) for call in calls), **more)


def bad_arguments(name: str, arguments: str = '{"city": "Par', **more: Any) -> Answer:
    """Call a tool with arguments that are no JSON."""
    return Answer(kind="bad_arguments", calls=(Call(name, arguments),), **more)


def _error(kind: str, status: int, message: str, code: str | None, type_: str, **more: Any) -> Answer:
    body = {"message": message, "type": type_, "param": more.pop("param", None), "code": code}
    return Answer(kind=kind, status=status, error=body, **more)


def rate_limited(
    retry_after_s: float | None = 1.0, *, as_date_of: float | None = None, kind: str = "rate_limited"
) -> Answer:
    """Answer 429.

    Args:
        retry_after_s: Value of the Retry-After header in seconds; None: no such header.
        as_date_of: Unix time now: the header is a date then.
        kind: What it is counted as.
    """
    headers = {}
    if retry_after_s is not None:
        late = None if as_date_of is None else formatdate(as_date_of + retry_after_s, usegmt=True)
        headers["retry-after"] = late or f"{retry_after_s:g}"
    return _error(
        kind, 429, "Rate limit reached for requests.", "rate_limit_exceeded", "requests", headers=headers
    )


def server_error(status: int = 500, **more: Any) -> Answer:
    """Answer 500, 502, 503, 529..."""
    message = "The server had an error while processing your request."
    return _error(f"error_{status}", status, message, None, "server_error", **more)


def wrong_key() -> Answer:
    """Answer 401."""
    return _error("wrong_key", 401, "Incorrect API key provided.", "invalid_api_key", "invalid_request_error")


def unknown_model(model: str) -> Answer:
    """Answer 404 for a model."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return _error("unknown_model", 404, message, "model_not_found", "invalid_request_error", param="model")


def context_too_long(limit: int = 8192, asked: int = 10_000) -> Answer:
    """Answer 400 as for a prompt of `asked` tokens where `limit` fit."""
    message = (
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in "
        f"{asked} tokens. Please reduce the length of the messages."
    )
    return _error(
        "context_too_long", 400, message, "context_length_exceeded", "invalid_request_error", param="messages"
    )


def bad_request(message: str, *, param: str | None = None) -> Answer:
    """Answer 400."""
    return _error("bad_request", 400, message, None, "invalid_request_error", param=param)


def refusal(reason: str = "I can't help with that.", **more: Any) -> Answer:
    """Refuse as OpenAI's structured outputs do."""
    return Answer(kind="refusal", refusal=reason, **more)


def content_filter(partial: str = "", **more: Any) -> Answer:
    """Stop by the provider's filter."""
    return Answer(kind="content_filter", text=partial, finish_reason="content_filter", **more)


def too_short(partial: str, **more: Any) -> Answer:
    """Stop in the middle because max_tokens is reached."""
    return Answer(kind="length", text=partial, finish_reason="length", **more)


def cut(partial: str = "The answer was going to be", after: int = 2, **more: Any) -> Answer:
    """Drop the connection in the middle of an answer."""
    return Answer(kind="cut", text=partial, cut_after=after, **more)


def dropped() -> Answer:
    """Close the connection without a word."""
    return Answer(kind="dropped", drop=True)


def stall(partial: str = "Let me think", after: int = 1, **more: Any) -> Answer:
    """Say something and then nothing more, for ever."""
    return Answer(kind="stall", text=partial, stall_after=after, **more)


def silent() -> Answer:
    """Take the request and never answer."""
    return Answer(kind="silent", latency_s=ENDLESS)


def slow_first_token(delay_s: float, answer: str = "Sorry for the wait.", **more: Any) -> Answer:
    """Send headers at once and the first piece late."""
    return Answer(kind="slow", text=answer, first_token_s=delay_s, **more)


def garbage(body: bytes = b'<html>502 {"choices": [', **more: Any) -> Answer:
    """Answer 200 with a body that is no JSON; a stream breaks after its first piece."""
    return Answer(kind="garbage", body=body, text="some text", garbage_after=1, **more)


def wrong_schema(value: Any = None, **more: Any) -> Answer:
    """Answer with JSON that fits no schema that was asked for."""
    return replace(
        json_answer({"unexpected": [1, None]} if value is None else value, **more), kind="wrong_schema"
    )


def broken_json(partial: str = '{"title": "A half', **more: Any) -> Answer:
    """Answer with text that begins as JSON and stops."""
    return Answer(kind="broken_json", text=partial, **more)


def whitespace(opening: str = "{", repeats: int = 4096, **more: Any) -> Answer:
    """Fill the answer with white space, as models do whose JSON mode lost its way.

    Ends at max_tokens of the request, or after `repeats` pieces; `ENDLESS` goes on until the client leaves.
    """
    more = {"finish_reason": "length", **more}
    return Answer(kind="whitespace", text=opening, repeat=" \n", repeats=repeats, **more)


# -- answers that fit a schema -----------------------------------------------------------------


def instance(schema: Mapping[str, Any], *, seed: int = 0) -> Any:
    """Return a value that fits a JSON schema, as small as it may be."""
    return _instance(schema, schema.get("$defs", schema.get("definitions", {})), seed, 0)


def _instance(schema: Mapping[str, Any], defs: Mapping[str, Any], seed: int, depth: int) -> Any:
    if "$ref" in schema:
        return _instance(defs[schema["$ref"].rpartition("/")[2]], defs, seed, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][seed % len(schema["enum"])]
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        # Deep inside, the way out of a recursive schema is usually null.
        null = next((option for option in options if option.get("type") == "null"), None)
        return _instance(null if null is not None and depth > 4 else options[0], defs, seed, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            merged.update(_resolved(part, defs))
        return _instance(merged, defs, seed, depth + 1)
    return _typed(schema, defs, seed, depth)


def _resolved(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _typed(schema: Mapping[str, Any], defs: Mapping[str, Any], seed: int, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        required = schema.get("required", [])
        return {
            name: _instance(field, defs, seed, depth + 1)
            for name, field in schema.get("properties", {}).items()
            if name in required or depth < 4
        }
    if kind == "array":
        count = schema.get("minItems", 1 if depth < 4 else 0)
        return [_instance(schema.get("items", {}), defs, seed + n, depth + 1) for n in range(count)]
    if kind in ("integer", "number"):
        return _number(schema, kind)
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    return _string(schema)


def _number(schema: Mapping[str, Any], kind: str) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    step = 1 if kind == "integer" else 0.25
    if low is not None:
        value = low if "minimum" in schema else low + step
    elif high is not None:
        value = high if "maximum" in schema else high - step
    else:
        value = 1
    return int(value) if kind == "integer" else value


_FORMATS = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "uuid": "00000000-0000-4000-8000-000000000001",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "duration": "PT1S",
}


def _string(schema: Mapping[str, Any]) -> str:
    value = _FORMATS.get(schema.get("format", ""), "text")
    value = value.ljust(schema.get("minLength", 0), "x")
    return value[: schema.get("maxLength", len(value))]
