"""Builders of rows for tests of stores: only what a test is about has to be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from flock_ray.core.rows import ActivationRow, Decision, Snapshot, StoreBatch, WorkflowRow
from flock_ray.core.visibility import (
    AfterVisibility,
    LabelledVisibility,
    Visibility,
    encode_visibility,
    only_for,
)
from flock_ray.core.wire import Envelope

HOSTILE = (
    "",
    " ",
    "'; DROP TABLE artifacts; --",
    '"quoted" `name` \\ / \\\\ $1 %s :name ?1 @x #{y}',
    "100%_[a-z]*?{x}^~",
    "nul\x00inside\x00",
    "\x00",
    "line\r\nfeed\ttab\x1b[31m",
    "{braces}{0}{}",
    "Grüße 🐦‍🔥 \u202ertl \ufeff",
    "e\u0301 is not \u00e9",
    "../../etc/passwd",
    "null",
    "0",
    "x" * 10_000,
)
"""Texts that users may choose: each must come back as it went, and be found by equality alone."""

PAYLOADS = (
    b"{}",
    b'{"nul":"\\u0000","lone":"\\ud800","quote":"\\"\'"}',
    b'{"n":1e400,"i":' + b"9" * 400 + b"}",
    b"[" * 2000 + b"]" * 2000,
    b' { "spaced" : 1 , "twice" : 1, "twice" : 2 } ',
    '{"text":"🐦 \u2028 %s {x} \\\\"}'.encode(),
    b'"a string"',
    b"0",
)
"""JSON that a store must keep byte for byte."""


def key(name: object) -> bytes:
    """Make an id of 16 bytes from anything with a repr."""
    return blake2b(repr(name).encode(), digest_size=16).digest()


def visible(kind: str) -> bytes | None:
    """Encode a visibility of a kind."""
    made: dict[str, Visibility | None] = {
        "Public": None,
        "Private": only_for("auditor"),
        "Labelled": LabelledVisibility(required_labels=frozenset({"secret"})),
        "After": AfterVisibility.model_validate({"ttl": 60}),
    }
    return encode_visibility(made[kind])


def artifact(
    name: object,
    *,
    type: str = "Order",
    workflow: str = "wf-1",
    slot: int = 0,
    payload: bytes = b'{"n":1}',
    produced_by: str = "clerk",
    created_us: int = 1_000,
    tags: Iterable[str] = (),
    visibility: bytes | None = None,
    **more: object,
) -> Envelope:
    """Make an envelope whose id is `key(name)`."""
    fields: dict[str, object] = {
        "id": key(name),
        "type": type,
        "version": 1,
        "payload": payload,
        "correlation_id": workflow,
        "slot": slot,
        "produced_by": produced_by,
        "created_us": created_us,
        "tags": tuple(tags),
        "visibility": visibility,
        **more,
    }
    return Envelope(**fields)  # type: ignore[arg-type]  # a builder takes any field


def full_artifact(name: object = "full") -> Envelope:
    """Make an envelope with every field set."""
    return artifact(
        name,
        type="Invoice",
        tags=("eu", "urgent"),
        visibility=visible("Labelled"),
        version=7,
        partition_key="customer 🐦",
        parents=(key("mother"), key("father")),
        activation_id=key("run"),
        priority=-3,
        via=("clerk", "boss"),
        created_us=2**53 + 1,
    )


def activation(
    name: object,
    *,
    workflow: str = "wf-1",
    inputs: Sequence[object] = (),
    ended_us: int = 2_000,
    **more: object,
) -> ActivationRow:
    """Make the row of an activation whose id is `key(name)`; inputs are names of artifacts."""
    fields: dict[str, object] = {
        "id": key(name),
        "agent": "clerk",
        "subscription": "clerk.order",
        "slot": 0,
        "correlation_id": workflow,
        "inputs": tuple(key(entry) for entry in inputs),
        "outputs": (),
        "created_us": 1_500,
        "ended_us": ended_us,
        **more,
    }
    return ActivationRow(**fields)  # type: ignore[arg-type]  # a builder takes any field


def workflow(
    id: str = "wf-1", *, slot: int = 0, updated_us: int = 3_000, open: int = 0, **more: object
) -> WorkflowRow:
    """Make the row of a workflow; it is settled unless told otherwise."""
    fields: dict[str, object] = {
        "slot": slot,
        "id": id,
        "created_us": 1_000,
        "updated_us": updated_us,
        "open": open,
        **more,
    }
    return WorkflowRow(**fields)  # type: ignore[arg-type]  # a builder takes any field


def batch(
    lsn: int,
    artifacts: Sequence[Envelope] = (),
    *,
    first_seq: int = 1,
    frame: bytes | None = None,
    activations: Sequence[ActivationRow] = (),
    workflows: Sequence[WorkflowRow] = (),
    decisions: Sequence[Decision] = (),
) -> StoreBatch:
    """Make a batch; its artifacts take the feed positions from `first_seq` on."""
    return StoreBatch(
        lsn,
        1_000 * lsn,
        b"frame-%d" % lsn if frame is None else frame,
        list(enumerate(artifacts, first_seq)),
        list(activations),
        list(workflows),
        list(decisions),
    )


def snapshot(slot: int, lsn: int, data: bytes = b"state") -> Snapshot:
    """Make a snapshot."""
    return Snapshot(slot, lsn, data)
