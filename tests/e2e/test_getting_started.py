"""A program written for Flock, on Ray, offline: another import line, and a cassette named in the environment."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import flock_ray
from flock_ray.core.registry import type_registry
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.provider import Answer
from flock_ray.gateway.settings import GatewayPlan
from flock_ray.model import ModelReply, ModelRequest
from flock_ray.testing import VirtualFlock, run_virtual
from tests.e2e.conftest import AsAUser

pytestmark = pytest.mark.timeout(240)

PROGRAM = Path(__file__).parents[1] / "fixtures/getting_started/declarative_pizza.py.txt"
RECIPE = {"name": "Fig", "toppings": ["figs"], "minutes": 12}
START = "import os, runpy, sys; os.environ.update(FLOCK_CASSETTE=sys.argv[1], FLOCK_CASSETTE_MODE='replay'); "


class Cook:
    async def call(self, request: ModelRequest, settings: Any, on_text: Any) -> Answer:
        return Answer(ModelReply(text=json.dumps(RECIPE)))


def test_a_program_of_flock_runs_on_ray_from_a_cassette(
    as_a_user: AsAUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = PROGRAM.read_text().replace("from flock import", "from flock_ray import")
    program = tmp_path / "pizza.py"
    program.write_text(source)

    # Given a cassette of it
    plan = GatewayPlan(cassette=str(tmp_path / "cassette"), cassette_mode="record")
    monkeypatch.setattr(
        flock_ray, "Flock", lambda model: VirtualFlock(model, language_model=Gateway(plan, provider=Cook()))
    )
    with type_registry.isolated(), monkeypatch.context() as patched:
        type_registry._types.clear()
        patched.setattr(asyncio, "run", run_virtual)
        exec(compile(source, "pizza.py", "exec", dont_inherit=True), {"__name__": "__main__"})
    recorded = capsys.readouterr().out

    # When it is run as its author runs it
    run = as_a_user(
        "-c", f"{START} runpy.run_path(sys.argv[2], run_name='__main__')", plan.cassette or "", str(program)
    )

    # Then the answers are those of the cassette
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert recorded == "Fig ['figs'] 12\n"
    assert recorded in run.stdout
