from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from flock_ray.cli import main
from tests.fixtures.journal import BOARD, JOURNALS


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
        (["audit", "verify", "sqlite:///x"], "Only PostgreSQL keeps an audit log"),
    ],
)
def test_what_can_not_be_checked_is_said_in_one_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
