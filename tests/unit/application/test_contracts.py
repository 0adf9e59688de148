"""What is wrong with an application is said before anything is admitted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from flock_ray import BatchSpec, Flock, JoinSpec, TimerTick, Until, flock_type
from flock_ray.application import (
    CompletionPolicy,
    ContractError,
    CountingAdmission,
    FlockApplication,
    OutputContract,
)
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.application.declared import Answer, Part, Question, application, ask, called, flock_with


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input_type": None}, "input_type"),
        ({"output_types": ()}, "output_types"),
        ({"output_types": (int,)}, "pydantic"),
        ({"required_output_types": (Part,)}, "Part: required"),
        ({"contract": OutputContract(Question, (Answer,))}, "not both"),
        ({"history": "sometimes"}, "conversation"),
        ({"max_outputs": 0}, "max_outputs"),
        ({"default_timeout": 0}, "default_timeout"),
        ({"default_timeout": 10, "max_timeout": 5}, "default_timeout"),
        ({"max_timeout": float("inf")}, "max_timeout"),
        ({"max_timeout": float("nan")}, "max_timeout"),
        ({"cancel_grace": -1}, "at least 0"),
        ({"id_retention": timedelta(seconds=-1)}, "id_retention"),
        ({"name": ""}, "name"),
        ({"admission": CountingAdmission(1), "max_active_workflows": 1}, "not both"),
        ({"max_active_workflows": 0}, "at least 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ContractError, match=says) as refused:
        application(**options)
    assert {ValueError, ConfigurationError} <= set(refused.type.__mro__)


@pytest.mark.parametrize("choice", [{"on_condition": "wait"}, {"on_error": "ignore"}])
def test_policies_that_make_no_sense_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match=next(iter(choice))):
        CompletionPolicy(**choice)


def gathering(*types: Any, **options: Any) -> VirtualFlock:
    flock = flock_with()
    flock.agent("sum").consumes(*types, **options).publishes(Answer).runs(lambda *parts: Answer(text="x"))
    return flock


JOIN = JoinSpec(by=lambda p: p.text, within=timedelta(days=1))


def raising() -> Flock:
    raise RuntimeError("no key")


async def raising_later() -> Flock:
    raise RuntimeError("no key")


@pytest.mark.parametrize(
    ("factory", "options", "says"),
    [
        (raising, {}, "RuntimeError: no key"),
        (raising_later, {}, "RuntimeError: no key"),
        (lambda: "a flock", {}, "must return a Flock"),
        (lambda context: flock_with(), {}, "called once"),
        (VirtualFlock, {}, "no agent consumes the input type app.Question; no agent publishes.*app.Answer"),
        (flock_with, {"input_type": Part}, "no agent consumes the input type app.Part"),
        (flock_with, {"output_types": (Answer, Part)}, "no agent publishes the output type app.Part"),
        (flock_with, {"output_types": (Answer, TimerTick)}, "TimerTick is internal"),
        (flock_with, {"completion": CompletionPolicy(Until.idle())}, "until: Idle"),
        (flock_with, {"completion": CompletionPolicy(Until.exists(Answer, correlation_id="x"))}, "another workflow"),
        (flock_with, {"completion": CompletionPolicy(until=cast("Any", "soon"))}, "no condition"),
        (gathering(Part, batch=BatchSpec(size=2)), {}, 'sum.* would mix workflows: say scope="workflow"'),
        (gathering(Part, Answer, join=JOIN), {}, "would mix workflows"),
    ],
)  # fmt: skip
def test_a_factory_or_contract_that_cannot_work_is_refused_at_the_start(
    factory: Any, options: dict[str, Any], says: str
) -> None:
    async def main() -> None:
        app = application(factory, **options)
        for _ in range(2):
            with pytest.raises(ContractError, match=says):
                await app.start()
        assert not app.accepting

    run_virtual(main())


def test_two_classes_of_one_name_are_refused() -> None:
    def another() -> Any:
        from pydantic import create_model

        return create_model("Answer", text=(str, ...), __module__="elsewhere")

    async def main() -> None:
        other = another()
        with pytest.raises(ConfigurationError):
            flock_type(name="app.Answer")(other)

    run_virtual(main())


def test_the_batches_of_a_flock_that_is_built_for_the_application_keep_workflows_apart() -> None:
    async def main() -> None:
        def build() -> VirtualFlock:
            flock = VirtualFlock()
            flock.agent("sum").consumes(Question, batch={"size": 2}).publishes(Answer).runs(
                lambda questions: Answer(text=",".join(q.text for q in questions))
            )
            return flock

        async with application(build) as app:
            one = await app.run(ask("one"), context=called("w1"))
            two = await app.run(ask("two"), context=called("w2"))
            assert [r.values(Answer) for r in (one, two)] == [[Answer(text="one")], [Answer(text="two")]]

    run_virtual(main())


@pytest.mark.parametrize("make", [flock_with, lambda: flock_with()])
def test_a_factory_is_called_once_and_what_it_built_is_shut_down(make: Callable[[], VirtualFlock]) -> None:
    async def main() -> None:
        built: list[VirtualFlock] = []

        async def factory() -> VirtualFlock:
            built.append(make())
            return built[-1]

        async with application(factory) as app:
            for number in range(3):
                assert (await app.run(ask(), context=called(f"w{number}"))).ok
        [flock] = built
        assert flock._closed

        given = make()
        async with FlockApplication(given, contract=OutputContract(Question, (Answer,))) as app:
            assert app.flock is given
        assert not given._closed
        await given.shutdown()

    run_virtual(main())
