from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.components.texts import changed, strings
from tests.unit.components.board import Ask, artifact

json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def of(payload: dict[str, Any]) -> Any:
    return artifact(Ask()).model_copy(update={"payload": payload})


@given(st.dictionaries(st.text(max_size=5), json_data, max_size=4))
def test_every_text_is_seen_and_changed_and_nothing_else(payload: dict[str, Any]) -> None:
    before = of(payload)
    after = changed(before, lambda text: f"<{text}>")

    assert sorted(strings(after.payload)) == sorted(f"<{text}>" for text in strings(payload))
    assert changed(before, lambda text: text) is before
    assert before.payload == payload


def test_keys_that_would_become_the_same_are_an_error() -> None:
    with pytest.raises(ValueError, match="two keys"):
        changed(of({"notes": {"a@b.de": 1, "c@d.de": 2}}), lambda text: "[email]")


def test_what_is_too_deep_is_an_error_and_never_passed_over() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = {"k": [deep]}

    with pytest.raises(ValueError, match="nested deeper"):
        list(strings(deep))
