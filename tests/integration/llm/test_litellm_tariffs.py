"""What litellm's table says of models, as budgets read it."""

from __future__ import annotations

from typing import Any

import pytest

from flock_ray.gateway.litellm import LitellmProvider, litellm_module
from flock_ray.gateway.quotes import Tariff, TellsTariffs, quote
from flock_ray.gateway.settings import ModelSettings
from tests.unit.gateway.fakes import request

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ReadOnly.*:UserWarning", "ignore:Accessing the '.*' attribute on the instance"
)
"""Of pydantic, about litellm."""

TEXT = "The quick brown fox jumps over the lazy dog, again and again. " * 20


async def test_prices_and_windows_of_a_known_model() -> None:
    provider = LitellmProvider()
    assert isinstance(provider, TellsTariffs)

    tariff = await provider.tariff(request(), ModelSettings())

    entry = litellm_module().get_model_info("openai/gpt-4.1-mini")
    assert tariff.input_nusd == pytest.approx(entry["input_cost_per_token"] * 1e9)
    assert tariff.output_nusd == pytest.approx(entry["output_cost_per_token"] * 1e9)
    assert (tariff.max_input, tariff.max_output) == (entry["max_input_tokens"], entry["max_output_tokens"])


async def test_an_unknown_model_has_the_prices_that_were_given_or_none() -> None:
    asked = request(model="openai/unheard-of")
    given = ModelSettings(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)

    assert await LitellmProvider().tariff(asked, ModelSettings()) == Tariff()
    assert await LitellmProvider().tariff(asked, given) == Tariff(1000.0, 2000.0)


@pytest.mark.parametrize(
    "model", ["dashscope/qwen3-30b-a3b", "qwencloud/qwen3-max", "huggingface/some/model"]
)
async def test_a_model_without_a_price_in_the_table_is_not_free(model: str) -> None:
    """litellm's get_model_info says 0 for what it does not know."""
    provider = LitellmProvider()

    asked = request(model=model, max_tokens=10)
    assert (await provider.tariff(asked, ModelSettings())).input_nusd is None
    made = quote(asked, ModelSettings(), await provider.tariff(asked, ModelSettings()))
    assert made.missing == "price"


async def test_a_model_of_this_machine_costs_nothing_and_is_not_asked_about() -> None:
    asked = request(model="ollama/llama3", max_tokens=10)
    settings = ModelSettings(api_base="http://192.0.2.1:9")

    tariff = await LitellmProvider().tariff(asked, settings)

    assert (tariff.input_nusd, tariff.output_nusd) == (0.0, 0.0)


async def test_one_given_price_leaves_the_other_to_the_table() -> None:
    tariff = await LitellmProvider().tariff(request(), ModelSettings(input_usd_per_mtok=1.0))
    unknown = await LitellmProvider().tariff(
        request(model="openai/unheard-of"), ModelSettings(input_usd_per_mtok=1)
    )

    assert tariff.input_nusd == 1000.0 and tariff.output_nusd
    assert unknown.output_nusd is None


async def test_prompts_of_openai_are_counted_with_its_tokenizer_and_never_too_low() -> None:
    provider, asked = LitellmProvider(), request(TEXT, max_tokens=10)

    counted = await provider.prompt_tokens(asked)

    real = litellm_module().token_counter(model=asked.model, messages=asked.messages)
    assert counted is not None and real <= counted < len(TEXT) / 2
    tariff = await provider.tariff(asked, ModelSettings())
    by_bytes = quote(asked, ModelSettings(), tariff)
    assert quote(asked, ModelSettings(), tariff, counted).amount.nusd < by_bytes.amount.nusd / 2


async def test_a_long_prompt_is_counted_too() -> None:
    counted = await LitellmProvider().prompt_tokens(request(TEXT * 50))

    assert counted is not None and counted < 50 * len(TEXT) / 2


async def test_what_frames_a_prompt_counts_for_its_bytes() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 500, "parameters": {}}}

    plain = await LitellmProvider().prompt_tokens(request(TEXT))
    with_tool = await LitellmProvider().prompt_tokens(request(TEXT, tools=[tool]))

    assert plain is not None and with_tool is not None and with_tool - plain > 500


@pytest.mark.parametrize(
    "more",
    [
        {"model": "anthropic/claude-haiku-4-5"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ],
)
async def test_without_a_tokenizer_the_bytes_are_counted(more: dict[str, Any]) -> None:
    assert await LitellmProvider().prompt_tokens(request(TEXT, **more)) is None
