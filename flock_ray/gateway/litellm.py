"""Calls models through litellm: the only module that imports it, at the first call.

Importing litellm takes seconds and about 120 MB, so only gateway processes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import SecretStr

from flock_ray.errors import ModelAnswerError, ModelError, ModelRefusedError, ModelTimeoutError
from flock_ray.gateway.failures import error_from, observed
from flock_ray.gateway.litellm_calls import completed, rehearse
from flock_ray.gateway.litellm_embeddings import embedding_parameters, vectors_in
from flock_ray.gateway.litellm_tariffs import LOCAL, LitellmTariffs, table_entry
from flock_ray.gateway.provider import Answer
from flock_ray.gateway.settings import ModelSettings, full_name, provider_of
from flock_ray.model import ModelReply, ModelRequest, Timeouts, ToolCall, Usage

__all__ = ["LitellmProvider", "litellm_module"]

MAX_ANSWER_CHARS = 8 * 1024 * 1024
MAX_CONNECTIONS = 65_536
"""Of one process: more than calls may be open. litellm takes 0 for aiohttp's default, which is 100."""
MAX_BLANK_CHARS = 8192
"""So much white space in a row is a model that got stuck, as some do when they write JSON."""

_module: Any = None
_lock = threading.Lock()


def litellm_module() -> Any:
    """Return litellm, imported and silenced once; blocks for seconds the first time."""
    global _module
    with _lock:
        if _module is None:
            # No download of a price list, no limit of connections below our own, nothing on stdout.
            for name, value in (
                ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
                ("LITELLM_LOG", "ERROR"),
                ("AIOHTTP_CONNECTOR_LIMIT", str(MAX_CONNECTIONS)),
                ("AIOHTTP_CONNECTOR_LIMIT_PER_HOST", str(MAX_CONNECTIONS)),
            ):
                os.environ.setdefault(name, value)
            # Of pydantic, about a type of litellm's.
            warnings.filterwarnings("ignore", message=".*ReadOnly.*", category=UserWarning)
            litellm = _imported()
            litellm.suppress_debug_info = True
            litellm.turn_off_message_logging = True
            litellm.num_retries = 0
            litellm.DEFAULT_MAX_RETRIES = 0  # what embedding takes for `max_retries=0`
            litellm.callbacks = []
            litellm.drop_params = True
            for logger in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "httpx"):
                # It logs requests and whole errors, prompts among them.
                logging.getLogger(logger).setLevel(logging.CRITICAL)
            _module = litellm
    return _module


