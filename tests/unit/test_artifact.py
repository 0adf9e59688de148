from __future__ import annotations

import pickle
import uuid
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from pydantic import BaseModel, ConfigDict

from flock_ray.artifact import Artifact
from flock_ray.core.ids import slot_of
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.visibility import PrivateVisibility, PublicVisibility, encode_visibility, only_for
from flock_ray.core.wire import Envelope
from flock_ray.errors import ArtifactSchemaError, ConfigurationError, UnknownTypeError


class Parcel(BaseModel):
    weight: float
    sent: datetime | None = None


class StrictParcel(BaseModel):
    model_config = ConfigDict(strict=True)

    sent: datetime


class WeightOnly(BaseModel):
    weight: float


def on_board(payload: bytes = b'{"weight": 2.5}', type_: str = "Parcel", version: int = 1) -> Envelope:
    return Envelope(
        b"\x01" * 16, type_, version, payload, "wf-1", 9, "packer", 1_700_000_000_123_456, ("fragile", "red"),
        encode_visibility(only_for("boss")), "key", (b"\x02" * 16,), b"\x03" * 16,
    )  # fmt: skip


def registry() -> TypeRegistry:
    made = TypeRegistry()
    made.register(Parcel)
    return made


def test_shows_what_the_envelope_holds() -> None:
    artifact = Artifact.from_envelope(on_board())

    assert artifact.id == uuid.UUID(bytes=b"\x01" * 16)
    assert (artifact.type, artifact.version, artifact.produced_by) == ("Parcel", 1, "packer")
    assert artifact.payload == {"weight": 2.5}
    assert (artifact.correlation_id, artifact.partition_key) == ("wf-1", "key")
    assert artifact.tags == {"fragile", "red"}
    assert artifact.visibility == PrivateVisibility(agents=frozenset({"boss"}))
    assert artifact.created_at == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert artifact.parents == (uuid.UUID(bytes=b"\x02" * 16),)
    assert artifact.activation_id == uuid.UUID(bytes=b"\x03" * 16)


def test_decodes_its_model() -> None:
    assert Artifact.from_envelope(on_board()).model(registry()) == Parcel(weight=2.5)


def test_a_type_nobody_registered_is_named() -> None:
    with pytest.raises(UnknownTypeError, match="Nowhere"):
        Artifact.from_envelope(on_board(type_="Nowhere")).model(registry())


def test_is_made_by_keywords_with_upstreams_defaults() -> None:
    before = datetime.now(UTC)
    artifact = Artifact(type="Parcel", payload={"weight": 1.0}, produced_by="me")

    assert artifact.id != Artifact(type="Parcel", payload={}, produced_by="me").id
    assert artifact.correlation_id is None
    assert artifact.partition_key is None
    assert artifact.tags == set()
    assert artifact.visibility == PublicVisibility()
    assert before <= artifact.created_at <= datetime.now(UTC)
    assert (artifact.version, artifact.parents, artifact.activation_id) == (1, (), None)
    assert artifact.envelope.visibility is None


def test_the_envelope_is_made_when_it_is_asked_for() -> None:
    artifact = Artifact(type="Parcel", payload={"weight": 1.0}, partition_key="k", tags=["b", "a", "b"])
    artifact.payload["weight"] = 2.0

    assert artifact.envelope.payload == b'{"weight":2.0}'
    assert artifact.envelope.slot == slot_of("k")
    assert artifact.envelope.tags == ("a", "b")


def test_payload_values_that_json_lacks_are_encoded() -> None:
    when = datetime(2026, 1, 2, 3, tzinfo=UTC)
    payload = {"at": when, "id": uuid.UUID(int=5), "price": Decimal("1.50"), "tags": {"x"}, "raw": b"y"}

    shown = Artifact.from_envelope(Artifact(type="T", payload=payload).envelope).payload

    assert shown == {"at": "2026-01-02T03:00:00Z", "id": str(uuid.UUID(int=5)), "price": "1.50",
                     "tags": ["x"], "raw": "y"}  # fmt: skip


