from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NewType, Optional, Protocol, TypeVar, Union

import pytest
from pydantic import BaseModel

from flock_ray.core.definition import OutputGroup, OutputSpec, Subscription
from flock_ray.core.signature import (
    check_arguments,
    check_function,
    check_returns,
    expected_arguments,
    may_return_nothing,
)
from flock_ray.core.specs import BatchSpec, JoinSpec
from flock_ray.errors import ConfigurationError


class Base(BaseModel):
    n: int = 0


class A(Base): ...


class B(BaseModel):
    n: int = 0


class SubB(B): ...


class C(BaseModel): ...


class HasN(Protocol):
    n: int


T = TypeVar("T")
Alias = NewType("Alias", A)
JOIN = JoinSpec(by=lambda model: model.n)
BATCH = BatchSpec(size=10)


def subscription(*types: type[BaseModel], **options: Any) -> Subscription:
    return Subscription(id="x/s", agent="x", types=types, **options)


SINGLE = subscription(A)
PAIR = subscription(A, B)
COUNTED = subscription(A, A, B)
BATCHED = subscription(A, batch=BATCH)
MIXED = subscription(A, B, batch=BATCH)
JOINED_BATCH = subscription(A, A, B, join=JOIN, batch=BATCH)


def with_hint(hint: Any) -> Callable[..., Any]:
    def fn(value: Any) -> None: ...

    fn.__annotations__["value"] = hint
    return fn


def returning(hint: Any) -> Callable[..., Any]:
    def fn(value: Any) -> None: ...

    fn.__annotations__["return"] = hint
    return fn


def group(*types: type[BaseModel]) -> list[OutputGroup]:
    return [OutputGroup(outputs=tuple(OutputSpec(type=t) for t in types))]


def test_expected_arguments_are_what_binding_gives() -> None:
    assert expected_arguments(SINGLE) == (A,)
    assert expected_arguments(COUNTED) == (list[A], B)
    assert expected_arguments(BATCHED) == (list[A],)
    assert expected_arguments(MIXED) == (list[A | B],)
    assert expected_arguments(JOINED_BATCH) == (list[tuple[list[A], B]],)


@pytest.mark.parametrize(
    ("consumed", "hint"),
    [
        (SINGLE, A),
        (SINGLE, Base),
        (SINGLE, BaseModel),
        (SINGLE, object),
        (SINGLE, Any),
        (SINGLE, T),
        (SINGLE, Alias),
        (SINGLE, HasN),
        (SINGLE, A | None),
        (SINGLE, Optional[A]),  # noqa: UP045
        (SINGLE, Union[B, A]),  # noqa: UP007
        (SINGLE, Annotated[A, "doc"]),
        (SINGLE, "A"),
        (SINGLE, "DefinedNowhere"),
        (BATCHED, list),
        (BATCHED, list[A]),
        (BATCHED, Sequence[Base]),
        (BATCHED, Iterable[Any]),
        (BATCHED, "list[A] | None"),
        (MIXED, list[A | B]),
        (MIXED, list[BaseModel]),
        (MIXED, list[A | B | C]),
        (JOINED_BATCH, list[tuple[list[A], B]]),
        (JOINED_BATCH, list[tuple[Any, ...]]),
        (JOINED_BATCH, Sequence[tuple[Sequence[A], BaseModel]]),
        (JOINED_BATCH, list[tuple]),  # type: ignore[type-arg]  # bare on purpose
        (JOINED_BATCH, list[Sequence[Any]]),
    ],
)
def test_fitting_hints_are_accepted(consumed: Subscription, hint: Any) -> None:
    check_arguments("x", with_hint(hint), consumed)


