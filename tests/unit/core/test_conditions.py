from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # has no stubs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flock_ray.core.conditions import (
    And,
    AnyField,
    Condition,
    Count,
    Custom,
    Idle,
    NoPendingWork,
    Not,
    Or,
    Until,
    When,
    WhenCount,
    WhenField,
    WorkflowErrors,
    as_condition,
    bind_correlation,
    compile_when,
    decode_when,
    encode_when,
    eval_when,
    evaluate,
    leaves,
    watched_types,
)
from flock_ray.core.registry import type_registry
from flock_ray.errors import ConfigurationError


class Score(BaseModel):
    value: int = 0


class Review(BaseModel):
    text: str = ""
    score: Score | None = None
    extra: dict[str, Any] = {}

    @property
    def length(self) -> int:
        return len(self.text)


class Draft(BaseModel):
    text: str = ""


@pytest.fixture(autouse=True)
def _own_registrations() -> Iterator[None]:
    with type_registry.isolated():
        yield


@dataclass
class Board:
    """Facts as a test declares them."""

    counts: dict[str, int] = field(default_factory=dict)
    is_idle: bool = False
    flags: set[Condition] = field(default_factory=set)
    asked: list[Condition] = field(default_factory=list)

    def count(self, leaf: Count, /) -> int:
        self.asked.append(leaf)
        return self.counts.get(leaf.type_name, 0)

    def idle(self) -> bool:
        return self.is_idle

    def flag(self, leaf: Condition, /) -> bool:
        self.asked.append(leaf)
        return leaf in self.flags


def is_long(value: Any) -> bool:
    return bool(value > 3)


# --- Until --------------------------------------------------------------------------------------


def test_until_builds_leaves() -> None:
    count = Until.artifact_count(Review, correlation_id="w", tags={"a"}, produced_by="critic")
    assert count.at_least(3) == Count("Review", ">=", 3, "w", frozenset({"a"}), "critic")
    assert count.at_most(3).op == "<="
    assert count.exactly(0) == Count("Review", "==", 0, "w", frozenset({"a"}), "critic")
    assert Until.exists(Review, correlation_id="w", tags=["a"]) == Count(
        "Review", ">=", 1, "w", frozenset({"a"})
    )
    assert Until.none(Review) == Count("Review", "==", 0)
    assert Until.idle() == Idle()
    assert Until.no_pending_work() == NoPendingWork()
    assert Until.workflow_error("w") == WorkflowErrors("w")
    assert Until.any_field(Review, field="text", predicate=is_long) == AnyField("Review", "text", is_long)


def test_a_single_tag_given_as_text_is_one_tag() -> None:
    assert Until.exists(Review, tags="urgent") == Count("Review", ">=", 1, None, frozenset({"urgent"}))


def test_types_go_by_their_registered_names() -> None:
    named = type_registry.register(type("Named", (BaseModel,), {}), name="named.v").cls
    assert Until.exists(named).type_name == "named.v"
    assert Until.exists("named.v") == Until.exists(named)


@pytest.mark.parametrize(
    ("op", "held"),
    [("at_least", [False, True, True]), ("at_most", [True, True, False]), ("exactly", [False, True, False])],
)
def test_counts_compare(op: str, held: list[bool]) -> None:
    condition: Condition = getattr(Until.artifact_count(Review), op)(2)
    assert [evaluate(condition, Board({"Review": n})) for n in (1, 2, 3)] == held


def test_combinations() -> None:
    done = Until.idle() & (Until.exists(Review) | ~Until.none(Draft))
    assert not evaluate(done, Board({"Review": 1}))
    assert evaluate(done, Board({"Review": 1}, is_idle=True))
    assert evaluate(done, Board({"Draft": 1}, is_idle=True))
    assert not evaluate(done, Board(is_idle=True))


def test_other_leaves_are_asked_as_flags() -> None:
    error, pending = Until.workflow_error("w"), Until.no_pending_work()
    assert evaluate(error & pending, Board(flags={error, pending}))
    assert not evaluate(error & pending, Board(flags={error}))


