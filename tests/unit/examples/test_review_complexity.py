from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from examples.review.complexity import measure_functions
from examples.review.types import FunctionMetric


def measure(code: str) -> list[FunctionMetric]:
    return measure_functions(ast.parse(dedent(code)))


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (1, "return 1"),
        (2, "if x: pass"),
        (3, "if x: pass\n    elif y: pass\n    else: pass"),
        (2, "return 1 if x else 2"),
        (2, "for i in x: pass"),
        (2, "while x: pass"),
        (3, "return x and y and z"),
        (4, "return (x and y) or (x and z)"),
        (3, "try: pass\n    except A: pass\n    except B: pass\n    finally: pass"),
        (3, "return [i for i in x if i]"),
        (3, "return {i for i in x for j in i}"),
        (2, "with x: assert y or z"),
        (3, "match x:\n      case 1: pass\n      case 2: pass\n      case _: pass"),
        (2, "match x:\n      case other if other: pass"),
        (2, "return lambda: x or y"),
    ],
)
def test_complexity_counts_each_decision_once(expected: int, body: str) -> None:
    [metric] = measure(f"def f(x, y, z):\n    {body}\n")

    assert expected == metric.complexity


def test_nested_functions_are_measured_on_their_own() -> None:
    metrics = measure(
        """
        class Outer:
            async def method(self):
                if self:
                    def inner(x):
                        return x or 1 or 2
                return inner
        """
    )

    assert [("Outer.method", 2), ("Outer.method.inner", 3)] == [(it.name, it.complexity) for it in metrics]


def test_functions_under_conditions_and_handlers_are_found() -> None:
    metrics = measure(
        """
        try:
            import x
        except ImportError:
            def a(): ...
        else:
            def b(): ...
        if x:
            pass
        else:
            def c(): ...
        match x:
            case 1:
                def d(): ...
        """
    )

    assert ["a", "b", "c", "d"] == [it.name for it in metrics]


def test_length_counts_from_def_to_the_last_line() -> None:
    [metric] = measure(
        """
        @decorator
        def f(
            x,
        ):
            '''Doc.'''

            return x
        """
    )

    assert (3, 6) == (metric.line, metric.length)


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (0, "return 1"),
        (1, "if x: pass"),
        (1, "if x: pass\n    elif y: pass\n    elif z: pass"),
        (2, "if x: pass\n    else:\n        if y: pass"),
        (3, "for i in x:\n        with i:\n            while y: pass"),
        (2, "try: pass\n    except A:\n        if x: pass"),
        (2, "match x:\n        case 1:\n            if y: pass"),
        (0, "def inner():\n        if x: pass"),
    ],
)
def test_nesting_is_the_depth_of_the_deepest_block(expected: int, body: str) -> None:
    metric = measure(f"def f(x, y, z):\n    {body}\n")[0]

    assert expected == metric.nesting


def test_a_ladder_of_a_thousand_elifs_needs_no_recursion() -> None:
    ladder = "".join(f"    elif x == {number}: pass\n" for number in range(400))

    [metric] = measure(f"def f(x):\n    if x: pass\n{ladder}")

    assert (402, 1) == (metric.complexity, metric.nesting)
