from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

import pytest
from pydantic import BaseModel

from flock_ray.core.definition import OutputSpec, Subscription
from flock_ray.core.ids import output_id
from flock_ray.core.system_types import WorkflowError
from flock_ray.core.visibility import AgentIdentity, decode_visibility, encode_visibility, narrow, only_for
from tests.unit.engines.runner_models import NOW, TASK_ID, Item, Order, Receipt, Refund, error_of, receipt

if TYPE_CHECKING:
    from tests.unit.engines.conftest import Host


def test_run_time_is_that_of_user_code(host: Host) -> None:
    def slow(order: Order) -> Receipt:
        host.now_s += 0.25
        return Receipt()

    runner = host.runner(Receipt, consumes=[Order], function=slow)

    assert runner.run_sync(host.task(Order())).run_us == 250_000


def test_a_failure_is_an_error_and_a_workflow_error(host: Host) -> None:
    def fail(order: Order) -> NoReturn:
        host.now_s += 0.5
        raise ValueError("no stock")

    runner = host.runner(Receipt, consumes=[Order], function=fail)
    order = host.envelope(Order(), tags=("t",), partition_key="k", via=("x",))

    completion = runner.run_sync(host.task(order))

    assert completion.error is not None
    assert (completion.error.type, completion.error.message) == ("ValueError", "no stock")
    assert "in fail" in completion.error.traceback
    assert not completion.error.retryable
    assert completion.run_us == 500_000
    assert error_of(host, completion) == WorkflowError(
        failed_agent="a",
        error_type="ValueError",
        error_message="no stock",
        timestamp=NOW,
        task_id=TASK_ID.hex(),
        correlation_id="wf",
    )
    envelope = completion.outputs[0].envelope
    assert envelope.id == output_id(TASK_ID, 2**31 - 1)
    assert envelope.produced_by == "orchestrator#a"
    assert (envelope.tags, envelope.partition_key, envelope.parents) == (("t",), "k", (order.id,))
    assert (envelope.activation_id, envelope.via) == (TASK_ID, ("a", "x"))


def test_w17_an_error_is_visible_to_no_more_than_its_inputs(host: Host) -> None:
    """Upstream publishes the message, which may quote private inputs, to everybody."""
    pair = Subscription("a/pair", "a", (Order, Item))
    runner = host.runner(
        OutputSpec(Receipt, visibility=only_for("everyone")),
        consumes=[pair],
        function=lambda order, item: 1 / 0,
    )
    mine, yours = only_for("me"), only_for("me", "you")
    order = host.envelope(Order(), visibility=encode_visibility(mine))
    item = host.envelope(Item(), visibility=encode_visibility(yours))

    completion = runner.run_sync(host.task(order, item, subscription="a/pair"))

    assert completion.error is not None
    visibility = decode_visibility(completion.outputs[0].envelope.visibility)
    assert visibility == narrow(mine, yours)
    assert visibility.allows(AgentIdentity(name="me"))
    assert not visibility.allows(AgentIdentity(name="you"))
    assert not visibility.allows(AgentIdentity(name="everyone"))


def test_w17_an_error_about_a_visibility_nobody_can_read_is_for_nobody(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=receipt)

    completion = runner.run_sync(host.task(host.envelope(Order(), visibility=b'{"kind":"Newer"}')))

    assert completion.error is not None
    visibility = decode_visibility(completion.outputs[0].envelope.visibility)
    assert not visibility.allows(AgentIdentity(name="a"))


def test_outputs_of_private_inputs_stay_private(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=receipt)
    order = host.envelope(Order(), visibility=encode_visibility(only_for("me")))

    (posting,) = runner.run_sync(host.task(order)).outputs

    assert decode_visibility(posting.envelope.visibility) == only_for("me")


def test_a_declared_visibility_is_used(host: Host) -> None:
    by_content = OutputSpec(Receipt, visibility=lambda made: only_for(f"agent{made.n}"))
    runner = host.runner(by_content, consumes=[Order], function=receipt)

    (posting,) = runner.run_sync(host.task(Order(n=3))).outputs

    assert decode_visibility(posting.envelope.visibility) == only_for("agent3")


class Mute(Exception):
    def __init__(self, *, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("error", [Mute(code=1), SystemExit(2), type("Odd", (BaseException,), {})()])
def test_whatever_user_code_raises_is_a_failure(host: Host, error: BaseException) -> None:
    def fail(order: Order) -> NoReturn:
        raise error

    completion = host.runner(Receipt, consumes=[Order], function=fail).run_sync(host.task(Order()))

    assert error_of(host, completion).error_type == type(error).__name__


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
async def test_what_stops_the_process_or_task_is_raised(host: Host, error: type[BaseException]) -> None:
    def fail(order: Order) -> NoReturn:
        raise error

    async def fail_later(order: Order) -> NoReturn:
        raise error

    with pytest.raises(error):
        host.runner(consumes=[Order], function=fail).run_sync(host.task(Order()))
    with pytest.raises(error):
        await host.runner(consumes=[Order], function=fail_later).run_async(host.task(Order()))


def test_inputs_that_cannot_be_decoded_fail_the_run(host: Host) -> None:
    import msgspec

    runner = host.runner(Receipt, consumes=[Order], function=receipt)
    broken = msgspec.structs.replace(host.envelope(Order()), payload=b'{"n": "many"}')

    completion = runner.run_sync(host.task(broken))

    assert completion.error is not None
    assert completion.error.type == "ArtifactSchemaError"


def test_a_broken_contract_fails_the_run(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=lambda order: Refund())

    assert (
        "Expected 1 Receipt; got 1 Refund"
        in error_of(host, runner.run_sync(host.task(Order()))).error_message
    )


def test_an_output_that_the_edge_refuses_fails_the_run(host: Host) -> None:
    host.refused = Receipt
    runner = host.runner(Receipt, consumes=[Order], function=receipt)

    assert error_of(host, runner.run_sync(host.task(Order()))).error_message == "the edge refused it"


def test_an_error_that_the_edge_refuses_is_still_reported(host: Host) -> None:
    host.refused = BaseModel
    runner = host.runner(Receipt, consumes=[Order], function=receipt)

    completion = runner.run_sync(host.task(Order()))

    assert completion.error is not None
    assert completion.outputs == ()
    assert completion.notes == (("error.unposted", "RuntimeError: the edge refused it"),)


def test_a_failure_can_be_made_from_outside(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=receipt)

    completion = runner.failure(host.task(Order()), "AgentTimeoutError", "took 5 s")

    assert completion.error is not None
    assert (completion.error.type, completion.error.message) == ("AgentTimeoutError", "took 5 s")
    assert completion.error.retryable
    assert error_of(host, completion).error_message == "took 5 s"
    given_up = runner.failure(host.task(Order()), "AgentTimeoutError", "took 5 s", retryable=False)
    assert given_up.error is not None
    assert not given_up.error.retryable
