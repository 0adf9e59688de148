from __future__ import annotations

from datetime import timedelta

import pytest

from flock_ray.engines.llm.upstream import ChatAdapter, DSPyEngine, JSONAdapter, TwoStepAdapter


def test_the_old_engine_says_what_each_parameter_is_called_now() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"max_completion_tokens -> max_tokens; .*enable_cache -> cache_ttl"
    ):
        engine = DSPyEngine(
            model="openai/gpt-4.1", instructions="x", max_tokens=32000, max_completion_tokens=100, max_retries=0,
            enable_cache=True, theme="afterglow", no_output=True, lm_kwargs={"top_p": 1},
        )  # fmt: skip

    assert (engine.model, engine.max_tokens, engine.max_repairs) == ("openai/gpt-4.1", 100, 2)
    assert engine.cache_ttl == timedelta(days=1)


@pytest.mark.parametrize(
    ("adapter", "mode"),
    [
        (ChatAdapter(), "prompt"),
        (JSONAdapter(), "auto"),
        (TwoStepAdapter("a model"), "prompt"),
        (None, "auto"),
        ("json_object", "json_object"),
    ],
)
def test_adapters_of_upstream_stand_for_ours(adapter: object, mode: str) -> None:
    with pytest.warns(DeprecationWarning, match="DSPyEngine is LiteLLMEngine now"):
        assert DSPyEngine(adapter=adapter).adapter == mode


def test_what_neither_engine_has_is_refused() -> None:
    with (
        pytest.warns(DeprecationWarning, match="DSPyEngine is LiteLLMEngine now"),
        pytest.raises(ValueError, match="temprature"),
    ):
        DSPyEngine(temprature=1.0)
