"""Programs written the way Flock's users write them, with the import line changed and nothing else.

The scenarios are those of upstream's first examples; the programs are our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flock_ray
from flock_ray.core.registry import type_registry
from flock_ray.model import ModelRequest, ToolCall
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual
from tests.llm_answers import instance

PROGRAMS = Path(__file__).parents[1] / "fixtures/getting_started"


def an_answer(request: ModelRequest) -> Any:
    """Answer with something that fits the schema; weigh first, if there are scales."""
    if request.tools and all(message["role"] != "tool" for message in request.messages):
        return ToolCall("1", request.tools[0]["function"]["name"], '{"thing": "cat"}')
    if request.tools:
        return {"text": "3.5 kg"}
    form = request.response_format or {}
    return instance(form["json_schema"]["schema"])


def counting() -> Callable[[ModelRequest], Any]:
    """Answer debaters, whose rounds have to end."""
    rounds = iter(range(1, 100))

    def answer(request: ModelRequest) -> Any:
        return {"text": "no!", "round": next(rounds) // 2 + 1}

    return answer


def jokes() -> list[dict[str, str]]:
    return [{"text": "baa"}, {"text": "a sheep walks into a bar"}, {"text": "wool"}]


PRINTS: dict[str, tuple[Any, list[str]]] = {
    "declarative_pizza": (
        lambda: [{"name": "Fig", "toppings": ["figs"], "minutes": 12}],
        ["Fig ['figs'] 12"],
    ),
    "input_and_output": (
        lambda: [{"kind": "bill", "due": "2026-05-01", "urgency": 0.9, "people": []}],
        ["bill 2026-05-01 True"],
    ),
    "tools": (an_answer, ["weighing cat", "3.5 kg"]),
    "band_formation": (an_answer, ["['Album', 'Band', 'Mood', 'Review']"]),
    "debate_club": (counting, ["3 3"]),
    "news_agency": (an_answer, ["['politics', 'science', 'sports']"]),
    "secret_agents": (an_answer, ["['intern', 'james', 'james', 'james', 'moneypenny', 'moneypenny']"]),
    "medical_diagnostics": (an_answer, ["1"]),
    "ecommerce_batch": (an_answer, ["2"]),
    "conditions": (
        lambda: {"reader": [[{"text": text} for text in "abc"]], "editor": an_answer},
        ["True", "True"],
    ),
    "best_of": (jokes, ["['a sheep walks into a bar']"]),
    "own_parts": (an_answer, ["on_pre_evaluate shouter", "on_post_evaluate 1", "HUSH"]),
    "timers": (an_answer, ["2"]),
}
"""What answers, and the lines that a program prints."""


def test_every_program_is_run() -> None:
    assert {path.name.removesuffix(".py.txt") for path in PROGRAMS.iterdir()} == PRINTS.keys()


@pytest.mark.parametrize("name", PRINTS)
def test_a_program_of_flock_runs_with_another_import_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (PROGRAMS / f"{name}.py.txt").read_text()
    assert source.count("from flock import") == 1
    given, expected = PRINTS[name]
    script = given if given is an_answer else given()

    def virtual(model: str | None = None, **options: Any) -> VirtualFlock:
        return VirtualFlock(model, language_model=ScriptedModel(script), **options)

    monkeypatch.setattr(flock_ray, "Flock", virtual)
    monkeypatch.setattr(asyncio, "run", run_virtual)
    with type_registry.isolated():
        type_registry._types.clear()
        program = source.replace("from flock import", "from flock_ray import")
        exec(compile(program, f"{name}.py", "exec", dont_inherit=True), {"__name__": "__main__"})

    lines = capsys.readouterr().out.splitlines()
    assert lines == expected
