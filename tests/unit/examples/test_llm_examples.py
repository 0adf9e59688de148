"""The examples of agents that think, on their cassettes: offline, in virtual time, as a user runs them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from examples.llm.stage import CASSETTES, perform
from flock_ray.core.registry import type_registry
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual
from tests.fixtures.llm_scripts import SCRIPTS, record

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


Perform = Callable[[str], list[str]]


@pytest.fixture
def performed(load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Perform:
    """Runs an example on its cassette, and returns what it printed."""
    monkeypatch.delenv("FLOCK_MODEL", raising=False)

    def run(name: str) -> list[str]:
        perform(load(name).play, name)
        return capsys.readouterr().out.splitlines()[1:]

    return run


def test_the_detective_finds_the_line_with_its_tools(performed: Perform, load: Load) -> None:
    lines = performed("detective")

    found = load("detective").SCENE / "discounts.py"
    assert "share = SUNDAYS" in found.read_text().splitlines()[11]
    assert lines[0].endswith("(discounts.py:12)")
    assert "  by: tool read_file: 0 ms, failed: FileNotFoundError" in lines
    assert 3 == sum(line.endswith("from the cassette") for line in lines)


def test_the_debate_ends_and_is_decided(performed: Perform) -> None:
    lines = performed("debate")

    assert [line[:2] for line in lines[:4]] == ["1.", "2.", "3.", "4."]
    assert lines[4] == "the judge: against wins. The last word was about tables."


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


def test_the_best_slogan_wins_and_the_rest_is_not_awaited(performed: Perform) -> None:
    assert performed("slogans") == ["Light, while you are here."]


def test_the_agency_makes_one_bulletin_of_the_reports_of_each_event(performed: Perform) -> None:
    lines = performed("news_agency")

    assert lines[0].startswith("Lighthouse becomes a hotel: ")
    assert lines[1].startswith("The night train is back: ")
    assert [line.split(",")[0] for line in lines[2:]] == [
        "correspondent: 6 calls", "editor: 2 calls", "planner: 2 calls",
    ]  # fmt: skip


def test_tickets_find_their_desk_by_meaning_and_get_a_draft(performed: Perform) -> None:
    lines = performed("triage")

    assert [line.split(":")[0] for line in lines[:4]] == ["billing", "tech", "sales", "front"]
    assert lines[0].endswith("-> You get the second payment back within three days.")
    assert any("semantic 'money, invoices, payments and refunds'" in line for line in lines[4:])


def test_the_correspondents_of_the_agency_write_at_the_same_time(load: Load) -> None:
    agency = load("news_agency")
    model = ScriptedModel(SCRIPTS["news_agency"], delay_s=2.0)

    async def scenario() -> None:
        async with VirtualFlock(language_model=model) as flock:
            agency.declare(flock)
            await flock.publish(agency.Event(text=agency.EVENTS[0]))
            await flock.run_until_idle(timeout=60)

    run_virtual(scenario())
    assert agency.ANGLES == model.most_running


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_cassette_is_what_its_example_asks_today(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Prompts of the engine or of the example have changed? Then `python -m tests.fixtures.llm_scripts`.
    monkeypatch.delenv("FLOCK_MODEL", raising=False)
    record(name, tmp_path)
    capsys.readouterr()

    recorded = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {path.name for path in (CASSETTES / name).iterdir()} == recorded.keys()
    for file, text in recorded.items():
        assert (CASSETTES / name / file).read_text() == text


def test_cassettes_hold_no_paths_of_the_machine_that_recorded_them() -> None:
    for path in CASSETTES.glob("*/*.json"):
        assert str(Path.home()) not in path.read_text()
        assert str(CASSETTES.parents[2]) not in path.read_text()
