"""Static analysis of a flock: what can be said about its agents before any of them ran."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from flock_ray.core.clock_reading import clock_read_by
from flock_ray.core.definition import AgentDefinition, Subscription
from flock_ray.core.flow import OUTSIDE, Flow, endless_loops, outputs_of
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.results import ResultPlan
from flock_ray.core.visibility import AgentIdentity, Visibility

__all__ = ["Finding", "check"]

Level = Literal["error", "warning", "info"]

MAX_BATCH_SIZE = 100_000
MAX_CONCURRENCY = 1000
MAX_BEST_OF = 100

_RANK: dict[Level, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or at least remarkable."""

    level: Level
    """error: the agent cannot work; warning: probably not what was meant; info: good to know."""
    code: str
    """Stable name of the kind of finding."""
    agent: str
    message: str
    fix: str
    """What to change, as a sentence without its full stop."""

    def __str__(self) -> str:
        """Write the finding on one line."""
        return f"{self.level} {self.code}: agent {self.agent!r}: {self.message}; {self.fix}."


def check(
    definitions: Sequence[AgentDefinition],
    registry: TypeRegistry,
    published_from_outside: Collection[str] = (),
    *,
    has_embedder: bool = True,
) -> list[Finding]:
    """Look for what cannot work, or probably was not meant.

    Args:
        definitions: All agents of the flock.
        registry: Gives the names of their types.
        published_from_outside: Names of types that the program, or a client, publishes.
        has_embedder: Whether something compares meanings.

    Returns:
        The findings: errors first, then warnings and infos, each by agent; the same for the same
        declarations in any order.
    """
    flow = Flow(definitions, registry, published_from_outside)
    findings: set[Finding] = set()
    for definition in definitions:
        findings.update(_engine(definition))
        findings.update(_limits(definition))
        findings.update(_clock(definition))
        if not has_embedder:
            findings.update(_meaning(definition))
        findings.update(_inputs(flow, definition))
        findings.update(_aggregates(flow, definition))
        findings.update(_outputs(flow, definition))
        findings.update(_widening(flow, definition))
    findings.update(_exclusive(flow))
    findings.update(_loops(flow))
    return sorted(findings, key=lambda f: (_RANK[f.level], f.agent, f.code, f.message))


def _sees(visibility: Visibility, agent: AgentDefinition) -> bool:
    """Tell whether an agent sees an artifact of this visibility, now or later."""
    identity = AgentIdentity(name=agent.name, labels=agent.labels, tenant_id=agent.tenant)
    return visibility.visible_after(identity) is not None


def _engine(definition: AgentDefinition) -> Iterator[Finding]:
    if definition.function is None and not definition.engines and not _makes_its_result(definition):
        yield Finding(
            "error",
            "NoEngine",
            definition.name,
            "nothing runs this agent",
            "add .runs(fn) or .with_engines(...)",
        )
    if not definition.subscriptions:
        yield Finding(
            "error",
            "NoConsumes",
            definition.name,
            "consumes nothing, so no published artifact ever starts it",
            "add .consumes(...), or remove the agent",
        )


def _makes_its_result(definition: AgentDefinition) -> bool:
    """Tell whether an agent only makes results of aggregates, and needs no engine for them."""
    return bool(definition.subscriptions) and all(
        sub.aggregate is not None and ResultPlan(sub.aggregate, sub.types[0], "").is_complete
        for sub in definition.subscriptions
    )


def _aggregates(flow: Flow, definition: AgentDefinition) -> Iterator[Finding]:
    """Find groups that may never be decided, or before their votes are there."""
    for sub, (name,) in ((s, n) for s, n in flow.subscriptions(definition) if s.aggregate is not None):
        spec = sub.aggregate
        made = any(edge.subscription is sub for edge in flow.entering[definition.name])
        if spec is None or not flow.arrives(sub, name):
            continue
        if spec.window is not None and not spec.timeout_us and sub.scope != "workflow":
            yield Finding(
                "warning", "WindowsStayOpen", definition.name,
                f"only new {name} close its windows: the last ones stay open when none come any more",
                "give aggregates() timeout=, after which all open windows of a group are closed",
            )  # fmt: skip
        elif spec.count and not spec.timeout_us and made:
            yield Finding(
                "warning", "WaitsForAll", definition.name,
                f"waits for ever for {spec.count} x {name} when one run that should publish it fails",
                "give aggregates() timeout=, and on_timeout= for what is then to happen",
            )  # fmt: skip
        elif spec.rule().waits_for_quiet and not made:
            yield Finding(
                "warning", "DecidesAtOnce", definition.name,
                f"{name} comes from outside only, where nothing says that more is coming: the first may be "
                "decided alone",
                "give aggregates() trigger_on_count= or timeout=",
            )  # fmt: skip


def _meaning(definition: AgentDefinition) -> Iterator[Finding]:
    if any(subscription.semantic for subscription in definition.subscriptions):
        yield Finding(
            "error",
            "NoEmbedder",
            definition.name,
            "consumes by semantic_match, and there is no embedder",
            'give Flock(embedder="onnx:/path/to/model"), or set FLOCK_EMBEDDER',
        )


def _clock(definition: AgentDefinition) -> Iterator[Finding]:
    """Find predicates that may become true by waiting alone, and that nobody asks again."""
    for subscription in definition.subscriptions:
        read = next((name for test in subscription.where if (name := clock_read_by(test))), None)
        if read is not None and not subscription.reevaluate_us:
            yield Finding(
                "warning",
                "ClockWithoutReevaluate",
                definition.name,
                f"the where= of {subscription.id} reads the clock ({read}), and is asked only once, when an artifact "
                "is published",
                "add reevaluate=timedelta(...): how often it is to be asked again",
            )


