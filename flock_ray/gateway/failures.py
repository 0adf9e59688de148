"""Turns what a provider's library raised into one of our errors: one clear sentence, and no secret in it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from flock_ray.core.model_limits import MAX_BLOCK_S, Observed
from flock_ray.engines.records import redacted
from flock_ray.errors import (
    ContextTooLongError,
    ModelError,
    ModelRefusedError,
    ModelRequestError,
    ModelTimeoutError,
    RateLimitError,
    safe_error_text,
)

__all__ = ["error_from", "observed", "retry_after"]

MAX_DETAIL_CHARS = 300

_PREFIX = re.compile(r"^(?:\s*(?:litellm\.)?\w+(?:Error|Exception|Timeout)\s*(?::|-)\s*)+")
_NO_KEY = re.compile(
    r"(?i)missing\s+.*(?:credential|api[ _-]?key|(?:access|auth|bearer|api)[ _-]?token)"
    r"|api[ _-]?key.*(?:not set|missing|required)"
)
_NO_PROVIDER = re.compile(r"(?i)llm provider not provided|unmapped llm provider")
_FILTERED = re.compile(r"(?i)content[ _-]?(?:filter|policy|management)|safety (?:system|settings)")
_CONTEXT = re.compile(
    r"(?i)context[ _-]?(?:length|window)|maximum context|too many tokens|prompt is too long|input is too long"
)
_UNKNOWN_MODEL = re.compile(r"(?i)model.*(?:not[ _]found|does not exist|unknown)|model_not_found")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\d[\d,]*")


def error_from(error: BaseException, model: str, *, max_input: int | None = None) -> ModelError:
    """Make the error for what a call raised.

    Args:
        error: What was raised: litellm's exceptions, or anything else.
        model: The model that was called.
        max_input: Tokens that the model takes; None: not known.
    """
    if isinstance(error, ModelError):
        return error
    text = detail_of(error)
    names = {cls.__name__ for cls in type(error).__mro__}
    status = getattr(error, "status_code", None)
    if "ContextWindowExceededError" in names or (status in (400, 413, 422) and _CONTEXT.search(text)):
        return _too_long(text, model, max_input)
    if "ContentPolicyViolationError" in names or (status in (400, 403) and _FILTERED.search(text)):
        return ModelRefusedError(
            f"A content filter of {model} refused the call ({text}). Change the agent's description or its input."
        )
    if _NO_KEY.search(text):
        return ModelRequestError(
            f"There is no API key for {model}: set the provider's variable in the environment of the cluster "
            f'before Ray starts, or give one with Flock(models={{"{model}": ModelSettings(api_key=...)}}).'
        )
    if _NO_PROVIDER.search(text):
        return ModelRequestError(
            f"The model {model!r} is unknown: name it as litellm does, with its provider, "
            "for example openai/gpt-4.1-mini."
        )
    return _by_status(error, names, status, text, model)


def _by_status(
    error: BaseException, names: set[str], status: int | None, text: str, model: str
) -> ModelError:
    if "AuthenticationError" in names or status == 401:
        return ModelRequestError(
            # Never the provider's text: some repeat the key in it.
            f"{model} does not accept the API key (401). Check the key; it was not tried again."
        )
    if "PermissionDeniedError" in names or status in (402, 403):
        return ModelRequestError(
            f"The API key may not use {model} ({status}). Check the account's rights and credit."
        )
    if "RateLimitError" in names or status == 429:
        after = retry_after(headers_of(error))
        if after is None and re.search(
            r"(?i)insufficient[_ ]quota|exceeded your current quota|billing", text
        ):
            return ModelRequestError(
                f"The account of {model} has no quota left ({text}). Add credit; it was not tried again."
            )
        made = RateLimitError(
            f"{model} refuses more calls for now (429: {text}). It is tried again after a pause.",
            retry_after_s=1.0 if after is None else after,
        )
        made.told = after is not None  # type: ignore[attr-defined]  # whether the provider named the time
        return made
    if "NotFoundError" in names or status == 404 or (status == 400 and _UNKNOWN_MODEL.search(text)):
        return ModelRequestError(
            f"The provider does not know the model {model} (404: {text}). Check its name and api_base."
        )
    if "Timeout" in names or isinstance(error, TimeoutError) or status == 408:
        return ModelTimeoutError(
            f"{model} did not answer in time ({text}). Raise the timeout, or name a fallback."
        )
    if status is not None and 400 <= status < 500 and status not in (409, 425):
        return ModelRequestError(
            f"{model} does not accept the request ({status}: {text}). Change the request; it was not tried again."
        )
    where = f"{status}: " if status is not None and status != 500 else ""
    failed = ModelError(f"{model} failed ({where}{text}). It is tried again; check the provider's status.")
    after = retry_after(headers_of(error))
    if after is not None:
        failed.retry_after_s = after  # type: ignore[attr-defined]  # what the gateway waits at least
    return failed


def detail_of(error: BaseException) -> str:
    """Return what an exception says, in one short line without its class names and without secrets."""
    _, text = safe_error_text(error)
    text = redacted(" ".join(text.split())[:4000])
    text = _PREFIX.sub("", text)
    text = re.sub(r"Learn more: \S+|Original exception: .*", "", text).strip(" .")
    return text[:MAX_DETAIL_CHARS] or type(error).__name__


def _too_long(text: str, model: str, max_input: int | None) -> ContextTooLongError:
    numbers = [int(found.replace(",", "")) for found in _NUMBER.findall(text)]
    numbers = [number for number in numbers if number >= 100]
    limit = max_input
    if len(numbers) >= 2:
        limit = limit if limit in numbers else min(numbers[:2])
        used = max(numbers)
        if used > limit:
            return ContextTooLongError(
                f"The prompt is too long for {model}: {used} tokens, {used - limit} more than its limit of {limit}. "
                "Send less: a token budget for the context, smaller inputs, or a model with a larger window."
            )
    known = f" takes at most {limit} tokens" if limit else "'s limit is not known"
    return ContextTooLongError(
        f"The prompt is too long for {model}; it{known} ({text}). Send less: a token budget for the context, "
        "smaller inputs, or a model with a larger window."
    )


def headers_of(error: BaseException) -> dict[str, str]:
    """Return the headers of the response that an exception came from, in lower case."""
    found: dict[str, str] = {}
    response = getattr(error, "response", None)
    for source in (getattr(response, "headers", None), getattr(error, "litellm_response_headers", None)):
        if isinstance(source, Mapping):
            found |= {str(name).lower(): str(value) for name, value in source.items()}
    return found


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that a provider asks to wait, at most an hour; None: it says nothing sensible.

    Args:
        headers: Of its response, names in lower case.
        now: Unix time, for headers with a date; None: now.
    """
    text = headers.get("retry-after-ms")
    if text is not None and (value := _float(text)) is not None:
        return min(max(value / 1000, 0.0), MAX_BLOCK_S)
    text = headers.get("retry-after")
    if text is None:
        return None
    value = _float(text)
    if value is None:
        try:
            value = parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(value, 0.0), MAX_BLOCK_S)


def observed(headers: Mapping[str, str], now: float | None = None) -> tuple[Observed, Observed]:
    """Return what the headers of an answer say about (requests, tokens).

    Args:
        headers: Names in lower case; OpenAI's and Anthropic's are understood.
        now: Unix time, for headers with a date; None: now.
    """
    return _kind(headers, "requests", now), _kind(headers, "tokens", now)


def _kind(headers: Mapping[str, str], kind: str, now: float | None) -> Observed:
    for form in ("x-ratelimit-{}-" + kind, f"anthropic-ratelimit-{kind}-" + "{}"):
        remaining = headers.get(form.format("remaining"))
        if remaining is not None:
            limit = _float(headers.get(form.format("limit"), ""))
            left = _float(remaining)
            return Observed(
                None if limit is None else int(limit),
                None if left is None else int(left),
                _seconds(headers.get(form.format("reset"), ""), now),
            )
    return Observed()


def _seconds(text: str, now: float | None) -> float | None:
    """Read `1.5`, `6m0s`, `120ms` or a date as seconds from now."""
    value = _float(text)
    if value is not None:
        return value
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - (time.time() if now is None else now))


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None
