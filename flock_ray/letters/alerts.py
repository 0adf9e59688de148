"""Alerts about new dead letters: an agent per queue that tells webhooks and functions, in batches.

It is an agent like others, so an alert waits in the journal while its receiver is away, survives any crash and comes
at least once. It has retries of its own and no dead letters of its own. It is matched with every letter, whoever may
see it, and therefore passes on nothing of what a restricted letter says: only that it is there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import SecretStr

from flock_ray.agent import AgentBuilder
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.retries import ExponentialBackoff
from flock_ray.core.specs import BatchSpec
from flock_ray.core.system_types import DeadLetter
from flock_ray.dead_letters import DeadLetterQueue
from flock_ray.engines.component import EngineComponent, EvalInputs, EvalResult
from flock_ray.errors import ConfigurationError
from flock_ray.webhooks import Webhook, deliver

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition, OutputGroup
    from flock_ray.engines.context import Context

__all__ = [
    "AlertEngine",
    "AlertedLetter",
    "LetterAlert",
    "digest_of",
    "escaped",
    "telling",
    "with_alerts",
]

logger = logging.getLogger(__name__)

BATCH_SIZE = 50
BATCH_TIMEOUT = timedelta(seconds=5)
MAX_ATTEMPTS = 12
"""With the pauses below: the better part of an hour."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=2), timedelta(minutes=10)
MAX_MESSAGE_CHARS = 500
SLACK_LINES = 10

EVENT = "dead_letters"


@dataclass(frozen=True, slots=True)
class AlertedLetter:
    """One new dead letter."""

    id: UUID
    agent: str
    workflow: str
    error_type: str
    error_message: str
    """At most 500 characters; empty for a letter that not everybody may see."""
    failed_at: datetime
    attempts: int
    redrives: int


@dataclass(frozen=True, slots=True)
class LetterAlert:
    """What alerts say: new dead letters of one queue."""

    queue: str
    key: str
    """The same whenever this alert is given again."""
    letters: tuple[AlertedLetter, ...]


class AlertEngine(EngineComponent):
    """Tells webhooks and a function of dead letters."""

    queue: str
    webhooks: tuple[Webhook, ...] = ()
    callback: Callable[[Any], Any] | None = None
    inline: bool = False
    """Call functions on the event loop, and send nothing: `outbox` gets what would be sent."""
    outbox: list[Any] | None = None
    settings: str = ""
    """Hash of what the webhooks are set to."""

    async def evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, output_group: OutputGroup
    ) -> EvalResult:
        """Give the alert to everybody; the first failure is raised after all have been tried."""
        alert = LetterAlert(self.queue, ctx.idempotency_key, tuple(map(_shown, inputs.artifacts)))
        failures: list[Exception] = []
        tells: list[Callable[[LetterAlert], Awaitable[None]]] = [
            *(partial(self._send, webhook) for webhook in self.webhooks), self._call
        ]  # fmt: skip
        for tell in tells:
            try:
                await tell(alert)
            except Exception as failure:
                failures.append(failure)
        if failures:
            # One that may pass goes first: it has the rest tried again, and receivers know the key.
            failures.sort(key=lambda failure: isinstance(failure, ConfigurationError))
            raise failures[0]
        return EvalResult.empty()

    async def _send(self, webhook: Webhook, alert: LetterAlert) -> None:
        body = body_of(alert, webhook.format)
        if self.outbox is not None:
            self.outbox.append((webhook, json.loads(body)))
            return
        await deliver(webhook, body, event=EVENT, key=alert.key)

    async def _call(self, alert: LetterAlert) -> None:
        if self.callback is None:
            return
        if self.inline or inspect.iscoroutinefunction(self.callback):
            answer = self.callback(alert)
        else:
            answer = await asyncio.to_thread(self.callback, alert)
        if inspect.isawaitable(answer):
            await answer


def _shown(artifact: Artifact) -> AlertedLetter:
    letter = artifact.model(cls=DeadLetter)
    assert isinstance(letter, DeadLetter)
    message = letter.error_message if artifact.is_public else ""
    return AlertedLetter(
        artifact.id, letter.agent, letter.correlation_id, letter.error_type, message[:MAX_MESSAGE_CHARS],
        letter.failed_at, len(letter.attempts), letter.redrives,
    )  # fmt: skip


def body_of(alert: LetterAlert, form: str) -> bytes:
    """Return the body of a webhook's request."""
    return json.dumps(_slack(alert) if form == "slack" else _plain(alert)).encode()


def _plain(alert: LetterAlert) -> dict[str, Any]:
    return {
        "type": EVENT,
        "queue": alert.queue,
        "count": len(alert.letters),
        "letters": [
            {
                "id": str(letter.id), "agent": letter.agent, "workflow": letter.workflow,
                "error_type": letter.error_type, "error_message": letter.error_message,
                "failed_at": letter.failed_at.isoformat(), "attempts": letter.attempts, "redrives": letter.redrives,
            }
            for letter in alert.letters
        ],
    }  # fmt: skip


