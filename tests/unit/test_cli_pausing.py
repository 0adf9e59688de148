"""`flock pause`, `resume`, `halt` and `cancel`, on a virtual board in place of one on Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from flock_ray.board import Board
from flock_ray.cli import main
from flock_ray.commands import joining
from flock_ray.testing import MemoryPersistence, VirtualFlock
from tests.unit.semantics.shop import Order, Payment


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the commands find one board, with a workflow that waits, that lives on over several of them."""
    kept = MemoryPersistence()

    @asynccontextmanager
    async def joined(namespace: str, *, code: bool = False) -> AsyncIterator[Board]:
        assert namespace == "shop"
        flock = VirtualFlock(persistence=kept, shards=2)
        flock.agent("one").consumes(Order).runs(lambda order: None)
        await flock.pause(workflow="w", by="test")
        await flock.publish(Payment(n=1), correlation_id="w")
        await flock.publish(Order(n=1), correlation_id="w", idempotency_key="once")
        yield await flock._ready_board()
        await flock.shutdown()

    monkeypatch.setattr(joining, "joined_board", joined)


def test_what_is_paused_is_listed_and_resumed(board: None, capsys: Any) -> None:
    assert main(["pause", "shop", "--agent", "one", "--by", "anna", "--reason", "too loud"]) == 0
    assert main(["pause", "shop", "--type", "market.Order", "--by", "bob"]) == 0
    assert main(["halt", "shop", "--reason", "fire"]) == 0
    capsys.readouterr()
    assert main(["pause", "shop"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "workflow w", "agent one", "type market.Order", "board", "4 pauses"
    ]  # fmt: skip
    assert lines[1].endswith(" by anna: too loud")
    for names in (["--agent", "one"], ["--type", "market.Order"], []):
        assert main(["resume", "shop", *names]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 pauses"


def test_a_workflow_is_cancelled(board: None, capsys: Any) -> None:
    assert main(["cancel", "shop", "w"]) == 0
    assert capsys.readouterr().out == "workflow 'w': 1 activations were open\n"


def test_bad_input_is_said_in_one_line(board: None, capsys: Any) -> None:
    assert main(["pause", "shop", "--agent", "uno"]) == 2
    assert "no agent 'uno' on this board" in capsys.readouterr().err
    assert main(["halt", "shop", "--timeout", "0"]) == 2
    with pytest.raises(SystemExit):
        main(["pause", "shop", "--agent", "one", "--type", "market.Order"])
