"""The example with an MCP server for files: a real server, rehearsed answers."""

from __future__ import annotations

import pytest

from examples.llm import files
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual


def test_the_librarian_reads_its_directory_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    model = ScriptedModel(files.SCRIPT)

    async def scenario() -> None:
        async with VirtualFlock(language_model=model) as flock:
            await files.play(flock)

    run_virtual(scenario())

    printed = capsys.readouterr().out
    assert "The debate: nobody answers its last round (debate.py)" in printed
    assert "tool files__list_directory" in printed
    told = [str(message["content"]) for message in model.requests[-1].messages if message["role"] == "tool"]
    assert "files_server.py" in told[0]
    assert told[1].startswith('1: """A debate')
    assert "outside of the directories" in told[2]
    offered = {tool["function"]["name"] for tool in model.requests[0].tools}
    assert {"files__list_directory", "files__read_file"} == offered
