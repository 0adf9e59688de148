from __future__ import annotations

import sys
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # ships no types
import pytest

from flock_ray.core.error_filters import MAX_LEAVES, ErrorFilter, error_filter, leaves
from flock_ray.errors import (
    AgentTimeoutError,
    ConfigurationError,
    ModelError,
    ModelTimeoutError,
    RateLimitError,
)

AT = "agent 'a': retry()"


def meant(on: Any, error: BaseException) -> bool:
    return error_filter(on, AT).matches(error)


@pytest.mark.parametrize(
    "on",
    [
        [RateLimitError, TimeoutError],
        ["RateLimitError", "TimeoutError"],
        ("flock_ray.errors.RateLimitError", "builtins.TimeoutError"),
        lambda error: isinstance(error, RateLimitError | TimeoutError),
        [RateLimitError, lambda error: isinstance(error, TimeoutError)],
    ],
)
def test_classes_names_and_predicates_say_the_same(on: Any) -> None:
    assert meant(on, RateLimitError())
    assert meant(on, AgentTimeoutError())
    assert meant(on, ModelTimeoutError())
    assert meant(on, TimeoutError())
    assert not meant(on, ModelError())
    assert not meant(on, ValueError())


def test_a_single_class_needs_no_list() -> None:
    assert meant(ConnectionError, ConnectionResetError())
    assert not meant("ConnectionError", OSError())


@pytest.mark.parametrize(
    ("on", "says"),
    [
        ([], "means no error at all"),
        (["RateLimitErorr"], "names 'RateLimitErorr', and there is no such exception"),
        (["no_such_module.Error"], "there is no such exception"),
        (["httpx.NoSuchError"], "there is no such exception"),
        ("print", "which is no exception"),
        ("flock_ray.agent.AgentBuilder", "which is no exception"),
        ([int], "names int, which is no exception"),
        ([429], "got 429"),
        (b"RateLimitError", "got"),
    ],
)
def test_what_is_no_error_is_refused_when_it_is_declared(on: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        error_filter(on, AT)


def test_a_group_is_meant_when_all_its_errors_are() -> None:
    deep = ExceptionGroup("outer", [RateLimitError(), ExceptionGroup("inner", [RateLimitError()])])

    assert meant(RateLimitError, deep)
    assert not meant(RateLimitError, ExceptionGroup("mixed", [RateLimitError(), ValueError()]))


def test_a_huge_group_is_looked_at_in_part() -> None:
    assert len(list(leaves(ExceptionGroup("many", [ValueError()] * 10_000)))) == MAX_LEAVES


def provided(package: str, name: str) -> type[Exception]:
    return type(name, (Exception,), {"__module__": f"{package}.exceptions"})


def test_a_class_of_a_model_library_stands_for_what_the_gateway_raises() -> None:
    theirs = provided("litellm", "RateLimitError")

    assert meant([theirs], RateLimitError())
    assert meant([theirs], theirs())
    assert not meant([theirs], ModelError())
    assert not meant([theirs], ModelTimeoutError())
    assert meant([provided("litellm", "Timeout")], ModelTimeoutError())
    assert meant([provided("openai", "InternalServerError")], ModelError())
    assert not meant([provided("openai", "InternalServerError")], RateLimitError())
    assert not meant([provided("litellm", "Unheard")], ModelError())


def test_a_filter_that_names_a_model_library_travels_without_it() -> None:
    made = error_filter([provided("litellm", "RateLimitError"), ValueError], AT)

    assert made == ErrorFilter((ValueError,), (("litellm", "RateLimitError"),))
    assert cloudpickle.loads(cloudpickle.dumps(made)).matches(RateLimitError())
    assert "litellm" not in sys.modules


def test_what_a_predicate_raises_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        meant(lambda _: 1 / 0, ValueError())
