from __future__ import annotations

from typing import Any

import pytest

from flock_ray.components import BudgetHook
from tests.unit.components.board import Ask, Replies, detail, run_one


async def yes(*_: Any) -> bool:
    return True


async def no(*_: Any) -> str:
    return "spent 3.20 of 3.00 USD. Raise it."


@pytest.mark.parametrize("allows", [lambda *_: True, lambda *_: None, yes])
def test_a_yes_lets_the_run_begin(allows: Any) -> None:
    assert run_one(BudgetHook(allows=allows))[0] == ["re: hello"]


@pytest.mark.parametrize(
    ("allows", "message"),
    [
        (lambda *_: False, "BudgetExceededError: No budget for agent 'a'. Raise it"),
        (no, "BudgetExceededError: No budget for agent 'a': spent 3.20 of 3.00 USD."),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
        (lambda *_: 0, "TypeError: The function of BudgetHook returned a int"),
    ],
)
def test_anything_else_fails_the_run_before_the_engine(allows: Any, message: str) -> None:
    engine = Replies()
    texts, log = run_one(BudgetHook(allows=allows), engine=engine)

    assert (texts, engine.seen) == ([], [])
    assert detail(log, "activation.failed").startswith(message)


def test_it_is_asked_about_the_agent_the_run_and_the_inputs() -> None:
    asked: list[Any] = []
    run_one(BudgetHook(allows=lambda *given: asked.append(given)), ask=Ask(text="t"))

    [(agent, ctx, inputs)] = asked
    assert (agent.name, ctx.attempt, inputs[0].payload["text"]) == ("a", 1, "t")
    assert len(ctx.idempotency_key) == 32
