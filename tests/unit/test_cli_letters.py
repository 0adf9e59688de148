"""`flock dlq` on a stored board that each command opens anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import BaseModel

from flock_ray import Flock, flock_type
from flock_ray.board import Board
from flock_ray.cli import main
from flock_ray.commands import joining
from flock_ray.dead_letters import DeadLetterQueue
from flock_ray.testing import VirtualFlock
from tests.unit.semantics.kept import Kept


@flock_type(name="dlq.Order")
class Order(BaseModel):
    amount: int
    note: str = ""


def process(order: Order) -> None:
    if order.amount < 0:
        raise ConnectionError(f"{order.amount} {order.note}")


def declare(flock: Flock) -> None:
    queue = DeadLetterQueue("failed", include_trace=True)
    flock.agent("processor").consumes(Order).runs(process).retry(max_attempts=1, dead_letter=queue)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on a board with two letters; returns exit code, output and errors."""
    kept = Kept()

    async def prepare() -> None:
        async with VirtualFlock(persistence=kept) as flock:
            declare(flock)
            await flock.publish(Order(amount=-1, note="\x1b[2Jhello"), correlation_id="one")
            await flock.run_until_idle()
            await flock.publish(Order(amount=-2), correlation_id="two")
            await flock.run_until_idle()

    @asynccontextmanager
    async def joined(namespace: str, *, code: bool = False) -> AsyncIterator[Board]:
        assert namespace == "shop"
        async with VirtualFlock(persistence=kept) as flock:
            declare(flock)
            await flock.start()
            yield await flock._ready_board()
            await flock.run_until_idle()

    asyncio.run(prepare())
    monkeypatch.setattr(joining, "joined_board", joined)

    def run_command(verb: str, *arguments: str) -> tuple[int, str, str]:
        code = main(["dlq", verb, "shop", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run_command


def ids(run: Run, *arguments: str) -> list[str]:
    code, out, _ = run("list", "--json", *arguments)
    assert code == 0
    return [json.loads(line)["id"] for line in out.splitlines()]


def test_a_list_is_a_table_with_pages(run: Run) -> None:
    code, out, _ = run("list", "--limit", "1")

    assert code == 0
    head, row, count, more = out.splitlines()
    assert head.split() == ["ID", "QUEUE", "AGENT", "ERROR", "FAILED", "WORKFLOW"]
    assert row.split()[1:4] == ["failed", "processor", "ConnectionError"]
    assert count == "1 of 2 dead letters"
    cursor = more.removeprefix("the next ones: --cursor ")
    assert len(ids(run, "--cursor", cursor)) == 1
    assert ids(run, "--workflow", "one") == [row.split()[0]]
    assert ids(run, "--queue", "x") == []
    assert ids(run, "--since", "1h", "--before", "2099-01-01T00:00:00Z") == ids(run)


def test_a_letter_is_shown_without_steering_the_terminal(run: Run) -> None:
    key = ids(run)[0]
    code, out, _ = run("show", key)

    assert code == 0
    assert "\x1b" not in out
    assert out.startswith(f"{key}  failed  open\n")
    assert "ConnectionError: -1  [2Jhello" in out
    assert "in process" in out  # the traceback
    assert '{"amount": -1, "note": "\\u001b[2Jhello"}' in out
    shown = json.loads(run("show", key, "--json")[1])
    assert shown["open"]
    assert shown["inputs"][0]["payload"]["amount"] == -1


def test_a_letter_is_edited_redriven_and_the_history_says_who(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ids(run)[0]
    file = tmp_path / "payload.json"
    file.write_text('{"amount": 7}')

    assert run("edit", key, str(file), "--by", "ann")[0] == 0
    assert "edited: " in run("show", key)[1]
    monkeypatch.setenv("LOGNAME", "bob")
    assert run("redrive", key) == (0, f"{key}: redriven\n", "")
    assert run("redrive", key) == (1, f"{key}: not open any more\n", "")

    out = run("show", key)[1]
    assert f"{key}  failed  redriven" in out
    assert "edited " in out
    assert "by ann" in out
    assert "by bob" in out
    assert len(ids(run)) == 1


def test_all_are_redriven_or_only_counted(run: Run) -> None:
    assert run("redrive", "--all", "--dry-run")[1] == "2 of 2 dead letters would be redriven\n"
    assert (
        run("redrive", "--all", "--workflow", "two", "--rate", "100")[1] == "1 of 1 dead letters redriven\n"
    )
    assert len(ids(run)) == 2  # it has failed again


def test_letters_are_discarded(run: Run) -> None:
    one, two = ids(run)
    code, out, err = run("discard", one, "00000000-0000-0000-0000-000000000000", two, "--reason", "old")
    assert code == 1
    assert out == f"{one}: discarded\n{two}: discarded\n"
    assert "no dead letter" in err
    assert ids(run) == []


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("show", ["x"], "no id of a dead letter"),
        ("show", ["00000000-0000-0000-0000-000000000000"], "There is no dead letter"),
        ("redrive", [], "name letters, or give --all"),
        ("redrive", ["x", "--all"], "name letters, or give --all"),
        ("redrive", ["x", "--rate", "5"], "go with --all"),
        ("redrive", ["--all", "--rate", "-5"], "give letters per second"),
        ("list", ["--limit", "0"], "limit=0"),
        ("list", ["--cursor", "x"], "cursor"),
        ("edit", ["x", "/nowhere/at/all"], "Can't read"),
    ],
)
def test_a_command_that_makes_no_sense_says_why(run: Run, verb: str, arguments: list[str], says: str) -> None:
    code, _, err = run(verb, *arguments)
    assert code == 2
    assert says in err


@pytest.mark.parametrize("payload", ["[1]", "{", '{"amount": "many"}', "{}"])
def test_a_payload_that_does_not_fit_is_refused(run: Run, tmp_path: Path, payload: str) -> None:
    file = tmp_path / "payload.json"
    file.write_text(payload)
    code, _, err = run("edit", ids(run)[0], str(file))
    assert code == 2
    assert "Error" in err


@pytest.mark.parametrize("when", ["yesterday", "5", "2026-01-01T00:00:00", "-5h", "9999999999h"])
def test_a_time_that_is_none_is_refused(when: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dlq", "list", "shop", f"--since={when}"])
    assert "--since" in capsys.readouterr().err
