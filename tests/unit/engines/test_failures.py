from __future__ import annotations

from typing import Any

import pytest

from flock_ray.engines.failures import MAX_TRACEBACK_BYTES, describe, is_retryable_name
from flock_ray.errors import ModelError, OutputContractError


class Mute(Exception):
    def __init__(self, *, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Cursed(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__notes__":
            raise RuntimeError("no notes")
        return super().__getattribute__(name)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_tells_type_message_and_where() -> None:
    info = describe(raised(ValueError("bad")))

    assert (info.type, info.message, info.retryable) == ("ValueError", "bad", False)
    assert "raise error" in info.traceback
    assert info.traceback.endswith("ValueError: bad\n")


@pytest.mark.parametrize("error", [Mute(code=1), Cursed("x"), ValueError("lone \ud800 surrogate")])
def test_survives_any_exception(error: Exception) -> None:
    info = describe(raised(error))

    assert info.type == type(error).__name__
    assert info.message.encode()
    assert "raise error" in info.traceback.encode().decode()


def test_the_end_of_a_long_traceback_is_kept() -> None:
    info = describe(raised(ValueError("ü" * 20_000 + "THE END")))

    assert len(info.traceback.encode()) <= MAX_TRACEBACK_BYTES
    assert info.traceback.startswith("[...]")
    assert info.traceback.endswith("THE END\n")


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ModelError("x"), True),
        (OutputContractError("x"), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (FileNotFoundError(), False),
        (SystemExit(1), False),
    ],
)
def test_says_whether_it_may_pass_by_itself(error: BaseException, retryable: bool) -> None:
    assert describe(error).retryable is retryable


def test_names_are_looked_up_among_our_errors() -> None:
    assert is_retryable_name("AgentTimeoutError")
    assert not is_retryable_name("OutputContractError")
    assert not is_retryable_name("ValueError")
    assert not is_retryable_name("Any")
