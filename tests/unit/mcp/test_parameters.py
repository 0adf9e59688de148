from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from flock_ray.mcp import (
    SseServerParameters,
    StdioServerParameters,
    StreamableHttpServerParameters,
    WebsocketServerParameters,
)
from flock_ray.mcp.parameters import place, revealed, secrets

SECRET = "sk-very-secret"

WITH_SECRETS: list[Any] = [
    StdioServerParameters(command="npx", args=["--key", SECRET], env={"TOKEN": SECRET}),
    SseServerParameters(url=f"https://me:{SECRET}@host:1234/sse?key={SECRET}", headers={"X-Key": SECRET}),
    StreamableHttpServerParameters(url="https://host/mcp", headers={"Authorization": f"Bearer {SECRET}"}),
    SseServerParameters(url="https://host/sse", auth=("me", SECRET)),
    WebsocketServerParameters(url=f"wss://host/ws?token={SECRET}"),
]


@pytest.mark.parametrize("params", WITH_SECRETS, ids=lambda p: p.transport_type)
def test_nothing_secret_is_in_a_repr_or_a_dump(params: Any) -> None:
    assert SECRET not in repr(params) + str(params) + place(params)
    assert SECRET not in repr(
        {k: v for k, v in params.model_dump().items() if k not in ("url", "args", "auth")}
    )


@pytest.mark.parametrize("params", WITH_SECRETS, ids=lambda p: p.transport_type)
def test_parameters_survive_the_way_to_a_worker(params: Any) -> None:
    assert params == pickle.loads(pickle.dumps(params))


def test_secrets_are_known_to_those_who_must_take_them_out() -> None:
    assert SECRET in secrets(WITH_SECRETS[0])
    assert SECRET in secrets(WITH_SECRETS[1])
    assert {SECRET, f"Bearer {SECRET}"} <= secrets(WITH_SECRETS[2])
    assert {"TOKEN": SECRET} == revealed(WITH_SECRETS[0].env)


def test_a_refused_value_is_not_quoted() -> None:
    with pytest.raises(ValidationError) as raised:
        StdioServerParameters(command="npx", env={"TOKEN": [SECRET]})  # type: ignore[dict-item]

    assert SECRET not in str(raised.value)


def test_durations_may_be_numbers_or_timedeltas() -> None:
    params = SseServerParameters(url="http://localhost/sse", timeout=timedelta(seconds=7), sse_read_timeout=9)

    assert (7.0, 9.0) == (params.timeout, params.sse_read_timeout)


@pytest.mark.parametrize(
    "wrong", [{"url": "localhost:80"}, {"url": "ftp://x"}, {"url": "http://x", "timeout": 0}]
)
def test_what_no_client_could_use_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StreamableHttpServerParameters(**wrong)


def test_messages_name_a_url_without_credentials_and_query() -> None:
    params = SseServerParameters(url="https://me:word@[::1]:1234/sse?key=1#x")

    assert "https://[::1]:1234/sse" == place(params)
