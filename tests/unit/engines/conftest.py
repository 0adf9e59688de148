from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray.core.definition import AgentDefinition, OutputGroup, OutputSpec, Subscription
from flock_ray.core.ids import slot_of
from flock_ray.core.registry import TypeRegistry, to_json
from flock_ray.core.scatter import Part
from flock_ray.core.visibility import Visibility, encode_visibility
from flock_ray.core.wire import Completion, Envelope, Posting, Task
from flock_ray.engines.runner import AgentRunner

NOW_US = 1_700_000_000_000_000


class Host:
    """Stands in for the worker around a runner: a registry, clocks, and an edge that matches nothing."""

    def __init__(self) -> None:
        self.registry = TypeRegistry()
        self.now_s = 0.0
        self.refused: type[BaseModel] | None = None

    def post(
        self,
        model: BaseModel,
        *,
        id: bytes,
        correlation_id: str,
        produced_by: str,
        created_us: int,
        tags: tuple[str, ...],
        visibility: Visibility | None,
        partition_key: str | None,
        parents: tuple[bytes, ...],
        activation_id: bytes | None,
        priority: int,
        via: tuple[str, ...],
        scatter: tuple[Part, ...] = (),
    ) -> Posting:
        if self.refused is not None and isinstance(model, self.refused):
            raise RuntimeError("the edge refused it")
        entry = self.registry.ensure(type(model))
        return Posting(
            Envelope(
                id,
                entry.name,
                entry.version,
                to_json(model),
                correlation_id,
                slot_of(partition_key if partition_key is not None else correlation_id),
                produced_by,
                created_us,
                tags,
                encode_visibility(visibility),
                partition_key,
                parents,
                activation_id,
                priority,
                via,
                scatter,
            )
        )

    def runner(self, *publishes: Any, consumes: Sequence[Any] = (), **fields: Any) -> AgentRunner:
        """Compile agent "a"; each argument is a group, given as a type, a spec, or a tuple of them."""
        groups = [group if isinstance(group, tuple) else (group,) for group in publishes]
        definition = AgentDefinition(
            "a",
            subscriptions=[
                s if isinstance(s, Subscription) else Subscription(f"a/{s.__name__}", "a", (s,))
                for s in consumes
            ],
            output_groups=[
                OutputGroup(tuple(o if isinstance(o, OutputSpec) else OutputSpec(o) for o in group))
                for group in groups
            ],
            **fields,
        )
        return AgentRunner(
            definition, self.registry, self.post, now_us=lambda: NOW_US, monotonic=lambda: self.now_s
        )

    def envelope(self, model: BaseModel, *, id: bytes = b"i" * 16, **fields: Any) -> Envelope:
        entry = self.registry.ensure(type(model))
        base = {"correlation_id": "wf", "slot": 0, "produced_by": "external", "created_us": 1, **fields}
        return Envelope(id=id, type=entry.name, version=entry.version, payload=to_json(model), **base)

    def task(self, *inputs: BaseModel | Envelope, subscription: str | None = None, **fields: Any) -> Task:
        envelopes = tuple(
            item if isinstance(item, Envelope) else self.envelope(item, id=bytes([index]) * 16)
            for index, item in enumerate(inputs, 1)
        )
        name = f"a/{envelopes[0].type}" if subscription is None else subscription
        return Task(b"t" * 16, 3, "a", name, 7, "wf", envelopes, **fields)

    def models(self, completion: Completion) -> list[BaseModel]:
        assert completion.error is None, completion.error
        return [self.decode(posting) for posting in completion.outputs]

    def decode(self, posting: Posting) -> BaseModel:
        envelope = posting.envelope
        return self.registry.validate(envelope.type, envelope.version, envelope.payload)


@pytest.fixture
def host() -> Host:
    return Host()
