from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from examples.review.docstrings import public_names


def names(code: str, path: str = "pkg/app.py") -> list[tuple[str, str, bool]]:
    found = public_names(ast.parse(dedent(code)), path)
    return sorted((doc.kind, doc.name, has_doc) for doc, has_doc in found)


def test_public_modules_classes_functions_and_methods_are_looked_at() -> None:
    code = '''
        """A module."""

        def bare(): ...

        async def told():
            """Tells."""

        class Thing:
            def method(self): ...
            class Inner:
                """Inner."""
    '''

    assert [
        ("class", "Thing", False),
        ("class", "Thing.Inner", True),
        ("function", "bare", False),
        ("function", "told", True),
        ("method", "Thing.method", False),
        ("module", "app", True),
    ] == names(code)


def test_private_names_and_what_is_in_them_need_no_docstring() -> None:
    code = '''
        """A module."""
        def _f(): ...
        class _Hidden:
            def method(self): ...
        def outer():
            """Outer."""
            def inner(): ...
        class Open:
            """Open."""
            def __init__(self): ...
            def _quiet(self): ...
    '''

    assert [("class", "Open", True), ("function", "outer", True), ("module", "app", True)] == names(code)


def test_overloads_overrides_and_setters_say_nothing_of_their_own() -> None:
    code = '''
        """A module."""
        from typing import overload
        import typing
        @overload
        def f(x: int) -> int: ...
        @typing.overload
        def f(x: str) -> str: ...
        def f(x):
            """The one."""
        class A:
            """A."""
            @property
            def x(self):
                """X."""
            @x.setter
            def x(self, value): ...
            @typing.override
            def g(self): ...
    '''

    assert [("function", "f", True)] == [it for it in names(code) if it[0] == "function"]
    assert [("method", "A.x", True)] == [it for it in names(code) if it[0] == "method"]


def test_definitions_under_conditions_count() -> None:
    code = """
        if True:
            def a(): ...
        try:
            def b(): ...
        except ImportError:
            def c(): ...
    """

    assert ["a", "b", "c"] == [name for kind, name, _ in names(code) if kind == "function"]


@pytest.mark.parametrize(
    ("expected", "path"),
    [(["app"], "app.py"), (["__init__"], "pkg/__init__.py"), (["__main__"], "__main__.py"), ([], "_app.py")],
)
def test_a_module_is_public_unless_its_name_is_private(expected: list[str], path: str) -> None:
    assert expected == [name for kind, name, _ in names("x = 1", path) if kind == "module"]


def test_an_empty_module_has_nothing_to_say() -> None:
    assert [] == names("", "pkg/__init__.py")