def test_evaluation_stops_at_the_part_that_decides() -> None:
    board = Board({"Review": 1})
    assert evaluate(Until.exists(Review) | Until.exists(Draft), board)
    assert board.asked == [Until.exists(Review)]


def test_leaves_from_left_to_right() -> None:
    a, b, c = Until.exists(Review), Until.exists(Draft), Until.idle()
    assert list(leaves((a | ~b) & c & a)) == [a, b, c, a]


def test_and_instead_of_ampersand_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"with & \| ~ instead of and/or/not"):
        _ = Until.exists(Review) and Until.idle()


def test_long_chains_stay_flat() -> None:
    parts: list[Condition] = [Until.artifact_count(Review).at_least(n) for n in range(3000)]
    chain = reduce(and_, parts)
    assert isinstance(chain, And)
    assert len(chain.parts) == 3000
    assert evaluate(chain, Board({"Review": 2999}))
    assert not evaluate(chain, Board({"Review": 2998}))


@pytest.mark.parametrize("n", [-1, 1.5, True, "3"])
def test_numbers_are_checked(n: Any) -> None:
    for build in (Until.artifact_count(Review).at_least, When.correlation(Review).exactly):
        with pytest.raises(ConfigurationError, match="whole number from 0"):
            build(n)


class Ready:
    async def evaluate(self, flock: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "Ready"  # part of names of tests: without an address, they are the same in every process


def test_a_users_own_condition_is_wrapped_on_either_side() -> None:
    ready = Ready()
    assert as_condition(ready) == Custom(ready)
    assert Until.idle() & ready == And((Idle(), Custom(ready)))
    assert ready & Until.idle() == And((Custom(ready), Idle()))
    assert Until.idle() | ready == Or((Idle(), Custom(ready)))
    assert ready | Until.idle() == Or((Custom(ready), Idle()))
    assert evaluate(as_condition(ready), Board(flags={Custom(ready)}))


@pytest.mark.parametrize("wrong", [None, True, lambda: True, "idle"])
def test_what_is_no_condition_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is no condition: use Until"):
        as_condition(wrong)
    with pytest.raises(ConfigurationError, match="is no condition"):
        _ = Until.idle() & wrong


def test_an_unfinished_count_says_how_to_finish() -> None:
    for unfinished in (Until.artifact_count(Review), When.correlation(Review)):
        with pytest.raises(ConfigurationError, match=r"finished with \.at_least\(n\)"):
            as_condition(unfinished)


# --- fields -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "model", "expected"),
    [
        ("length", Review(text="long text"), True),
        ("length", Review(text="x"), False),
        ("score.value", Review(score=Score(value=5)), True),
        ("score.value", Review(score=None), False),
        ("extra.a.b", Review(extra={"a": {"b": 9}}), True),
        ("extra.a.c", Review(extra={"a": {"b": 9}}), False),
    ],
)
def test_fields_may_be_dotted(path: str, model: Review, expected: bool) -> None:
    leaf = Until.any_field(Review, field=path, predicate=is_long)
    assert leaf.holds(model) is expected
    spec = compile_when(When.correlation(Review).any_field(field=path, predicate=is_long))
    assert spec.predicates[0].holds(model) is expected


def test_what_a_predicate_raises_is_not_swallowed() -> None:
    def broken(value: object) -> bool:
        raise LookupError(value)

    with pytest.raises(LookupError):
        Until.any_field(Review, field="text", predicate=broken).holds(Review())


@pytest.mark.parametrize(
    ("path", "predicate", "advice"),
    [
        ("txet", is_long, r"Review has no field 'txet': use one of its own \(text, score, extra\)"),
        ("", is_long, "is no path"),
        ("score..value", is_long, "is no path"),
        ("text", "long", "give a function"),
    ],
)
def test_wrong_fields_are_refused_at_declaration(path: str, predicate: Any, advice: str) -> None:
    for any_field in (
        lambda **given: Until.any_field(Review, **given),
        lambda **given: When.correlation(Review).any_field(**given),
    ):
        with pytest.raises(ConfigurationError, match=advice):
            any_field(field=path, predicate=predicate)


