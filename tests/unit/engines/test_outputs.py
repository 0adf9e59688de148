from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, ConfigDict, Field

from flock_ray.core.definition import OutputSpec
from flock_ray.core.specs import FanOutRange
from flock_ray.core.visibility import PrivateVisibility, PublicVisibility, narrow, only_for
from flock_ray.engines.outputs import (
    MAX_NOTES,
    OutputContract,
    Returned,
    bounded_notes,
    flatten_returned,
    resolve_visibility,
)
from flock_ray.errors import OutputContractError


class Left(BaseModel):
    n: int = 0


class Right(BaseModel):
    n: int = 0


class Lefter(Left):
    extra: str = "x"


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    full_name: str = Field(alias="fullName")


class MoreClosed(Closed):
    age: int = 1


class Stranger(BaseModel):
    pass


def lefts(*numbers: int) -> list[Left]:
    return [Left(n=number) for number in numbers]


def filled(contract: OutputContract, models: list[Any], **options: Any) -> list[tuple[int, OutputSpec, Any]]:
    return [tuple(output) for output in contract.fill(models, **options)[0]]  # type: ignore[misc]  # of several types


def test_models_go_to_their_declared_outputs_in_declared_order() -> None:
    left, right = OutputSpec(Left), OutputSpec(Right)
    contract = OutputContract("a", [left, right])

    assert filled(contract, [Right(n=2), Left(n=1)]) == [(0, left, Left(n=1)), (1, right, Right(n=2))]


def test_positions_count_from_where_the_call_starts() -> None:
    contract = OutputContract("a", [OutputSpec(Left, count=2)])

    assert [position for position, _, _ in filled(contract, lefts(1, 2), first=5)] == [5, 6]
    single = OutputContract("a", [OutputSpec(Left)])
    assert [position for position, _, _ in filled(single, lefts(1), first=5)] == [5]


@pytest.mark.parametrize("numbers", [[], [1], [1, 2, 3]])
def test_the_exact_count_is_demanded(numbers: list[int]) -> None:
    contract = OutputContract("worker", [OutputSpec(Left, count=2)])

    with pytest.raises(OutputContractError, match=r"'worker'.*Expected 2 Left; got") as caught:
        contract.fill(lefts(*numbers))
    assert caught.value.agent == "worker"


def test_a_range_has_a_minimum() -> None:
    contract = OutputContract("a", [OutputSpec(Left, fan_out=FanOutRange(2, 3))])

    with pytest.raises(OutputContractError, match="Expected 2 to 3 Left; got 1 Left"):
        contract.fill(lefts(1))
    assert len(filled(contract, lefts(1, 2))) == 2


def test_beyond_the_maximum_of_a_range_the_first_are_kept_and_it_is_noted() -> None:
    contract = OutputContract("a", [OutputSpec(Left, fan_out=FanOutRange(1, 2))])

    outputs, notes = contract.fill(lefts(1, 2, 3, 4))

    assert [output.model for output in outputs] == lefts(1, 2)
    assert notes == [("output.capped", "2 Left beyond the maximum of fan_out were dropped")]


def test_a_type_declared_several_times_takes_as_many() -> None:
    """Upstream accepts one three times and refuses three (2.12)."""
    contract = OutputContract("a", [OutputSpec(Left)] * 3)

    assert [model for _, _, model in filled(contract, lefts(1, 2, 3))] == lefts(1, 2, 3)
    with pytest.raises(OutputContractError):
        contract.fill(lefts(1))


def test_a_surplus_goes_to_ranges_in_order_after_every_minimum() -> None:
    specs = [
        OutputSpec(Left, fan_out=FanOutRange(1, 2)),
        OutputSpec(Left),
        OutputSpec(Left, fan_out=FanOutRange(1, 9)),
    ]
    contract = OutputContract("a", specs)

    taken = [spec for _, spec, _ in filled(contract, lefts(1, 2, 3, 4, 5))]

    assert [taken.count(spec) for spec in specs] == [2, 1, 2]


def test_a_type_that_is_not_declared_is_named_with_what_was_expected_and_got() -> None:
    contract = OutputContract("a", [OutputSpec(Left), OutputSpec(Right)])

    with pytest.raises(
        OutputContractError, match=r"Stranger.*Expected 1 Left, 1 Right; got 1 Left, 1 Stranger"
    ):
        contract.fill([Left(), Stranger()])


def test_an_agent_that_declares_nothing_must_return_nothing() -> None:
    contract = OutputContract("a", [])

    assert contract.fill([]) == ([], [])
    with pytest.raises(OutputContractError, match="no outputs"):
        contract.fill([Left()])


def test_a_type_of_another_group_is_left_out_with_a_note() -> None:
    contract = OutputContract("a", [OutputSpec(Left)], elsewhere=[Left, Right])

    outputs, notes = contract.fill([Left(n=1), Right()])

    assert [output.model for output in outputs] == [Left(n=1)]
    assert [kind for kind, _ in notes] == ["output.ignored"]


def test_a_skipped_output_is_not_demanded_but_may_not_come_either() -> None:
    contract = OutputContract("a", [OutputSpec(Left), OutputSpec(Right)])

    assert [model for _, _, model in filled(contract, [Right(n=1)], skipped={0})] == [Right(n=1)]
    with pytest.raises(OutputContractError):
        contract.fill([Left(), Right()], skipped={0})


def test_a_subclass_instance_is_published_as_the_declared_type() -> None:
    contract = OutputContract("a", [OutputSpec(Left), OutputSpec(Closed)])

    models = [model for _, _, model in filled(contract, [Lefter(n=3), MoreClosed(fullName="x")])]

    assert models == [Left(n=3), Closed(fullName="x")]
    assert [type(model) for model in models] == [Left, Closed]