def _limits(definition: AgentDefinition) -> Iterator[Finding]:
    def large(code: str, what: str, value: int, limit: int) -> Finding:
        return Finding("warning", code, definition.name, f"{what} is {value}", f"keep it at {limit} or below")

    if definition.max_concurrency is not None and definition.max_concurrency > MAX_CONCURRENCY:
        yield large("HighConcurrency", "max_concurrency", definition.max_concurrency, MAX_CONCURRENCY)
    if definition.best_of is not None and definition.best_of[0] > MAX_BEST_OF:
        yield large("HighBestOf", "best_of", definition.best_of[0], MAX_BEST_OF)
    for subscription in definition.subscriptions:
        size = None if subscription.batch is None else subscription.batch.size
        if size is not None and size > MAX_BATCH_SIZE:
            yield large("LargeBatch", f"the batch size of {subscription.id}", size, MAX_BATCH_SIZE)


def _inputs(flow: Flow, definition: AgentDefinition) -> Iterator[Finding]:
    for subscription, type_names in flow.subscriptions(definition):
        for producer in sorted(subscription.from_agents - flow.agents.keys() - {OUTSIDE}):
            # Failures are published under this name of the agent that failed.
            if producer.removeprefix("orchestrator#") not in flow.agents:
                yield Finding(
                    "warning",
                    "UnknownProducer",
                    definition.name,
                    f"waits for artifacts from {producer!r}, but no agent has this name",
                    "correct from_agents, or declare that agent",
                )
        missing = [name for name in type_names if not flow.arrives(subscription, name)]
        for name in missing:
            yield _nobody_publishes(flow, definition, subscription, name)
        if subscription.kind != "batch" and missing and len(missing) < len(type_names):
            arriving = [name for name in type_names if name not in missing]
            yield Finding(
                "warning",
                "NeverComplete",
                definition.name,
                f"{', '.join(arriving)} will wait for ever: {', '.join(missing)} never arrives",
                f"declare who publishes {', '.join(missing)}, or consume {', '.join(arriving)} alone",
            )


def _nobody_publishes(
    flow: Flow, definition: AgentDefinition, subscription: Subscription, type_name: str
) -> Finding:
    own = any(flow.name_of(output.type) == type_name for output in outputs_of(definition))
    if own and not subscription.from_agents:
        reason = "nobody but itself publishes, and it does not trigger itself"
        fix = f"declare another agent that publishes {type_name}, or .prevent_self_trigger(False)"
    elif subscription.from_agents:
        reason = f"none of {', '.join(sorted(subscription.from_agents))} publishes"
        fix = f"correct from_agents, or let one of them publish {type_name}"
    else:
        reason = "no agent publishes"
        fix = f"declare an agent that publishes {type_name}, or say that it comes from outside"
    return Finding(
        "warning", "NobodyPublishes", definition.name, f"consumes {type_name}, which {reason}", fix
    )


def _outputs(flow: Flow, definition: AgentDefinition) -> Iterator[Finding]:
    for output in outputs_of(definition):
        name = flow.name_of(output.type)
        consumers = [edge.target for edge in flow.leaving[definition.name] if edge.type == name]
        if not consumers:
            yield Finding(
                "info",
                "NobodyConsumes",
                definition.name,
                f"publishes {name}, which no agent consumes",
                "nothing to do when it is a result of the flock; otherwise declare its consumer",
            )
        elif isinstance(output.visibility, Visibility) and not any(
            _sees(output.visibility, consumer) for consumer in consumers
        ):
            yield Finding(
                "warning",
                "NobodySees",
                definition.name,
                f"nobody who consumes {name} may see it "
                f"({', '.join(sorted({consumer.name for consumer in consumers}))})",
                "widen its visibility, or give a consumer the name, labels or tenant that it asks for",
            )


def _widening(flow: Flow, definition: AgentDefinition) -> Iterator[Finding]:
    """Find agents that make what some may not see into what they may see."""
    restricted = [
        (edge.type, edge.output.visibility)
        for edge in flow.entering[definition.name]
        if isinstance(edge.output.visibility, Visibility)
    ]
    for edge in flow.leaving[definition.name]:
        declared = edge.output.visibility
        if not isinstance(declared, Visibility):
            continue
        for type_name, visibility in restricted:
            if _sees(declared, edge.target) and not _sees(visibility, edge.target):
                yield Finding(
                    "info",
                    "WiderThanInput",
                    definition.name,
                    f"publishes {edge.type} to {edge.target.name}, "
                    f"which may not see the {type_name} that it is made from",
                    "leave visibility out of publishes() to inherit it, if this is not on purpose",
                )


def _exclusive(flow: Flow) -> Iterator[Finding]:
    by_type: dict[str, list[Subscription]] = {}
    for name in sorted(flow.agents):
        for subscription, type_names in flow.subscriptions(flow.agents[name]):
            for type_name in type_names:
                by_type.setdefault(type_name, []).append(subscription)
    for type_name, subscriptions in by_type.items():
        shared = sorted({s.agent for s in subscriptions if s.delivery == "all"})
        for agent in sorted({s.agent for s in subscriptions if s.delivery == "exclusive"}):
            if shared:
                yield Finding(
                    "info",
                    "ExclusiveNextToShared",
                    agent,
                    f"takes {type_name} exclusively, but {', '.join(shared)} also gets every one of them",
                    'nothing to do when this is on purpose; otherwise use delivery="exclusive" for all',
                )


def _loops(flow: Flow) -> Iterator[Finding]:
    for agent, path in endless_loops(flow):
        yield Finding(
            "warning",
            "LoopWithoutExit",
            agent,
            f"triggers itself for ever: {path}",
            "give one of these agents an exit: where= or activation= in consumes(), where= in publishes(), "
            "or a function annotated `-> X | None` that returns None",
        )
