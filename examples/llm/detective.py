"""A code detective: a model that looks into files with tools until it knows who did it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from examples.llm.stage import perform
from flock_ray import Flock, WorkflowError, flock_type

SCENE = Path(__file__).resolve().with_name("scene")
MAX_READ = 20_000


@flock_type
class Case(BaseModel):
    question: str


@flock_type
class Verdict(BaseModel):
    """What the detective found out."""

    answer: str
    file: str = Field(description="The file that proves it.")
    line: int = Field(ge=1)


def list_files() -> list[str]:
    """List the files of the scene."""
    return sorted(path.name for path in SCENE.glob("*.py"))


def read_file(name: str) -> str:
    """Read a file, with line numbers.

    Args:
        name: As `list_files` names it.
    """
    # The model decides what is read: only what was listed may be.
    if name not in list_files():
        raise FileNotFoundError(f"there is no {name!r} here")
    lines = (SCENE / name).read_text()[:MAX_READ].splitlines()
    return "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))


def declare(flock: Flock) -> None:
    (
        flock.agent("detective")
        .description("Answers questions about source code. Looks into the files, and never guesses.")
        .consumes(Case)
        .publishes(Verdict)
        .with_tools([list_files, read_file])
    )


async def play(flock: Flock) -> None:
    declare(flock)
    await flock.publish(Case(question="Why do pensioners pay more on Sundays than on other days?"))
    await flock.run_until_idle(timeout=300)
    for verdict in await flock.store.list_by_type("Verdict"):
        print(f"{verdict.payload['answer']} ({verdict.payload['file']}:{verdict.payload['line']})")
        print(await flock.why(verdict))
    for error in await flock.store.get_by_type(WorkflowError):
        print(error.error_type, error.error_message)


if __name__ == "__main__":
    perform(play, "detective")
