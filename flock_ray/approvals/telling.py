"""The agents that tell approvers: one per notifier, so a notice waits in the journal while its receiver is away.

They are agents like others: what they have to tell survives any crash and comes at least once. They are matched with
every notice, whoever may see it; notices have nothing of the content but the summary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from flock_ray.agent import AgentBuilder
from flock_ray.approvals.notifiers import CallbackNotifier, EmailNotifier, WebhookNotifier
from flock_ray.core.approval_types import ApprovalNotice
from flock_ray.core.notifications import Notification
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.specs import BatchSpec
from flock_ray.engines.component import EngineComponent, EvalInputs, EvalResult
from flock_ray.errors import ConfigurationError
from flock_ray.letters.alerts import digest_of, telling

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition, OutputGroup
    from flock_ray.engines.context import Context
    from flock_ray.ports import Notifier

__all__ = ["NoticeEngine", "with_notices"]

AGENT = "approval-notices"
BATCH = BatchSpec(size=20, timeout=timedelta(seconds=2))


class NoticeEngine(EngineComponent):
    """Gives notices to a notifier."""

    notifier: Any
    outbox: list[Any] | None = None
    """Gets what would be sent, and nothing is; functions are called on the event loop. None: it is sent."""
    settings: str = ""
    """Hash of what the notifier is set to: a changed one is deployed again."""

    async def evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, output_group: OutputGroup
    ) -> EvalResult:
        """Tell; what fails is tried again with the same key."""
        notices = [_notification(artifact) for artifact in inputs.artifacts]
        if self.outbox is None:
            await self.notifier.notify(notices, key=ctx.idempotency_key)
        elif isinstance(self.notifier, CallbackNotifier):
            await self.notifier.call(notices, threads=False)
        else:
            self.outbox.append((self.notifier, notices))
        result = EvalResult.empty()
        if isinstance(self.notifier, EmailNotifier):
            nobody = sorted({name for n in notices for name in n.to} - self.notifier.known(notices))
            if nobody:
                result.logs.append(f"no address of {', '.join(nobody)}: not told by e-mail")
        return result


def _notification(artifact: Artifact) -> Notification:
    notice = artifact.view_as(ApprovalNotice)
    return Notification(
        notice.notice, notice.artifact_id, notice.artifact_type, notice.agent, artifact.correlation_id or "",
        tuple(notice.approvers), notice.quorum, tuple(notice.approved_by), notice.summary, notice.shown,
        notice.expires_at, notice.about, notice.shadow,
    )  # fmt: skip


def with_notices(
    definitions: Sequence[AgentDefinition],
    notifiers: Sequence[Notifier],
    registry: TypeRegistry,
    *,
    webhook_secret: SecretStr | None = None,
    approval_secret: SecretStr | None = None,
    outbox: list[Any] | None = None,
) -> list[AgentDefinition]:
    """Return the agents of a flock and those that tell approvers.

    Args:
        definitions: What the flock declares.
        notifiers: Who tells them.
        registry: Artifact types.
        webhook_secret: Signs the requests of webhooks without a secret of their own.
        approval_secret: Signs links in e-mail without a secret of its own.
        outbox: Gets what would be sent, and nothing is; None: it is sent.

    Raises:
        ConfigurationError: An agent has the name of one of these.
    """
    asks = any(o.approval is not None for d in definitions for g in d.output_groups for o in g.outputs)
    if not notifiers or not asks:
        return list(definitions)
    agents = []
    for number, given in enumerate(notifiers, 1):
        notifier: Any = given
        if isinstance(given, WebhookNotifier):
            notifier = WebhookNotifier(given.webhook.signed_by(webhook_secret))
        elif isinstance(given, EmailNotifier) and given.secret is None:
            notifier = dataclasses.replace(given, secret=approval_secret)
        agents.append(_agent(f"{AGENT}-{number}", notifier, registry, outbox))
    taken = {d.name for d in definitions}.intersection(agent.name for agent in agents)
    if taken:
        raise ConfigurationError(f"The agent name {taken.pop()!r} is for notices of approvals: take another.")
    return [*definitions, *agents]


def _agent(name: str, notifier: Any, registry: TypeRegistry, outbox: list[Any] | None) -> AgentDefinition:
    engine = NoticeEngine(notifier=notifier, settings=_digest(notifier))
    engine.outbox = outbox  # not through the constructor, which may copy it
    notice = registry.resolve("ApprovalNotice") if "ApprovalNotice" in registry else ApprovalNotice
    builder = AgentBuilder(name, registry=registry)
    builder.consumes(notice, batch=BATCH, name="notices").with_engines(engine).max_concurrency(4)
    builder.description(f"Tells approvers by {getattr(notifier, 'label', type(notifier).__name__)}.")
    return telling(builder)


def _digest(notifier: Any) -> str:
    """Hash what a notifier is set to, secrets too."""
    digest = blake2b(digest_size=16)
    parts: tuple[Any, ...] = ()
    if isinstance(notifier, WebhookNotifier):
        return digest_of([notifier.webhook])
    if isinstance(notifier, EmailNotifier):
        n = notifier
        parts = (
            n.host, n.port, n.sender, sorted(n.addresses.items()), n.username, _plain(n.password), n.tls, n.timeout,
            n.link_base, _plain(n.secret),
        )  # fmt: skip
    digest.update(repr(parts).encode())
    return digest.hexdigest()


def _plain(secret: SecretStr | str | None) -> str | None:
    return secret.get_secret_value() if isinstance(secret, SecretStr) else secret
