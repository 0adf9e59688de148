"""`flock schedules`: the schedules of a board that runs."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flock_ray.commands.joining import by_whom, verb, who
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flock_ray.board import Board
    from flock_ray.schedules import Schedules, ScheduleView

    Work = Callable[[Schedules, argparse.Namespace], Awaitable[None]]

_ORDERS = {
    "pause": "fire a schedule no more until it is resumed",
    "resume": "let a schedule fire again",
    "trigger": "fire a schedule now, on top of what it does by itself",
    "remove": "forget a schedule; a program that declares it brings it back",
}


def add_commands(schedules: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of `flock schedules`."""
    verbs = schedules.add_subparsers(metavar="COMMAND", required=True)
    _verb(verbs, "list", "list the schedules, those that are over included", _list)
    for name, text in _ORDERS.items():
        parser = _verb(verbs, name, text, _order)
        parser.add_argument("schedule", metavar="SCHEDULE", help="its name")
        by_whom(parser)
        parser.set_defaults(order=name)
    filling = _verb(verbs, "backfill", "fire a schedule for the times of a range that has passed", _backfill)
    filling.add_argument("schedule", metavar="SCHEDULE", help="its name")
    filling.add_argument(
        "--from", dest="start", metavar="TIME", required=True, help="such as 2030-01-31T09:00:00Z"
    )
    filling.add_argument(
        "--to", dest="end", metavar="TIME", required=True, help="end of the range, exclusively"
    )
    by_whom(filling)


def _verb(verbs: Any, name: str, text: str, work: Work) -> argparse.ArgumentParser:
    async def run(ready: Callable[[], Awaitable[Board]], options: argparse.Namespace) -> None:
        from flock_ray.schedules import Schedules

        await work(Schedules(ready, lambda name: None), options)

    return verb(verbs, name, text, run)


async def _list(schedules: Schedules, _: argparse.Namespace) -> None:
    found = await schedules.list()
    for view in found:
        print(_line(view))
    print(f"{len(found)} schedules")


async def _order(schedules: Schedules, options: argparse.Namespace) -> None:
    name, by = options.schedule, who(options)
    orders = {"pause": schedules.pause, "resume": schedules.resume, "trigger": schedules.trigger}
    if options.order == "remove":
        await schedules.remove(name, by=by)
        print(f"{name}: removed")
        return
    await orders[options.order](name, by=by)
    print(_line(await schedules.get(name)))


async def _backfill(schedules: Schedules, options: argparse.Namespace) -> None:
    start, end = _moment(options.start), _moment(options.end)
    count = await schedules.backfill(options.schedule, start, end, by=who(options))
    print(f"{options.schedule}: {count} fires")


def _moment(text: str) -> datetime:
    """Read a time; one without a zone is in UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is no time: write 2030-01-31T09:00:00Z, for instance.") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _line(view: ScheduleView) -> str:
    what = " ".join(f"{key}={value}" for key, value in view.spec.items())
    state = "over" if view.next_fire is None else f"next {_time(view.next_fire)}"
    if view.paused:
        state = f"paused by {view.paused_by or 'somebody'}"
    if not view.listens:
        state += ", its agent is not there"
    return f"{view.name}: {what}, agent {view.agent}, {view.iteration} fires, {view.missed} missed, {state}"


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
