from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # has no stubs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray import errors
from flock_ray.error_base import MAX_ERROR_TEXT_BYTES
from flock_ray.errors import (
    AgentTimeoutError,
    ArtifactNotFoundError,
    ArtifactSchemaError,
    BackpressureError,
    DuplicateAgentError,
    FlockError,
    ModelError,
    PoolSaturatedError,
    RateLimitError,
    StoreUnavailableError,
    UnknownAgentError,
    UnknownTypeError,
    WaitTimeoutError,
    safe_error_text,
)


def _tree(cls: type[FlockError]) -> list[type[FlockError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]


ALL = [
    cls
    for cls in dict.fromkeys(_tree(FlockError))
    if cls.__module__
    in ("flock_ray.errors", "flock_ray.error_base", "flock_ray.error_artifacts", "flock_ray.store_errors")
]

Copier = Callable[[Any], Any]
COPIERS: dict[str, Copier] = {
    "pickle": lambda e: pickle.loads(pickle.dumps(e)),
    "pickle-2": lambda e: pickle.loads(pickle.dumps(e, protocol=2)),
    "cloudpickle": lambda e: cloudpickle.loads(cloudpickle.dumps(e)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}

by_class = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
by_copier = pytest.mark.parametrize("duplicate", COPIERS.values(), ids=COPIERS.keys())


def test_every_class_is_public() -> None:
    assert sorted({cls.__name__ for cls in ALL} | {"safe_error_text"}) == sorted(errors.__all__)


def test_every_class_is_in_the_drawing() -> None:
    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__ or "")) - {
        "ValueError",
        "KeyError",
        "TimeoutError",
    }
    assert drawn == {cls.__name__ for cls in ALL}


def test_codes_are_unique_and_stable_looking() -> None:
    codes = [cls.code for cls in ALL]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@by_class
def test_class_data_is_own_and_complete(cls: type[FlockError]) -> None:
    assert "code" in cls.__dict__
    assert "text" in cls.__dict__
    assert 400 <= cls.http_status <= 599
    assert isinstance(cls.retryable, bool)


@by_class
def test_the_message_without_a_message_says_what_happened_and_what_to_do(cls: type[FlockError]) -> None:
    text = str(cls())
    assert text == cls.text
    # What happened, and then an advice: two sentences.
    assert len(re.findall(r"[.)](?= |$)", text)) >= 2, text
    assert text.endswith((".", ")", ")."))


def test_no_two_classes_have_the_same_message() -> None:
    assert len({cls.text for cls in ALL}) == len(ALL)


@by_copier
@by_class
def test_survives_copying(cls: type[FlockError], duplicate: Copier) -> None:
    # Given an error with a message and every attribute that its class knows
    error = cls("it broke: mend it")
    for name in vars(error):
        setattr(error, name, f"value of {name}")
    error.add_note("seen on node 7")

    # When it goes to another process
    twin = duplicate(error)

    # Then nothing is lost
    assert type(twin) is cls
    assert twin.args == error.args
    assert str(twin) == "it broke: mend it"
    assert vars(twin) == vars(error)
    assert twin.__notes__ == ["seen on node 7"]


