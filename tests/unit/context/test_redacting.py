"""Contexts without secrets."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flock_ray import Artifact
from flock_ray.context_provider import ContextRequest, DefaultContextProvider, RedactingContextProvider
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.context.board import Ask, Fact, Memo, witness


def redacted(text: str, **options: Any) -> str:
    """Return what becomes of a text."""

    async def inner(request: ContextRequest) -> list[Artifact]:
        return [Artifact.from_envelope(Artifact.from_model(Memo(text=text)).envelope)]

    async def main() -> str:
        provider = RedactingContextProvider(inner, **options)
        [artifact] = await provider.get_artifacts(cast(Any, SimpleNamespace(offload=asyncio.to_thread)))
        return str(artifact.payload["text"])

    return asyncio.run(main())


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234567890",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4",
        "Bearer abcdefghijklmnop.qrstuv",
        "xoxb-1234567890-abcdefghij",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ncut off before its end",
        "password: hunter2",
        "API_KEY=abc123",
        "secret is swordfish",
    ],
)
def test_secrets_of_known_forms_are_replaced_and_what_is_around_them_stays(secret: str) -> None:
    assert redacted(f"before {secret}") == "before [REDACTED]"


def test_credentials_in_urls_are_replaced_and_the_rest_of_the_url_stays() -> None:
    assert redacted("at postgres://me:pw@db:5432/x now") == "at postgres://[REDACTED]@db:5432/x now"


@pytest.mark.parametrize(
    "text",
    ["a basic understanding of passwords", "sk-1", "https://example.org/a@b", "task-force-delta-echo-one"],
)
def test_other_text_stays(text: str) -> None:
    assert redacted(text) == text


def test_own_patterns_take_the_place_of_ours() -> None:
    assert (
        redacted("card 1234-5678, password: x", patterns=[r"\d{4}-\d{4}"]) == "card [REDACTED], password: x"
    )
    assert redacted("card 1", patterns={"digit": r"\d"}, replacement=r"\1#") == r"card \1#"
    assert redacted("a", patterns=[re.compile("A", re.IGNORECASE)]) == "[REDACTED]"


@pytest.mark.parametrize("patterns", ["abc", ["("], [7]])
def test_what_is_no_pattern_is_refused(patterns: Any) -> None:
    with pytest.raises(ConfigurationError):
        RedactingContextProvider(DefaultContextProvider(), patterns=patterns)


def test_fields_with_the_name_of_a_secret_are_replaced_wherever_they_are() -> None:
    async def main() -> dict[str, Any]:
        async with VirtualFlock() as flock:
            seen = witness(flock, RedactingContextProvider(DefaultContextProvider()))
            await flock.publish(Memo(text="t", password="short", lines=["ok", "password = x", "fine"]))
            await flock.publish(Ask())
            await flock.run_until_idle()
            stored = await flock.store.get_by_type(Memo)
            assert stored[0].password == "short"
        return dict(seen.contexts[0][0].payload)

    assert run_virtual(main()) == {
        "text": "t",
        "password": "[REDACTED]",
        "lines": ["ok", "[REDACTED]", "fine"],
    }


def test_what_has_no_secret_stays_as_it_is_stored() -> None:
    async def main() -> bool:
        async with VirtualFlock() as flock:
            seen = witness(flock, RedactingContextProvider(DefaultContextProvider(), max_tokens=1000))
            fact = await flock.publish(Fact(text="plain"))
            await flock.publish(Ask())
            await flock.run_until_idle()
        return bool(seen.contexts[0][0].envelope == fact.envelope)

    assert run_virtual(main())


def test_our_patterns_are_fast_on_text_that_almost_matches() -> None:
    hostile = [
        "sk-" * 30_000, "eyJ" + "a" * 100_000, "-----BEGIN " * 10_000, "://" + "a" * 100_000, "password" * 10_000,
        "bearer " + " " * 50_000, "://a:" * 20_000, "-----BEGIN PRIVATE KEY-----" * 20_000, "eyJaaaaaaaa." * 8_000,
        "-eyJ" * 100_000, "-----BEGIN PRIVATE KEY-----" + "a" * 500_000,
    ]  # fmt: skip
    # One that goes back and forth takes minutes, and the test has one.
    assert [bool(redacted(text)) for text in hostile] == [True] * len(hostile)
