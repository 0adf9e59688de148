"""Declaring schedules: `.schedule()` of an agent, and `flock.schedule()`."""

from __future__ import annotations

import asyncio
import inspect
import json
import marshal
from collections.abc import Callable, Sequence
from datetime import datetime, time, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast, get_args

import msgspec
from pydantic import AwareDatetime, BaseModel

from flock_ray.core import signature
from flock_ray.core.binding import resolved_hints
from flock_ray.core.definition import Subscription
from flock_ray.core.ids import shard_of
from flock_ray.core.schedules import Misfire, ScheduleInfo, home_of_schedule
from flock_ray.core.specs import ScheduleSpec
from flock_ray.core.system_types import TimerTick
from flock_ray.errors import CapacityError, ConfigurationError

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.board import Board
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.registry import TypeRegistry
    from flock_ray.schedules import Schedules
    from flock_ray.triggers import Trigger

__all__ = ["Scheduling", "TimerDeclaring"]

BOUNDS = ("window_start", "window_end")
"""Fields of a model that a sliding window fills in."""

MAX_NAME = 200
MAX_DESCRIBED = 4_000
"""Characters of what ticks say of their schedule."""

_encode = msgspec.msgpack.Encoder().encode


class TimerDeclaring:
    """The part of an agent's builder that knows schedules."""

    _definition: AgentDefinition
    _registry: TypeRegistry

    def schedule(
        self,
        every: timedelta | None = None,
        at: time | datetime | None = None,
        cron: str | None = None,
        after: timedelta | None = None,
        max_repeats: int | None = None,
    ) -> AgentBuilder:
        """Run the agent by the clock, too: its input is then a `TimerTick`. Give one of `every`, `at` and `cron`.

        The schedule has the agent's name and is kept by the board: it fires once per time in the whole cluster, also
        when shards die. What was missed is skipped; `flock.schedule()` has more to choose from.

        Args:
            every: Every so often, the first time at once.
            at: A time: daily, in UTC unless it carries a zone. A datetime with a zone: once.
            cron: Five fields (minute, hour, day of month, month, day of week), in UTC.
            after: Delay before the first time; None is none.
            max_repeats: How often it fires at most; None: without limit.
        """
        from flock_ray.triggers import CronTrigger, DailyTrigger, IntervalTrigger, OnceTrigger, microseconds

        where = f"agent {self._definition.name!r}: schedule()"
        try:
            spec = ScheduleSpec(interval=every, at=at, cron=cron, after=after, max_repeats=max_repeats)
            trigger: Trigger
            if spec.interval is not None:
                trigger = IntervalTrigger(spec.interval)
            elif spec.cron is not None:
                trigger = CronTrigger(spec.cron)
            else:
                trigger = (
                    OnceTrigger(spec.at)
                    if isinstance(spec.at, datetime)
                    else DailyTrigger(cast(time, spec.at))
                )
        except ConfigurationError as error:
            raise ConfigurationError(f"{where} {error}") from None
        return add_schedule(
            self, self._definition.name, trigger, spec.describe(), where, max_repeats=max_repeats or 0,
            after_us=0 if after is None else microseconds(after, f"{where} after"),
        )  # fmt: skip

    def _changed(self) -> AgentBuilder:
        """Tell the flock, and return the builder; the builder does."""
        raise NotImplementedError  # AgentBuilder's


def add_schedule(
    builder: TimerDeclaring,
    name: str,
    trigger: Trigger,
    described: dict[str, Any],
    where: str,
    **options: Any,
) -> AgentBuilder:
    """Add a schedule to an agent, and the subscription to its ticks."""
    definition = builder._definition
    if any(known.name == name for known in definition.schedules):
        raise ConfigurationError(
            f"{where} there is a schedule {name!r} already; another one: flock.schedule(agent=..., name=...)"
        )
    subscription = Subscription(f"{definition.name}/timer", definition.name, (TimerTick,), mode="direct")
    if not definition.schedules:
        if any(other.id == subscription.id for other in definition.subscriptions):
            raise ConfigurationError(f'{where} a subscription is named "timer"; choose another name for it')
        if definition.function is not None:
            signature.check_arguments(definition.name, definition.function, subscription)
        builder._registry.ensure(TimerTick)
        definition.subscriptions.append(subscription)
    text = json.dumps(described)
    definition.schedules += (
        ScheduleInfo(
            name, trigger.spec(), definition.name, subscription.id,
            described=text.encode() if len(text) <= MAX_DESCRIBED else b"{}", **options,
        ),
    )  # fmt: skip
    return builder._changed()


