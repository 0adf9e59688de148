from __future__ import annotations

import json
from datetime import date
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from flock_ray.core.definition import OutputGroup, OutputSpec
from flock_ray.core.specs import FanOutRange
from flock_ray.engines.llm.answer import check, merge, read, repair_schema, repair_targets
from flock_ray.engines.llm.schema import AnswerShape, answer_shape, strict_schema
from flock_ray.errors import ConfigurationError


class Part(BaseModel):
    name: str
    size: int = Field(default=1, ge=1, le=9)


class Report(BaseModel):
    """What was found."""

    title: str = Field(max_length=10, description="A short one.")
    kind: Literal["good", "bad"]
    when: date | None = None
    parts: list[Part] = []


class Idea(BaseModel):
    text: str
    score: int = 0


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: int


class Tags(RootModel[list[str]]):
    pass


class Ordered(BaseModel):
    low: int
    high: int

    @model_validator(mode="after")
    def _in_order(self) -> Ordered:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Node(BaseModel):
    children: list[Node] = []


def shape(*outputs: Any) -> AnswerShape:
    specs = tuple(output if isinstance(output, OutputSpec) else OutputSpec(output) for output in outputs)
    return answer_shape("a", OutputGroup(specs))


def ideas(low: int, high: int) -> OutputSpec:
    return OutputSpec(Idea, fan_out=FanOutRange(low, high))


GOOD = {"title": "x", "kind": "good"}


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        [GOOD],
        {"Report": GOOD},
        {"report": GOOD},
        {"result": GOOD},
        {"answer": [GOOD]},
        {"Report": json.dumps(GOOD)},
        {**GOOD, "when": None, "parts": None, "comment": "as asked"},
    ],
)
def test_one_output_is_found_in_any_form(answer: Any) -> None:
    read_back = read(shape(Report), json.dumps(answer))

    assert read_back.problems == []
    assert read_back.models == [Report(title="x", kind="good")]


@pytest.mark.parametrize(
    "answer",
    [
        {"Idea": [{"text": "1"}, {"text": "2"}]},
        {"ideas": [{"text": "1"}, {"text": "2"}]},
        {"items": [{"text": "1"}, {"text": "2"}]},
        [{"text": "1"}, {"text": "2"}],
        [{"Idea": {"text": "1"}}, {"Idea": {"text": "2"}}],
        {"result": {"Idea": [{"text": "1"}, {"text": "2"}]}},
    ],
)
def test_several_outputs_are_found_in_any_form(answer: Any) -> None:
    assert read(shape(ideas(1, 3)), json.dumps(answer)).models == [Idea(text="1"), Idea(text="2")]


def test_a_single_object_stands_for_a_list_of_one() -> None:
    assert read(shape(ideas(1, 3)), '{"text": "1"}').models == [Idea(text="1")]


@pytest.mark.parametrize(
    "answer",
    [
        {"Report": GOOD, "Idea": [{"text": "1"}]},
        {"report": [GOOD], "ideas": {"text": "1"}},
        {"output": {"Report": GOOD, "Idea": [{"text": "1"}]}},
        [{"Report": GOOD}, {"Idea": [{"text": "1"}]}],
    ],
)
def test_several_types_come_from_one_answer_in_declared_order(answer: Any) -> None:
    assert read(shape(Report, ideas(1, 2)), json.dumps(answer)).models == [
        Report(title="x", kind="good"),
        Idea(text="1"),
    ]


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 12))
def test_the_number_of_outputs_is_exact_or_in_its_range(low: int, more: int, came: int) -> None:
    answer = read(
        shape(ideas(low, low + more)), json.dumps({"Idea": [{"text": str(i)} for i in range(came)]})
    )

    if came < low:
        assert [problem.key for problem in answer.problems] == ["Idea"]
    else:
        assert answer.problems == []
        assert len(answer.models) == min(came, low + more)
        assert bool(answer.dropped) == (came > low + more)


def test_a_root_model_of_a_list_is_one_output() -> None:
    assert read(shape(Tags), '{"Tags": ["a", "b"]}').models == [Tags(["a", "b"])]
    assert read(shape(Tags), '["a", "b"]').models == [Tags(["a", "b"])]


def test_fields_that_a_class_forbids_are_left_out() -> None:
    assert read(shape(Strict), '{"a": 1, "note": "as asked"}').models == [Strict(a=1)]


