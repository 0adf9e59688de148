"""Fan-out and fan-in: the part of `AgentBuilder` that declares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from flock_ray import agent_checks as checks
from flock_ray.core.definition import OutputGroup, OutputSpec, Subscription
from flock_ray.core.scatter import FanInRule
from flock_ray.engines.fan.chunking import FanOut, FanOutStrategy, plan_of
from flock_ray.engines.fan.merging import FanIn, FanInStrategy, collecting_field
from flock_ray.engines.function import is_async_callable
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.agent import AgentBuilder
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.registry import TypeRegistry

__all__ = ["FanDeclaring", "check_fan_out", "with_closers"]

OnFailure = Literal["fail", "partial", "wait"]

DEFAULT_WIDTH = 64


class FanDeclaring:
    """The methods of `AgentBuilder` for fan-outs and fan-ins."""

    _definition: AgentDefinition
    _registry: TypeRegistry

    def _at(self, method: str) -> str:
        raise NotImplementedError  # AgentBuilder's

    def _changed(self) -> AgentBuilder:
        raise NotImplementedError  # AgentBuilder's

    def fan_out(
        self,
        into: type[BaseModel],
        *,
        strategy: FanOutStrategy = FanOutStrategy.BY_SIZE,
        chunk_size: int | None = None,
        count: int | None = None,
        key: Callable[[Any], Any] | None = None,
        weight: Callable[[Any], float] | None = None,
        max_weight: float | None = None,
        field: str | None = None,
        build: Callable[[Any, int, Any], Any] | None = None,
        split: Callable[[Any], Iterable[Any]] | None = None,
    ) -> AgentBuilder:
        """Cut each input into chunks, which are worked on by whoever consumes them, on all shards and workers.

        Everything that is made of a chunk remembers which one it was: a `.fan_in()` behind it, however far, knows
        when it has all of them. Chunks are published exactly once, also when the worker dies meanwhile: up to 2,000
        (or 4 MB) at once, more in parts, so that work begins while a large input is still being cut. An input must be
        cut in the same way every time.

        Args:
            into: Type of the chunks. A field of the input that is a list, table, text or `Path` is cut; a chunk's
                field of the same name, or its only list or text, gets the items, `chunk_id` (or `index`) the number
                from 0, and other fields are copied from the input.
            strategy: How it is cut.
            chunk_size: BY_SIZE: items of a chunk, from 1: elements, rows, lines of a file, characters of a text (words
                stay whole). BY_KEY: most items of a chunk; None: no limit.
            count: BY_COUNT: how many chunks, from 1; fewer when there are fewer items.
            key: BY_KEY: gives the key of an item.
            weight: BY_WEIGHT: gives the weight of an item, from 0.
            max_weight: BY_WEIGHT: most that a chunk weighs, above 0; an item that weighs more is a chunk of its own.
            field: Which field of the input is cut; None: the only one that can be.
            build: Makes a chunk of (items, index, input); None: by the names of the fields.
            split: CUSTOM: gives the chunks of an input, as a list or a generator.

        Raises:
            ConfigurationError: A value is missing, or does not belong to the strategy; the agent runs something else.
        """
        at = self._at("fan_out")
        self._refuse_engine(at)
        strategy = _member(FanOutStrategy, strategy, "strategy", at)
        [into] = checks.model_types((into,), at)
        given = {
            "chunk_size": chunk_size, "count": count, "key": key, "weight": weight, "max_weight": max_weight,
            "split": split,
        }  # fmt: skip
        _check_options(strategy, given, at)
        for value, name in ((key, "key"), (weight, "weight"), (build, "build"), (split, "split")):
            if value is not None:
                _sync_function(value, name, at)
        if strategy is FanOutStrategy.CUSTOM and (field is not None or build is not None):
            raise ConfigurationError(f"{at} split= makes the chunks itself: leave field= and build= out")
        self._definition.fan_out = self._definition.function = FanOut(
            into, strategy, chunk_size, count, key, weight, max_weight, field, build, split
        )
        self._publish_one(into)
        return self._changed()

    def fan_in(
        self,
        from_type: type[BaseModel],
        *,
        into: type[BaseModel],
        strategy: FanInStrategy = FanInStrategy.MERGE,
        merge_fn: Callable[..., Any] | None = None,
        combine: Callable[..., Any] | None = None,
        min_fraction: float = 1.0,
        timeout: timedelta | None = None,
        on_failure: OnFailure = "fail",
        closes: str | None = None,
        width: int = DEFAULT_WIDTH,
    ) -> AgentBuilder:
        """Wait until the chunks of a fan-out have delivered what they will, and make one result of it. Exactly once.

        Of every chunk the board knows whether anything still runs or waits for it. So the result is made as soon as
        the last chunk is through, however many agents are in between, and one that failed, or of which nobody made
        anything, is known to be missing without a timeout. Inputs come in the order of their chunks.

        Args:
            from_type: What the chunks deliver, in the end.
            into: Type of the result.
            strategy: How it is made.
            merge_fn: Gets the list of what was delivered and returns the result; sync or async. With a second
                parameter it also gets a `Gathered`: how many chunks there were, and which are missing. REDUCE: it is
                called with up to `width` at a time. COLLECT and FIRST_SUCCESS do without.
            combine: REDUCE: merges results of `merge_fn` further; None: `merge_fn` does, as for `into` = `from_type`.
            min_fraction: Share of the chunks that must have delivered, above 0 to 1.
            timeout: Since the first chunk was published: then what is there counts, and the rest is withdrawn.
                None: no limit.
            on_failure: When fewer have delivered. "fail": a `WorkflowError` that names what is missing. "partial": the
                result is made of what is there, if there is anything. "wait": until dead letters of the missing chunks
                were redriven, or the time is over.
            closes: Name of the fan-out; None: the one that `from_type` comes from.
            width: REDUCE: inputs of one call, from 2.

        Raises:
            ConfigurationError: A value makes no sense; `into` can't be made; the agent runs something else.
        """
        at = self._at("fan_in")
        self._refuse_engine(at)
        from_type, into = checks.model_types((from_type, into), at)
        strategy = _member(FanInStrategy, strategy, "strategy", at)
        checks.choice(on_failure, ("fail", "partial", "wait"), "on_failure", at)
        fraction: object = min_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise ConfigurationError(
                f"{at} min_fraction must be a number above 0, up to 1, got {min_fraction!r}"
            )
        checks.whole_number(width, "width", at, low=2)
        fan_in = FanIn(from_type, into, strategy, merge_fn, combine)
        _check_merge(fan_in, at)
        timeout_us = 0 if timeout is None else int(checks.duration_s(timeout, "timeout", at) * 1_000_000)
        closing = () if closes is None else (checks.text(closes, "the fan-out's name", at),)
        rule = FanInRule(strategy.value, closing, float(min_fraction), timeout_us, on_failure, width)
        name = self._registry.ensure(from_type).name
        taken = {other.id for other in self._definition.subscriptions}
        identity = checks.subscription_id(self._definition.name, [name], {"fan_in": True}, taken=taken)
        self._definition.subscriptions.append(
            Subscription(id=identity, agent=self._definition.name, types=(from_type,), fan_in=rule)
        )
        self._definition.fan_in = self._definition.function = fan_in
        self._publish_one(into)
        return self._changed()

    def _publish_one(self, model: type[BaseModel]) -> None:
        self._registry.ensure(model)
        self._definition.output_groups.append(OutputGroup(outputs=(OutputSpec(type=model),)))

    def _refuse_engine(self, at: str) -> None:
        definition = self._definition
        if definition.fan_out is not None or definition.fan_in is not None:
            raise ConfigurationError(f"{at} the agent has a fan_out or a fan_in already: make it two agents")
        if definition.function is not None or definition.engines:
            raise ConfigurationError(f"{at} the agent runs a function or engines already: make it two agents")
        if definition.output_groups:
            raise ConfigurationError(f"{at} says itself what is published: leave publishes() out")


def check_fan_out(definition: AgentDefinition) -> None:
    """Check what only the whole declaration of a fan-out or fan-in shows.

    Raises:
        ConfigurationError: It does not fit together.
    """
    fan_out, at = definition.fan_out, f"agent {definition.name!r}:"
    if fan_out is None and definition.fan_in is None:
        return
    if len(definition.output_groups) != 1:
        raise ConfigurationError(f"{at} fan_out() and fan_in() say what is published: leave publishes() out")
    if definition.best_of is not None or definition.utilities or definition.calls is not None:
        raise ConfigurationError(
            f"{at} best_of(), calls() and with_utilities() don't go with fan_out() and fan_in(): put them on an agent "
            "before or behind"
        )
    if definition.fan_in is not None:
        if len(definition.subscriptions) != 1:
            raise ConfigurationError(f"{at} fan_in() says what is consumed: leave consumes() out")
        return
    for subscription in definition.subscriptions:
        if subscription.kind != "single":
            raise ConfigurationError(
                f"{at} a fan-out cuts one input at a time: consume one type, without batch="
            )
        if fan_out is not None and fan_out.split is None:
            try:
                plan_of(fan_out, subscription.types[0])
            except ConfigurationError as error:
                raise ConfigurationError(f"{at} fan_out() {error}") from None


_OPTIONS = {
    FanOutStrategy.BY_SIZE: (("chunk_size",), ()),
    FanOutStrategy.BY_COUNT: (("count",), ()),
    FanOutStrategy.BY_KEY: (("key",), ("chunk_size",)),
    FanOutStrategy.BY_WEIGHT: (("weight", "max_weight"), ()),
    FanOutStrategy.CUSTOM: (("split",), ()),
}


def _check_options(strategy: FanOutStrategy, given: dict[str, Any], at: str) -> None:
    required, optional = _OPTIONS[strategy]
    for name in required:
        if given[name] is None:
            raise ConfigurationError(f"{at} strategy {strategy.name} needs {name}=")
    for name, value in given.items():
        if value is not None and name not in (*required, *optional):
            raise ConfigurationError(
                f"{at} {name}= does not belong to strategy {strategy.name}; leave it out"
            )
    for name in ("chunk_size", "count"):
        if given[name] is not None:
            checks.whole_number(given[name], name, at)
    limit = given["max_weight"]
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
        raise ConfigurationError(f"{at} max_weight must be a number above 0, got {limit!r}")


def _check_merge(fan_in: FanIn, at: str) -> None:
    strategy = fan_in.strategy
    for value, name in ((fan_in.merge_fn, "merge_fn"), (fan_in.combine, "combine")):
        if value is not None:
            checks.function(value, f"{name} to be a function", at)
    if strategy in (FanInStrategy.MERGE, FanInStrategy.REDUCE) and fan_in.merge_fn is None:
        raise ConfigurationError(
            f"{at} strategy {strategy.name} needs merge_fn=: a function of the list of {fan_in.from_type.__name__} "
            f"that returns a {fan_in.into.__name__}"
        )
    if fan_in.combine is not None and strategy is not FanInStrategy.REDUCE:
        raise ConfigurationError(f"{at} combine= belongs to strategy REDUCE; leave it out")
    if strategy is FanInStrategy.REDUCE and fan_in.combine is None and fan_in.from_type is not fan_in.into:
        raise ConfigurationError(
            f"{at} merge_fn makes a {fan_in.into.__name__} of {fan_in.from_type.__name__}s; say how these are merged "
            f"further: combine=lambda results: {fan_in.into.__name__}(...), or make into= the same type as from_type="
        )
    if fan_in.merge_fn is None:
        try:
            if strategy is FanInStrategy.COLLECT:
                collecting_field(fan_in)
            elif fan_in.from_type is not fan_in.into:
                raise ConfigurationError(
                    f"the first {fan_in.from_type.__name__} is no {fan_in.into.__name__}: make into= the same type, or "
                    f"give merge_fn=lambda chunks: {fan_in.into.__name__}(...)"
                )
        except ConfigurationError as error:
            raise ConfigurationError(f"{at} {error}") from None


def _sync_function(value: Any, name: str, at: str) -> None:
    checks.function(value, f"{name} to be a function", at)
    if is_async_callable(value):
        raise ConfigurationError(f"{at} {name}= is called without await: give a plain function")


def _member(kind: Any, value: Any, name: str, at: str) -> Any:
    if isinstance(value, kind):
        return value
    try:
        return kind(value)
    except ValueError:
        members = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
        raise ConfigurationError(f"{at} {name} must be one of {members}; got {value!r}") from None


def with_closers(definitions: list[AgentDefinition], closers: dict[str, tuple[str, ...]]) -> None:
    """Tell every fan-in which fan-outs it closes."""
    for definition in definitions:
        for place, subscription in enumerate(definition.subscriptions):
            rule = subscription.fan_in
            if rule is not None and subscription.id in closers:
                changed = msgspec.structs.replace(rule, closes=closers[subscription.id])
                definition.subscriptions[place] = dataclasses.replace(subscription, fan_in=changed)
