from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.core.definition import OutputSpec, Subscription
from flock_ray.core.ids import output_id
from flock_ray.core.specs import BatchSpec, FanOutRange, JoinSpec
from flock_ray.core.system_types import TimerTick
from flock_ray.core.visibility import AgentIdentity
from flock_ray.engines.component import EvalResult
from flock_ray.engines.context import Context
from tests.unit.engines.runner_models import NOW, TASK_ID, Item, Order, Receipt, Refund, error_of, receipt

if TYPE_CHECKING:
    from tests.unit.engines.conftest import Host


def test_a_function_gets_a_model_and_its_return_is_posted(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=receipt)

    completion = runner.run_sync(host.task(Order(n=4)))

    assert not runner.is_async
    assert host.models(completion) == [Receipt(n=4)]
    assert (completion.id, completion.attempt, completion.slot) == (TASK_ID, 3, 7)
    assert completion.notes == ()


def test_an_output_inherits_from_its_inputs(host: Host) -> None:
    pair = Subscription("a/pair", "a", (Order, Item))
    runner = host.runner(Receipt, consumes=[pair], function=lambda order, item: Receipt())
    order = host.envelope(Order(), id=b"1" * 16, tags=("b", "c"), partition_key="k", priority=1, via=("x",))
    item = host.envelope(Item(), id=b"2" * 16, tags=("a", "b"), partition_key="k", priority=5, via=("z",))

    (posting,) = runner.run_sync(host.task(order, item, subscription="a/pair")).outputs

    envelope = posting.envelope
    assert envelope.id == output_id(TASK_ID, 0)
    assert (envelope.correlation_id, envelope.produced_by) == ("wf", "a")
    assert envelope.created_us == 1_700_000_000_000_000
    assert envelope.tags == ("a", "b", "c")
    assert envelope.partition_key == "k"
    assert envelope.parents == (b"1" * 16, b"2" * 16)
    assert envelope.activation_id == TASK_ID
    assert envelope.priority == 5
    assert envelope.via == ("a", "x", "z")
    assert envelope.visibility is None


def test_a_single_input_is_inherited_from_in_the_same_way(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=receipt)
    order = host.envelope(Order(), tags=("t", "s"), partition_key="k", via=("z", "b"))

    (posting,) = runner.run_sync(host.task(order)).outputs

    assert posting.envelope.tags == ("s", "t")
    assert posting.envelope.partition_key == "k"
    assert posting.envelope.via == ("a", "b", "z")


@pytest.mark.parametrize("other", [None, "other"])
def test_a_partition_key_that_not_all_inputs_share_is_dropped(host: Host, other: str | None) -> None:
    pair = Subscription("a/pair", "a", (Order, Item))
    runner = host.runner(Receipt, consumes=[pair], function=lambda order, item: Receipt())
    inputs = host.envelope(Order(), partition_key="k"), host.envelope(Item(), partition_key=other)

    (posting,) = runner.run_sync(host.task(*inputs, subscription="a/pair")).outputs

    assert posting.envelope.partition_key is None


def test_ids_come_from_positions_that_filters_do_not_change(host: Host) -> None:
    group = (OutputSpec(Item, count=3, where=lambda item: item.n != 1), OutputSpec(Receipt))
    runner = host.runner(
        group, consumes=[Order], function=lambda order: ([Item(n=0), Item(n=1), Item(n=2)], Receipt())
    )

    completion = runner.run_sync(host.task(Order()))

    assert host.models(completion) == [Item(n=0), Item(n=2), Receipt()]
    assert [p.envelope.id for p in completion.outputs] == [output_id(TASK_ID, n) for n in (0, 2, 3)]
    assert completion.notes == (("output.filtered", "where= dropped 1 of 4"),)


def test_a_function_fills_the_outputs_of_all_groups_in_one_call(host: Host) -> None:
    runner = host.runner(Receipt, Item, consumes=[Order], function=lambda order: (Receipt(n=1), Item(n=2)))

    assert host.models(runner.run_sync(host.task(Order()))) == [Receipt(n=1), Item(n=2)]


