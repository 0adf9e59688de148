"""Matching: which subscriptions an artifact satisfies. Runs at the edge, where the model is at hand.

The table is compiled once per version into candidates by type, so the cost of a match depends on
who listens to that type and on nothing else. User code (predicates, join keys, `When` field tests)
only runs here, never in a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from pydantic import BaseModel

from flock_ray.core.agent_infos import agent_info
from flock_ray.core.balloting import encoded_ballot, explained, group_key
from flock_ray.core.conditions import WhenSpec, compile_when, encode_when
from flock_ray.core.definition import AgentDefinition, Subscription
from flock_ray.core.ids import derive_id
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.similarity import Meaning, Vectors, describe
from flock_ray.core.visibility import AgentIdentity, Visibility, decode_visibility, earliest_visible_us
from flock_ray.core.wire import Envelope, Match, Refusal, SubscriptionSpec, TableSpec
from flock_ray.errors import FlockError, safe_error_text

MAX_KEY_BYTES = 64
"""A longer join key is replaced by its hash."""

_US = 1_000_000


class Check(NamedTuple):
    """One condition of a subscription and what an artifact made of it."""

    condition: str
    passed: bool
    value: str
    error: str | None = None
    """What the predicate raised; None when it answered."""
    due_us: int = 0
    """The condition holds from this time on; 0 is now."""


class Matched(NamedTuple):
    """What the edge found out about one artifact."""

    matches: tuple[Match, ...]
    signals: tuple[tuple[str, int], ...] = ()
    refusals: tuple[Refusal, ...] = ()
    later: tuple[str, ...] = ()
    """Subscriptions whose `where` does not hold, and that want to be asked again."""


class Later:
    """Instead of a match: the `where` of a subscription does not hold yet."""


LATER = Later()


class Candidate:
    """One subscription, ready to be tested against artifacts of one of its types."""

    __slots__ = (
        "aggregate", "definition", "identity", "limits", "meaning", "plain", "self_trigger", "subscription", "when",
    )  # fmt: skip

    def __init__(self, subscription: Subscription, definition: AgentDefinition) -> None:
        """Compile one subscription."""
        self.subscription = subscription
        self.definition = definition
        self.self_trigger = not definition.prevent_self_trigger
        self.identity = AgentIdentity(
            name=definition.name, labels=definition.labels, tenant_id=definition.tenant
        )
        sub = subscription
        self.meaning = Meaning(sub.semantic, definition.embedder) if sub.semantic else None
        """Compares artifacts with the queries of `semantic_match`; None when there are none."""
        self.aggregate = sub.aggregate
        limits = definition.limits
        self.limits = limits if limits is not None and limits.key is not None else None
        """Limits that are kept by key; None when there are none."""
        self.plain = not (
            sub.where
            or sub.from_agents
            or sub.tags
            or sub.join
            or sub.semantic
            or sub.aggregate
            or definition.gate
            or self.limits
            or sub.delivery == "exclusive"
        )
        """True when only the producer and the visibility can stand in the way."""
        self.when: WhenSpec | None = None

    def checks(
        self, envelope: Envelope, visibility: Visibility | None, model: Callable[[], Any]
    ) -> Iterator[Check]:
        """Test the conditions in order, cheap ones first; the caller stops at the first that fails."""
        sub = self.subscription
        own = envelope.produced_by == sub.agent
        yield Check("not own output", self.self_trigger or not own, envelope.produced_by)
        if sub.from_agents:
            yield Check("from_agents", envelope.produced_by in sub.from_agents, envelope.produced_by)
        if sub.tags:
            yield Check("tags", not sub.tags.isdisjoint(envelope.tags), ", ".join(envelope.tags))
        if visibility is not None and not self.definition.sees_all:
            due = earliest_visible_us(visibility, self.identity, envelope.created_us)
            later = due is not None and due > envelope.created_us
            yield Check(
                "visibility", due is not None, str(visibility), None, due if later and due is not None else 0
            )
        for position, predicate in enumerate(sub.where):
            yield _test(f"where[{position}]", predicate, model)
        if self.meaning is not None:
            for score in self.meaning.scores(model()):
                yield Check(*describe(score))
        if self.definition.gate is not None:
            yield from self.definition.gate.checks(envelope, self.definition, sub)

    def may_take(self, produced_by: str) -> bool:
        """Say whether artifacts of a producer are tested at all."""
        sub = self.subscription
        return (self.self_trigger or produced_by != sub.agent) and (
            not sub.from_agents or produced_by in sub.from_agents
        )

    def key(self, model: Callable[[], Any]) -> bytes | Refusal:
        """Return the canonical key of a join or an aggregate, or why there is none."""
        join = self.subscription.join
        if self.aggregate is not None:
            return group_key(self.aggregate, self.subscription.id, model)
        if join is None:
            return b""
        try:
            data = msgspec.json.encode(join.by(model()), order="deterministic")
        except Exception as error:
            kind, text = safe_error_text(error)
            return Refusal(self.subscription.id, "join key", f"{kind}: {text}")
        return data if len(data) <= MAX_KEY_BYTES else derive_id(data)

    def lane(self, model: Callable[[], Any]) -> str | Refusal:
        """Return the key of the agent's limits, or why there is none."""
        if self.limits is None:
            return ""
        try:
            lane: str = self.limits.lane(model())
        except Exception as error:
            kind, text = safe_error_text(error)
            return Refusal(self.subscription.id, "limit key", f"{kind}: {text}")
        return lane


