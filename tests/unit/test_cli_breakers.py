"""`flock breakers`, on a virtual board in place of one on Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.board import Board
from flock_ray.cli import main
from flock_ray.commands import joining
from flock_ray.testing import MemoryPersistence, VirtualFlock


@flock_type(name="cli_breakers.Call")
class Call(BaseModel):
    n: int = 0


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `flock breakers` find one board, that lives on over several commands."""
    kept = MemoryPersistence()

    @asynccontextmanager
    async def joined(namespace: str, *, code: bool = False) -> AsyncIterator[Board]:
        assert namespace == "shop"
        flock = VirtualFlock(persistence=kept)
        flock.agent("caller").consumes(Call).runs(lambda call: None).circuit_breaker()
        flock.agent("plain").consumes(Call).runs(lambda call: None)
        await flock.start()
        yield await flock._ready_board()
        await flock.shutdown()

    monkeypatch.setattr(joining, "joined_board", joined)


def test_breakers_are_listed_opened_and_closed(board: None, capsys: Any) -> None:
    assert 0 == main(["breakers", "list", "shop"])
    assert 0 == main(["breakers", "open", "shop", "caller", "--by", "anna"])
    assert 0 == main(["breakers", "list", "shop"])
    assert 0 == main(["breakers", "close", "shop", "caller"])

    lines = capsys.readouterr().out.splitlines()

    assert ["caller: closed, 0 wait", "1 circuit breakers"] == lines[:2]
    assert lines[2].startswith("caller: open, since ")
    assert lines[2].endswith("until it is closed by hand, 0 wait")
    assert lines[2] == lines[3]
    assert lines[5].startswith("caller: closed, since")


@pytest.mark.parametrize(
    ("agent", "says"), [("plain", "no circuit breaker"), ("nobody", "No agent 'nobody'")]
)
def test_an_agent_without_a_breaker_is_an_error(board: None, capsys: Any, agent: str, says: str) -> None:
    assert 2 == main(["breakers", "open", "shop", agent])

    assert says in capsys.readouterr().err
