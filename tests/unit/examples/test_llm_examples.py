"""The examples of agents that think, rehearsed: with scripted answers, in virtual time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from examples.llm.stage import perform
from flock_ray.core.registry import type_registry
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual

Load = Callable[[str], ModuleType]


@pytest.fixture
def load() -> Iterator[Load]:
    """Imports an example, whose types have names that other tests may use for theirs."""
    before = set(sys.modules)
    with type_registry.isolated():
        type_registry._types.clear()
        yield lambda name: importlib.import_module(f"examples.llm.{name}")
    for name in set(sys.modules) - before:
        if name.startswith("examples.llm."):
            del sys.modules[name]


def printed(
    play: Any, script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.delenv("FLOCK_MODEL", raising=False)
    perform(play, script)
    return capsys.readouterr().out


def test_the_detective_finds_the_line_with_its_tools(
    load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detective = load("detective")
    text = printed(detective.play, detective.SCRIPT, capsys, monkeypatch)

    found = detective.SCENE / "stage.py"
    assert 'os.environ.get("FLOCK_MODEL")' in found.read_text().splitlines()[15]
    assert "by the environment (stage.py:16)" in text
    assert "tool read_file: 0 ms, failed: FileNotFoundError" in text


def test_the_debate_ends_and_is_decided(
    load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    debate = load("debate")
    lines = printed(debate.play, debate.SCRIPT, capsys, monkeypatch).splitlines()

    assert [line[:2] for line in lines[1:5]] == ["1.", "2.", "3.", "4."]
    assert lines[5] == "the judge: against wins. Editors differ."


def test_a_debate_that_never_counts_up_is_stopped_by_its_guard(load: Load) -> None:
    debate = load("debate")

    def stuck(request: Any) -> Any:
        side = "for" if request.caller.agent in ("proposer", "defender") else "against"
        return {"side": side, "text": "again", "round": 1}

    model = ScriptedModel({"judge": [debate.Ruling(winner="for", reason="enough")], "*": stuck})

    async def scenario() -> None:
        async with VirtualFlock(language_model=model) as flock:
            debate.declare(flock)
            await flock.publish(debate.Motion(text="?"))
            await flock.run_until_idle(timeout=60)

    run_virtual(scenario())
    assert len(model.requests) <= 4 * debate.ROUNDS + 4


def test_the_best_slogan_wins_and_the_rest_is_not_awaited(
    load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slogans = load("slogans")
    text = printed(slogans.play, slogans.SCRIPT, capsys, monkeypatch)

    assert text.splitlines()[1:] == ["Light, while you are here."]
