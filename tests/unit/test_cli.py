from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from flock_ray import __version__
from flock_ray.cli import main
from flock_ray.core.registry import TypeRegistry, type_registry
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual

AGENTS = """
from pydantic import BaseModel
from flock_ray import Flock, flock_type

@flock_type(name="cli.Order")
class Order(BaseModel):
    n: int

@flock_type(name="cli.Parcel")
class Parcel(BaseModel):
    n: int

def make():
    flock = Flock()
    flock.agent("packer").consumes(Order).publishes(Parcel).runs(lambda order: Parcel(n=order.n))
    return flock

def declare(flock):
    flock.agent("packer").consumes(Order).publishes(Parcel).runs(lambda order: Parcel(n=order.n))

def three(a, b, c):
    pass

good = make()
bad = make()
bad.agent("idle").consumes(Parcel)
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `cli_shop` in the current directory."""
    (tmp_path / "cli_shop.py").write_text(AGENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with type_registry.isolated():
        yield
    sys.modules.pop("cli_shop", None)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("FLOCK_", "RAY_ADDRESS"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


def test_config_prints_every_setting_with_its_value_and_source(
    clean: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given one setting in the environment, in lower case, and a variable with a typing error
    clean.setenv("flock_shards", "4")
    clean.setenv("FLOCK_RAY_NUM_CPUS", "2")
    clean.setenv("FLOCK_SHARD", "5")

    # When the settings are printed
    code = main(["config"])

    # Then each says where it comes from, and the typing error is reported
    out, err = capsys.readouterr()
    printed = rows(out)
    assert code == 0
    assert printed["FLOCK_SHARDS"] == ["4", "environment"]
    assert printed["FLOCK_RAY_NUM_CPUS"] == ["2", "environment"]
    assert printed["FLOCK_NAMESPACE"] == ["-", "default"]
    assert printed["FLOCK_RAY_ADDRESS"] == ["-", "default"]
    assert err.startswith("FLOCK_SHARD is set")


@pytest.mark.parametrize("variable", ["FLOCK_SHARDS", "FLOCK_RAY_NUM_CPUS"])
def test_config_refuses_a_value_that_does_not_fit_in_one_line(
    variable: str, clean: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean.setenv(variable, "0")
    assert main(["config"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ConfigurationError: ")
    assert "greater than or equal to 1" in err


@pytest.mark.usefixtures("shop")
def test_check_prints_findings_and_fails_on_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    # Given a flock without mistakes, once its input is said to come from outside
    assert main(["check", "cli_shop:good", "--published", "cli.Order"]) == 0
    assert "warning" not in capsys.readouterr().out
    # And functions that make it or declare its agents; nobody is said to publish orders: a warning is no error
    for function in ("make", "declare"):
        assert main(["check", f"cli_shop:{function}"]) == 0
        assert "warning NobodyPublishes: agent 'packer'" in capsys.readouterr().out
    # Then an agent that nothing runs is an error
    assert main(["check", "cli_shop:bad", "--published", "cli.Order"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("error NoEngine: agent 'idle'")
    assert out.splitlines()[-1].startswith("2 agents, ")


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    "target", ["cli_shop", "no_such_module:flock", "cli_shop:nothing", "cli_shop:Order", "cli_shop:three"]
)
def test_check_says_what_to_name_instead(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", target]) == 2
    assert capsys.readouterr().err.startswith("ConfigurationError: ")


@pytest.mark.usefixtures("shop")
def test_check_refuses_a_published_type_that_is_not_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "cli_shop:good", "--published", "cli.Typo"]) == 2
    assert capsys.readouterr().err.startswith("UnknownTypeError: ")


def test_config_does_not_print_the_secret_in_the_url_of_the_persistence(
    clean: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean.setenv("FLOCK_PERSISTENCE", "postgresql://me:hunter2@db/boards")
    assert main(["config"]) == 0
    out, err = capsys.readouterr()
    assert "hunter2" not in out + err
    assert rows(out)["FLOCK_PERSISTENCE"] == ["**********", "environment"]


# -- flock check --against -------------------------------------------------------------------------


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> MemoryPersistence:
    """A persistence that every URL names; its board `shop` was deployed with cli.Order {n, note} and cli.Parcel."""
    keep = MemoryPersistence()
    monkeypatch.setattr("flock_ray.against.persistence_from_url", lambda _: keep)

    class Order(BaseModel):
        n: int
        note: str

    class Parcel(BaseModel):
        n: int

    registry = TypeRegistry()
    registry.register(Order, name="cli.Order")
    registry.register(Parcel, name="cli.Parcel")

    async def deploy() -> None:
        async with VirtualFlock(namespace="shop", persistence=keep, registry=registry) as flock:
            flock.agent("packer").consumes(Order).publishes(Parcel).runs(lambda order: Parcel(n=order.n))
            await flock.start()

    run_virtual(deploy())
    return keep


@pytest.mark.usefixtures("shop")
def test_check_against_a_board_prints_what_a_deploy_would_break(
    board: MemoryPersistence, capsys: pytest.CaptureFixture[str], clean: pytest.MonkeyPatch
) -> None:
    epoch = board.boards["shop"][0].epoch
    check = ["check", "cli_shop:good", "--published", "cli.Order", "--against", "sqlite:///boards"]
    assert main([*check, "--namespace", "shop"]) == 1
    out = capsys.readouterr().out
    assert "error RemovedRequiredField: type 'cli.Order': field note is gone, and it was required;" in out
    assert "error VersionNotRaised: type 'cli.Order'" in out and "type 'cli.Parcel'" not in out
    assert board.boards["shop"][0].epoch == epoch  # nobody took the board from its shard

    # And the same from the environment, where a password belongs
    clean.setenv("FLOCK_PERSISTENCE", "postgresql://me:hunter2@db/boards")
    clean.setenv("FLOCK_NAMESPACE", "shop")
    assert main(["check", "cli_shop:good", "--against", "-"]) == 1
    assert capsys.readouterr().out.count("RemovedRequiredField") == 1


@pytest.mark.usefixtures("shop", "board", "clean")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "sqlite:///boards", "--namespace", "nothing"], "No board 'nothing'"),
        (["--against", "sqlite:///boards"], "No board 'default'"),
        (["--against", "-"], "FLOCK_PERSISTENCE, which is not set"),
        (["--against", "shop", "--namespace", "other"], "names a board already"),
    ],
)
def test_check_against_no_board_says_so(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "cli_shop:good", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ConfigurationError: ") and message in err


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"flock_ray {__version__}\n"
