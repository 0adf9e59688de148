"""A librarian with an MCP server for files: sees one directory, and may not delete anything in it.

The server is a program that the workers start, once each. Which directory it shows (`roots`) and which of its
tools the model gets (`tool_whitelist`) is up to the agent.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel, Field

from examples.llm.stage import perform
from flock_ray import Flock, WorkflowError, flock_type
from flock_ray.mcp import StdioServerParameters

SHELF = Path(__file__).resolve().with_name("shelf")


@flock_type
class Request(BaseModel):
    question: str


@flock_type
class Reference(BaseModel):
    """Where the answer is."""

    answer: str
    file: str = Field(description="The file that says so.")


def declare(flock: Flock) -> None:
    server = Path(__file__).with_name("files_server.py")
    flock.add_mcp("files", StdioServerParameters(command=sys.executable, args=[str(server)]))
    (
        flock.agent("librarian")
        .description("Answers questions about the files that it may see. Reads them, and never guesses.")
        .consumes(Request)
        .publishes(Reference)
        .with_mcps({"files": {"roots": [str(SHELF)], "tool_whitelist": ["list_directory", "read_file"]}})
    )


async def play(flock: Flock) -> None:
    declare(flock)
    await flock.publish(Request(question="May I bring my dragon into the library?"))
    await flock.run_until_idle(timeout=300)
    for reference in await flock.store.list_by_type("Reference"):
        print(f"{reference.payload['answer']} ({reference.payload['file']})")
        print(await flock.why(reference))
    for error in await flock.store.get_by_type(WorkflowError):
        print(error.error_type, error.error_message)


if __name__ == "__main__":
    perform(play, "files")