class Scheduling:
    """The part of `Flock` that knows schedules."""

    _builders: dict[str, AgentBuilder]

    def agent(self, name: str) -> AgentBuilder:
        """Declare an agent; `Flock` does."""
        raise NotImplementedError

    async def _ready_board(self) -> Board:
        raise NotImplementedError  # Flock's

    @property
    def schedules(self) -> Schedules:
        """The board's schedules: list, pause, resume, trigger, remove."""
        from flock_ray.schedules import Schedules

        return Schedules(self._ready_board, self._forget_schedule)

    def schedule(
        self,
        agent: AgentBuilder | str | None = None,
        *,
        trigger: Trigger,
        publish: BaseModel | Callable[[Any], Any] | None = None,
        misfire: Misfire = "skip",
        jitter: timedelta | None = None,
        max_repeats: int | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        name: str | None = None,
    ) -> str:
        """Publish something, or run an agent, by the clock. It is kept by the board and takes effect at deploy.

        It fires once per time in the whole cluster, through crashes and restarts. The same declaration again changes
        nothing; another one under the same name holds from then on, and keeps how often it has fired. What a program
        does not declare any more stays until `flock.schedules.remove(name)`.

        Args:
            agent: Who runs: with a `TimerTick` as its input, or, with `publish`, because it consumes what is published.
            trigger: When: `CronTrigger`, `IntervalTrigger`, `DailyTrigger`, `OnceTrigger` or `SlidingWindowTrigger`.
            publish: A model, published anew each time, or a function of the context (`ctx.fire_time`,
                `ctx.timer_iteration`, `ctx.window`) that says in its return annotation what it makes. An agent
                `schedule-<name>` publishes it. With a sliding window, fields `window_start` and `window_end` of the
                model are filled in.
            misfire: What becomes of times at which the board was away, halted, or the schedule paused: "skip" drops
                them, unless the newest is less than a minute late; "fire_once" fires once for all of them; "catch_up"
                fires for each one, at most the newest 1,000.
            jitter: Fire later by up to so much: each time by the same, whoever asks; None: at once.
            max_repeats: How often it fires at most; None: without limit.
            start: Not before, with a time zone; an interval counts from it. None: from now on.
            end: Not after, with a time zone; None: for ever.
            name: Identity of the schedule across deploys; None: the agent's name, or that of what is published.

        Returns:
            Its name.

        Raises:
            ConfigurationError: Something makes no sense, or this flock has a schedule of that name.
        """
        from flock_ray.triggers import Trigger as Known
        from flock_ray.triggers import microseconds, moment_us

        if agent is None and publish is None:
            raise ConfigurationError("flock.schedule(): say what happens: agent=, publish=, or both.")
        target = agent if agent is None or isinstance(agent, str) else agent.name
        name = _checked_name(name or _default_name(target, publish))
        where = f"flock.schedule({name!r}):"
        given: object = trigger
        if not isinstance(given, get_args(Known)):
            raise ConfigurationError(
                f'{where} trigger={trigger!r}: give CronTrigger("0 9 * * *"), IntervalTrigger(timedelta(hours=1)), '
                "DailyTrigger(time(9)), OnceTrigger(datetime(...)) or SlidingWindowTrigger(window=..., slide=...)."
            )
        if misfire not in get_args(Misfire):
            raise ConfigurationError(
                f"{where} misfire={misfire!r}: choose one of {', '.join(get_args(Misfire))}."
            )
        if max_repeats is not None and (type(max_repeats) is not int or max_repeats < 1):
            raise ConfigurationError(
                f"{where} max_repeats={max_repeats!r}: give a whole number from 1, or None."
            )
        options = {
            "misfire": misfire, "max_repeats": max_repeats or 0,
            "jitter_us": 0 if jitter is None else microseconds(jitter, f"{where} jitter"),
            "start_us": 0 if start is None else moment_us(start, f"{where} start"),
            "end_us": 0 if end is None else moment_us(end, f"{where} end"),
        }  # fmt: skip
        if start is not None and end is not None and end < start:
            raise ConfigurationError(f"{where} it ends at {end} before it starts at {start}; swap them.")
        if any(s.name == name for b in self._builders.values() for s in b.definition.schedules):
            raise ConfigurationError(f"{where} this flock has a schedule of that name already; give name=.")
        described = {**trigger.describe(), **({} if max_repeats is None else {"max_repeats": max_repeats})}
        if publish is None:
            builder = self._builders.get(target or "")
            if builder is None:
                raise ConfigurationError(
                    f"{where} there is no agent {target!r} in this flock; declare it first."
                )
        else:
            builder = self._publisher_of(name, publish, target, where)
        add_schedule(builder, name, trigger, described, where, **options)
        return name

    def _publisher_of(self, name: str, publish: object, target: str | None, where: str) -> AgentBuilder:
        """Declare the agent that publishes something for a schedule."""
        made, function, digest = _made_by(publish, where)
        builder = self.agent(f"schedule-{name}")
        builder.publishes(*made).runs(function)
        builder.description(
            f"Publishes {', '.join(cls.__name__ for cls in made)} for schedule {name} ({digest})."
        )
        builder.definition.schedule_for = target
        return builder

    def _forget_schedule(self, name: str) -> None:
        """Declare a schedule no more: another deploy would bring it back."""
        for builder in self._builders.values():
            definition = builder.definition
            definition.schedules = tuple(known for known in definition.schedules if known.name != name)

    async def _install_schedules(self, board: Board, definitions: Sequence[AgentDefinition]) -> None:
        """Tell the board of the schedules of its agents, which it knows by now."""
        calls = []
        for definition in definitions:
            if definition.schedule_for is not None:
                _check_target(board, definition)
            for info in definition.schedules:
                shard = shard_of(home_of_schedule(info.name), board.num_shards)
                calls.append(board.ask_shard(shard, "set_schedule", _encode(info)))
        if "full" in await asyncio.gather(*calls):
            raise CapacityError(
                "The board has too many schedules. Remove some: flock.schedules.remove(name)."
            )