def _test(name: str, predicate: Callable[[Any], Any], model: Callable[[], Any]) -> Check:
    try:
        answer = bool(predicate(model()))
    except Exception as error:
        kind, text = safe_error_text(error)
        return Check(name, False, "raised", f"{kind}: {text}")
    return Check(name, answer, str(answer))


class _ForType(NamedTuple):
    candidates: tuple[Candidate, ...]
    plain: tuple[Match, ...] | None
    """The whole answer for public artifacts of other producers, when no candidate has conditions."""
    producers: frozenset[str]
    """Agents whose own output is not theirs to consume."""
    tests: tuple[tuple[str, int, Callable[[Any], bool]], ...]
    """(subscription, flag, predicate) of `When` field conditions on the type."""
    by_meaning: tuple[Candidate, ...] = ()
    """Those that compare the text of artifacts."""


_NOBODY = _ForType((), (), frozenset(), ())


class MatchTable:
    """One version of the subscription table, compiled for matching."""

    def __init__(self, version: int, definitions: Sequence[AgentDefinition], registry: TypeRegistry) -> None:
        """Compile the table.

        Args:
            version: Number that the router gave to this set of agents; 0 for an empty board.
            definitions: Every agent of the board.
            registry: Where the names of types come from.
        """
        self.version = version
        self.definitions = {definition.name: definition for definition in definitions}
        self._registry = registry
        candidates: dict[str, list[Candidate]] = {}
        tests: dict[str, list[tuple[str, int, Callable[[Any], bool]]]] = {}
        specs: list[SubscriptionSpec] = []
        for definition in definitions:
            for sub in definition.subscriptions:
                candidate = Candidate(sub, definition)
                if sub.activation is not None:
                    candidate.when = compile_when(sub.activation)
                    for flag, test in enumerate(candidate.when.predicates):
                        tests.setdefault(test.type_name, []).append((sub.id, flag, test.holds))
                specs.append(_spec(candidate, registry))
                if sub.mode == "direct":
                    continue
                for cls in dict.fromkeys(sub.types):
                    candidates.setdefault(registry.name_for(cls), []).append(candidate)
        self.spec = TableSpec(version, tuple(agent_info(d, registry) for d in definitions), tuple(specs))
        self._types = {
            name: _compile(sorted(candidates.get(name, ()), key=_rank), tests.get(name, ()))
            for name in candidates.keys() | tests.keys()
        }
        self.compares = any(table.by_meaning for table in self._types.values())
        """Whether any subscription compares the text of artifacts: matching may then call an embedder."""

    def listens(self, type_name: str) -> bool:
        """Say whether any subscription names the type."""
        return type_name in self._types

    def plain(self, type_name: str, produced_by: str) -> tuple[Match, ...] | None:
        """Return who gets public artifacts of a type, when nothing else decides; None: `match` has to look."""
        table = self._types.get(type_name, _NOBODY)
        return None if table.plain is None or produced_by in table.producers else table.plain

    def match(self, envelope: Envelope, model: BaseModel | None, not_before_us: int = 0) -> Matched:
        """Decide who gets an artifact. Embeds what `texts` yields, unless that was done before.

        Args:
            envelope: The artifact.
            model: Its payload as a model; None: it is decoded if a condition needs it.
            not_before_us: Earliest delivery of all matches; 0 for at once.

        Raises:
            ModelError: A subscription compares meanings and the embedder failed.
            ConfigurationError: A subscription compares meanings and there is no embedder.
        """
        table = self._types.get(envelope.type, _NOBODY)
        if (
            table.plain is not None
            and envelope.visibility is None
            and not not_before_us
            and envelope.produced_by not in table.producers
        ):
            return Matched(table.plain)
        return self._match_slowly(table, envelope, model, not_before_us)

    def _match_slowly(
        self, table: _ForType, envelope: Envelope, model: BaseModel | None, not_before_us: int
    ) -> Matched:
        get = self._decoder(envelope, model)
        visibility = None if envelope.visibility is None else decode_visibility(envelope.visibility)
        matches: list[Match] = []
        refusals: list[Refusal] = []
        later: list[Candidate] = []
        exclusive: list[tuple[Candidate, Match]] = []
        served: set[str] = set()
        for candidate in table.candidates:
            sub = candidate.subscription
            single = sub.kind == "single"
            if single and sub.agent in served:
                continue
            match = _match_one(candidate, envelope, visibility, get, not_before_us, refusals)
            if match is None:
                continue
            if isinstance(match, Later):
                later.append(candidate)
                continue
            if sub.delivery == "exclusive":
                exclusive.append((candidate, match))
                continue
            matches.append(match)
            if single:
                served.add(sub.agent)
        if exclusive:
            winner, match = _choose(exclusive, envelope.id)
            # An agent that also has a plain subscription on the type gets the artifact once, by that one.
            if winner.subscription.kind != "single" or winner.subscription.agent not in served:
                matches.append(match)
        signals = tuple(_signals(table.tests, get, refusals)) if table.tests else ()
        asked_again = tuple(
            c.subscription.id
            for c in later
            if c.subscription.kind != "single" or c.subscription.agent not in served
        )
        return Matched(tuple(matches), signals, tuple(refusals), asked_again)

    def match_again(self, envelope: Envelope, subscription: str) -> Matched:
        """Decide whether one subscription gets an artifact that it did not get when that was published.

        Args:
            envelope: The artifact.
            subscription: Id of the subscription; one that is gone gets nothing.

        Raises:
            ModelError: The subscription compares meanings and the embedder failed.
        """
        for candidate in self._types.get(envelope.type, _NOBODY).candidates:
            if candidate.subscription.id == subscription:
                visibility = None if envelope.visibility is None else decode_visibility(envelope.visibility)
                refusals: list[Refusal] = []
                match = _match_one(candidate, envelope, visibility, self._decoder(envelope), 0, refusals)
                later = (subscription,) if isinstance(match, Later) else ()
                return Matched((match,) if isinstance(match, Match) else (), (), tuple(refusals), later)
        return Matched(())

    def _decoder(self, envelope: Envelope, model: BaseModel | None = None) -> Callable[[], BaseModel]:
        """Return what gives the payload as a model, decoded once."""
        decoded: list[BaseModel] = [] if model is None else [model]

        def get() -> BaseModel:
            if not decoded:
                decoded.append(self._registry.validate(envelope.type, envelope.version, envelope.payload))
            return decoded[0]

        return get

    def texts(
        self, type_name: str, produced_by: str, model: BaseModel
    ) -> Iterator[tuple[Vectors, list[str]]]:
        """Yield what must be embedded before an artifact of this payload is matched, by embedder."""
        for candidate in self._types.get(type_name, _NOBODY).by_meaning:
            meaning = candidate.meaning
            if meaning is not None and meaning.vectors is not None and candidate.may_take(produced_by):
                yield meaning.vectors, meaning.texts(model)

    def explain(self, envelope: Envelope) -> dict[str, list[Check]]:
        """Evaluate every condition of every subscription on the artifact's type, without stopping early."""
        get = self._decoder(envelope)
        out = {
            candidate.subscription.id: candidate_checks(candidate, envelope, get)
            for candidate in self._types.get(envelope.type, _NOBODY).candidates
        }
        self._explain_exclusive(envelope, out)
        return out

    def _explain_exclusive(self, envelope: Envelope, out: dict[str, list[Check]]) -> None:
        candidates = [
            (candidate, Match(candidate.subscription.id))
            for candidate in self._types.get(envelope.type, _NOBODY).candidates
            if candidate.subscription.delivery == "exclusive"
            and all(check.passed for check in out[candidate.subscription.id])
        ]
        if candidates:
            chosen = _choose(candidates, envelope.id)[1].subscription
            for candidate, _ in candidates:
                name = candidate.subscription.id
                out[name].append(Check("exclusive", name == chosen, f"goes to {chosen}"))