def test_a_function_may_choose_between_outputs(host: Host) -> None:
    def decide(order: Order) -> tuple[Receipt | None, Refund | None]:
        return (Receipt(), None) if order.n else (None, Refund())

    runner = host.runner(Receipt, Refund, consumes=[Order], function=decide)

    assert host.models(runner.run_sync(host.task(Order(n=1)))) == [Receipt()]
    assert host.models(runner.run_sync(host.task(Order(n=0)))) == [Refund()]


def test_none_publishes_nothing(host: Host) -> None:
    runner = host.runner(Receipt, Item, consumes=[Order], function=lambda order: None)

    completion = runner.run_sync(host.task(Order()))

    assert (completion.outputs, completion.error) == ((), None)


def test_a_list_is_fan_out(host: Host) -> None:
    spec = OutputSpec(Item, fan_out=FanOutRange(1, 3))
    runner = host.runner(spec, consumes=[Order], function=lambda order: [Item(n=n) for n in range(5)])

    completion = runner.run_sync(host.task(Order()))

    assert host.models(completion) == [Item(n=0), Item(n=1), Item(n=2)]
    assert [kind for kind, _ in completion.notes] == ["output.capped"]


def test_an_eval_result_may_be_returned(host: Host) -> None:
    runner = host.runner(
        Receipt, consumes=[Order], function=lambda order: EvalResult.from_object(Receipt(n=9))
    )
    nothing = host.runner(Receipt, consumes=[Order], function=lambda order: EvalResult.empty())

    assert host.models(runner.run_sync(host.task(Order()))) == [Receipt(n=9)]
    assert nothing.run_sync(host.task(Order())).outputs == ()


def test_arguments_follow_the_subscription(host: Host) -> None:
    seen: list[Any] = []

    def by(model: Any) -> int:
        return 1

    minute = timedelta(minutes=1)
    runner = host.runner(
        consumes=[
            Subscription("and", "a", (Order, Order, Item)),
            Subscription("batch", "a", (Order,), batch=BatchSpec(size=2)),
            Subscription(
                "both", "a", (Order, Item), join=JoinSpec(by=by, within=minute), batch=BatchSpec(size=2)
            ),
        ],
        function=lambda *arguments: seen.append(arguments),
    )

    for task in (
        host.task(Order(n=1), Item(n=2), Order(n=3), subscription="and"),
        host.task(Order(n=1), Order(n=2), subscription="batch"),
        host.task(Order(n=1), Item(n=1), Order(n=2), Item(n=2), subscription="both", groups=(2, 2)),
    ):
        assert runner.run_sync(task).error is None

    assert seen == [
        ([Order(n=1), Order(n=3)], Item(n=2)),
        ([Order(n=1), Order(n=2)],),
        ([(Order(n=1), Item(n=1)), (Order(n=2), Item(n=2))],),
    ]


def test_a_function_that_asks_for_the_context_gets_it(host: Host) -> None:
    seen: list[Any] = []

    def work(ctx: Context, orders: list[Order]) -> None:
        seen.append((ctx, orders))

    runner = host.runner(
        consumes=[Subscription("batch", "a", (Order,), batch=BatchSpec(size=1))],
        function=work,
        labels=frozenset({"l"}),
        tenant="t1",
    )
    history = [Artifact.from_model(Item())]

    runner.run_sync(host.task(Order(n=5), subscription="batch"), history)

    ((ctx, orders),) = seen
    assert orders == [Order(n=5)]
    assert ctx.agent_identity == AgentIdentity(name="a", labels=frozenset({"l"}), tenant_id="t1")
    assert (ctx.correlation_id, ctx.task_id, ctx.activation_id.bytes) == ("wf", TASK_ID.hex(), TASK_ID)
    assert (ctx.attempt, ctx.is_batch, ctx.artifacts, ctx.state) == (3, True, history, {})
    assert (ctx.trigger_type, ctx.timer_iteration, ctx.fire_time) == ("artifact", None, None)


