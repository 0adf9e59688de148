"""The example with an MCP server for files: a real server, recorded answers."""

from __future__ import annotations

import json

import pytest

from examples.llm import files
from examples.llm.stage import CASSETTES, perform


def test_the_librarian_reads_its_directory_and_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOCK_MODEL", raising=False)
    perform(files.play, "files")

    printed = capsys.readouterr().out
    assert "Only if it is smaller than a cat (house_rules.md)" in printed
    assert "tool files__list_directory" in printed
    asked = [json.loads(path.read_text())["request"] for path in (CASSETTES / "files").iterdir()]
    # It was found on the cassette, so this is what was asked.
    last = max(asked, key=lambda request: len(request["messages"]))
    told = [str(message["content"]) for message in last["messages"] if message["role"] == "tool"]
    assert "house_rules.md" in told[0]
    assert told[1].startswith("1: # House rules")
    assert "outside of the directories" in told[2]
    offered = {tool["function"]["name"] for tool in last["tools"]}
    assert {"files__list_directory", "files__read_file"} == offered