def test_what_publishes_demands_is_told_to_the_model() -> None:
    spec = OutputSpec(Idea, validate=((lambda idea: idea.score > 3, "the score must be above 3"),))

    assert [p.text for p in read(shape(spec), '{"text": "1"}').problems] == [
        "Idea: the score must be above 3"
    ]


def test_what_where_drops_is_not_validated() -> None:
    spec = OutputSpec(Idea, where=lambda idea: False, validate=((lambda idea: False, "never"),))

    assert read(shape(spec), '{"text": "1"}').problems == []


def test_of_several_json_values_the_one_that_fits_wins() -> None:
    example = {"title": "something far too long for a title", "kind": "none", "parts": []}

    answer = read(shape(Report), f"Not like {json.dumps(example)} but {json.dumps(GOOD)}")

    assert answer.models == [Report(title="x", kind="good")]


# --- repairs ----------------------------------------------------------------------------------------


def test_only_wrong_fields_are_asked_for_again() -> None:
    wanted = shape(Report)
    answer = read(wanted, '{"title": "a title that is too long", "kind": "so so", "parts": [{"name": "p"}]}')

    targets = repair_targets(wanted, answer)
    repaired = merge(wanted, answer, targets, '{"title": "short", "kind": "bad"}')

    assert [target.name for target in targets] == ["title", "kind"]
    assert set(repair_schema(wanted, targets)["properties"]) == {"title", "kind"}
    assert repaired.models == [Report(title="short", kind="bad", parts=[Part(name="p")])]


def test_only_wrong_outputs_of_several_are_asked_for_again() -> None:
    wanted = shape(ideas(2, 3), Report)
    answer = read(
        wanted, json.dumps({"Idea": [{"text": "1"}, {"text": "2", "score": "high"}], "Report": GOOD})
    )

    targets = repair_targets(wanted, answer)
    repaired = merge(wanted, answer, targets, '{"Idea_2_score": 7}')

    assert [target.name for target in targets] == ["Idea_2_score"]
    assert repaired.models == [Idea(text="1"), Idea(text="2", score=7), Report(title="x", kind="good")]


def test_a_missing_type_is_asked_for_alone() -> None:
    wanted = shape(ideas(2, 2), Report)
    answer = read(wanted, json.dumps({"Report": GOOD}))

    targets = repair_targets(wanted, answer)
    repaired = merge(wanted, answer, targets, '{"Idea": [{"text": "1"}, {"text": "2"}]}')

    assert [target.name for target in targets] == ["Idea"]
    assert repaired.models == [Idea(text="1"), Idea(text="2"), Report(title="x", kind="good")]


@pytest.mark.parametrize("text", ["no JSON", "", '{"title": 1, "kind": 2}', "[1, 2]"])
def test_an_answer_of_which_nothing_holds_is_asked_for_as_a_whole(text: str) -> None:
    wanted = shape(Idea)

    assert repair_targets(wanted, read(wanted, text)) == []


def test_a_model_level_error_asks_for_the_whole_output() -> None:
    wanted = shape(Ordered)

    assert repair_targets(wanted, read(wanted, '{"low": 2, "high": 1}')) == []


def test_a_repair_that_is_a_whole_answer_replaces_the_first() -> None:
    wanted = shape(Report)
    answer = read(wanted, '{"title": "a title that is too long", "kind": "good"}')

    repaired = merge(
        wanted, answer, repair_targets(wanted, answer), '{"Report": {"title": "new", "kind": "bad"}}'
    )

    assert repaired.models == [Report(title="new", kind="bad")]


def test_a_repair_that_makes_nothing_better_leaves_the_problems() -> None:
    wanted = shape(Report)
    answer = read(wanted, '{"title": "a title that is too long", "kind": "good"}')

    repaired = merge(wanted, answer, repair_targets(wanted, answer), '{"title": "still much too long"}')

    assert [problem.field for problem in repaired.problems] == ["title"]


@given(
    st.text()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["title", "kind", "parts", "Report", "Idea", "name", "x"]), x)
        ),
    ).map(json.dumps)
)
def test_whatever_a_model_writes_ends_in_outputs_or_problems(text: str) -> None:
    for wanted in (shape(Report), shape(ideas(1, 2), Report), shape(Tags)):
        answer = read(wanted, text)
        assert bool(answer.problems) != bool(answer.models) or answer.problems
        if answer.problems:
            targets = repair_targets(wanted, answer)
            merge(wanted, answer, targets, text)
            repair_schema(wanted, targets)