def test_the_exact_type_wins_over_the_base_class() -> None:
    contract = OutputContract("a", [OutputSpec(Left), OutputSpec(Lefter)])

    assert [type(model) for _, _, model in filled(contract, [Lefter(), Left()])] == [Left, Lefter]


def test_a_second_definition_of_the_same_class_is_the_same_type() -> None:
    class Left(BaseModel):
        n: int = 0

    Left.__qualname__ = "Left"
    contract = OutputContract("a", [OutputSpec(globals()["Left"])])

    (_, _, model) = filled(contract, [Left(n=8)])[0]

    assert model == lefts(8)[0]


def test_where_drops_without_changing_positions() -> None:
    spec = OutputSpec(Left, count=3, where=lambda left: left.n != 2)
    contract = OutputContract("a", [spec])

    kept, notes = contract.accept(contract.fill(lefts(1, 2, 3))[0])

    assert [(output.position, output.model) for output in kept] == [(0, Left(n=1)), (2, Left(n=3))]
    assert notes == [("output.filtered", "where= dropped 1 of 3")]


def test_validate_fails_with_the_declared_message() -> None:
    contract = OutputContract(
        "a", [OutputSpec(Left, validate=((lambda left: left.n > 0, "n must be positive"),))]
    )

    assert contract.accept(contract.fill(lefts(1))[0])[1] == []
    with pytest.raises(OutputContractError, match="n must be positive"):
        contract.accept(contract.fill(lefts(0))[0])


def test_what_where_dropped_is_not_validated() -> None:
    spec = OutputSpec(Left, where=lambda left: left.n > 0, validate=((lambda left: left.n > 0, "no"),))
    contract = OutputContract("a", [spec])

    assert contract.accept(contract.fill(lefts(0))[0])[0] == []


class Pair(NamedTuple):
    left: Left
    right: Right


@dataclass
class Data:
    n: int


@pytest.mark.parametrize(
    ("value", "models"),
    [
        (Left(n=1), lefts(1)),
        (lefts(1, 2), lefts(1, 2)),
        ((left for left in lefts(1, 2)), lefts(1, 2)),
        (map(Left.model_copy, lefts(1)), lefts(1)),
        ((Left(n=1), Right(n=2)), [Left(n=1), Right(n=2)]),
        ((Left(n=1), [Right(n=2), Right(n=3)]), [Left(n=1), Right(n=2), Right(n=3)]),
        (Pair(Left(n=1), Right(n=2)), [Left(n=1), Right(n=2)]),
        ([], []),
    ],
)
def test_return_values_become_models(value: object, models: list[BaseModel]) -> None:
    returned = flatten_returned(value, "a", 2)

    assert returned is not None
    assert list(returned.models) == models
    assert returned.skipped == frozenset()


def test_none_is_nothing_at_all() -> None:
    assert flatten_returned(None, "a", 2) is None


def test_none_in_a_tuple_keeps_the_place_of_an_output() -> None:
    assert flatten_returned((None, Right()), "a", 2) == Returned([Right()], frozenset({0}))
    with pytest.raises(OutputContractError, match="None"):
        flatten_returned((None, Right()), "a", 3)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ({"n": 1}, "a dict; return a pydantic model"),
        (
            Data(1),
            r"a Data; a dataclass has no schema: return a pydantic model \(`class Data\(BaseModel\)`\)",
        ),
        ("text", "a str; return a pydantic model"),
        ([Left(), None], "a NoneType; None may stand alone"),
        ([[Left()]], "a list; return"),
        ({Left}, "a set; return"),
    ],
)
def test_other_values_are_refused_with_advice(value: object, advice: str) -> None:
    with pytest.raises(OutputContractError, match=f"Agent 'a' returned {advice}"):
        flatten_returned(value, "a", 1)


def test_a_coroutine_is_refused_and_closed() -> None:
    async def work() -> None:
        pass

    coroutine = work()
    with pytest.raises(OutputContractError, match="async def"):
        flatten_returned(coroutine, "a", 1)
    with pytest.raises(RuntimeError, match="cannot reuse"):
        coroutine.send(None)


def test_the_declared_visibility_wins() -> None:
    private = only_for("x")

    assert resolve_visibility(OutputSpec(Left, visibility=private), Left(), [only_for("y")]) == private
    by_content = OutputSpec(Left, visibility=lambda left: only_for(f"agent{left.n}"))
    assert resolve_visibility(by_content, Left(n=7), []) == only_for("agent7")


def test_without_a_declaration_an_output_is_as_narrow_as_its_inputs() -> None:
    x, y = only_for("x"), only_for("y")

    assert resolve_visibility(OutputSpec(Left), Left(), [None, PublicVisibility()]) == PublicVisibility()
    assert resolve_visibility(OutputSpec(Left), Left(), [None, x]) == x
    assert resolve_visibility(OutputSpec(Left), Left(), [x, y]) == narrow(x, y)
    assert not isinstance(narrow(x, y), PrivateVisibility)


def test_a_visibility_function_must_return_a_visibility() -> None:
    forgetful: Any = lambda left: None  # noqa: E731
    with pytest.raises(OutputContractError, match="Left returned a NoneType"):
        resolve_visibility(OutputSpec(Left, visibility=forgetful), Left(), [])


def test_notes_are_bounded() -> None:
    notes = bounded_notes([("k", "x" * 5000)] * (MAX_NOTES + 10))

    assert len(notes) == MAX_NOTES + 1
    assert len(notes[0][1]) == 1000
    assert notes[-1] == ("notes.cut", "10 more notes")
    assert bounded_notes([]) == ()
