"""Artifact types of a small shop, and a function engine that remembers what it got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from flock_ray import flock_type


@flock_type(name="market.Order")
class Order(BaseModel):
    n: int
    region: str = "eu"
    total: float = 0.0


@flock_type(name="market.Payment")
class Payment(BaseModel):
    n: int
    ok: bool = True


@flock_type(name="market.Parcel")
class Parcel(BaseModel):
    n: int


@flock_type(name="market.Note")
class Note(BaseModel):
    text: str


class Seen(list[Any]):
    """What agents got, in the order in which they ran."""

    def one(self, *inputs: Any) -> None:
        """Keep the inputs of a run; publishes nothing. One input is kept as itself."""
        self.append(inputs[0] if len(inputs) == 1 else inputs)

    def by(self, name: str) -> Callable[..., None]:
        """Return a function that keeps `(name, number of the input)`."""

        def keep(model: Any) -> None:
            self.append((name, model.n))

        return keep