def test_the_context_of_a_timer_run_tells_the_tick(host: Host) -> None:
    seen: list[Context] = []
    runner = host.runner(consumes=[TimerTick], function=lambda ctx, tick: seen.append(ctx))

    runner.run_sync(host.task(TimerTick(timer_name="t", fire_time=NOW, iteration=4)))

    assert [(ctx.trigger_type, ctx.timer_iteration, ctx.fire_time) for ctx in seen] == [("timer", 4, NOW)]


def test_several_subscriptions_are_told_apart_by_id(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order, Item], function=lambda model: Receipt(n=model.n))

    assert host.models(runner.run_sync(host.task(Item(n=3)))) == [Receipt(n=3)]


def test_a_subscription_that_is_gone_fails_the_run(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=receipt)

    completion = runner.run_sync(host.task(Order(), subscription="a/old"))

    assert completion.error is not None
    assert completion.error.type == "DeployConflictError"
    assert "'a/old'" in completion.error.message


def test_a_direct_call_has_no_subscription(host: Host) -> None:
    batch = Subscription("batch", "a", (Item, Receipt), batch=BatchSpec(size=9))
    seen: list[Any] = []
    runner = host.runner(consumes=[Order, batch], function=lambda *arguments: seen.append(arguments))

    runner.run_sync(host.task(Order(n=1), subscription=""))
    runner.run_sync(host.task(Item(n=1), Receipt(n=2), Item(n=3), subscription=""))
    runner.run_sync(host.task(Item(n=1), Order(n=2), subscription=""))

    assert seen == [(Order(n=1),), ([Item(n=1), Receipt(n=2), Item(n=3)],), (Item(n=1), Order(n=2))]


async def test_an_agent_without_an_engine_says_what_to_do(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order])

    for completion in (runner.run_sync(host.task(Order())), await runner.run_async(host.task(Order()))):
        assert completion.error is not None
        assert completion.error.type == "NoEngineError"
        assert ".runs(fn), .with_engines(...), or a model" in completion.error.message


async def test_async_functions_are_awaited(host: Host) -> None:
    async def work(order: Order) -> Receipt:
        await asyncio.sleep(0)
        host.now_s += 2
        return Receipt(n=order.n)

    runner = host.runner(Receipt, consumes=[Order], function=work)
    completion = await runner.run_async(host.task(Order(n=1)))

    assert runner.is_async
    assert host.models(completion) == [Receipt(n=1)]
    assert completion.run_us == 2_000_000


class Callable_:
    async def __call__(self, order: Order) -> Receipt:
        return Receipt(n=order.n)


async def prefixed(offset: int, order: Order) -> Receipt:
    return Receipt(n=order.n + offset)


async def stream(order: Order) -> AsyncIterator[Receipt]:
    yield Receipt(n=order.n)


@pytest.mark.parametrize("function", [Callable_(), partial(prefixed, 0), stream])
async def test_all_sorts_of_async_functions_are_known(host: Host, function: Any) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=function)

    assert runner.is_async
    assert host.models(await runner.run_async(host.task(Order(n=1)))) == [Receipt(n=1)]
    refused = runner.run_sync(host.task(Order(n=1)))
    assert refused.error is not None
    assert "run_async" in refused.error.message


async def test_failures_of_async_functions_are_completions(host: Host) -> None:
    async def fail(order: Order) -> NoReturn:
        raise SystemExit(1)

    completion = await host.runner(Receipt, consumes=[Order], function=fail).run_async(host.task(Order()))

    assert error_of(host, completion).error_type == "SystemExit"


def test_a_coroutine_from_a_function_that_is_not_async_is_refused(host: Host) -> None:
    async def work(order: Order) -> Receipt:
        return Receipt()

    runner = host.runner(Receipt, consumes=[Order], function=lambda order: work(order))

    assert "async def" in error_of(host, runner.run_sync(host.task(Order()))).error_message


