"""The table of upstream's names in the migration guide: what it says is here is here, and the rest is not."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import flock_ray

PAGE = Path(__file__).parents[2] / "docs/migrating-from-flock.md"

UPSTREAM_TOP_LEVEL = """
    Flock start_orchestrator main flock_type flock_tool Artifact AgentIdentity Visibility PublicVisibility
    PrivateVisibility LabelledVisibility TenantVisibility AfterVisibility BatchSpec JoinSpec ScheduleSpec Until When
    FilterConfig Context EvalInputs EvalResult AgentComponent AgentComponentConfig EngineComponent
    OrchestratorComponent OrchestratorComponentConfig ServerComponent ServerComponentConfig DSPyEngine BAMLAdapter
    ChatAdapter JSONAdapter TwoStepAdapter XMLAdapter FlockApplication CompletionPolicy WorkflowContext WorkflowEvent
    WorkflowResult WorkflowStatus OpenClawConfig GatewayConfig OpenClawDefaults configure_logging get_logger
"""


def rows() -> list[tuple[str, str, str, str]]:
    """Return (upstream's name, where it is here, status, note) of every row."""
    section = PAGE.read_text().split("\n## Every name\n")[1].split("\n## ")[0]
    cells = [
        [c.strip() for c in line[1:-1].split("|")] for line in section.splitlines() if line.startswith("| `")
    ]
    return [(name.strip("`"), where.strip("`"), status, note) for name, where, status, note in cells]


def found(where: str) -> Any:
    """Import what a dotted path names: a module, a class, an attribute, a field, or a `(parameter)` of a callable.

    Raises:
        AttributeError: There is no such thing.
    """
    path, _, parameter = where.rstrip(")").partition("(")
    thing: Any = None
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            thing = _member(thing, name)
        break
    if parameter and parameter not in inspect.signature(thing).parameters:
        raise AttributeError(where)
    return thing


def _member(owner: Any, name: str) -> Any:
    if hasattr(owner, name):
        return getattr(owner, name)
    fields = {name for cls in getattr(owner, "__mro__", ()) for name in getattr(cls, "__annotations__", {})}
    if name in fields or (isinstance(owner, type) and f"self.{name} = " in inspect.getsource(owner)):
        return owner
    raise AttributeError(f"{owner!r} has no {name!r}")


HERE = [row for row in rows() if row[1] != "-"]


@pytest.mark.parametrize(
    ("name", "where", "status", "note"), HERE, ids=[f"{r[0]}-{i}" for i, r in enumerate(HERE)]
)
def test_what_the_table_says_is_here_can_be_imported(name: str, where: str, status: str, note: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert found(where) is not None
    assert status in ("same", "alias", "different")
    assert note or status == "same", "say why"


def test_what_the_table_says_is_absent_is_absent_and_says_why() -> None:
    for name, where, status, note in rows():
        if where == "-":
            assert status == "absent" and note, name
            if re.fullmatch(r"\w+", name):
                assert name not in flock_ray.__all__, f"{name} is here now: say so"


def test_every_top_level_name_of_upstream_is_in_the_table_once() -> None:
    names = [row[0] for row in rows()]
    assert set(UPSTREAM_TOP_LEVEL.split()) <= set(names)
    assert len(names) == len(set(names)), {name for name in names if names.count(name) > 1}


def test_a_name_that_is_not_there_is_noticed() -> None:
    for nothing in (
        "flock_ray.Nonsense",
        "flock_ray.Flock.nonsense",
        "flock_ray.Flock(nonsense)",
        "flock_ray.core.no",
    ):
        with pytest.raises(AttributeError):
            found(nothing)
