"""The `flock` command: settings and where they come from, and a check of a flock's declarations."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flock_ray import __version__
from flock_ray.commands.approvals import add_commands as add_approval_commands
from flock_ray.commands.breakers import add_commands as add_breaker_commands
from flock_ray.commands.letters import add_commands as add_letter_commands
from flock_ray.commands.pausing import add_commands as add_pausing_commands
from flock_ray.commands.schedules import add_commands as add_schedule_commands
from flock_ray.commands.stored import add_commands
from flock_ray.errors import ConfigurationError, FlockError

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

    from flock_ray.core.check import Finding
    from flock_ray.core.schema import TypeFinding
    from flock_ray.flock import Flock

__all__ = ["main"]

EXIT_ERRORS = 1
EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: Arguments without the program's name; None is those of the process.
    """
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except FlockError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flock", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(command=_version)
    config = commands.add_parser("config", help="print each setting, its value and where it comes from")
    config.set_defaults(command=_config)
    check = commands.add_parser("check", help="look for mistakes in a flock's declarations; runs nothing")
    check.add_argument("target", metavar="MODULE:NAME", help="a Flock, or a function that makes one")
    check.add_argument(
        "--published",
        action="append",
        default=[],
        metavar="TYPE",
        help="registered name of a type that comes from outside; may be repeated",
    )
    check.add_argument(
        "--against",
        metavar="BOARD",
        help="also compare the types with those of a board: a namespace on a running Ray, the URL of a persistence, "
        "or - for the URL in FLOCK_PERSISTENCE",
    )
    check.add_argument("--namespace", metavar="NAME", help="name of the board in the persistence")
    check.set_defaults(command=_check)
    add_commands(commands)
    add_breaker_commands(commands.add_parser("breakers", help="circuit breakers of a board that runs"))
    add_pausing_commands(
        commands.add_parser("pause", help="hold work of a board back, or list what is held back"),
        commands.add_parser("resume", help="let run what was paused; without a name: what was halted"),
        commands.add_parser("halt", help="stop everything on a board until it is resumed"),
        commands.add_parser("cancel", help="cancel a workflow of a board"),
    )
    add_schedule_commands(commands.add_parser("schedules", help="schedules of a board that runs"))
    add_approval_commands(commands.add_parser("approvals", help="what waits for people on a board that runs"))
    add_letter_commands(commands.add_parser("dlq", help="dead letters of a board that runs"))
    return parser


def _version(_: argparse.Namespace) -> int:
    print(f"flock_ray {__version__}")
    return 0


def _config(_: argparse.Namespace) -> int:
    from flock_ray.config import FlockSettings, RayConfig, load_ray_config, load_settings

    rows = [*_rows(load_settings(), os.environ), *_rows(load_ray_config(), os.environ)]
    if address := os.environ.get("RAY_ADDRESS"):
        rows.append(("RAY_ADDRESS", address, "environment"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:
        print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}")
    known = {variable for cls in (FlockSettings, RayConfig) for variable in _variables(cls)}
    for name in sorted(name for name in os.environ if name.upper().startswith("FLOCK_")):
        if name.upper() not in known:
            print(f"{name} is set, but no setting has this name", file=sys.stderr)
    return 0


def _variables(cls: type[BaseSettings]) -> dict[str, str]:
    """Return the field behind each environment variable."""
    prefix = cls.model_config.get("env_prefix", "")
    return {f"{prefix}{field}".upper(): field for field in cls.model_fields}


def _rows(settings: BaseSettings, environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the variable of every setting, its value and where that comes from."""
    given = {name.upper() for name in environment}
    for variable, field in _variables(type(settings)).items():
        value = getattr(settings, field)
        yield (
            variable,
            "-" if value is None else str(value),
            "environment" if variable in given else "default",
        )


def _check(options: argparse.Namespace) -> int:
    from flock_ray.core.registry import type_registry

    flock = _load(options.target)
    findings = flock.check(published=[type_registry.resolve(name) for name in options.published])
    against = [] if options.against is None else _compare(options.against, options.namespace)
    both: list[Finding | TypeFinding] = [*findings, *against]
    for finding in both:
        print(finding)
    errors = sum(finding.level == "error" for finding in both)
    print(f"{len(flock.agents)} agents, {len(both)} findings, {errors} errors")
    return EXIT_ERRORS if errors else 0


def _compare(board: str, namespace: str | None) -> list[TypeFinding]:
    """Compare the types of this process, agents' and others, with those of a board."""
    import asyncio

    from flock_ray.against import findings, types_of_board
    from flock_ray.core.registry import type_registry

    return findings(asyncio.run(types_of_board(board, namespace)), type_registry)


def _load(target: str) -> Flock:
    """Import a Flock, or call the function that makes one.

    Raises:
        ConfigurationError: There is none under this name.
    """
    from flock_ray.flock import Flock

    module_name, separator, name = target.partition(":")
    if not (module_name and separator and name):
        raise ConfigurationError(
            f"{target!r} names no flock: write module:name, as in flock check shop.main:flock."
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # a console script does not look in the current directory
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f"Can't import {module_name!r}: {error}. Run it where its imports work."
        ) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    made = _make(found) if inspect.isfunction(found) else found
    if not isinstance(made, Flock):
        raise ConfigurationError(
            f"{target} is no Flock (but a {type(found).__name__}): name a Flock, a function without parameters that "
            "returns one, or a function of a Flock that declares its agents."
        )
    return made


def _make(function: Callable[..., Any]) -> Any:
    """Call a function that makes a Flock, or one that declares agents on a Flock; None for any other."""
    from flock_ray.flock import Flock

    empty = Flock()
    for arguments in ((), (empty,)):
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            continue
        made = function(*arguments)
        return empty if made is None and arguments else made
    return None


if __name__ == "__main__":
    sys.exit(main())
