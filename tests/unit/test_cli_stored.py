from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.cli import main
from flock_ray.testing import VirtualFlock
from tests.fixtures.journal import BOARD, JOURNALS
from tests.unit.semantics.shop import Order


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A stored board of two shards."""
    import shutil

    release = sorted(JOURNALS.iterdir())[-1]
    shutil.copytree(release, tmp_path / "boards")
    return f"sqlite:///{tmp_path / 'boards'}"


def test_verify_says_how_much_it_checked(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", url, "--board", BOARD]) == 0
    assert capsys.readouterr().out == "board 'release': 7 artifacts, 2 activations: 0 violations\n"


def test_verify_takes_a_folder(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", url.removeprefix("sqlite:///"), "--board", BOARD]) == 0
    assert "7 artifacts" in capsys.readouterr().out


def test_verify_takes_the_url_from_the_environment(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOCK_PERSISTENCE", url)
    monkeypatch.setenv("FLOCK_NAMESPACE", BOARD)
    assert main(["verify", "-"]) == 0


def test_verify_finds_an_acknowledged_artifact_that_is_gone(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = tmp_path / "acks.jsonl"
    history.write_text(json.dumps({"board": BOARD, "op": "accepted", "id": "ab" * 16}) + "\n")
    assert main(["verify", url, "--board", BOARD, "--history", str(history)]) == 1
    assert f"G1 violated: {'ab' * 16}: it was acknowledged and is not on the board" in capsys.readouterr().out


def test_verify_refuses_a_board_with_a_flipped_byte_and_says_where(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (tmp_path / "boards").glob("**/shard-*.db"):
        with sqlite3.connect(file) as connection:
            connection.execute("update artifacts set payload = cast(replace(payload, '1', '2') as blob)")
        connection.close()
    assert main(["verify", url, "--board", BOARD]) == 2
    assert "StoreCorruptError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "sqlite:///nowhere-at-all"], "ConfigurationError"),
        (["verify", "mongodb://x"], "No persistence has the scheme 'mongodb'"),
        (["audit", "verify", "sqlite:///nowhere-at-all"], "There is no board"),
    ],
)
def test_what_can_not_be_checked_is_said_in_one_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.fixture
def audited(tmp_path: Path) -> str:
    """A stored board with an audit log."""

    async def fill() -> None:
        kept = SQLitePersistence(tmp_path / "audited", enable_audit_log=True)
        async with VirtualFlock(persistence=kept, namespace="shop") as flock:
            for n in range(3):
                await flock.publish(Order(n=n))

    asyncio.run(fill())
    return f"sqlite:///{tmp_path / 'audited'}"


def test_audit_verify_finds_what_was_cut_by_the_heads_of_the_last_time(
    audited: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = tmp_path / "heads.json"
    verify = ["audit", "verify", audited, "--board", "shop", "--heads", str(heads)]
    assert main(verify) == 0
    assert capsys.readouterr().out == "board 'shop': 3 audit entries, 0 problems\n"
    noted = heads.read_text()
    assert main(verify) == 0
    capsys.readouterr()

    with closing(sqlite3.connect(tmp_path / "audited" / "shop" / "shard-0000.db")) as connection:
        connection.execute("DROP TRIGGER audit_refuses_DELETE")
        connection.execute("DELETE FROM audit WHERE number = 3")
        connection.execute(
            "UPDATE audit_head SET count = 2, hash = (SELECT hash FROM audit WHERE number = 2)"
        )
        connection.commit()

    assert main(verify[:-2]) == 0
    capsys.readouterr()
    assert main(verify) == 1
    assert "shard 0, entry 3: Entry 3 is not the one that was noted" in capsys.readouterr().out
    assert heads.read_text() == noted


@pytest.mark.parametrize(
    "content", ["", "[]", '{"board": "shop", "heads": {"0": 1}}', '{"board": "x", "heads": {}}']
)
def test_heads_that_are_none_are_refused(
    audited: str, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = tmp_path / "heads.json"
    heads.write_text(content)
    assert main(["audit", "verify", audited, "--board", "shop", "--heads", str(heads)]) == 2
    assert "--heads" in capsys.readouterr().err
    assert heads.read_text() == content
