from __future__ import annotations

from typing import Any

import pytest

from flock_ray.components import OutputLengthComponent
from flock_ray.engines.component import EvalInputs, EvalResult
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.components.board import AGENT, Answer, Ask, Replies, context, detail, events, kinds, run_one

LONG = Replies(reply=lambda _: Answer(text="x" * 20, extra=["short", "y" * 20]))


def test_a_text_that_is_too_long_fails_the_run() -> None:
    texts, log = run_one(OutputLengthComponent(max_chars=10), engine=LONG)

    assert texts == []
    assert detail(log, "activation.failed") == (
        "OutputContractError: Agent 'a' made a 'Answer' with a text of 20 characters, more than 10. "
        "Ask it for another length, or change the limit."
    )


async def cut(component: OutputLengthComponent, answer: Answer) -> Any:
    result = EvalResult.from_object(answer)
    made = await component.on_post_evaluate(AGENT, context(), EvalInputs(), result)
    return made.artifacts[0].payload


async def test_truncate_cuts_every_text_to_the_limit() -> None:
    payload = await cut(
        OutputLengthComponent(max_chars=10, on_violation="truncate"),
        Answer(text="x" * 11, extra=["y" * 10, "z" * 99]),
    )

    assert payload == {"text": "x" * 7 + "...", "extra": ["y" * 10, "z" * 7 + "..."]}


async def test_only_the_named_fields_are_measured() -> None:
    component = OutputLengthComponent(fields=("extra",), max_chars=5, on_violation="truncate", ellipsis="")

    payload = await cut(component, Answer(text="x" * 20, extra=["y" * 20]))

    assert payload == {"text": "x" * 20, "extra": ["yyyyy"]}


def test_warn_leaves_an_event() -> None:
    async def scenario() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer).with_engines(LONG)
            agent.with_utilities(OutputLengthComponent(max_chars=10, on_violation="warn"))
            await flock.publish(Ask())
            await flock.run_until_idle()
            assert len(await flock.store.get_by_type(Answer)) == 1
            assert (
                detail(await events(flock), "output.length")
                == "Answer: a text of 20 characters, more than 10"
            )

    run_virtual(scenario())


def test_a_text_that_is_too_short_is_not_repaired() -> None:
    short = OutputLengthComponent(min_chars=10, fields=("text",), max_chars=50, on_violation="truncate")
    texts, log = run_one(short)

    assert texts == []
    assert "less than 10" in detail(log, "activation.failed")
    assert "activation.failed" not in kinds(run_one(short, engine=LONG)[1])


@pytest.mark.parametrize("bad", [{}, {"max_chars": 2}, {"max_chars": 5, "min_chars": 6}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        OutputLengthComponent(**bad)
