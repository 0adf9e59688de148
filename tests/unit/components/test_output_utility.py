from __future__ import annotations

import json
import subprocess
import sys

import pytest

from flock_ray.components import OutputUtilityComponent, OutputUtilityConfig
from tests.unit.components.board import Answer, Replies, run_one


def test_nothing_is_printed_unless_an_agent_has_the_component(capsys: pytest.CaptureFixture[str]) -> None:
    run_one()

    assert capsys.readouterr().out == ""


def test_outputs_are_shown_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    run_one(OutputUtilityComponent())

    out = capsys.readouterr().out
    assert "a: Answer" in out and "re: hello" in out and "workflow" in out


def test_or_as_lines_of_json_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    config = OutputUtilityConfig(render_table=False, show_metadata=False, max_length=5, theme="afterglow")
    run_one(OutputUtilityComponent(config=config))

    shown = {"agent": "a", "type": "Answer", "text": "re: h...", "extra": "[]"}
    assert json.loads(capsys.readouterr().out) == shown


def test_no_output_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run_one(OutputUtilityComponent(no_output=True))

    assert capsys.readouterr().out == ""


def test_a_model_can_not_talk_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Replies(reply=lambda _: Answer(text="\x1b]0;owned\x07 [bold red]x[/] \u202e"))
    run_one(OutputUtilityComponent(), engine=engine)

    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    assert "[bold red]x[/]" in out


def test_rich_is_imported_by_the_first_table_only() -> None:
    code = "import sys, flock_ray.components.output_utility; print('rich' in sys.modules)"

    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