async def test_on_a_loop_a_function_that_is_not_async_runs_in_a_thread(host: Host) -> None:
    threads: list[threading.Thread] = []

    def work(order: Order) -> Iterator[Receipt]:
        threads.append(threading.current_thread())
        yield Receipt(n=order.n)

    async def after(made: Receipt) -> None:
        await asyncio.sleep(0)

    runner = host.runner(Receipt, consumes=[Order], function=work, calls=after)

    assert runner.is_async
    assert host.models(await runner.run_async(host.task(Order(n=1)))) == [Receipt(n=1)]
    assert threads != [threading.main_thread()]


async def test_calls_gets_the_first_output(host: Host) -> None:
    seen: list[BaseModel] = []

    async def after(made: BaseModel) -> None:
        seen.append(made)

    async def work(order: Order) -> Receipt:
        return receipt(order)

    sync = host.runner(Receipt, consumes=[Order], function=receipt, calls=seen.append)
    assert not sync.is_async
    sync.run_sync(host.task(Order(n=1)))
    await host.runner(Receipt, consumes=[Order], function=work, calls=after).run_async(host.task(Order(n=2)))
    await host.runner(Receipt, consumes=[Order], function=work, calls=seen.append).run_async(
        host.task(Order(n=3))
    )
    host.runner(Receipt, consumes=[Order], function=lambda order: None, calls=seen.append).run_sync(
        host.task(Order(n=4))
    )

    assert seen == [Receipt(n=1), Receipt(n=2), Receipt(n=3)]


def test_calls_that_fails_fails_the_run(host: Host) -> None:
    async def later(made: BaseModel) -> None: ...

    runner = host.runner(Receipt, consumes=[Order], function=receipt, calls=lambda made: 1 / 0)
    hidden = host.runner(Receipt, consumes=[Order], function=receipt, calls=lambda made: later(made))

    assert error_of(host, runner.run_sync(host.task(Order()))).error_type == "ZeroDivisionError"
    assert "async def" in error_of(host, hidden.run_sync(host.task(Order()))).error_message


def score(result: EvalResult) -> float:
    model = result.artifacts[0].model()
    assert isinstance(model, Receipt)
    return model.n


async def test_best_of_keeps_the_best_result_of_a_function(host: Host) -> None:
    left = [3, 7, -1, 5] * 2

    def work(order: Order) -> Receipt | Refund:
        order.n += left.pop(0)
        return Receipt(n=order.n) if order.n >= 0 else Refund()

    async def work_async(order: Order) -> Receipt | Refund:
        return work(order)

    sync = host.runner(Receipt, consumes=[Order], function=work, best_of=(4, score))
    slow = host.runner(Receipt, consumes=[Order], function=work_async, best_of=(4, score))

    for completion in (sync.run_sync(host.task(Order())), await slow.run_async(host.task(Order()))):
        assert host.models(completion) == [Receipt(n=7)]
        assert completion.outputs[0].envelope.id == output_id(TASK_ID, 0)
        assert [kind for kind, _ in completion.notes] == ["best_of.failed"]


def test_best_of_fails_when_all_candidates_do(host: Host) -> None:
    runner = host.runner(Receipt, consumes=[Order], function=lambda order: Refund(), best_of=(2, score))

    assert error_of(host, runner.run_sync(host.task(Order()))).error_type == "OutputContractError"


def test_models_are_of_the_agents_own_class_when_two_definitions_share_a_name(host: Host) -> None:
    """A script that is run again ships its classes again; a worker then knows both."""

    def ship() -> type[BaseModel]:
        class Shipped(BaseModel):
            n: int = 0

        return Shipped

    old, new = ship(), ship()
    seen: list[BaseModel] = []
    runner = host.runner(consumes=[old], function=seen.append)
    host.registry.register(new)

    assert runner.run_sync(host.task(new(n=1))).error is None
    assert type(seen[0]) is old
