"""Packs agents for the board: the declarative half for shards, the code for workers."""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Callable
from types import CodeType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # ships no types
import msgspec

from flock_ray.components.settings import settings_digest
from flock_ray.core import wire
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.schema import types_of
from flock_ray.errors import AgentNotPicklableError, safe_error_text

SHARED_POOL = "shared"


class CloudpickleCodec:
    """Carries definitions to other processes of the user's own cluster.

    Pickle runs code: definitions only ever come from a driver that may already run code on the cluster.
    """

    def dump(self, definition: AgentDefinition) -> bytes:
        """Encode one agent.

        Raises:
            AgentNotPicklableError: Something it refers to can't leave this process; says what.
        """
        try:
            data: bytes = cloudpickle.dumps(definition)
            return data
        except Exception as error:
            kind, text = safe_error_text(error)
            raise AgentNotPicklableError(
                f"Agent {definition.name!r} can't be sent to workers: {kind}: {text}. Locks, connections, open files "
                "and generators can't travel: create them inside the function, or load them lazily."
            ) from error

    def load(self, data: bytes) -> AgentDefinition:
        """Decode one agent that `dump` of a driver of this board encoded."""
        definition: AgentDefinition = cloudpickle.loads(data)
        return definition


def package(definition: AgentDefinition, registry: TypeRegistry, codec: Any, owner: str) -> wire.AgentPackage:
    """Pack one agent."""
    types = types_of(definition, registry)
    # The types are part of the fingerprint: an agent whose models changed is deployed again.
    spec = msgspec.structs.replace(MatchTable(0, (definition,), registry).spec, types=types)
    pool = wire.PoolInfo()
    if definition.pool is not None:
        own = definition.pool
        pool = wire.PoolInfo(
            f"agent-{definition.name}", own.min, own.max or 0, own.num_cpus, own.num_gpus, own.resources,
            own.idle_timeout_s,
        )  # fmt: skip
    return wire.AgentPackage(
        spec.agents[0], spec.subscriptions, pool, codec.dump(definition), fingerprint(definition, spec), owner,
        spec.types,
    )  # fmt: skip


def fingerprint(definition: AgentDefinition, spec: wire.TableSpec) -> str:
    """Hash declarations and code: equal for the same script started twice, different after an edit."""
    digest = hashlib.blake2b(wire.encode(spec), digest_size=16)
    functions: list[Any] = [definition.function, definition.calls]
    functions += [predicate for sub in definition.subscriptions for predicate in sub.where]
    functions += [sub.join.by for sub in definition.subscriptions if sub.join is not None]
    for sub in definition.subscriptions:
        if sub.aggregate is not None:
            functions += sub.aggregate.functions()
            digest.update(sub.aggregate.digest())
    if definition.limits is not None:
        functions += definition.limits.functions()
        digest.update(definition.limits.digest())
    for fan in (definition.fan_out, definition.fan_in):
        if fan is not None:
            functions += fan.functions()
            digest.update(fan.digest())
    for group in definition.output_groups:
        for output in group.outputs:
            digest.update(f"{output.type.__qualname__} {output.count} {output.fan_out}".encode())
            functions += [output.where, *(check for check, _ in output.validate)]
    if definition.budgets:
        digest.update(repr(definition.budgets).encode())
    if definition.retry is not None:
        digest.update(definition.retry.digest())
        functions += definition.retry.functions()
    for function in functions:
        digest.update(_code_of(function))
    if definition.embedder is not None:
        meanings = [sub.semantic for sub in definition.subscriptions]
        digest.update(repr((definition.embedder.name, meanings)).encode())
    for use in definition.mcp_servers:
        digest.update(use.digest())
    for part in (*definition.engines, *definition.utilities):
        digest.update(settings_digest(part))
    if definition.gate is not None:
        digest.update(definition.gate.digest())
    for starter in definition.starters:
        digest.update(settings_digest(starter))
    digest.update(repr((definition.description, definition.model)).encode())
    for group in definition.output_groups:
        digest.update(repr((group.description, [output.description for output in group.outputs])).encode())
    for tool in definition.tools:
        digest.update(_code_of(tool) + repr(getattr(tool, "__flock_tool__", "")).encode())
    digest.update(repr((definition.best_of and definition.best_of[0], definition.good_enough)).encode())
    digest.update(
        repr((definition.max_concurrency, definition.timeout_s, definition.pool, sorted(definition.labels),
              definition.tenant, definition.max_crashes, definition.idle_timeout_s)).encode()
    )  # fmt: skip
    return digest.hexdigest()


def _code_of(function: Callable[..., Any] | None) -> bytes:
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return marshal.dumps(code)
    return repr(type(function)).encode()
