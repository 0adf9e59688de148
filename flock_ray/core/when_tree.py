"""The plain form of an activation: what a shard evaluates without user code.

Made by `flock_ray.core.conditions.compile_when`. Trees are nested tuples of plain values, and
work as well as the nested lists that msgpack makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias, cast

import msgspec

__all__ = [
    "FlagPredicate",
    "WhenSpec",
    "WhenTree",
    "compare_count",
    "decode_when",
    "encode_when",
    "eval_when",
    "field_holds",
    "watched_types",
]

Predicate = Callable[[Any], bool]

WhenTree: TypeAlias = Sequence[Any]
"""("and"|"or", tree, ...), ("not", tree), ("count", type, op, n) or ("flag", index, type)."""


class FlagPredicate(msgspec.Struct, frozen=True):
    """A field condition that the edge evaluates for every artifact of its type."""

    type_name: str
    field: str
    predicate: Predicate

    def holds(self, model: object) -> bool:
        """Tell whether a model satisfies it; see `field_holds`."""
        return field_holds(model, self.field, self.predicate)


class WhenSpec(msgspec.Struct, frozen=True):
    """An activation, split into what a shard evaluates and what the edge does."""

    tree: WhenTree
    """Plain data, see `WhenTree`."""
    predicates: tuple[FlagPredicate, ...] = ()
    """What the ("flag", index, type) leaves of the tree mean."""


def eval_when(spec: WhenSpec | WhenTree, counts: Mapping[str, int], flags: Collection[int]) -> bool:
    """Tell whether an activation holds, without user code.

    Args:
        spec: From `compile_when`, or its tree, also after a round trip through msgpack.
        counts: Number of artifacts in the workflow by type name; absent is 0.
        flags: Indices of the predicates that some artifact of the workflow satisfied.
    """
    tree = spec.tree if isinstance(spec, WhenSpec) else spec
    kind = tree[0]
    if kind == "count":
        return compare_count(counts.get(tree[1], 0), tree[2], tree[3])
    if kind == "flag":
        return tree[1] in flags
    if kind == "not":
        return not eval_when(tree[1], counts, flags)
    parts = (eval_when(part, counts, flags) for part in tree[1:])
    return all(parts) if kind == "and" else any(parts)


def watched_types(spec: WhenSpec | WhenTree) -> frozenset[str]:
    """Return the names of the types whose artifacts may change the outcome."""
    tree = spec.tree if isinstance(spec, WhenSpec) else spec
    if tree[0] == "count":
        return frozenset({tree[1]})
    if tree[0] == "flag":
        return frozenset({tree[2]})
    return frozenset[str]().union(*(watched_types(part) for part in tree[1:]))


def encode_when(spec: WhenSpec | WhenTree) -> bytes:
    """Encode the tree as msgpack, for the subscription table of a shard."""
    return msgspec.msgpack.encode(spec.tree if isinstance(spec, WhenSpec) else spec)


def decode_when(data: bytes) -> WhenTree:
    """Decode what `encode_when` made; `eval_when` and `watched_types` take it as it is."""
    return cast(WhenTree, msgspec.msgpack.decode(data))


def compare_count(count: int, op: str, n: int) -> bool:
    """Apply one of the operators >=, <= and ==."""
    if op == ">=":
        return count >= n
    return count <= n if op == "<=" else count == n


def field_holds(model: object, field: str, predicate: Predicate) -> bool:
    """Tell whether a field of a model satisfies a predicate.

    Args:
        model: A model, or nested mappings.
        field: Name of the field, dotted for nested ones. A path that ends early, as with None on
            the way, does not satisfy; the predicate is then not called.
        predicate: The user's; what it raises is not caught.
    """
    value: Any = model
    for name in field.split("."):
        if isinstance(value, Mapping):
            if name not in value:
                return False
            value = value[name]
        elif hasattr(value, name):
            value = getattr(value, name)
        else:
            return False
    return bool(predicate(value))