def _imported() -> Any:
    """Import litellm; without the garbage collector, which would look at half a million new objects again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        import litellm
    finally:
        if was_on:
            gc.enable()
    return litellm


class LitellmProvider(LitellmTariffs):
    """Calls any model that litellm knows."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Import nothing yet.

        Args:
            monotonic: A clock in seconds that never goes back.
        """
        self._monotonic = monotonic
        self._timeouts: dict[float | None, Any] = {}
        self._windows: dict[str, int | None] = {}
        self._rehearsed = False

    async def warm_up(self) -> None:
        """Import litellm in a thread, and what it imports at its first call: another second."""
        await self._ready()
        if not self._rehearsed:
            self._rehearsed = True
            await rehearse(_module)

    async def _ready(self) -> None:
        if _module is None:
            await asyncio.to_thread(litellm_module)

    def _litellm(self) -> Any:
        return litellm_module()

    async def call(
        self, request: ModelRequest, settings: ModelSettings, on_text: Callable[[str], None] | None
    ) -> Answer:
        """Make one call.

        The answer is streamed when somebody listens, or when the request has a first-token or idle timeout of
        its own: reading it in pieces costs several times the CPU.
        """
        await self._ready()
        times, usual = request.timeouts, Timeouts()
        streams = on_text is not None or times.first_token_s not in (usual.first_token_s, None)
        streams = streams or times.idle_s not in (usual.idle_s, None)
        try:
            if request.embed:
                return await self._embedded(request, settings)
            if streams:
                return await self._streamed(request, settings, on_text)
            return await self._whole(request, settings)
        except ModelError:
            raise
        except Exception as error:
            raise error_from(error, request.model, max_input=self._max_input(request.model)) from None

    async def _embedded(self, request: ModelRequest, settings: ModelSettings) -> Answer:
        started = self._monotonic()
        response = await _module.aembedding(**embedding_parameters(request, settings))
        reply = ModelReply(
            vectors=vectors_in(response.data or [], len(request.embed), request.model),
            usage=self._usage(request, settings, response.usage),
            latency_s=self._monotonic() - started,
        )
        return Answer(reply, *observed(_headers(response)))

    async def _whole(self, request: ModelRequest, settings: ModelSettings) -> Answer:
        started = self._monotonic()
        response = await completed(_module, self._parameters(request, settings))
        choice = response.choices[0] if response.choices else None
        message = None if choice is None else choice.message
        calls = [
            ToolCall(
                _valid(call.id or f"call_{index}"),
                _valid(call.function.name or ""),
                _valid(call.function.arguments or ""),
            )
            for index, call in enumerate(getattr(message, "tool_calls", None) or [])
        ]
        text = getattr(message, "content", None) or ""
        if len(text) + sum(len(call.arguments) for call in calls) > MAX_ANSWER_CHARS:
            raise _too_long()
        reply = ModelReply(
            text=_valid(text),
            tool_calls=calls,
            finish_reason=_finish(getattr(choice, "finish_reason", None), calls),
            refusal=_refusal(message),
            usage=self._usage(request, settings, getattr(response, "usage", None)),
            latency_s=self._monotonic() - started,
        )
        return self._answer(request, reply, _headers(response))

    async def _streamed(
        self, request: ModelRequest, settings: ModelSettings, on_text: Callable[[str], None] | None
    ) -> Answer:
        loop, times = asyncio.get_running_loop(), request.timeouts
        got = _Streamed(on_text)
        started = self._monotonic()
        first: float | None = None
        stream: Any = None
        try:
            async with asyncio.timeout(times.first_token_s) as limit:
                parameters = self._parameters(request, settings)
                parameters |= {"stream": True, "stream_options": {"include_usage": True}}
                stream = await completed(_module, parameters)
                async for chunk in stream:
                    if got.take(chunk) and first is None:
                        first = self._monotonic() - started
                    if first is not None:
                        limit.reschedule(None if times.idle_s is None else loop.time() + times.idle_s)
        except TimeoutError:
            what = (
                f"has not begun to answer within {times.first_token_s:g} s"
                if first is None
                else f"has stopped in its answer for {times.idle_s:g} s"
            )
            raise ModelTimeoutError(
                f"{request.model} {what}. Raise the timeout, or name a fallback model."
            ) from None
        finally:
            if stream is not None:
                await _close(stream)
        if got.finish is None or _invented(stream):
            raise ModelError(
                f"{request.model} has cut its answer: the stream ended without a finish reason. It is tried again."
            )
        calls = got.calls()
        reply = ModelReply(
            text="".join(got.text),
            tool_calls=calls,
            finish_reason=_finish(got.finish, calls),
            refusal="".join(got.refusal),
            usage=self._usage(request, settings, got.usage),
            latency_s=self._monotonic() - started,
            first_token_s=first,
        )
        return self._answer(request, reply, _headers(stream))

    def _answer(self, request: ModelRequest, reply: ModelReply, headers: Mapping[str, str]) -> Answer:
        if reply.finish_reason == "content_filter" and not reply.text and not reply.tool_calls:
            raise ModelRefusedError(
                f"A content filter of {request.model} has cut the whole answer. Change the agent's description "
                "or its input."
            )
        return Answer(reply, *observed(headers))

    def _parameters(self, request: ModelRequest, settings: ModelSettings) -> dict[str, Any]:
        made: dict[str, Any] = {
            **settings.extra, **request.extra, "model": full_name(request.model), "messages": request.messages,
            "num_retries": 0, "max_retries": 0, "timeout": self._timeout(request),
        }  # fmt: skip
        for name in ("tool_choice", "response_format", "temperature", "max_tokens", "seed"):
            if (value := getattr(request, name)) is not None:
                made[name] = value
        if request.tools:
            made["tools"] = request.tools
        if request.stop:
            made["stop"] = request.stop
        if settings.api_base is not None:
            made["api_base"] = settings.api_base
        if isinstance(settings.api_key, SecretStr):
            made["api_key"] = settings.api_key.get_secret_value()
        return made

    def _timeout(self, request: ModelRequest) -> Any:
        """Return the timeout for litellm: one object per value, because its connections are kept per timeout."""
        connect = request.timeouts.connect_s
        if not _module.utils.supports_httpx_timeout(provider_of(request.model)):
            return 24 * 3600.0  # others take one number for everything: the gateway watches the time
        if connect not in self._timeouts:
            import httpx

            if len(self._timeouts) > 100:
                self._timeouts.clear()
            self._timeouts[connect] = httpx.Timeout(None, connect=connect)
        return self._timeouts[connect]

    def _usage(self, request: ModelRequest, settings: ModelSettings, usage: Any) -> Usage:
        if usage is None:
            return Usage()
        sent, made = int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)
        details = getattr(usage, "prompt_tokens_details", None)
        cached = int(getattr(details, "cached_tokens", None) or 0)
        return Usage(
            input_tokens=sent,
            output_tokens=made,
            cached_tokens=cached,
            cost_usd=self._cost(request, settings, usage, sent, made),
        )

    def _cost(
        self, request: ModelRequest, settings: ModelSettings, usage: Any, sent: int, made: int
    ) -> float | None:
        model, entry = request.model, table_entry(_module, request.model)
        given = settings.input_usd_per_mtok, settings.output_usd_per_mtok
        if given != (None, None):
            # Of two prices, one may be given and the other in the table.
            first, second = (
                float(entry.get(name) or 0.0) if price is None else price / 1e6
                for price, name in zip(given, ("input_cost_per_token", "output_cost_per_token"), strict=True)
            )
            return sent * first + made * second
        if not entry:
            return None
        if provider_of(model) in LOCAL:
            return 0.0
        tier = request.extra.get("service_tier") or settings.extra.get("service_tier")
        with contextlib.suppress(Exception):
            first, second = _module.cost_per_token(
                model=full_name(model), usage_object=usage, service_tier=tier
            )
            cost = float(first + second)
            # litellm says 0 for a model without a price, too.
            return cost if cost or entry.get("input_cost_per_token") is not None else None
        return None

    def _max_input(self, model: str) -> int | None:
        """Return how many tokens a model takes, as litellm's table has it; None: it is not there."""
        if model not in self._windows:
            entry, limit = table_entry(_module, model), None
            with contextlib.suppress(Exception):  # the table has words in a few places
                limit = int(entry.get("max_input_tokens") or entry.get("max_tokens") or 0) or None
            if len(self._windows) > 1000:
                self._windows.clear()
            self._windows[model] = limit
        return self._windows[model]


