from __future__ import annotations

import functools
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray.core.binding import bind_arguments, counts_of, resolved_hints, wants_context
from flock_ray.core.definition import Subscription
from flock_ray.core.specs import BatchSpec, JoinSpec


class A(BaseModel):
    n: int = 0


class B(BaseModel):
    n: int = 0


class Context:
    """Stands for the real context: recognised by its name."""


class SpecialContext(Context):
    """A user's subclass."""


A1, A2, A3, B1, B2 = A(n=1), A(n=2), A(n=3), B(n=1), B(n=2)
JOIN = JoinSpec(by=lambda model: model.n)
BATCH = BatchSpec(size=10)


def subscription(*types: type[BaseModel], **options: Any) -> Subscription:
    return Subscription(id="x/s", agent="x", types=types, **options)


@pytest.mark.parametrize(
    ("consumed", "models", "groups", "expected"),
    [
        (subscription(A), [A1], (), (A1,)),
        (subscription(A, B), [A1, B1], (), (A1, B1)),
        (subscription(A, B), [B1, A1], (), (A1, B1)),
        (subscription(B, A), [A1, B1], (), (B1, A1)),
        (subscription(A, A, B), [A1, A2, B1], (), ([A1, A2], B1)),
        (subscription(A, B, A), [A1, B1, A2], (), ([A1, A2], B1)),
        (subscription(A, A), [A2, A1], (), ([A2, A1],)),
        (subscription(A, B, join=JOIN), [B1, A1], (), (A1, B1)),
        (subscription(A, batch=BATCH), [A1, A2, A3], (), ([A1, A2, A3],)),
        (subscription(A, B, batch=BATCH), [B1, A1, B2], (), ([B1, A1, B2],)),
        (subscription(A, batch=BATCH), [A1], (), ([A1],)),
        (subscription(A, B, join=JOIN, batch=BATCH), [A1, B1, B2, A2], (2, 2), ([(A1, B1), (A2, B2)],)),
        (subscription(A, A, B, join=JOIN, batch=BATCH), [A1, A2, B1], (3,), ([([A1, A2], B1)],)),
    ],
)
def test_inputs_become_arguments(
    consumed: Subscription, models: list[BaseModel], groups: tuple[int, ...], expected: tuple[Any, ...]
) -> None:
    assert bind_arguments(consumed, models, groups) == expected


@pytest.mark.parametrize(
    ("consumed", "models", "groups", "message"),
    [
        (subscription(A), [B1], (), "got a B, but it consumes A"),
        (subscription(A), [], (), "expected 1 A, got 0"),
        (subscription(A, A), [A1], (), "expected 2 A, got 1"),
        (subscription(A, B), [A1, A2, B1], (), "expected 1 A, got 2"),
        (subscription(A, B, join=JOIN, batch=BATCH), [A1, B1], (), "groups"),
        (subscription(A, B, join=JOIN, batch=BATCH), [A1, B1], (1, 1), "expected 1 B, got 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    consumed: Subscription, models: list[BaseModel], groups: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bind_arguments(consumed, models, groups)


def test_a_class_that_was_shipped_twice_still_fits() -> None:
    def make() -> type[BaseModel]:
        class Shipped(BaseModel): ...

        return Shipped

    here, there = make(), make()
    model = there()

    assert here is not there
    assert bind_arguments(subscription(here), [model]) == (model,)


def test_counts_are_in_declared_order() -> None:
    assert list(counts_of(subscription(B, A, B)).items()) == [(B, 2), (A, 1)]


def named(ctx: Any, a: A) -> None: ...
def annotated(run: Context, a: A) -> None: ...
def annotated_subclass(run: SpecialContext, a: A) -> None: ...
def quoted_unknown(run: Unknown.Context, a: A) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def second(a: A, ctx: Any) -> None: ...
def keyword(a: A, *, ctx: Any) -> None: ...
def only_keyword(*, ctx: Any) -> None: ...
def none() -> None: ...
def plain(a: A) -> None: ...


class Engine:
    def method(self, ctx: Any, a: A) -> None: ...
    def without(self, a: A) -> None: ...
    def __call__(self, run: Context, a: A) -> None: ...


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (named, True),
        (annotated, True),
        (annotated_subclass, True),
        (quoted_unknown, True),
        (second, False),
        (keyword, False),
        (only_keyword, False),
        (none, False),
        (plain, False),
        (lambda ctx, a: None, True),
        (Engine().method, True),
        (Engine().without, False),
        (Engine(), True),
        (functools.partial(annotated), True),
        (functools.partial(named, None), False),
        (print, False),
        (dict, False),
    ],
)
def test_the_context_is_a_leading_parameter(fn: Any, expected: bool) -> None:
    assert wants_context(fn) is expected


def test_an_artifact_type_named_context_is_no_context() -> None:
    artifact = type("Context", (BaseModel,), {})

    def fn(data: Any) -> None: ...

    fn.__annotations__["data"] = artifact
    assert not wants_context(fn)


def test_one_unresolvable_hint_does_not_hide_the_others() -> None:
    def fn(a: A, b: Missing) -> B: ...  # type: ignore[name-defined,empty-body]  # noqa: F821

    assert resolved_hints(fn) == {"a": A, "return": B}
