"""Outputs that people have to approve: the request in place of the artifact, and the artifact out of its request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from pydantic_core import from_json, to_json

from flock_ray.core.approval_desk import request_id
from flock_ray.core.approval_terms import ApprovalAsk
from flock_ray.core.approval_types import ApprovalRequest
from flock_ray.core.approvals import shown_hash
from flock_ray.core.ids import shown_id
from flock_ray.core.state import RELEASE
from flock_ray.core.visibility import (
    PrivateVisibility,
    Visibility,
    decode_visibility,
    encode_visibility,
    narrow,
)
from flock_ray.core.wire import Envelope, Posting, Task
from flock_ray.errors import ApprovalError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.core.definition import OutputSpec
    from flock_ray.edge import Edge

__all__ = ["PRINCIPAL", "held", "released", "request_model"]

PRINCIPAL = "principal:"
"""Prefix of tags that say who asked for something; agents' outputs inherit them."""

MAX_SUMMARY = 500

Post = Callable[..., Posting]


def held(
    spec: OutputSpec, model: BaseModel, posting: Posting, closed: Sequence[Visibility], post: Post
) -> tuple[Posting, ...]:
    """Return what is published in place of an output: the output itself, the request to approve it, or both.

    Args:
        spec: The output's declaration.
        model: The output.
        posting: The output as it would be published.
        closed: Visibilities of the restricted inputs: the request is no wider.
        post: Makes an artifact of a model.
    """
    approval = spec.approval
    if approval is None or not approval.is_needed(model):
        return (posting,)
    envelope = posting.envelope
    asked = ask_of(envelope, approval, model)
    request = request_posting(asked, envelope, closed, post)
    return (posting, request) if asked.terms.shadow else (request,)


def ask_of(envelope: Envelope, approval: Any, model: BaseModel) -> ApprovalAsk:
    """Return what the request of an artifact asks for."""
    involved = {envelope.produced_by, *envelope.via}
    involved |= {tag.removeprefix(PRINCIPAL) for tag in envelope.tags if tag.startswith(PRINCIPAL)}
    summary = "" if approval.summary is None else " ".join(str(approval.summary(model)).split())
    shown = shown_hash(envelope.type, envelope.version, from_json(envelope.payload))
    return ApprovalAsk(
        envelope.id, envelope.type, envelope.version, shown,
        envelope.produced_by, tuple(sorted(involved)), envelope.visibility, summary[:MAX_SUMMARY], approval.terms(),
    )  # fmt: skip


def request_model(ask: ApprovalAsk, content: Any, *, edited_by: str = "") -> ApprovalRequest:
    """Return the request that shows something to approvers."""
    terms, visibility = ask.terms, None if ask.visibility is None else from_json(ask.visibility)
    return ApprovalRequest(
        artifact=content, requires_approval=not terms.shadow, artifact_id=shown_id(ask.artifact),
        artifact_type=ask.type, artifact_version=ask.version, agent=ask.agent, approvers=list(terms.approvers),
        quorum=terms.quorum, timeout_s=terms.timeout_us / 1e6, summary=ask.summary, shown=ask.shown.hex(),
        visibility=visibility, edited_by=edited_by,
    )  # fmt: skip


def request_posting(
    ask: ApprovalAsk, envelope: Envelope, closed: Sequence[Visibility], post: Post
) -> Posting:
    """Post the request to approve an artifact: for approvers alone, and no wider than what it was made from."""
    made = post(
        request_model(ask, from_json(envelope.payload)),
        id=request_id(ask.artifact, 0),
        correlation_id=envelope.correlation_id,
        produced_by=f"orchestrator#{ask.agent}",
        created_us=envelope.created_us,
        tags=envelope.tags,
        visibility=narrow(*closed, PrivateVisibility(agents=frozenset(ask.terms.approvers))),
        partition_key=envelope.partition_key,
        parents=envelope.parents,
        activation_id=envelope.activation_id,
        priority=envelope.priority,
        via=envelope.via,
        scatter=envelope.scatter,
    )
    return msgspec.structs.replace(made, approval=ask)


def released(edge: Edge, task: Task, now_us: int) -> Posting:
    """Make the artifact of an approved request, and match it.

    Raises:
        ApprovalError: The request does not show what was approved: it was erased, for one.
    """
    [request] = task.inputs
    content = from_json(request.payload)
    if not isinstance(content, dict):
        raise ApprovalError("its content was erased")
    shown = ApprovalRequest.model_validate(content)
    name, version = shown.artifact_type, shown.artifact_version
    if shown_hash(name, version, shown.artifact).hex() != task.subscription.removeprefix(RELEASE):
        raise ApprovalError("it is not what was approved")
    visibility = None if shown.visibility is None else decode_visibility(to_json(shown.visibility))
    envelope = Envelope(
        UUID(shown.artifact_id).bytes, name, version, to_json(shown.artifact), request.correlation_id, request.slot,
        shown.agent, now_us, request.tags, None if visibility is None else encode_visibility(visibility),
        request.partition_key, request.parents, request.activation_id, request.priority, request.via, request.scatter,
    )  # fmt: skip
    return edge.rematch(Posting(envelope))
