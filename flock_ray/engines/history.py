"""The gate between context providers and runs: whatever a provider returns, a run gets only what it may see.

What passes is an artifact that was read from the board for this very run, by id, and that its *stored* visibility
shows to the agent. The provider's copy only gives the content.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from flock_ray.artifact import Artifact
from flock_ray.context.budget import content_of, header_of, ordered
from flock_ray.context.providers import CorrelatedContextProvider
from flock_ray.context.request import ContextRequest
from flock_ray.context.view import MAX_ARTIFACTS, ContextView, is_visible
from flock_ray.engines.best_of import PROPAGATED
from flock_ray.errors import ContextProviderError, FlockError, safe_error_text

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.registry import TypeRegistry
    from flock_ray.core.visibility import AgentIdentity
    from flock_ray.core.wire import Envelope, Task
    from flock_ray.engines.outputs import Note
    from flock_ray.engines.services import ArtifactReader

__all__ = ["HistorySource", "history_source", "provider_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def provider_of(definition: AgentDefinition, engines: list[Any]) -> Any:
    """Return the context provider of an agent; None when nothing asked for one.

    Its own, which is the flock's where it has none; else the workflow, when an engine has `enable_context`.
    """
    if definition.context_provider is not None:
        return definition.context_provider
    asking = [engine for engine in engines if getattr(engine, "enable_context", False)]
    if not asking:
        return None
    limits = [getattr(engine, "context_max_artifacts", None) for engine in asking]
    left_out = [set(getattr(engine, "context_exclude_types", ())) for engine in asking]
    # What one engine leaves out another may want: each cuts its own share of it.
    limit = MAX_ARTIFACTS if None in limits else max(1, *(limit or 0 for limit in limits))
    return CorrelatedContextProvider(
        limit=min(limit, MAX_ARTIFACTS), exclude_types=set.intersection(*left_out)
    )


def history_source(definition: AgentDefinition, sees_context: bool, **parts: Any) -> HistorySource | None:
    """Return what fetches the context of an agent's runs; None when nobody asked for one, or could look at it.

    Args:
        definition: The agent, bound to its services.
        sees_context: Whether anything of it gets the `ctx`.
        parts: See `HistorySource`.
    """
    engines = [e for e in definition.engines if getattr(getattr(e, "config", None), "enabled", True)]
    provider = provider_of(definition, engines) if sees_context else None
    return None if provider is None else HistorySource(definition, provider, **parts)


class HistorySource:
    """Asks one agent's provider before each of its runs."""

    def __init__(
        self,
        definition: AgentDefinition,
        provider: Any,
        *,
        reader: ArtifactReader | None,
        identity: AgentIdentity,
        registry: TypeRegistry,
        now_us: Callable[[], int],
        offload: Callable[..., Awaitable[Any]],
    ) -> None:
        """Ask a provider.

        Args:
            definition: The agent.
            provider: Its context provider.
            reader: Reads the board; None: there is none.
            identity: Who the agent is to visibilities.
            registry: Names types.
            now_us: Wall clock, in microseconds since the Unix epoch.
            offload: Runs a blocking function off the event loop.
        """
        self._definition = definition
        self._provider = provider
        self._reader = reader
        self._identity = identity
        self._registry = registry
        self._now_us = now_us
        self._offload = offload

    async def fetch(self, task: Task, history: list[Artifact], notes: list[Note]) -> None:
        """Fill in the context of a run, oldest first, and note what was left out.

        When it raises, `history` has what the provider had read by then: its error may quote that.

        Raises:
            ContextProviderError: The provider raised, or returned something else than artifacts.
            FlockError: One of ours that the provider met, such as StoreUnavailableError, which is retryable.
        """
        now_us, inputs = self._now_us(), {envelope.id for envelope in task.inputs}
        view = ContextView(
            self._reader, (self._identity,), now_us=now_us, registry=self._registry, exclude=inputs
        )
        request = ContextRequest(
            agent=self._definition,
            correlation_id=task.correlation_id or None,
            store=view,
            agent_identity=self._identity,
            exclude_ids={uuid.UUID(bytes=key) for key in inputs},
            inputs=tuple(Artifact.from_envelope(envelope) for envelope in task.inputs),
            now=_EPOCH + timedelta(microseconds=now_us),
            offload=self._offload,
        )
        try:
            returned = await self._ask(request)
            passed, refused = self._passed(returned, view.ledger, inputs, now_us)
        except PROPAGATED:
            raise
        except BaseException as error:
            history[:] = [Artifact.from_envelope(envelope) for envelope in view.ledger.values()]
            # Not the message: it may quote what the reader of the event log must not see.
            notes.append(("context.failed", f"{self._name}: {type(error).__name__}"))
            if isinstance(error, FlockError):
                raise
            raise self._error(": ".join(safe_error_text(error))) from error
        if refused:
            names = ", ".join(refused[:5])
            notes.append(
                (
                    "context.refused",
                    f"{self._name} returned {len(refused)} artifacts that it had not read: {names}",
                )
            )
        kept = passed[-MAX_ARTIFACTS:]
        if len(kept) < len(passed):
            view.cut.append(f"{len(passed) - MAX_ARTIFACTS} artifacts above {MAX_ARTIFACTS}")
        notes += [("context.cut", f"{self._name}: {text}") for text in dict.fromkeys(view.cut)]
        history[:] = kept

    @property
    def _name(self) -> str:
        provider = self._provider
        inner = getattr(provider, "inner", provider)
        name = getattr(inner, "__name__", None) or type(inner).__name__
        return str(name)

    async def _ask(self, request: ContextRequest) -> list[Artifact]:
        made = self._provider(request)
        if not inspect.isawaitable(made):
            raise self._error("it returned nothing to await; write `async def`")
        returned: object = await made
        if not isinstance(returned, (list, tuple)):
            raise self._error(f"it returned a {type(returned).__name__}; return a list of artifacts")
        wrong = next((item for item in returned if not isinstance(item, Artifact)), None)
        if wrong is not None:
            raise self._error(f"it returned a list with a {type(wrong).__name__}; return artifacts")
        return list(returned)

    def _passed(
        self, returned: list[Artifact], ledger: dict[bytes, Envelope], inputs: set[bytes], now_us: int
    ) -> tuple[list[Artifact], list[str]]:
        """Return what the run may see, in order, and the ids of what nobody read for it."""
        passed: dict[bytes, Artifact] = {}
        refused: list[str] = []
        for artifact in returned:
            key = header_of(artifact).id
            stored = ledger.get(key)
            if key in inputs or key in passed:
                continue
            if stored is None or not is_visible(stored, self._identity, now_us):
                refused.append(str(artifact.id))
                continue
            content = content_of(artifact)
            same = content == stored.payload
            passed[key] = Artifact.from_envelope(stored if same else replace(stored, payload=content))
        return ordered(passed.values()), refused

    def _error(self, problem: str) -> ContextProviderError:
        return ContextProviderError(
            f"The context provider {self._name} of agent {self._definition.name!r} failed: {problem}. "
            "The agent did not run: correct the provider.",
            agent=self._definition.name,
        )