@by_copier
@pytest.mark.parametrize(
    "error",
    [
        PoolSaturatedError("busy: wait", retry_after_s=2.5),
        BackpressureError(retry_after_s=0.25),
        RateLimitError("slow down", retry_after_s=9.0, agent="writer"),
        ArtifactNotFoundError("gone", artifact_id="a1"),
        ArtifactSchemaError("bad", type_name="Order", version=3),
        AgentTimeoutError("late", agent="writer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_keyword_only_attributes_survive_copying(error: FlockError, duplicate: Copier) -> None:
    assert vars(error)
    assert vars(duplicate(error)) == vars(error)


class _UsersError(FlockError):
    def __init__(self, *, order_id: int, reason: str) -> None:
        super().__init__(f"order {order_id}: {reason}")
        self.order_id = order_id


@by_copier
def test_a_users_subclass_with_an_odd_constructor_survives_copying(duplicate: Copier) -> None:
    twin = duplicate(_UsersError(order_id=7, reason="no stock"))
    assert (twin.order_id, str(twin)) == (7, "order 7: no stock")


@given(message=st.text(min_size=1), wait_s=st.floats(allow_nan=False))
def test_any_message_and_number_survive_pickle(message: str, wait_s: float) -> None:
    twin = pickle.loads(pickle.dumps(BackpressureError(message, retry_after_s=wait_s)))
    assert (str(twin), twin.retry_after_s) == (message, wait_s)


def test_built_in_bases() -> None:
    assert issubclass(DuplicateAgentError, ValueError)
    assert issubclass(UnknownAgentError, KeyError)
    assert issubclass(WaitTimeoutError, TimeoutError)
    assert issubclass(AgentTimeoutError, TimeoutError)
    assert str(UnknownAgentError("no agent 'x': look")) == "no agent 'x': look"  # KeyError shows a repr


def test_http_status_of_what_clients_meet() -> None:
    expected: dict[type[FlockError], int] = {
        BackpressureError: 429,
        PoolSaturatedError: 429,
        StoreUnavailableError: 503,
        ArtifactNotFoundError: 404,
    }
    assert {cls: cls.http_status for cls in expected} == expected
    assert errors.UnauthenticatedError.http_status == 401
    assert errors.ForbiddenError.http_status == 403


def test_retryable() -> None:
    assert {cls.__name__ for cls in ALL if cls.retryable} == {
        "AgentCrashedError",
        "AgentTimeoutError",
        "BackpressureError",
        "CapacityError",
        "GuardUnavailableError",
        "ModelError",
        "ModelTimeoutError",
        "PoolSaturatedError",
        "RateLimitError",
        "StoreUnavailableError",
        "WaitTimeoutError",
    }
    assert issubclass(RateLimitError, ModelError)
    assert issubclass(UnknownTypeError, ArtifactSchemaError)


def test_importing_the_errors_is_light() -> None:
    heavy = ("pydantic", "ray", "msgspec", "asyncio")
    code = f"import sys, flock_ray.errors; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert out.stdout.strip() == "[]"


class _BrokenStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _NumberStr(Exception):
    def __str__(self) -> str:
        return 42  # type: ignore[return-value]  # what users do


class _OddConstructor(Exception):
    def __init__(self, a: int, *, b: int) -> None:
        self.a, self.b = a, b


class _LyingStr(str):
    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        raise RuntimeError("no bytes")


def test_safe_text_of_an_ordinary_exception() -> None:
    assert safe_error_text(ValueError("bad value")) == ("ValueError", "bad value")


def test_safe_text_of_an_empty_exception_is_not_empty() -> None:
    assert safe_error_text(TimeoutError()) == ("TimeoutError", "TimeoutError()")


@pytest.mark.parametrize("error", [_BrokenStr("x"), _NumberStr("x")])
def test_safe_text_when_str_raises(error: Exception) -> None:
    name, text = safe_error_text(error)
    assert name == type(error).__name__
    assert name in text
    assert "cannot be read" in text


def test_safe_text_of_an_odd_constructor() -> None:
    assert safe_error_text(_OddConstructor(1, b=2))[0] == "_OddConstructor"


def test_safe_text_of_a_lying_message() -> None:
    assert safe_error_text(ValueError(_LyingStr("text"))) == ("ValueError", "text")


def test_safe_text_of_a_lone_surrogate() -> None:
    assert safe_error_text(ValueError("\ud800")) == ("ValueError", r"\ud800")


def test_safe_text_of_what_is_no_exception() -> None:
    assert safe_error_text(KeyboardInterrupt()) == ("KeyboardInterrupt", "KeyboardInterrupt()")


def test_safe_text_says_how_much_was_cut() -> None:
    _, text = safe_error_text(ValueError("é" * 100_000))
    assert text.endswith("... [200000 bytes, cut]")
    assert MAX_ERROR_TEXT_BYTES - 4 < len(text.encode()) <= MAX_ERROR_TEXT_BYTES


@given(st.text(st.characters()) | st.text().map(lambda text: text * 9000))
def test_safe_text_is_always_bounded_utf8(message: str) -> None:
    # The name of a class can't hold lone surrogates; its message can.
    label = message[:600].replace("\0", "").encode(errors="ignore").decode()
    name, text = safe_error_text(type("E" + label, (Exception,), {})(message))
    assert name
    assert text
    assert len(name.encode()) <= 256
    assert len(text.encode()) <= MAX_ERROR_TEXT_BYTES