def _check_target(board: Board, definition: AgentDefinition) -> None:
    """Refuse a schedule whose agent would not get what is published."""
    name, made = definition.schedule_for, [o.type for g in definition.output_groups for o in g.outputs]
    target = board.edge.table.definitions.get(name or "")
    where = (
        f"flock.schedule({definition.schedules[0].name!r}):" if definition.schedules else "flock.schedule():"
    )
    if target is None:
        raise ConfigurationError(
            f"{where} there is no agent {name!r} on the board; declare it, or leave agent= out."
        )
    consumed = {cls for subscription in target.subscriptions for cls in subscription.types}
    if consumed.isdisjoint(made):
        names = " or ".join(cls.__name__ for cls in made)
        raise ConfigurationError(
            f"{where} agent {name!r} does not consume {names}; add .consumes({made[0].__name__})."
        )


def _default_name(agent: str | None, publish: object) -> str:
    if agent is not None:
        return agent
    name = (
        type(publish).__name__ if isinstance(publish, BaseModel) else getattr(publish, "__name__", "<lambda>")
    )
    if name == "<lambda>":
        raise ConfigurationError("flock.schedule(): give name=, by which the board knows the schedule.")
    return str(name)


def _checked_name(name: object) -> str:
    if (
        not isinstance(name, str)
        or not name.strip()
        or "/" in name
        or not name.isprintable()
        or len(name) > MAX_NAME
    ):
        raise ConfigurationError(
            f"flock.schedule(name={name!r}): give a text without '/', of at most {MAX_NAME} characters."
        )
    return name


def _made_by(publish: object, where: str) -> tuple[list[type[BaseModel]], Callable[..., Any], str]:
    """Return the types that a schedule publishes, the function that makes them, and a hash of what it does."""
    if isinstance(publish, BaseModel):
        data = publish.model_dump_json().encode()
        return [type(publish)], _giving(publish, where), blake2b(data, digest_size=6).hexdigest()
    if isinstance(publish, type) or not callable(publish):
        raise ConfigurationError(
            f"{where} publish={publish!r}: give a model, as in publish=Request(...), or a function of the context."
        )
    try:
        inspect.signature(publish).bind(None)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"{where} publish= takes a function of the context: def request(ctx) -> ReportRequest"
        ) from None
    hint = resolved_hints(publish).get("return")
    made = [leaf for leaf in signature.classes_of(hint) if issubclass(leaf, BaseModel)]
    if not made:
        raise ConfigurationError(
            f"{where} the function of publish= does not say what it makes: annotate its return, as in "
            "def request(ctx) -> ReportRequest"
        )
    code = getattr(publish, "__code__", None)
    data = repr(type(publish)).encode() if code is None else marshal.dumps(code)
    return list(dict.fromkeys(made)), _calling(publish), blake2b(data, digest_size=6).hexdigest()


def _giving(model: BaseModel, where: str) -> Callable[..., Any]:
    as_text = {name: _takes_text(model, name, where) for name in BOUNDS if name in type(model).model_fields}

    def give(tick: TimerTick) -> Any:
        bounds = {
            name: bound.isoformat() if text else bound
            for name, text in as_text.items()
            if (bound := getattr(tick, name)) is not None
        }
        return model.model_copy(update=bounds, deep=True)

    return give


def _takes_text(model: BaseModel, name: str, where: str) -> bool:
    """Say whether a bound of a window is text in a model; a datetime otherwise."""
    kinds = signature.classes_of(type(model).model_fields[name].annotation)
    if datetime in kinds or AwareDatetime in kinds:
        return False
    if str in kinds:
        return True
    raise ConfigurationError(
        f"{where} {type(model).__name__}.{name} would hold a bound of the window: make it a datetime, or name it "
        "otherwise."
    )


def _calling(function: Callable[[Any], Any]) -> Callable[..., Any]:
    async def call_async(ctx: Any, tick: Any) -> Any:
        return await function(ctx)

    def call(ctx: Any, tick: Any) -> Any:
        return function(ctx)

    return call_async if inspect.iscoroutinefunction(function) else call