def _slack(alert: LetterAlert) -> dict[str, Any]:
    count = len(alert.letters)
    lines = [f"*{count} new dead letter{'s' if count != 1 else ''}* in `{escaped(alert.queue)}`"]
    for letter in alert.letters[:SLACK_LINES]:
        message = " ".join(letter.error_message.split())[:160]
        said = f": {escaped(message)}" if message else ""
        lines.append(f"• `{escaped(letter.agent)}` {escaped(letter.error_type)}{said} (`{letter.id}`)")
    if count > SLACK_LINES:
        lines.append(f"… and {count - SLACK_LINES} more")
    return {"text": "\n".join(lines), "unfurl_links": False}


def escaped(text: str) -> str:
    """Escape what Slack reads as markup: an error's text must neither ping a channel nor make a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("`", "'")


# -- declaring -----------------------------------------------------------------------------------


def with_alerts(
    definitions: Sequence[AgentDefinition],
    registry: TypeRegistry,
    secret: SecretStr | None,
    *,
    outbox: list[Any] | None = None,
) -> list[AgentDefinition]:
    """Return the agents of a flock and those that give alerts about their dead letters.

    Args:
        definitions: What the flock declares; agents lose what only their alerts need.
        registry: Artifact types.
        secret: Signs the requests of webhooks without a secret of their own; None: there is none.
        outbox: Gets what would be sent, and nothing is; None: it is sent.

    Raises:
        ConfigurationError: Two agents share a queue and want different alerts.
    """
    if not any(definition.dead_letter for definition in definitions):
        return list(definitions)
    queues: dict[str, DeadLetterQueue] = {}
    plain: list[AgentDefinition] = []
    for definition in definitions:
        queue = definition.dead_letter
        if queue is None:
            plain.append(definition)
            continue
        plain.append(dataclasses.replace(definition, dead_letter=queue.without_alerts()))
        if queue.webhooks or queue.callback:
            known = queues.setdefault(queue.queue, queue)
            # Also with other secrets: a receiver would refuse what the wrong one has signed.
            if (digest_of(known.webhooks), known.callback) != (digest_of(queue.webhooks), queue.callback):
                raise ConfigurationError(
                    f"Agents want different alerts for the dead letter queue {queue.queue!r}: give them the same "
                    "DeadLetterQueue, or queues of their own."
                )
    agents = [_agent(queue, registry, secret, outbox) for queue in queues.values()]
    taken = {definition.name for definition in plain}.intersection(agent.name for agent in agents)
    if taken:
        raise ConfigurationError(
            f"The agent name {taken.pop()!r} is for alerts of a dead letter queue: take another."
        )
    return plain + agents


def _agent(
    queue: DeadLetterQueue, registry: TypeRegistry, secret: SecretStr | None, outbox: list[Any] | None
) -> AgentDefinition:
    """Declare the agent that gives the alerts of a queue."""
    hooks = tuple(hook.signed_by(secret) for hook in queue.webhooks)
    for hook in hooks:
        if hook.secret is None and hook.format == "json":
            logger.warning("alerts to %s are not signed: set FLOCK_WEBHOOK_SECRET", hook.label)
    engine = AlertEngine(
        queue=queue.queue, webhooks=hooks, callback=queue.callback, inline=outbox is not None,
        settings=digest_of(hooks),
    )  # fmt: skip
    engine.outbox = outbox  # not through the constructor, which may copy it
    builder = AgentBuilder(f"dead-letter-alerts-{queue.queue}", registry=registry)
    builder.consumes(
        DeadLetter, where=partial(_is_of, queue.queue), batch=BatchSpec(size=BATCH_SIZE, timeout=BATCH_TIMEOUT),
        name="alerts",
    )  # fmt: skip
    builder.with_engines(engine).max_concurrency(4).description(
        f"Alerts of the dead letter queue {queue.queue}."
    )
    return telling(builder)


def telling(builder: AgentBuilder) -> AgentDefinition:
    """Return the definition of an agent that tells people of what it consumes: patiently, and of all there is."""
    builder.retry(
        ExponentialBackoff(
            initial_delay=FIRST_PAUSE, max_delay=LONGEST_PAUSE, jitter=True, max_attempts=MAX_ATTEMPTS
        ),
        on=may_pass,
    )
    definition = builder.definition_checked()
    definition.sees_all = True
    return definition


def _is_of(queue: str, letter: DeadLetter) -> bool:
    return letter.queue == queue


def may_pass(error: BaseException) -> bool:
    """Try again unless the receiver, or its address, can't be right."""
    return not isinstance(error, ConfigurationError)


def digest_of(hooks: Sequence[Webhook]) -> str:
    """Hash what webhooks are set to, secrets too: a changed one is deployed again."""
    digest = blake2b(digest_size=16)
    for hook in hooks:
        secret = hook.secret.get_secret_value() if isinstance(hook.secret, SecretStr) else hook.secret
        digest.update(repr((hook.url, secret, hook.format, hook.timeout, hook.allow_private)).encode())
    return digest.hexdigest()
