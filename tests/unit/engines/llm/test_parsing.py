from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flock_ray.engines.llm.parsing import MAX_ANSWER_CHARS, find_json

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
CONTAINERS = st.lists(VALUES, min_size=1, max_size=4) | st.dictionaries(
    st.text(), VALUES, min_size=1, max_size=4
)
PROSE = st.text(alphabet="abc ÄÖ,.:!?\n\t-*#", max_size=80)


@given(CONTAINERS, PROSE, PROSE)
def test_json_with_prose_around_it_is_found(value: Any, before: str, after: str) -> None:
    assert find_json(f"{before}\n{json.dumps(value)}\n{after}")[0] == value


@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_plain_json_of_any_kind_is_read_as_it_is(value: Any, indent: int | None, ascii_only: bool) -> None:
    assert find_json(json.dumps(value, indent=indent, ensure_ascii=ascii_only)) == [value]


@given(CONTAINERS, PROSE, st.sampled_from(["json", "", "JSON", "python"]))
def test_json_in_a_code_fence_is_found(value: Any, before: str, language: str) -> None:
    text = f"{before}\n```{language}\n{json.dumps(value, indent=1)}\n```\nHope that helps!"

    # A string in it may hold a fence of its own; then the brackets decide.
    assert value in find_json(text)


@given(st.text())
@example("{" * 5000)
@example("[[" * 5000 + "1")
@example('{"a": ' * 3000)
@example("```json\n" * 2000)
@example("/*" * 3000)
@example('{"a": "' + "\\" * 999)
@example("\ufeff[1,]")
def test_no_text_is_too_odd(text: str) -> None:
    for value in find_json(text):
        json.dumps(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1, 2,], }', {"a": [1, 2]}),
        ("{'a': 'it is', 'b': None, 'c': True}", {"a": "it is", "b": None, "c": True}),
        ("{a: 1, b_c: 'x'}", {"a": 1, "b_c": "x"}),
        ('{"a": 1, // one\n "b": /* two */ 2}', {"a": 1, "b": 2}),
        ("{\u201ca\u201d: \u201cb\u201d}", {"a": "b"}),
        ('{"a": "first\nsecond"}', {"a": "first\nsecond"}),
        ('<think>maybe {"a": 0}?</think>{"a": 1}', {"a": 1}),
        ('As in [1], the answer is {"a": [1, 2, 3]}.', {"a": [1, 2, 3]}),
        ('{"a": NaN, "b": Infinity}', {"a": None, "b": None}),
        ('{"a": 1e999}', {"a": None}),
        ("{'a': -1e999,}", {"a": None}),
        ("{'a': '\\ud83d\\ude00',}", {"a": "\U0001f600"}),
        ("   \n" * 1000 + '{"a": 1}' + " \n" * 1000, {"a": 1}),
    ],
)
def test_what_models_get_wrong_is_forgiven(text: str, expected: Any) -> None:
    assert find_json(text)[0] == expected


@pytest.mark.parametrize(
    "text", ["", "   \n\t ", "I can't do that.", '{"a": [1, 2', '{"a": "cut in the mid', "no: 5 of them"]
)
def test_what_is_not_json_is_not_invented(text: str) -> None:
    assert [value for value in find_json(text) if isinstance(value, dict)] == []


@pytest.mark.parametrize(
    "text",
    [
        "{" * 250_000,
        "[" * 250_000,
        '{"a":' * 75_000,
        '"' * 250_000,
        "{'" * 125_000,
        "{a:" * 100_000,
        "// \n" * 100_000,
        " " * 500_000,
        "```" * 125_000,
        "```json\n{" * 40_000,
        "{/*" * 125_000,
        "[1," * 125_000,
        "[" * 64 + "1," * 125_000,
        "x" * (MAX_ANSWER_CHARS + 1),
    ],
    ids=lambda text: text[:10].strip() or "space",
)
def test_hostile_text_takes_time_in_proportion_to_its_length(text: str) -> None:
    # Quadratic time would be minutes: then the test times out.
    for value in find_json(text):
        json.dumps(value)


@settings(max_examples=50)
@given(st.lists(CONTAINERS, min_size=2, max_size=3))
def test_of_several_values_the_longest_comes_first(values: list[Any]) -> None:
    found = find_json("\nor\n".join(json.dumps(value) for value in values))

    assert len(json.dumps(found[0])) == max(len(json.dumps(value)) for value in values)