def test_a_payload_that_cannot_be_json_is_refused_with_its_type() -> None:
    with pytest.raises(ArtifactSchemaError, match="'T'"):
        _ = Artifact(type="T", payload={"x": object()}).envelope


def test_changing_the_payload_changes_the_model_but_not_what_is_published() -> None:
    artifact = Artifact.from_envelope(on_board())
    artifact.payload["weight"] = 9.0

    assert artifact.model(registry()) == Parcel(weight=9.0)
    assert artifact.envelope.payload == b'{"weight": 2.5}'


def test_from_model_keeps_the_model_until_its_payload_is_touched() -> None:
    parcel = Parcel(weight=1.0)
    artifact = Artifact.from_model(parcel, produced_by="e")

    assert artifact.model(registry()) is parcel
    assert artifact.type == "Parcel"
    artifact.payload["weight"] = 4.0
    assert artifact.model(registry()) == Parcel(weight=4.0)


def test_a_touched_payload_still_fits_strict_models() -> None:
    strict = StrictParcel(sent=datetime(2026, 1, 1, tzinfo=UTC))
    artifact = Artifact.from_model(strict)
    _ = artifact.payload

    assert artifact.model(TypeRegistry()) == strict


def test_can_be_viewed_as_a_class_that_is_not_registered() -> None:
    assert Artifact.from_envelope(on_board()).view_as(WeightOnly) == WeightOnly(weight=2.5)
    with pytest.raises(ArtifactSchemaError, match="weight"):
        Artifact(type="T", payload={"x": 1}).view_as(WeightOnly)


def test_the_dict_form_makes_the_same_artifact_again() -> None:
    artifact = Artifact.from_envelope(on_board())

    again = Artifact(**artifact.to_dict())

    assert again.to_dict() == artifact.to_dict()
    assert again.to_dict()["visibility"] == {"kind": "Private", "agents": ["boss"]}
    assert again.envelope.created_us == on_board().created_us


def test_model_dump_has_python_values_unless_asked_for_json() -> None:
    artifact = Artifact.from_envelope(on_board())

    assert artifact.model_dump()["created_at"] == artifact.created_at
    assert artifact.model_dump()["tags"] == {"fragile", "red"}
    assert artifact.model_dump(mode="json") == artifact.to_dict()


def test_model_copy_changes_only_the_copy() -> None:
    artifact = Artifact.from_envelope(on_board())

    copy = artifact.model_copy(update={"payload": {"weight": 0.0}, "tags": {"new"}})

    assert (copy.id, copy.payload, copy.tags) == (artifact.id, {"weight": 0.0}, {"new"})
    assert artifact.payload == {"weight": 2.5}
    with pytest.raises(TypeError):
        artifact.model_copy(update={"colour": "red"})


def test_equality_and_hash_go_by_id() -> None:
    one, same = Artifact.from_envelope(on_board()), Artifact.from_envelope(on_board(b"{}"))

    assert one == same
    assert {one, same} == {one}
    assert one != Artifact(type="Parcel", payload={"weight": 2.5})
    assert one != "something else"


@pytest.mark.parametrize(
    "artifact",
    [
        Artifact.from_envelope(on_board()),
        Artifact(type="Parcel", payload={"weight": 1.0}, correlation_id="c"),
        Artifact.from_model(Parcel(weight=3.0)),
    ],
)
def test_survives_pickling(artifact: Artifact) -> None:
    again = pickle.loads(pickle.dumps(artifact))

    assert again.to_dict() == artifact.to_dict()


def test_repr_is_short_and_shows_no_payload() -> None:
    shown = repr(Artifact(type="Secret", payload={"password": "hunter2"}))

    assert "Secret" in shown
    assert "hunter2" not in shown
    assert len(shown) < 60


def test_a_naive_creation_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        Artifact(type="T", payload={}, created_at=datetime(2026, 1, 1))