# --- binding ------------------------------------------------------------------------------------


def test_binding_gives_unbound_leaves_a_workflow() -> None:
    condition = (Until.exists(Review) | ~Until.workflow_error()) & Until.none(Draft, correlation_id="other")
    assert bind_correlation(condition, "w") == (
        (Until.exists(Review, correlation_id="w") | ~Until.workflow_error("w"))
        & Until.none(Draft, correlation_id="other")
    )


def test_binding_makes_when_conditions_waitable() -> None:
    when = When.correlation(Review)
    condition = when.count_at_least(3) & when.any_field(field="text", predicate=is_long)
    with pytest.raises(ConfigurationError, match="use Until, or bind_correlation"):
        evaluate(condition, Board())
    assert bind_correlation(condition, "w", strict=True) == And(
        (Count("Review", ">=", 3, "w"), AnyField("Review", "text", is_long, "w"))
    )


@pytest.mark.parametrize(
    "leaf", [Until.idle(), Until.no_pending_work(), Custom(Ready()), Until.workflow_error("other")], ids=repr
)
def test_strict_binding_refuses_what_looks_beyond_the_workflow(leaf: Condition) -> None:
    assert bind_correlation(leaf, "w") == leaf
    with pytest.raises(ConfigurationError, match="'w'"):
        bind_correlation(~(leaf & Until.workflow_error()), "w", strict=True)


def test_binding_twice_keeps_the_first() -> None:
    once = bind_correlation(Until.workflow_error(), "w")
    assert bind_correlation(once, "v") == once
    assert bind_correlation(once, "w", strict=True) == once


# --- When ---------------------------------------------------------------------------------------


def test_when_builds_leaves() -> None:
    when = When.correlation(Review)
    assert when.count_at_least(3) == WhenCount("Review", ">=", 3)
    assert when.count_at_most(3) == WhenCount("Review", "<=", 3)
    assert when.exactly(3) == when.count_exactly(3) == WhenCount("Review", "==", 3)
    assert when.exists() == WhenCount("Review", ">=", 1)
    assert when.any_field(field="text", predicate=is_long) == WhenField("Review", "text", is_long)


def test_compile_splits_data_from_user_code() -> None:
    when = When.correlation(Review)
    condition = (
        when.count_at_least(3)
        & ~when.any_field(field="length", predicate=is_long)
        & (When.correlation(Draft).exists() | when.any_field(field="score.value", predicate=is_long))
    )
    spec = compile_when(condition)
    assert spec.tree == (
        "and",
        ("count", "Review", ">=", 3),
        ("not", ("flag", 0, "Review")),
        ("or", ("count", "Draft", ">=", 1), ("flag", 1, "Review")),
    )
    assert [(p.type_name, p.field) for p in spec.predicates] == [
        ("Review", "length"),
        ("Review", "score.value"),
    ]
    assert watched_types(spec) == watched_types(spec.tree) == {"Review", "Draft"}
    assert cloudpickle.loads(cloudpickle.dumps(spec)).tree == spec.tree


def test_eval_when() -> None:
    when = When.correlation(Review)
    spec = compile_when(when.count_at_least(2) & ~when.any_field(field="length", predicate=is_long))
    assert eval_when(spec, {"Review": 2}, ())
    assert not eval_when(spec, {"Review": 2}, {0})
    assert not eval_when(spec, {"Review": 1}, ())
    assert not eval_when(spec, {}, ())


@pytest.mark.parametrize("leaf", [Until.idle(), Custom(Ready()), Until.workflow_error()], ids=repr)
def test_until_cannot_be_an_activation(leaf: Condition) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be an activation.*use When"):
        compile_when(When.correlation(Review).exists() & leaf)