def test_the_values_of_an_answer_are_told_to_the_model_only() -> None:
    problem = read(shape(Report), '{"title": "the secret title", "kind": "good"}').problems[0]

    assert "the secret title" in problem.to_model()
    assert "secret" not in problem.text


# --- schemas ----------------------------------------------------------------------------------------


def test_a_strict_schema_requires_everything_and_says_constraints_in_words() -> None:
    strict = strict_schema(shape(Report).schema)

    assert strict is not None
    assert strict["required"] == ["title", "kind", "when", "parts"]
    assert strict["additionalProperties"] is False
    assert strict["properties"]["title"] == {"type": "string", "description": "A short one. (maxLength 10)"}
    assert strict["$defs"]["Part"]["properties"]["size"] == {
        "anyOf": [{"type": "integer", "description": "minimum 1; maximum 9; default 1"}, {"type": "null"}]
    }


def test_null_for_a_field_with_a_default_is_the_default() -> None:
    answer = {"title": "x", "kind": "good", "parts": [{"name": "p", "size": None}]}

    assert read(shape(Report), json.dumps(answer)).models == [
        Report(title="x", kind="good", parts=[Part(name="p", size=1)])
    ]


def test_what_strict_mode_has_no_word_for_is_asked_without_it() -> None:
    class Loose(BaseModel):
        by_name: dict[str, int]

    assert strict_schema(shape(Loose).schema) is None


def test_a_property_named_like_a_keyword_stays() -> None:
    class Odd(BaseModel):
        title: str
        items: list[str]

    assert set(shape(Odd).schema["properties"]) == {"title", "items"}


def test_a_recursive_schema_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'a': the schema of its outputs is recursive \(Node -> Node\)"
    ):
        shape(Node)


def test_a_huge_schema_is_refused_with_its_size() -> None:
    class Huge(BaseModel):
        kind: Literal[tuple(f"a kind with a rather long name, number {i}" for i in range(5000))]  # type: ignore[valid-type]

    with pytest.raises(ConfigurationError, match=r"has \d+,\d+ bytes, more than the 100,000"):
        shape(Huge)


def test_outputs_without_a_json_schema_are_refused() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        thing: object = Field(default_factory=object)
        call: type[int] | Any = None
        lock: pytest.MonkeyPatch

    with pytest.raises(ConfigurationError, match="no JSON schema"):
        shape(Odd)


def test_two_classes_of_one_name_keep_their_own_places() -> None:
    other = type("Idea", (BaseModel,), {"__annotations__": {"number": int}, "__module__": __name__})

    wanted = shape(Idea, other)

    assert [slot.key for slot in wanted.slots] == ["Idea", "Idea_2"]
    assert len(read(wanted, '{"Idea": {"text": "1"}, "Idea_2": {"number": 1}}').models) == 2


def test_checking_a_draft_again_changes_nothing() -> None:
    wanted = shape(ideas(1, 2), Report)
    answer = read(wanted, json.dumps({"Idea": [{"text": "1"}], "Report": GOOD}))

    assert check(wanted, answer.draft).models == answer.models


class Defaulted(BaseModel):
    title: str = ""
    score: int = 0


@pytest.mark.parametrize("text", ['{"value": 7}', "{}", '{"error": "cannot"}', "Sorry, see [1]."])
def test_a_repair_that_names_no_field_does_not_replace_a_draft_by_defaults(text: str) -> None:
    wanted = shape(Defaulted)
    answer = read(wanted, '{"title": "Long analysis", "score": "high"}')

    repaired = merge(wanted, answer, repair_targets(wanted, answer), text)

    assert [problem.field for problem in repaired.problems] == ["score"]


class Counted(BaseModel):
    by: dict[str, int]


def test_keys_that_the_model_made_up_are_told_to_the_model_alone() -> None:
    (problem,) = read(shape(Counted), '{"by": {"alice SSN 123-45": "bad"}}').problems

    assert problem.text.startswith("Counted.by.*: ")
    assert "alice" not in problem.text and "alice" in problem.got
