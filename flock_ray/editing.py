"""Content that a person gives in place of an artifact's, checked against its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError
from pydantic_core import to_json as dump

from flock_ray.core.registry import TypeRegistry, to_json
from flock_ray.errors import ArtifactSchemaError, PayloadTooLargeError

__all__ = ["edited_payload"]


def edited_payload(
    registry: TypeRegistry, type_name: str, model: BaseModel | Mapping[str, Any], max_bytes: int
) -> tuple[int, bytes]:
    """Return the version and the payload of what was given.

    Args:
        registry: Artifact types.
        type_name: What it has to be.
        model: An instance of the type, or a mapping that fits it.
        max_bytes: Largest payload.

    Raises:
        ArtifactSchemaError: It does not fit the type.
        PayloadTooLargeError: It is too large.
    """
    version = registry.get(type_name).version
    given: object = model
    if isinstance(given, BaseModel):
        name = registry.name_for(type(given))
        if name != type_name:
            raise ArtifactSchemaError(
                f"edit(): the artifact is a {type_name!r}, not a {name!r}. Give a payload of its type.",
                type_name=type_name, version=version,
            )  # fmt: skip
        # Only then is it known to be valid: a model may have been made without a check.
        data = given.model_dump_json(by_alias=False, round_trip=True, warnings=False).encode()
    elif isinstance(given, Mapping):
        try:
            data = dump(dict(given))
        except PydanticSerializationError as error:
            raise ArtifactSchemaError(
                f"edit(): the payload cannot be written as JSON: {error}.",
                type_name=type_name,
                version=version,
            ) from None
    else:
        raise ArtifactSchemaError(
            f"edit(): give a model of type {type_name!r}, or a mapping that fits it.",
            type_name=type_name, version=version,
        )  # fmt: skip
    payload = to_json(registry.validate(type_name, version, data))
    if len(payload) > max_bytes:
        raise PayloadTooLargeError(f"edit(): the payload is {len(payload)} bytes, the limit {max_bytes}.")
    return version, payload
