"""Worst cases of calls: never below what a call can use."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.gateway.quotes import Tariff, quote, tariff_in_table
from flock_ray.gateway.settings import ModelSettings
from flock_ray.model import ModelRequest, Usage
from tests.unit.gateway.fakes import request

PRICES = ModelSettings(input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)


def paid(text: str = "hello", **more: Any) -> ModelRequest:
    """Ask something."""
    return request(text, **{"max_tokens": 100, **more})


def test_the_worst_case_is_the_bytes_of_the_prompt_and_the_longest_answer() -> None:
    made = quote(paid(text="é" * 100), ModelSettings(), Tariff(2.0, 10.0))

    sent = made.amount.tokens - 100
    assert 200 < sent < 400
    assert made.amount.nusd == 2 * sent + 10 * 100
    assert made.amount.calls == 1 and not made.missing


@given(st.text(max_size=300), st.integers(1, 10**5), st.floats(0, 10**6), st.floats(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_what_a_call_uses_is_never_above_its_worst_case(
    text: str, most: int, sent: float, made: float
) -> None:
    asked = paid(text=text, max_tokens=most)
    worst = quote(asked, ModelSettings(), Tariff(sent, made))
    real = Usage(input_tokens=len(text.encode("utf-8", "surrogatepass")) + 8, output_tokens=most)

    used = worst.used(real)

    assert used is not None
    assert used.nusd <= worst.amount.nusd and used.tokens <= worst.amount.tokens


@pytest.mark.parametrize(
    ("asked", "window", "tokens"),
    [
        (paid(max_tokens=None), 500, 500),
        (paid(max_tokens=None), None, None),
        (paid(max_tokens=10), 500, 10),
        (paid(max_tokens=None, extra={"max_completion_tokens": 20}), 500, 20),
        (paid(max_tokens=10, extra={"max_completion_tokens": 20}), 500, 20),
        (paid(max_tokens=10, extra={"n": 3}), 500, 30),
    ],
)
def test_the_longest_answer(asked: ModelRequest, window: int | None, tokens: int | None) -> None:
    made = quote(asked, ModelSettings(), Tariff(0.0, 1.0, None, window))

    assert (None if made.missing == "size" else made.amount.nusd) == tokens


def test_a_prompt_with_an_image_is_as_long_as_the_model_takes() -> None:
    image = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}
    ]

    assert quote(paid(messages=image), ModelSettings(), Tariff(1.0, 0.0, 5000)).amount.nusd == 5000
    assert quote(paid(messages=image), ModelSettings(), Tariff(1.0, 0.0)).missing == "size"


def test_of_several_prices_of_a_token_the_highest_that_may_hold_counts() -> None:
    entry = {
        "input_cost_per_token": 1e-6, "cache_creation_input_token_cost": 1.25e-6, "output_cost_per_token": 5e-6,
        "input_cost_per_token_above_200k_tokens": 2e-6, "input_cost_per_token_priority": 3e-6,
        "input_cost_per_token_batches": 9e-6, "max_input_tokens": 10**6, "max_output_tokens": 64,
        "cache_read_input_token_cost": 9e-6, "output_cost_per_reasoning_token": None,
    }  # fmt: skip
    assert tariff_in_table(entry, paid(), ModelSettings()) == Tariff(1250.0, 5000.0, 10**6, 64)
    long = paid(text="x" * 250_000)
    assert tariff_in_table(entry, long, ModelSettings()).input_nusd == pytest.approx(2000.0)
    tier = paid(extra={"service_tier": "priority"})
    assert tariff_in_table(entry, tier, ModelSettings()).input_nusd == pytest.approx(9000.0)
    assert tariff_in_table(entry, paid(), PRICES) == Tariff(1000.0, 1000.0, 10**6, 64)
    assert tariff_in_table({}, paid(), ModelSettings()) == Tariff()
