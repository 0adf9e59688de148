"""Budgets as they are declared: what makes no sense is refused where it is written."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Budget, degrade, flock_type
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import type_registry
from flock_ray.deployment import fingerprint
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock


@flock_type(name="DeclaredQuestion")
class Question(BaseModel):
    """An input."""


@flock_type(name="DeclaredReply")
class Reply(BaseModel):
    """An output."""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "limits nothing"),
        ({"usd": 0}, "above 0"),
        ({"usd": -1}, "above 0"),
        ({"usd": float("nan")}, "above 0"),
        ({"usd": float("inf")}, "above 0"),
        ({"usd": True}, "above 0"),
        ({"usd": "1"}, "above 0"),
        ({"usd": 1e-10}, "above 0"),
        ({"usd": 1e10}, "up to"),
        ({"tokens": 0}, "whole number"),
        ({"tokens": 1.5}, "whole number"),
        ({"calls": True}, "whole number"),
        ({"calls": 2**60}, "whole number"),
        ({"usd": 1, "per": "week"}, "choose one of workflow, tenant, agent, day"),
        ({"usd": 1, "renews": "week"}, 'choose "day", "month" or None'),
        ({"usd": 1, "per": "day", "renews": "month"}, "anew every day"),
        ({"usd": 1, "on_exceeded": "ask"}, "who decides"),
        ({"usd": 1, "on_exceeded": "panic"}, "choose"),
        ({"usd": 1, "on_exceeded": "degrade"}, "go together"),
        ({"usd": 1, "degrade_to": "cheap"}, "go together"),
        ({"usd": 1, "on_exceeded": "degrade", "degrade_to": " "}, "name a model"),
        ({"usd": 1, "on_exceeded": degrade("cheap", at=0)}, "a share"),
        ({"usd": 1, "on_exceeded": degrade("cheap", at=1.1)}, "a share"),
        ({"usd": 1, "on_exceeded": degrade("")}, "name a model"),
        ({"usd": 1, "on_exceeded": degrade("cheap"), "degrade_to": "cheap"}, "once"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Budget(**values)


def test_a_dollar_is_a_billion_nano_dollars() -> None:
    assert Budget(usd=Decimal("0.1")).limit.nusd == Budget(usd=0.1).limit.nusd == 100_000_000
    assert Budget(usd=1).limit.nusd == 10**9


def test_only_budgets_are_budgets() -> None:
    with pytest.raises(ConfigurationError, match=r"Flock\(budgets=...\) takes Budget"):
        VirtualFlock(budgets=[1])
    flock = VirtualFlock()
    with pytest.raises(ConfigurationError, match="agent 'a': budget"):
        flock.agent("a").budget(5)  # type: ignore[arg-type]


def test_another_budget_is_another_deploy() -> None:
    def of(usd: float) -> str:
        flock = VirtualFlock()
        builder = flock.agent("a").consumes(Question).publishes(Reply).budget(Budget(usd=usd))
        definition = builder.definition_checked()
        return fingerprint(definition, MatchTable(0, (definition,), type_registry).spec)

    assert of(1) == of(1) != of(2)
