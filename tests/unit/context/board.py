"""Artifact types, and an agent that shows what it got to see."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from flock_ray import Context, Flock, flock_type


@flock_type(name="context.Fact")
class Fact(BaseModel):
    text: str
    n: int = 0


@flock_type(name="context.Memo")
class Memo(BaseModel):
    text: str
    password: str = ""
    lines: list[str] = []


@flock_type(name="context.Ask")
class Ask(BaseModel):
    text: str = "?"


@flock_type(name="context.Said")
class Said(BaseModel):
    texts: list[str]


class Witness:
    """Remembers the artifacts of every context that its agent got."""

    def __init__(self) -> None:
        self.contexts: list[list[Any]] = []

    async def tell(self, ctx: Context, ask: Ask) -> Said:
        """Publish the texts of the context."""
        self.contexts.append(list(ctx.artifacts))
        return Said(texts=[str(artifact.payload.get("text")) for artifact in ctx.artifacts])

    @property
    def texts(self) -> list[str]:
        """Texts of the newest context."""
        return [str(artifact.payload.get("text")) for artifact in self.contexts[-1]]


def witness(flock: Flock, provider: Any, name: str = "witness", **options: Any) -> Witness:
    """Declare an agent that consumes Ask and looks at its context."""
    seen = Witness()
    flock.agent(name).consumes(Ask).publishes(Said).with_context(provider, **options).runs(seen.tell)
    return seen