def _match_one(
    candidate: Candidate,
    envelope: Envelope,
    visibility: Visibility | None,
    get: Callable[[], BaseModel],
    not_before_us: int,
    refusals: list[Refusal],
) -> Match | Later | None:
    due_us = not_before_us
    for check in candidate.checks(envelope, visibility, get):
        if check.error is not None:
            refusals.append(Refusal(candidate.subscription.id, check.condition, check.error))
        if not check.passed:
            again = candidate.subscription.reevaluate_us and check.error is None
            return LATER if again and check.condition.startswith("where[") else None
        due_us = max(due_us, check.due_us)
    key = candidate.key(get)
    if isinstance(key, Refusal):
        refusals.append(key)
        return None
    lane = "" if candidate.limits is None else candidate.lane(get)
    if isinstance(lane, Refusal):
        refusals.append(lane)
        return None
    spec = candidate.aggregate
    ballot = b"" if spec is None else encoded_ballot(spec, candidate.subscription.id, get, envelope)
    if isinstance(ballot, Refusal):
        refusals.append(ballot)
        return None
    return Match(candidate.subscription.id, key, due_us, lane, ballot)


def candidate_checks(candidate: Candidate, envelope: Envelope, model: Callable[[], Any]) -> list[Check]:
    """Evaluate every condition of one subscription, its keys included, without stopping early."""
    visibility = None if envelope.visibility is None else decode_visibility(envelope.visibility)
    checks = _all_checks(candidate.checks(envelope, visibility, model))
    if candidate.subscription.join is not None:
        checks.append(_key_check("join key", candidate.key(model)))
    if candidate.limits is not None:
        checks.append(_key_check("limit key", candidate.lane(model)))
    if candidate.aggregate is not None:
        checks += [Check(*one) for one in explained(candidate.aggregate, envelope, model)]
    return checks


