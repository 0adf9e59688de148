"""A model server that breaks one answer in five, in all ways: every activation ends valid or as a typed failure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import BaseModel, Field

from flock_ray import Flock, WorkflowError, errors, flock_type
from flock_ray.gateway.settings import ModelSettings
from tests import llm_answers as answers
from tests.llm_server import FAULTS, in_thread
from tests.llm_wire import Seen

pytestmark = pytest.mark.timeout(300)

MODEL = "openai/gpt-4.1-mini"
COUNT = 300


@flock_type(name="hostile.Order")
class Order(BaseModel):
    number: int


@flock_type(name="hostile.Invoice")
class Invoice(BaseModel):
    text: str = Field(min_length=1, max_length=20)
    total: int = Field(ge=0)


def answer(seen: Seen) -> dict[str, object]:
    return {"text": "fine", "total": 1}


async def test_one_broken_answer_in_five(new_flock: Callable[..., Flock]) -> None:
    kinds = (*FAULTS, "content_filter", "bad_arguments", "slow")
    with in_thread(respond=answer, faults=0.2, fault_kinds=kinds, seed=3) as server:
        known = ModelSettings(api_key=server.key, api_base=server.url, max_tries=2)
        flock = new_flock(model=MODEL, models={"*": known})
        flock.agent("biller").description("Bills.").consumes(Order).publishes(Invoice).max_concurrency(60)
        await flock.publish_many([Order(number=number) for number in range(COUNT)], correlation_id="all")
        await flock.run_until_idle(timeout=240)

        made = await flock.store.get_by_type(Invoice)
        failed = await flock.store.get_by_type(WorkflowError)
        print(f"{len(made)} valid, {sorted(e.error_type for e in failed)}, {dict(server.kinds)}")

    assert len(made) + len(failed) == COUNT
    assert all(server.count(kind) for kind in ("garbage", "wrong_schema", "cut", "refusal", "rate_limited"))
    assert all(invoice.total == 1 for invoice in made if invoice.text == "fine")
    for error in failed:
        kind = getattr(errors, error.error_type)
        assert issubclass(kind, errors.ModelError)
        assert error.error_message.endswith((".", ")"))
    assert len(made) > 0.85 * COUNT


async def test_why_names_prompt_model_repairs_and_tools(new_flock: Callable[..., Flock]) -> None:
    def look(number: int) -> str:
        """Look an order up.

        Args:
            number: Of the order.
        """
        return f"order {number}: one lamp"

    with in_thread(respond=answer) as server:
        server.script(
            answers.tool_calls(("look", {"number": 7})),
            {"text": "", "total": -1},
            {"text": "one lamp", "total": 5},
        )
        flock = new_flock(model=MODEL, models={"*": ModelSettings(api_key=server.key, api_base=server.url)})
        flock.agent("biller").description("Bills.").consumes(Order).publishes(Invoice).with_tools([look])
        await flock.publish(Order(number=7))
        await flock.run_until_idle(timeout=60)
        [made] = await flock.store.list_by_type("hostile.Invoice")
        told = str(await flock.why(made))

    lines = [line.strip() for line in told.splitlines() if line.strip().startswith("by:")]
    assert [line.split()[1] for line in lines] == ["model", "tool", "model", "repair", "model"]
    assert f"model {MODEL}: prompt " in lines[0]
    assert "tool look:" in lines[1]
    assert "text" in lines[3] and "total" in lines[3]