@pytest.mark.parametrize(
    ("consumed", "hint", "got", "expected"),
    [
        (SINGLE, B, "B", "A"),
        (SINGLE, str, "str", "A"),
        (SINGLE, B | None, "B | None", "A"),
        (SINGLE, list[A], "list[A]", "A"),
        (SINGLE, Literal["A"], "Literal", "A"),
        (SINGLE, "B", "B", "A"),
        (BATCHED, A, "A", "list[A]"),
        (BATCHED, list[B], "list[B]", "list[A]"),
        (BATCHED, tuple[A, ...], "tuple[A, ...]", "list[A]"),
        (BATCHED, dict[str, A], "dict[str, A]", "list[A]"),
        (MIXED, list[A], "list[A]", "list[A | B]"),
        (JOINED_BATCH, list[tuple[A, B]], "list[tuple[A, B]]", "list[tuple[list[A], B]]"),
        (JOINED_BATCH, list[tuple[list[A], B, C]], "C", "list[tuple[list[A], B]]"),
        (JOINED_BATCH, list[tuple[list[A], ...]], "...", "list[tuple[list[A], B]]"),
        (JOINED_BATCH, list[A], "list[A]", "list[tuple[list[A], B]]"),
    ],
)
def test_wrong_hints_name_function_parameter_expected_and_got(
    consumed: Subscription, hint: Any, got: str, expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_arguments("x", with_hint(hint), consumed)

    message = str(caught.value)
    assert "agent 'x': parameter 'value' of fn is annotated" in message
    assert got in message
    assert f"gives it {expected};" in message


def test_several_parameters_are_checked_in_declared_order() -> None:
    def right(many: list[A], one: B) -> None: ...
    def swapped(one: B, many: list[A]) -> None: ...
    def starred(*inputs: A) -> None: ...

    check_arguments("x", right, COUNTED)
    with pytest.raises(ConfigurationError, match="'one' of swapped"):
        check_arguments("x", swapped, COUNTED)
    with pytest.raises(ConfigurationError, match=r"'inputs' of starred is annotated A, .* gives it list"):
        check_arguments("x", starred, COUNTED)


def test_the_context_is_not_counted() -> None:
    def fn(ctx: Any, a: A, b: B) -> None: ...

    check_arguments("x", fn, PAIR)
    with pytest.raises(ConfigurationError, match=r"fn takes 2 argument\(s\) \(a, b\), .* with 1: \(A\)"):
        check_arguments("x", fn, SINGLE)


class Method:
    def run(self, a: A) -> None: ...


@pytest.mark.parametrize(
    ("fn", "fits"),
    [
        (lambda a: None, False),
        (lambda a, b: None, True),
        (lambda a, b, c: None, False),
        (lambda a, b, c=1: None, True),
        (lambda a, b=1: None, True),
        (lambda *all: None, True),
        (lambda a, *rest: None, True),
        (lambda a, b, c, *rest: None, False),
        (lambda a, b, *, key=1: None, True),
        (lambda a, b, *, key: None, False),
        (lambda a, b, **more: None, True),
        (functools.partial(lambda key, a, b: None, 1), True),
        (functools.partial(lambda a, b, key: None, key=1), True),
        (Method().run, False),
        (max, True),
    ],
)
def test_arity_must_fit(fn: Any, fits: bool) -> None:
    if fits:
        check_arguments("x", fn, PAIR)
    else:
        with pytest.raises(ConfigurationError, match=r"argument\(s\)|keyword-only"):
            check_arguments("x", fn, PAIR)


def test_functions_without_input_are_refused() -> None:
    def nothing() -> None: ...
    def only_context(ctx: Any) -> None: ...
    def only_keyword(*, key: int = 1) -> None: ...

    without_input: list[Callable[..., Any]] = [nothing, only_context, only_keyword]
    for fn in without_input:
        with pytest.raises(ConfigurationError, match=f"{fn.__name__} has no parameter for its input"):
            check_function("x", fn)
    check_function("x", lambda *inputs: None)


def test_a_class_defined_again_is_the_same_type() -> None:
    def cell() -> type[BaseModel]:
        class Cell(BaseModel): ...

        return Cell

    consumed, hinted = cell(), cell()

    check_arguments("x", with_hint(hinted), subscription(consumed))
    check_returns("x", returning(hinted), group(consumed))


def test_results_of_our_own_may_hold_anything() -> None:
    own = type("EvalResult", (BaseModel,), {"__module__": "flock_ray.engines.component"})

    check_returns("x", returning(own), group(A))


@pytest.mark.parametrize(
    "hint",
    [
        A,
        Base,
        BaseModel,
        Any,
        object,
        T,
        A | None,
        A | B,
        list[A],
        Sequence[A | B],
        tuple[A, B],
        tuple[A, ...],
        tuple[A | None, list[B]],
        Awaitable[A],
        Coroutine[Any, Any, A],
        Iterator[A],
        AsyncIterator[A | B],
        SubB,
        "DefinedNowhere",
        "A | None",
        list,
    ],
)
def test_fitting_returns_are_accepted(hint: Any) -> None:
    check_returns("x", returning(hint), group(A, B))
    check_returns("x", lambda value: None, group(A, B))


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (C, r"C is not declared \(publishes\(A, B\)\); add \.publishes\(C\)"),
        (C | None, r"annotated C \| None, but C is not declared"),
        (list[C], "C is not declared"),
        (tuple[A, C], "C is not declared"),
        ("C", "C is not declared"),
        (Coroutine[Any, Any, C], "C is not declared"),
        (str, "returns models"),
        (dict[str, A], "returns models"),
        (None, r"fn returns None, .* annotate it `-> A \| None`"),
        (tuple[B, A], r"the order of publishes\(\): tuple\[A, B\]"),
        (tuple[list[B], A | None], "the order of publishes"),
    ],
)
def test_wrong_returns_are_refused(hint: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_returns("x", returning(hint), group(A, B))


def test_an_agent_that_publishes_nothing_returns_nothing() -> None:
    check_returns("x", returning(None), [])
    with pytest.raises(ConfigurationError, match="it publishes nothing"):
        check_returns("x", returning(A), [])


def test_outputs_of_all_groups_count() -> None:
    check_returns("x", returning(tuple[A, C]), group(A, B) + group(C))


@pytest.mark.parametrize(
    ("hint", "expected"),
    [(A, False), (A | None, True), (Optional[A], True), (None, True), (list[A], False), (Any, False)],  # noqa: UP045
)
def test_only_a_hint_with_none_may_return_nothing(hint: Any, expected: bool) -> None:
    assert may_return_nothing(returning(hint)) is expected
    assert not may_return_nothing(lambda value: None)
