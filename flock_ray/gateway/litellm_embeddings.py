"""Embeds through litellm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from pydantic import SecretStr

from flock_ray.errors import ModelError
from flock_ray.gateway.settings import ModelSettings, full_name
from flock_ray.model import ModelRequest, packed

__all__ = ["embedding_parameters", "vectors_in"]

TRY_S = 120.0
"""A try that takes longer is given up; the time of the whole call is the gateway's to watch."""


def embedding_parameters(request: ModelRequest, settings: ModelSettings) -> dict[str, Any]:
    """Return what `aembedding` is called with. What the embedder itself was given wins over the settings."""
    made: dict[str, Any] = {
        "model": full_name(request.model), "input": request.embed, "timeout": TRY_S, "max_retries": 0, "num_retries": 0,
    }  # fmt: skip
    if settings.api_base is not None:
        made["api_base"] = settings.api_base
    if isinstance(settings.api_key, SecretStr):
        made["api_key"] = settings.api_key.get_secret_value()
    return {**settings.extra, **made, **request.extra}


def vectors_in(rows: Sequence[Any], count: int, model: str) -> list[bytes]:
    """Read the rows of an answer; they may come in any order.

    Raises:
        ModelError: They are not what was asked for.
    """
    try:
        found = {int(_of(row, "index")): [float(x) for x in _of(row, "embedding")] for row in rows}
        return [packed(found[index]) for index in range(count)]
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, msgspec.MsgspecError):
        raise ModelError(f"{model} did not answer with {count} vectors. It is tried again.") from None


def _of(row: Any, name: str) -> Any:
    return row[name] if isinstance(row, dict) else getattr(row, name)
