"""What providers' errors and headers become."""

from __future__ import annotations

import pickle
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.actors.model_messages import error_of, failure_of
from flock_ray.core.model_limits import Observed
from flock_ray.errors import (
    ContextTooLongError,
    ModelError,
    ModelRefusedError,
    ModelRequestError,
    ModelTimeoutError,
    RateLimitError,
)
from flock_ray.gateway.failures import error_from, observed, retry_after


def made(name: str, text: str, status: int | None = None, headers: dict[str, str] | None = None) -> Exception:
    """An exception as litellm raises it."""
    error: Any = type(name, (Exception,), {})(text)
    if status is not None:
        error.status_code = status
    error.litellm_response_headers = headers or {}
    return error  # type: ignore[no-any-return]  # built by hand


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (made("AuthenticationError", "litellm.AuthenticationError: bad key", 401),
         ModelRequestError, "does not accept the API key"),
        (made("PermissionDeniedError", "no", 403), ModelRequestError, "may not use"),
        (made("NotFoundError", "no such model", 404), ModelRequestError, "does not know the model"),
        (made("BadRequestError", "bad schema", 400), ModelRequestError, "bad schema"),
        (made("BadRequestError", "content management policy", 400), ModelRefusedError, "content filter"),
        (made("ContentPolicyViolationError", "no", 400), ModelRefusedError, "content filter"),
        (made("ContextWindowExceededError", "no numbers", 400), ContextTooLongError, "takes at most 8000"),
        (made("BadRequestError", "prompt is too long: 210000 tokens > 200000 maximum", 400),
         ContextTooLongError, "10000 more than its limit of 200000"),
        (made("Timeout", "timed out", 408), ModelTimeoutError, "in time"),
        (TimeoutError(), ModelTimeoutError, "in time"),
        (made("InternalServerError", "Missing credentials. Please pass an `api_key`", 500),
         ModelRequestError, "There is no API key"),
        (made("BadRequestError", "LLM Provider NOT provided. Pass in", 400), ModelRequestError, "is unknown"),
        (made("RateLimitError", "You exceeded your current quota, check your billing", 429),
         ModelRequestError, "no quota left"),
        (made("InternalServerError", "boom", 500), ModelError, "boom"),
        (made("APIConnectionError", "Connection error.", 500), ModelError, "Connection error"),
        (ValueError("what"), ModelError, "what"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)  # fmt: skip
def test_an_error_becomes_one_of_ours(error: Exception, kind: type[ModelError], says: str) -> None:
    ours = error_from(error, "openai/x", max_input=8000)

    assert type(ours) is kind
    assert says in str(ours)
    assert "litellm" not in str(ours).replace("as litellm does", "")
    assert "\n" not in str(ours) and len(str(ours)) < 700


def test_a_429_carries_the_time() -> None:
    limited = error_from(made("RateLimitError", "slow", 429, {"retry-after": "7"}), "m")
    unknown = error_from(made("RateLimitError", "slow", 429), "m")

    assert isinstance(limited, RateLimitError) and limited.retry_after_s == 7.0
    assert isinstance(unknown, RateLimitError) and unknown.retry_after_s == 1.0


@given(st.text(max_size=3000), st.sampled_from([None, 400, 401, 404, 413, 429, 500, 529]))
def test_no_text_of_a_provider_breaks_it_or_shows_a_key(text: str, status: int | None) -> None:
    key = "sk-proj-0123456789abcdefghij"
    error = error_from(made("APIError", f"{text[:200]} {key} {text[200:]}", status), "openai/x")

    assert key not in str(error)
    assert type(pickle.loads(pickle.dumps(error))) is type(error)
    again = error_of(failure_of(error))
    assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": formatdate(1_700_000_030, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(1_600_000_000, usegmt=True)}, 0.0),
        ({"retry-after": "999999"}, 3600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, 1_700_000_000.0) == seconds


def test_what_is_left_is_read_from_the_headers() -> None:
    headers = {
        "x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms", "x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "6m0s",
    }  # fmt: skip
    assert observed(headers) == (Observed(500, 499, 0.12), Observed(None, 10, 360.0))

    anthropic = {
        "anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:50Z",
    }  # fmt: skip
    assert observed(anthropic, 1_700_000_000.0)[0] == Observed(50, 0, 30.0)
    assert observed({}) == (Observed(), Observed())


def test_a_500_that_speaks_of_tokens_is_tried_again_and_a_refused_key_is_never_shown() -> None:
    class InternalServerError(Exception):
        status_code = 500

    class AuthenticationError(Exception):
        status_code = 401

    broken = error_from(InternalServerError("Internal error: missing output token in stream"), "m")
    refused = error_from(AuthenticationError("Invalid key 'myproxykey-0123456789abcdef' passed"), "m")

    assert broken.retryable
    assert not refused.retryable and "0123456789abcdef" not in str(refused)


def test_when_a_resting_model_may_be_asked_again_crosses_the_process() -> None:
    resting: Any = ModelError("it rests")
    resting.retry_after_s = 30.0

    crossed: Any = error_of(failure_of(resting))

    assert crossed.retry_after_s == 30.0