class _Streamed:
    """An answer put together from its pieces."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self._on_text = on_text
        self.text: list[str] = []
        self.refusal: list[str] = []
        self.finish: str | None = None
        self.usage: Any = None
        self._calls: dict[int, list[str]] = {}
        self._size = self._blank = 0

    def take(self, chunk: Any) -> bool:
        """Add a piece; returns whether there was anything of the answer in it."""
        usage = getattr(chunk, "usage", None)
        if usage is not None:
            self.usage = usage
        if not chunk.choices:
            return False
        choice = chunk.choices[0]
        if choice.finish_reason:
            self.finish = choice.finish_reason
        delta = choice.delta
        text = _valid(getattr(delta, "content", None) or "")
        if text:
            self._bound(text)
            self.text.append(text)
            if self._on_text is not None:
                self._on_text(text)
        if refusal := _refusal(delta):
            self.refusal.append(refusal)
        calls = getattr(delta, "tool_calls", None) or []
        for position, call in enumerate(calls):
            index = call.index if call.index is not None else position
            known = self._calls.setdefault(index, ["", "", ""])
            known[0] = known[0] or call.id or ""
            known[1] += call.function.name or ""
            known[2] += call.function.arguments or ""
            self._bound(call.function.arguments or "")
        return bool(text or calls or refusal or getattr(delta, "reasoning_content", None))

    def calls(self) -> list[ToolCall]:
        """Return the tool calls, in order."""
        return [
            ToolCall(_valid(call[0]) or f"call_{index}", _valid(call[1]), _valid(call[2]))
            for index, call in sorted(self._calls.items())
        ]

    def _bound(self, text: str) -> None:
        self._size += len(text)
        bare = text.rstrip()
        self._blank = len(text) - len(bare) if bare else self._blank + len(text)
        if self._size > MAX_ANSWER_CHARS:
            raise _too_long()
        if self._blank > MAX_BLANK_CHARS:
            raise ModelError(
                "The model writes nothing but white space. It is tried again; ask for a simpler schema, "
                "or set max_tokens."
            )


def _too_long() -> ModelAnswerError:
    return ModelAnswerError(
        f"The answer is longer than {MAX_ANSWER_CHARS} characters and was given up; it was not tried again. "
        "Set max_tokens."
    )


def _invented(stream: Any) -> bool:
    """Tell whether litellm made the finish reason up, and the usage: the provider's stream just ended."""
    return hasattr(stream, "received_finish_reason") and not (
        stream.received_finish_reason or getattr(stream, "intermittent_finish_reason", None)
    )


def _finish(reason: str | None, calls: list[ToolCall]) -> str:
    if calls and reason in (None, "stop", "function_call", "tool_calls"):
        return "tool_calls"
    return reason if reason in ("length", "content_filter", "tool_calls") else "stop"


def _refusal(message: Any) -> str:
    if message is None:
        return ""
    extra = getattr(message, "provider_specific_fields", None) or {}
    return _valid(str(getattr(message, "refusal", None) or extra.get("refusal") or ""))


def _valid(text: str) -> str:
    """Return text that encodes: halves of a character that belong together are joined, lone ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _headers(response: Any) -> dict[str, str]:
    hidden = getattr(response, "_hidden_params", None) or {}
    found = hidden.get("additional_headers") or {}
    return {str(name).lower().removeprefix("llm_provider-"): str(value) for name, value in found.items()}


async def _close(stream: Any) -> None:
    """Close the connection of a stream that was not read to its end; it can't be used again."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()
