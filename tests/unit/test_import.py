"""`import flock_ray` is cheap: nothing heavy comes with it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("ray", "litellm", "fastapi", "redis", "asyncpg", "pydantic", "rich", "cloudpickle")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in answer.stdout.split()}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not modules_after("import flock_ray").intersection(HEAVY)


def test_declaring_agents_needs_neither_ray_nor_litellm() -> None:
    declare = (
        "from flock_ray import Flock, flock_type, Until, When, JoinSpec; Flock().agent('a').description('x')"
    )
    assert not modules_after(declare).intersection({"ray", "litellm"})
