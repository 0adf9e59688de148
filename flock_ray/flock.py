"""`Flock`: the facade. Declarative until first used; then it opens a board and puts its agents there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from flock_ray.agent import AgentBuilder
from flock_ray.aggregating import check_model
from flock_ray.approvals.opening import Approving
from flock_ray.approvals.principals import directory_of
from flock_ray.artifact import Artifact
from flock_ray.budgets import Budget, Budgets, give_budgets, rules_of
from flock_ray.components.orchestrator.declaring import ComponentDeclaring
from flock_ray.config import RayConfig, load_ray_config, load_settings
from flock_ray.context.choose import give_context, give_windows
from flock_ray.core.check import Finding, check
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.fairness import checked_weights
from flock_ray.core.fan_flow import closers_of
from flock_ray.core.registry import TypeRegistry, type_registry
from flock_ray.core.wire import CONFLICT, Posting
from flock_ray.deadlines import deadline_us
from flock_ray.errors import (
    BoardClosedError,
    ConfigurationError,
    DuplicateAgentError,
    DuplicateArtifactError,
)
from flock_ray.fanning import with_closers
from flock_ray.gateway.settings import planned
from flock_ray.history import History
from flock_ray.mcp.declaring import McpDeclaring, McpServer
from flock_ray.opening import DEFAULT_BOARD, Opened, open_on_ray
from flock_ray.persistence import persistence_from_url, persistence_of, retained
from flock_ray.progress import ProgressReading
from flock_ray.publishing import Publisher, item_key, new_workflow
from flock_ray.reading import BoardReading
from flock_ray.running import BoardRunning
from flock_ray.scheduling import Scheduling
from flock_ray.semantic.choose import chosen_embedder, give_embedder, model_behind
from flock_ray.store import BoardStore

if TYPE_CHECKING:
    from flock_ray.board import Board
    from flock_ray.context.request import ContextProvider
    from flock_ray.core.notifications import Notification
    from flock_ray.core.visibility import Visibility
    from flock_ray.gateway.settings import CassetteMode, GatewayPlan, ModelSettings
    from flock_ray.model import Embedder
    from flock_ray.ports import Notifier, Persistence, PrincipalDirectory
    from flock_ray.stores import InMemoryBlackboardStore
    from flock_ray.webhooks import Webhook

__all__ = ["Flock"]

_workflow: ContextVar[str | None] = ContextVar("flock_workflow", default=None)
_deadline: ContextVar[timedelta | None] = ContextVar("flock_deadline", default=None)


class Flock(
    BoardRunning, Approving, ProgressReading, Scheduling, ComponentDeclaring, McpDeclaring, BoardReading
):
    """A blackboard and the agents around it.

    Nothing starts before the first `publish`, `run` or `invoke`: then Ray is joined or started, the
    board is opened and the agents are deployed. Use it as `async with Flock() as flock:` or call
    `shutdown()`; otherwise the board ends with the process.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        namespace: str | None = None,
        persistence: Persistence | None = None,
        store: Persistence | InMemoryBlackboardStore | None = None,
        shards: int | None = None,
        detached: bool | None = None,
        ray: RayConfig | None = None,
        max_agent_iterations: int | None = None,
        max_payload_bytes: int | None = None,
        max_artifacts: int | None = None,
        max_open: int | None = None,
        max_workers: int | None = None,
        publish_timeout: timedelta | None = None,
        replace_agents: bool | None = None,
        history: str | Path | None = None,
        no_output: bool = False,
        embedder: Embedder | str | None = None,
        context_provider: ContextProvider | None = None,
        models: Mapping[str, ModelSettings] | GatewayPlan | None = None,
        cassette: str | Path | None = None,
        cassette_mode: CassetteMode | None = None,
        tenant_weights: Mapping[str, float] | None = None,
        budgets: Iterable[Budget] = (),
        principals: PrincipalDirectory | Mapping[str, Collection[str]] | None = None,
        notifiers: Iterable[Notifier | Webhook | Callable[[Notification], Any]] = (),
        registry: TypeRegistry = type_registry,
    ) -> None:
        """Declare a flock; every parameter also comes from `FLOCK_<NAME>` in the environment.

        Args:
            model: Default language model of agents without an engine.
            namespace: Name of the board; another Flock with the same one joins it. None: a board of its own.
            persistence: Where the board is kept: `SQLitePersistence`, `RedisPersistence`, `PostgresPersistence`;
                None: `FLOCK_PERSISTENCE` (a URL), and without it in memory.
            store: Upstream's name for `persistence`; also takes upstream's store objects.
            shards: Shard actors of a new board, 1-256; None is 1, or what a stored board has.
            detached: Whether the board goes on without this process; asks for a namespace.
            ray: How to reach Ray; None: the environment decides, and without it a local Ray is started.
            max_agent_iterations: Runs of one agent on its own descendants, per workflow, before the loop is
                stopped; None is 1000.
            max_payload_bytes: Largest payload as JSON; None is 32 MiB.
            max_artifacts: Artifacts a memory board keeps before it forgets the oldest settled workflows.
            max_open: Open activations per shard past which publishers wait.
            max_workers: Shared worker processes; None is the number of CPUs of the cluster.
            publish_timeout: How long `publish` waits on a full board; None is 30 s.
            replace_agents: Whether agents of other drivers with the same name may be replaced.
            history: File to which every acknowledged artifact's id is appended, for `flock verify`; None: no file.
            no_output: Don't say at start-up what kind of board it is, and show nothing in `print_stream()`.
            embedder: Compares meanings for `semantic_match`: `OnnxEmbedder`, `OpenAIEmbedder`, an object of your
                own, or text such as "onnx:/path/to/model"; None: `FLOCK_EMBEDDER`, and without it there is none.
            context_provider: What agents without a provider of their own see of the board; None: nothing, unless an
                engine has `enable_context`.
            models: Keys, addresses, limits and prices by model: `{"openai/*": ModelSettings(...)}`; a `GatewayPlan`
                says more. None: keys come from the environment, limits from the providers.
            cassette: Folder of recorded answers; None: `FLOCK_CASSETTE`, and without it none.
            cassette_mode: record, replay, auto (what is missing is recorded) or off; None: `FLOCK_CASSETTE_MODE`.
            tenant_weights: Shares of agents' time for tenants that get another than 1, while several wait:
                `{"acme": 2.0}`.
            budgets: What calls to language models may use, of all agents of this Flock together.
            principals: Roles of people, for approvals: `{"ann": ["risk_manager"]}`, or a `PrincipalDirectory`; None:
                everybody is who they say, with no roles.
            notifiers: Who tells approvers of what waits for them: webhooks, `EmailNotifier`, functions.
            registry: Artifact types; None but in tests.

        Raises:
            ConfigurationError: A value is out of range.
        """
        self._settings = load_settings(
            model=model, namespace=namespace, shards=shards, detached=detached,
            max_agent_iterations=max_agent_iterations, max_payload_bytes=max_payload_bytes,
            max_artifacts=max_artifacts, max_open=max_open, max_workers=max_workers,
            publish_timeout=publish_timeout, replace_agents=replace_agents,
            cassette=None if cassette is None else str(cassette), cassette_mode=cassette_mode,
        )  # fmt: skip
        if self._settings.detached and self._settings.namespace is None:
            raise ConfigurationError('A detached board needs a name to be found by: Flock(namespace="...").')
        if persistence is not None and store is not None:
            raise ConfigurationError("persistence= and store= are the same: give one of them.")
        given = persistence if persistence is not None else store
        self.persistence: Persistence | None = None if given is None else persistence_of(given)
        """Where the board is kept; None: in memory."""
        if given is None and self._settings.persistence is not None:
            self.persistence = persistence_from_url(self._settings.persistence.get_secret_value())
        if self.persistence is not None:
            self.persistence = retained(self.persistence)
        self._board_name = self._settings.namespace or DEFAULT_BOARD
        self.model = self._settings.model
        self._gateway_plan = planned(models, self._settings.cassette, self._settings.cassette_mode)
        self.embedder = chosen_embedder(embedder, self._settings.embedder)
        """Compares meanings; None: there is no embedder."""
        self.max_agent_iterations = self._settings.max_agent_iterations
        self.no_output = no_output
        self._history = (
            None if history is None else History(history, self._settings.namespace or DEFAULT_BOARD)
        )
        self._ray = ray or load_ray_config()
        self._registry = registry
        self.context_provider = context_provider
        """What agents without a provider of their own see of the board; None: nothing."""
        if context_provider is not None:
            from flock_ray.context.request import checked_provider

            checked_provider(context_provider, "Flock(context_provider=)")
        self._tenant_weights = checked_weights(tenant_weights)
        self._budget_rules = rules_of(budgets)
        self.principals = directory_of(principals, self._settings.principals)
        self._notifiers = self._checked_notifiers(notifiers)
        self.budgets = Budgets(self._ready_board)
        """What was spent, and limits to change."""
        self._builders: dict[str, AgentBuilder] = {}
        self._mcp_servers: dict[str, McpServer] = {}
        self._changes = 0
        self._deployed: int | None = None
        """Value of `_changes` that is on the board; None before the first deploy."""
        self._opened: Opened | None = None
        self._opening: asyncio.Lock | None = None
        self._closed = False
        self._published_types: set[str] = set()
        self.metrics = {"artifacts_published": 0}
        self.store = BoardStore(self._ready_board, registry)

    # -- agents --------------------------------------------------------------------------------

    def agent(self, name: str) -> AgentBuilder:
        """Declare an agent and return its builder.

        Raises:
            DuplicateAgentError: This flock has an agent of that name.
        """
        if name in self._builders:
            raise DuplicateAgentError(
                f"This flock has an agent {name!r} already. "
                "Keep the builder that agent() returned, or take another name."
            )
        builder = AgentBuilder(name, registry=self._registry, on_change=self._on_change, owner=self)
        self._builders[name] = builder
        self._on_change()
        return builder

    @property
    def agents(self) -> list[AgentBuilder]:
        """Every agent declared here."""
        return list(self._builders.values())

    def get_agent(self, name: str) -> AgentBuilder:
        """Return an agent declared here; KeyError when there is none."""
        return self._builders[name]

    def _on_change(self) -> None:
        self._changes += 1

    def _definitions(self) -> list[AgentDefinition]:
        definitions = [self._with_mcp_servers(b.definition_checked()) for b in self._builders.values()]
        for definition in definitions:
            definition.tenant_weights = self._tenant_weights
            give_budgets(definition, self._budget_rules)
            if definition.max_iterations is None:
                definition.max_iterations = self.max_agent_iterations
            if definition.function is None:
                definition.model = definition.model or self.model
            check_model(definition)
            give_embedder(definition, self.embedder)
        if any(definition.schedules for definition in definitions):
            give_windows(definitions, self.context_provider)
        for definition in definitions:
            give_context(definition, self.context_provider, has_embedder=self.embedder is not None)
        with_closers(definitions, closers_of(definitions, self._registry))
        return self._with_notices(self._with_alerts(self._with_gate(definitions)))

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Open the board and deploy the agents; done by the first use otherwise.

        Raises:
            ConfigurationError: An agent's declaration does not fit together.
            BoardClosedError: It was shut down.
        """
        await self._ready()
        return self

    async def _open(self) -> Opened:
        return await open_on_ray(
            self._settings, self._ray, self._registry, persistence=self.persistence, no_output=self.no_output,
            models=self._gateway_plan, embeds_with=model_behind(self.embedder),
        )  # fmt: skip

    async def _ready(self) -> Opened:
        if self._closed:
            raise BoardClosedError("This Flock was shut down. Create a new one to go on.")
        if self._opened is not None and self._deployed == self._changes:
            await self._initialize_components()
            return self._opened
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._opened is None:
                self._opened = await self._open()
            while self._deployed != self._changes:
                # Whoever publishes meanwhile waits: it would be matched without these agents.
                changes, definitions = self._changes, self._definitions()
                await self._opened.board.deploy(definitions, replace=self._settings.replace_agents)
                await self._install_schedules(self._opened.board, definitions)
                self._deployed = changes
        await self._initialize_components()
        return self._opened

    async def _ready_board(self) -> Board:
        return (await self._ready()).board

    async def shutdown(self, *, flush_batches: bool = True, end_board: bool = False) -> None:
        """End the board and what was started for it; safe to repeat.

        A detached board, or one that another driver created, goes on: only this client leaves.

        Args:
            flush_batches: Run partial batches and wait for them (at most 5 s) before the end.
            end_board: End the board also when it is detached or another driver's: its artifacts are gone.
        """
        if self._closed:
            return
        await self._shutting_down()
        opened = self._opened
        if end_board and opened is None:
            opened = await self._ready()
        flush = opened is not None and flush_batches and (opened.owns or end_board)
        try:
            if opened is not None and flush and sum(await opened.board.each("flush_batches")):
                await opened.board.wait_idle(timeout_s=5.0)
        finally:  # a board that can't do anything any more has processes too
            self._closed = True
            if opened is not None:
                opened.board.let_go()
                await opened.close(end_board)

    async def __aenter__(self) -> Self:
        """Open the board."""
        return await self.start()

    async def __aexit__(self, kind: Any, *_: object) -> None:
        """End the board; partial batches only run when the block ended well."""
        await self.shutdown(flush_batches=kind is None)

    # -- publishing ----------------------------------------------------------------------------

    @contextmanager
    def workflow(self, correlation_id: str, *, deadline: timedelta | None = None) -> Iterator[str]:
        """Give everything published inside this correlation id, unless a call names another one.

        Args:
            correlation_id: The workflow.
            deadline: Within what time of the first publish in here it must be done; see `publish`. None: whenever.

        Raises:
            ConfigurationError: The deadline is no duration above zero.
        """
        if deadline is not None:
            deadline_us(deadline, "workflow(deadline=)")
        token, limit = _workflow.set(correlation_id), _deadline.set(deadline)
        try:
            yield correlation_id
        finally:
            _workflow.reset(token)
            _deadline.reset(limit)

    async def publish(
        self,
        obj: BaseModel | Mapping[str, Any] | Artifact,
        *,
        visibility: Visibility | None = None,
        correlation_id: str | None = None,
        partition_key: str | None = None,
        tags: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        priority: int = 0,
        delay: timedelta | None = None,
        deadline: timedelta | None = None,
        tenant: str | None = None,
        budget: Budget | None = None,
    ) -> Artifact:
        """Put an artifact on the board; returns once it is as durable as the board's persistence promises.

        Args:
            obj: A model, a dict with a `type` (payload under `payload` or flat), or an Artifact.
            visibility: Who may see it; None is everybody.
            correlation_id: Its workflow; None: that of `with flock.workflow(...)`, or a new one.
            partition_key: Keeps artifacts together on one shard; None: the correlation id does.
            tags: Any strings; they pass on to what agents make of it.
            idempotency_key: A second publish with the same key returns the first artifact.
            priority: Higher runs earlier.
            delay: Agents get it after this time; None is at once.
            deadline: Within what time its workflow must be done: nothing of it runs, waits or is due. One that is not
                is said to be late, once: see `DeadlineMissed`. Of several, the soonest counts. None: that of
                `with flock.workflow(...)`.
            tenant: Whose it is, and what agents make of it; None: nobody's in particular.
            budget: What its workflow may spend; None: what it could before.

        Raises:
            UnknownTypeError: Its type is not registered.
            ArtifactSchemaError: The payload does not fit the type.
            PayloadTooLargeError: It is larger than `max_payload_bytes`.
            DuplicateArtifactError: Another artifact has its id.
            BackpressureError: The board stayed full; retryable.
            ModelError: An agent listens by meaning and the embedder failed: nothing was published. See `retryable`.
            BoardClosedError: It was shut down.
        """
        board, workflow = (await self._ready()).board, correlation_id or _workflow.get()
        workflow, marks = await self.budgets.publishing(obj, workflow, idempotency_key, tenant, budget)
        options = {
            "visibility": visibility, "correlation_id": workflow, "tags": tags, "partition_key": partition_key,
            "idempotency_key": idempotency_key, "priority": priority, "delay": delay, "marks": marks,
            "deadline": deadline or (None if correlation_id else _deadline.get()),
        }  # fmt: skip
        postings = await self._publisher(board).postings([obj], [options])
        return (await self._put(board, postings))[0]

    async def publish_many(
        self,
        objects: Iterable[Any],
        *,
        correlation_id: str | None = None,
        idempotency_key: str | None = None,
        tenant: str | None = None,
        budget: Budget | None = None,
        **options: Any,
    ) -> list[Artifact]:
        """Put artifacts on the board as one workflow, in batches; other options as for `publish`.

        Not atomic: when it raises, some may be accepted; with an `idempotency_key`, which is one for the whole
        list, publishing the same list again adds what is missing.
        """
        board = (await self._ready()).board
        workflow = correlation_id or _workflow.get() or new_workflow(idempotency_key)
        _, marks = await self.budgets.publishing(None, workflow, None, tenant, budget)
        objects = list(objects)
        limit = None if correlation_id else _deadline.get()
        common = {"correlation_id": workflow, "marks": marks, "deadline": limit, **options}
        each = [{**common, "idempotency_key": item_key(idempotency_key, i)} for i in range(len(objects))]
        return await self._put(board, await self._publisher(board).postings(objects, each))

    def _publisher(self, board: Board) -> Publisher:
        return Publisher(board.edge, self._registry, board.clock)

    async def _put(self, board: Board, postings: list[Posting]) -> list[Artifact]:
        outcomes = await board.publish(postings)
        self.metrics["artifacts_published"] += len(postings)
        self._published_types.update({posting.envelope.type for posting in postings})
        artifacts = []
        for posting, outcome in zip(postings, outcomes, strict=True):
            envelope = posting.envelope
            if outcome == CONFLICT:
                raise DuplicateArtifactError(
                    f"An artifact with id {uuid.UUID(bytes=envelope.id)} and other content is on the board. "
                    "Ids are for ever: publish a new artifact instead."
                )
            if outcome and posting.idempotent:
                envelope = await board.get(envelope.id) or envelope
            artifacts.append(Artifact.from_envelope(envelope))
        if self._history is not None:
            self._history.accepted(artifacts)
        return artifacts

    # -- asking ----------------------------------------------------------------------

    def check(self, *, published: Iterable[type[BaseModel]] = ()) -> list[Finding]:
        """Look for mistakes in the declarations, without running anything.

        Args:
            published: Types that come from outside; those published so far are known.
        """
        outside = {self._registry.ensure(cls).name for cls in published} | self._published_types
        declared = [b.definition for b in self._builders.values()]
        return check(declared, self._registry, outside, has_embedder=self.embedder is not None)
