"""`flock approvals`, on a virtual board in place of one on Ray."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flock_ray import ApprovalSpec
from flock_ray.board import Board
from flock_ray.cli import main
from flock_ray.commands import joining
from flock_ray.testing import MemoryPersistence, VirtualFlock
from tests.unit.test_approvals import Idea, declare

SPEC = ApprovalSpec(
    approvers=["risk", "legal"], quorum=2, allow_edit=True, timeout=timedelta(days=30),
    summary=lambda order: f"buy {order.symbol}\x1b[2J",
)  # fmt: skip

Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command on a board with one order that waits; returns exit code, lines and errors."""
    kept = MemoryPersistence()
    made: list[VirtualFlock] = []

    @asynccontextmanager
    async def joined(namespace: str, *, code: bool = False) -> AsyncIterator[Board]:
        assert namespace == "desk"
        flock = VirtualFlock(persistence=kept)
        declare(flock, SPEC)
        await flock.start()
        if not made:
            await flock.publish(Idea(), correlation_id="w")
            await flock.run_until_idle()
        made.append(flock)
        yield await flock._ready_board()
        await flock.run_until_idle()
        await flock.shutdown()

    people = tmp_path / "people.json"
    people.write_text(json.dumps({"ann": ["risk"], "bob": ["legal"], "cid": ["legal", "risk"], "eve": []}))
    monkeypatch.setenv("FLOCK_PRINCIPALS", str(people))
    monkeypatch.setenv("FLOCK_APPROVAL_SECRET", "s" * 32)
    monkeypatch.setattr(joining, "joined_board", joined)

    def run_command(verb: str, *arguments: str) -> tuple[int, list[str], str]:
        code = main(["approvals", verb, "desk", *arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run_command


def test_an_order_is_listed_shown_and_approved_by_two_people(run: Run) -> None:
    code, lines, _ = run("list", "--for", "ann")
    assert code == 0 and lines[1] == "1 approvals"
    key = lines[0].split()[0]
    assert "ApprovalTestOrder of trader (buy ACME [2J): 0 of 2 approved, for risk, legal, until " in lines[0]
    assert run("list", "--for", "eve")[1] == ["0 approvals"]
    _, shown, _ = run("show", key)
    assert '  "symbol": "ACME",' in shown
    assert run("approve", key, "--by", "ann", "--comment", "fine")[1][0].startswith(f"{key}  ")
    code, _, error = run("approve", key, "--by", "ann")
    assert code == 2 and "has decided" in error
    code, _, error = run("approve", key, "--by", "eve")
    assert code == 2 and error.startswith("ForbiddenError")
    assert run("approve", key, "--by", "bob")[1] == [f"{key}  ApprovalTestOrder of trader: approved"]
    assert run("list")[1] == ["0 approvals"]
    _, shown, _ = run("show", key)
    assert any(line.endswith("ann: approve: fine") for line in shown)
    code, _, error = run("reject", key, "--by", "cid")
    assert code == 2 and error.startswith("ApprovalExpiredError")


def test_an_order_is_edited_delegated_and_sent_back(run: Run, tmp_path: Path) -> None:
    [found] = [json.loads(line) for line in run("list", "--json")[1]]
    key = found["id"]
    new = tmp_path / "new.json"
    new.write_text('{"symbol": "ACME", "amount": 7}')
    assert run("edit", key, str(new), "--by", "bob")[0] == 0
    shown: Any = json.loads(run("show", key, "--json")[1][0])
    assert (shown["artifact"], shown["shown"] != found["shown"]) == ({"symbol": "ACME", "amount": 7.0}, True)
    code, _, error = run("approve", key, "--by", "ann", "--shown", found["shown"])
    assert code == 2 and "something else" in error
    assert run("delegate", key, "eve", "--by", "ann")[0] == 0
    assert run("list", "--for", "eve")[1][1] == "1 approvals"
    assert run("changes", key, "--by", "eve", "--comment", "less")[1][0].endswith(": changes requested")
    assert "because: less" in run("show", key)[1]


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_content_that_is_no_object_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    code, _, error = run("edit", "00000000-0000-0000-0000-000000000000", str(path), "--by", "ann")
    assert code == 2 and "JSON" in error


def test_a_token_is_redeemed_and_agreement_is_shown(run: Run) -> None:
    code, _, error = run("redeem", "no.token")
    assert code == 2 and error.startswith("ForbiddenError")
    assert run("agreement") == (0, [], "")


def test_a_directory_that_can_not_be_read_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOCK_PRINCIPALS", "/nowhere.json")
    code, _, error = run("list")
    assert code == 2 and "FLOCK_PRINCIPALS" in error