def _all_checks(checks: Iterator[Check]) -> list[Check]:
    """Collect checks; an embedder that fails is a check that did not pass."""
    found: list[Check] = []
    try:
        found.extend(checks)
    except FlockError as error:
        kind, text = safe_error_text(error)
        found.append(Check("semantic", False, "unknown", f"{kind}: {text}"))
    return found


def _key_check(name: str, key: bytes | str | Refusal) -> Check:
    if isinstance(key, Refusal):
        return Check(name, False, "raised", key.error)
    return Check(name, True, repr(key))


def _rank(candidate: Candidate) -> int:
    return -candidate.subscription.priority


def _compile(
    candidates: list[Candidate], tests: Sequence[tuple[str, int, Callable[[Any], bool]]]
) -> _ForType:
    plain: tuple[Match, ...] | None = None
    if not tests and all(c.plain for c in candidates):
        served: set[str] = set()
        matches = []
        for candidate in candidates:
            sub = candidate.subscription
            if sub.kind == "single":
                if sub.agent in served:
                    continue
                served.add(sub.agent)
            matches.append(Match(sub.id))
        plain = tuple(matches)
    producers = frozenset(c.subscription.agent for c in candidates if not c.self_trigger)
    by_meaning = tuple(c for c in candidates if c.meaning is not None)
    return _ForType(tuple(candidates), plain, producers, tuple(tests), by_meaning)


def _choose(exclusive: list[tuple[Candidate, Match]], artifact_id: bytes) -> tuple[Candidate, Match]:
    """Pick one: the highest priority, and among equals evenly by the artifact's id."""
    top = max(candidate.subscription.priority for candidate, _ in exclusive)
    best = [entry for entry in exclusive if entry[0].subscription.priority == top]
    return min(best, key=lambda entry: derive_id(entry[0].subscription.id.encode(), artifact_id))


def _signals(
    tests: Sequence[tuple[str, int, Callable[[Any], bool]]],
    get: Callable[[], BaseModel],
    refusals: list[Refusal],
) -> Iterator[tuple[str, int]]:
    for subscription, flag, predicate in tests:
        check = _test("activation", predicate, get)
        if check.error is not None:
            refusals.append(Refusal(subscription, check.condition, check.error))
        elif check.passed:
            yield subscription, flag


def _spec(candidate: Candidate, registry: TypeRegistry) -> SubscriptionSpec:
    sub = candidate.subscription
    within_us = within_count = batch_size = batch_timeout_us = 0
    if sub.join is not None:
        if isinstance(sub.join.within, int):
            within_count = sub.join.within
        else:
            within_us = int(sub.join.within.total_seconds() * _US)
    if sub.batch is not None:
        batch_size = sub.batch.size or 0
        if sub.batch.timeout is not None:
            batch_timeout_us = max(1, int(sub.batch.timeout.total_seconds() * _US))
    return SubscriptionSpec(
        id=sub.id,
        agent=sub.agent,
        types=tuple(registry.name_for(cls) for cls in sub.types),
        kind=sub.kind,
        scope=sub.scope or ("workflow" if sub.kind in ("single", "and") else "board"),
        within_us=within_us,
        within_count=within_count,
        batch_size=batch_size,
        batch_timeout_us=batch_timeout_us,
        priority=sub.priority,
        exclusive=sub.delivery == "exclusive",
        when=encode_when(candidate.when) if candidate.when is not None else b"",
        reevaluate_us=sub.reevaluate_us,
        fan_in=sub.fan_in,
        aggregate=None if sub.aggregate is None else sub.aggregate.rule(),
    )
