"""The chain that every bench runs: A -> first -> B -> second -> C -> third -> D, 300 bytes of JSON each.

Importable on purpose: models defined in `__main__` are pickled by value, eight times slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from bench.workload import TEXT
from flock_ray import flock_type

if TYPE_CHECKING:
    from flock_ray import Flock


@flock_type
class A(BaseModel):
    n: int
    text: str = TEXT


@flock_type
class B(BaseModel):
    n: int
    text: str = TEXT


@flock_type
class C(BaseModel):
    n: int
    text: str = TEXT


@flock_type
class D(BaseModel):
    n: int
    text: str = TEXT


def first(a: A) -> B:
    return B(n=a.n + 1, text=a.text)


def second(b: B) -> C:
    return C(n=b.n + 1, text=b.text)


def third(c: C) -> D:
    return D(n=c.n + 1, text=c.text)


def add_chain(flock: Flock) -> None:
    """Declare the three agents."""
    flock.agent("a1").consumes(A).publishes(B).runs(first)
    flock.agent("a2").consumes(B).publishes(C).runs(second)
    flock.agent("a3").consumes(C).publishes(D).runs(third)
