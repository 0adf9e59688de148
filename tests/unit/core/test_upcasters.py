from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from flock_ray.core.registry import flock_type, to_json, type_registry, upcaster
from flock_ray.errors import ArtifactSchemaError, ConfigurationError, VersionConflictError


@pytest.fixture(autouse=True)
def _own_registrations() -> Iterator[None]:
    with type_registry.isolated():
        yield


def _versioned() -> type[BaseModel]:
    @flock_type(version=3)
    class Order(BaseModel):
        model_config = ConfigDict(strict=True)
        id: str
        total: Decimal
        placed: datetime

    @upcaster(Order, from_version=1)
    def add_total(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "total": "0"}

    @upcaster(Order, from_version=2)
    def add_date(data: dict[str, Any]) -> dict[str, Any]:
        data["placed"] = datetime(2026, 1, 1, tzinfo=UTC)
        return data

    return Order


def test_upcasters_chain_to_the_current_version() -> None:
    order = _versioned()
    new = order.model_validate_json('{"id": "a", "total": "0", "placed": "2026-01-01T00:00:00Z"}')
    assert type_registry.validate("Order", 1, b'{"id": "a"}') == new
    assert type_registry.validate("Order", 2, b'{"id": "a", "total": "0"}') == new
    assert type_registry.validate("Order", 3, to_json(new)) == new
    assert type_registry.upcast("Order", 3, {"id": "a"}) == {"id": "a"}


@pytest.mark.parametrize("version", [4, 99])
def test_a_newer_version_says_upgrade(version: int) -> None:
    _versioned()
    with pytest.raises(
        VersionConflictError, match=rf"version {version}; this process knows up to 3\. Upgrade"
    ):
        type_registry.validate("Order", version, b"{}")


def test_a_missing_upcaster_says_which() -> None:
    @flock_type(version=3)
    class Invoice(BaseModel):
        id: str

    upcaster(Invoice, from_version=1)(lambda data: data)
    with pytest.raises(ArtifactSchemaError, match=r"version 2 .*@upcaster\(Invoice, from_version=2\)"):
        type_registry.validate("Invoice", 1, b"{}")


def test_upcasters_that_fail_are_named() -> None:
    @flock_type(version=2)
    class Invoice(BaseModel):
        id: str

    @upcaster(Invoice, from_version=1)
    def broken(data: dict[str, Any]) -> dict[str, Any]:
        return {"id": data["missing"]}

    with pytest.raises(ArtifactSchemaError, match=r"raised KeyError\. Correct .*broken") as caught:
        type_registry.validate("Invoice", 1, b"{}")
    assert isinstance(caught.value.__cause__, KeyError)

    @flock_type(version=2)
    class Note(BaseModel):
        id: str

    upcaster(Note, from_version=1)(lambda data: None)  # type: ignore[arg-type,return-value]  # what users do
    with pytest.raises(ArtifactSchemaError, match="returned a NoneType instead of a dict"):
        type_registry.validate("Note", 1, b"{}")


@pytest.mark.parametrize("payload", [b"[1]", b"{", b""])
def test_old_payloads_that_are_no_objects_are_refused(payload: bytes) -> None:
    _versioned()
    with pytest.raises(ArtifactSchemaError, match="no JSON object"):
        type_registry.validate("Order", 1, payload)


@pytest.mark.parametrize("version", [0, 3, 4])
def test_upcasters_out_of_range_are_refused(version: int) -> None:
    with pytest.raises(ConfigurationError, match=r"makes no sense.*@flock_type\(version="):
        upcaster(_versioned(), from_version=version)(lambda data: data)


def test_a_second_upcaster_of_one_version_is_refused() -> None:
    order = _versioned()
    with pytest.raises(ConfigurationError, match="two upcasters from version 1"):
        upcaster(order, from_version=1)(lambda data: data)