def test_absurd_nesting_is_refused() -> None:
    condition: Condition = When.correlation(Review).exists()
    for _ in range(300):
        condition = ~condition
    with pytest.raises(ConfigurationError, match="nested deeper than 100"):
        compile_when(condition)


# --- laws ---------------------------------------------------------------------------------------

ops = st.sampled_from([">=", "<=", "=="])
type_names = st.sampled_from(["A", "B", "C"])
counts = st.dictionaries(type_names, st.integers(0, 4))
when_leaves: st.SearchStrategy[Condition] = st.builds(
    WhenCount, type_names, ops, st.integers(0, 4)
) | st.builds(WhenField, type_names, st.sampled_from(["x", "y.z"]), st.just(is_long))


def _grow(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    return (
        st.builds(lambda a, b: a & b, inner, inner)
        | st.builds(lambda a, b: a | b, inner, inner)
        | st.builds(lambda a: ~a, inner)
    )


whens = st.recursive(when_leaves, _grow, max_leaves=8)
untils = whens.map(lambda condition: bind_correlation(condition, "w"))


@st.composite
def boards(draw: st.DrawFn, condition: Condition) -> Board:
    flags = draw(st.sets(st.sampled_from(list(leaves(condition)))))
    return Board(draw(counts), draw(st.booleans()), flags)


@given(st.data(), untils, untils)
def test_de_morgan(data: st.DataObject, a: Condition, b: Condition) -> None:
    board = data.draw(boards(a & b))
    assert evaluate(~(a & b), board) == evaluate(~a | ~b, board)
    assert evaluate(~(a | b), board) == evaluate(~a & ~b, board)
    assert evaluate(~~a, board) == evaluate(a, board)
    assert evaluate(a & b, board) == (evaluate(a, board) and evaluate(b, board))
    assert evaluate(a | b, board) == (evaluate(a, board) or evaluate(b, board))


@given(whens, counts, st.sets(st.integers(0, 8)))
def test_de_morgan_in_a_shard(a: Condition, counted: dict[str, int], flags: set[int]) -> None:
    assert eval_when(compile_when(~a), counted, flags) != eval_when(compile_when(a), counted, flags)


@given(whens, counts, st.sets(st.integers(0, 8)))
def test_a_shard_decides_as_a_host_would(when: Condition, counted: dict[str, int], flags: set[int]) -> None:
    # Given one field leaf per flag, told apart by its index
    spec = compile_when(when)
    fields = [leaf for leaf in leaves(when) if isinstance(leaf, WhenField)]
    assert len(spec.predicates) == len(fields)

    # When the flags agree for leaves that are equal
    known = {leaf for index, leaf in enumerate(fields) if index in flags}
    agreeing = {index for index, leaf in enumerate(fields) if leaf in known}
    board = Board(counted, flags={bind_correlation(leaf, "w") for leaf in known})

    # Then so do the verdicts
    assert eval_when(spec, counted, agreeing) == evaluate(bind_correlation(when, "w"), board)


@given(whens, counts, st.sets(st.integers(0, 8)))
def test_the_wire_form_means_the_same(when: Condition, counted: dict[str, int], flags: set[int]) -> None:
    spec = compile_when(when)
    wired = decode_when(encode_when(spec))
    assert eval_when(wired, counted, flags) == eval_when(spec, counted, flags)
    assert watched_types(wired) == watched_types(spec)


@given(whens, counts, st.sets(st.integers(0, 8)), st.integers(0, 9))
def test_types_that_are_not_watched_do_not_matter(
    when: Condition, counted: dict[str, int], flags: set[int], n: int
) -> None:
    spec = compile_when(when)
    others = dict.fromkeys({"A", "B", "C", "D"} - watched_types(spec), n)
    assert eval_when(spec, {**counted, **others}, flags) == eval_when(spec, counted, flags)


def test_not_is_a_node_like_the_others() -> None:
    assert ~Until.idle() == Not(Idle())
