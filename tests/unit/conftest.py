from __future__ import annotations

from collections.abc import Iterator

import pytest

from flock_ray.core.registry import type_registry


@pytest.fixture(autouse=True)
def _own_types() -> Iterator[None]:
    """Forget the types that a test registers: another one may use the same names."""
    with type_registry.isolated():
        yield
