"""Cyclomatic complexity, nesting and length of every function."""

from __future__ import annotations

import ast

from examples.review.syntax import Function, child_statements, own_nodes
from examples.review.types import FunctionMetric

_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)
_BLOCKS = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.TryStar,
    ast.Match,
)


def measure_functions(tree: ast.Module) -> list[FunctionMetric]:
    """Measure all functions of a module, nested ones on their own, in line order."""
    found: list[FunctionMetric] = []
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    while stack:
        node, prefix = stack.pop()
        for child in child_statements(node):
            inner = prefix
            if isinstance(child, Function | ast.ClassDef):
                inner = f"{prefix}{child.name}."
            if isinstance(child, Function):
                found.append(_measure(child, prefix + child.name))
            stack.append((child, inner))
    return sorted(found, key=lambda metric: (metric.line, metric.name))


def _measure(function: Function, name: str) -> FunctionMetric:
    return FunctionMetric(
        name=name,
        line=function.lineno,
        length=(function.end_lineno or function.lineno) - function.lineno + 1,
        complexity=cyclomatic_complexity(function),
        nesting=max_nesting(function),
    )


def cyclomatic_complexity(function: Function) -> int:
    """Count the independent paths through a function, as McCabe does.

    One, plus one for each `if`, `elif`, loop, `except`, conditional expression, `case`
    (but not a bare `case _`), guard, comprehension loop and filter, and for each `and`
    and `or`. Nested functions are measured on their own; lambdas belong to the function.
    """
    return 1 + sum(_decisions(node) for node in own_nodes(function))


def _decisions(node: ast.AST) -> int:
    if isinstance(node, _BRANCHES):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.match_case):
        always = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
        return (not always) + (node.guard is not None)
    return 0


def max_nesting(function: Function) -> int:
    """How many blocks deep the deepest statement is; an `elif` is as deep as its `if`."""
    deepest = 0
    stack = [(statement, 0) for statement in function.body]
    while stack:
        node, outside = stack.pop()
        depth = outside + isinstance(node, _BLOCKS)
        deepest = max(deepest, depth)
        if isinstance(node, Function | ast.ClassDef):
            continue
        for child in child_statements(node):
            is_elif = (
                isinstance(node, ast.If) and isinstance(child, ast.If) and child.col_offset == node.col_offset
            )
            stack.append((child, outside if is_elif else depth))
    return deepest
