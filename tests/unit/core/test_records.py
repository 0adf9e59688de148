from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core import records, wire

KINDS: list[type[msgspec.Struct]] = list(records.Record.__args__)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_survives_the_journal(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    record = data.draw(_made(kind))
    assert records.decode_record(records.encode_record(record)) == record


def test_a_record_of_an_older_release_still_decodes() -> None:
    # Given an envelope as the first release wrote it, without the fields that have defaults
    old = [b"i" * 16, "T", 1, b"{}", "w", 7, "external", 5]
    record = records.decode_record(msgspec.msgpack.encode(["P", 9, [old]]))
    # Then what came later has its default
    assert isinstance(record, records.Published)
    assert record.posting == wire.Posting(wire.Envelope(b"i" * 16, "T", 1, b"{}", "w", 7, "external", 5))
    assert record.slot == 7


def test_a_record_of_a_newer_release_still_decodes() -> None:
    # Given a record with a field that this release does not know
    record = records.decode_record(msgspec.msgpack.encode(["T", 9, 3, "something new"]))
    assert record == records.Ticked(9, 3)


_leaf = {
    int: st.integers(-(2**62), 2**62),
    str: st.text(max_size=5),
    bytes: st.binary(max_size=5),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
}


def _made(kind: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    """Make structs of random contents, field by field."""
    return st.builds(kind, **{field.name: _value(field.type) for field in msgspec.structs.fields(kind)})


def _value(annotation: object) -> st.SearchStrategy[object]:
    info = msgspec.inspect.type_info(annotation)
    return _of(info)


def _of(info: msgspec.inspect.Type) -> st.SearchStrategy[object]:
    if isinstance(info, msgspec.inspect.StructType):
        return _made(info.cls)
    if isinstance(info, msgspec.inspect.UnionType):
        return st.one_of(*map(_of, info.types))
    if isinstance(info, msgspec.inspect.VarTupleType):
        return st.lists(_of(info.item_type), max_size=2).map(tuple)
    if isinstance(info, msgspec.inspect.TupleType):
        return st.tuples(*map(_of, info.item_types))
    if isinstance(info, msgspec.inspect.LiteralType):
        return st.sampled_from(info.values)
    if isinstance(info, msgspec.inspect.NoneType):
        return st.none()
    if isinstance(info, msgspec.inspect.DictType):
        return st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=2)
    names = {"IntType": int, "StrType": str, "BytesType": bytes, "BoolType": bool, "FloatType": float}
    return _leaf[names[type(info).__name__]]
