"""The example that streams to the terminal, on its cassette."""

from __future__ import annotations

import pytest

from examples.llm import newsroom
from examples.llm.stage import perform
from flock_ray.testing import run_virtual
from tests.fixtures.llm_scripts import SCRIPTS


def test_lines_of_every_desk_and_then_the_headlines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOCK_MODEL", raising=False)
    perform(newsroom.play, "newsroom")
    lines = capsys.readouterr().out.splitlines()

    for desk, story in SCRIPTS["newsroom"].items():
        [line] = [line for line in lines if line.startswith(f"[{desk} ")]
        assert story["text"] in line
        assert f"{desk}: {story['headline']}" in lines[-3:]


def test_the_typist_speaks_word_by_word(capsys: pytest.CaptureFixture[str]) -> None:
    run_virtual(newsroom.rehearse())

    assert "first race is in autumn" in capsys.readouterr().out
