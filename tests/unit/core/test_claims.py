from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.core.claims import (
    CLAIM_BYTES,
    MARK,
    claim_for,
    fits,
    is_claim,
    payload_bytes,
    read_claim,
    same_payload,
)
from flock_ray.core.records import CLAIMS_FORMAT, FRAME_FORMAT, Frame, Published, decode_frame, encode_frame
from flock_ray.core.wire import Envelope, Posting
from flock_ray.errors import StoreCorruptError


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_claim_stands_for_one_payload(one: bytes, other: bytes) -> None:
    claim = claim_for(one)
    assert len(claim) == CLAIM_BYTES
    assert is_claim(claim)
    assert payload_bytes(claim) == len(one)
    assert fits(claim, one)
    assert fits(claim, other) == (one == other)


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_payloads_are_compared_whether_claimed_or_not(one: bytes, other: bytes) -> None:
    one, other = b"{" + one, b"{" + other
    for left in (one, claim_for(one)):
        for right in (other, claim_for(other)):
            assert same_payload(left, right) == (one == other)


@pytest.mark.parametrize("hostile", [b"", MARK, MARK * 10, MARK + b"x" * 41, b"{}", claim_for(b"x")[:-1]])
def test_what_is_no_claim_fits_nothing(hostile: bytes) -> None:
    with pytest.raises(ValueError, match="no claim"):
        read_claim(hostile)
    assert not fits(hostile, b"x")
    assert payload_bytes(hostile) == len(hostile)


def frame_of(payload: bytes) -> bytes:
    envelope = Envelope(bytes(16), "T", 1, payload, "w", 0, "external", 1)
    return encode_frame(1, [0], [Published(1, Posting(envelope))], lambda _: True)


def test_a_frame_keeps_claims_and_not_payloads() -> None:
    [record] = decode_frame(frame_of(claim_for(b"{}"))).records
    assert isinstance(record, Published)
    assert record.posting.envelope.payload == claim_for(b"{}")
    [record] = decode_frame(frame_of(b"{}")).records
    assert isinstance(record, Published)
    assert record.posting.envelope.payload == b""


def test_a_program_that_knows_no_claims_refuses_frames_that_have_some() -> None:
    assert decode_frame(frame_of(b"{}")).format == FRAME_FORMAT == 1  # old ones read it
    assert decode_frame(frame_of(claim_for(b"{}"))).format == CLAIMS_FORMAT
    with pytest.raises(StoreCorruptError, match="newer version"):
        decode_frame(msgspec.msgpack.encode(Frame(CLAIMS_FORMAT + 1, 1, [], [])))
