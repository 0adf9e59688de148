"""Records of the journal: every command that a slot accepted, with the time at which it did.

A record holds every decision that was taken outside the shard (matches, attempts' results), and
what the shard makes of it is a pure function of its state: replaying the records of a slot gives
the same state, whatever host runs it. A field is only ever added at the end, with a default.
"""

from __future__ import annotations

import msgspec

from flock_ray.core.wire import Completion, Forward, Posting, TableSpec


class Published(msgspec.Struct, array_like=True, tag="P", frozen=True):
    """An artifact from outside was accepted."""

    at_us: int
    posting: Posting

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.posting.envelope.slot


class Completed(msgspec.Struct, array_like=True, tag="C", frozen=True):
    """The first result of an activation was committed."""

    at_us: int
    completion: Completion

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.completion.slot


class Ticked(msgspec.Struct, array_like=True, tag="T", frozen=True):
    """Timers of the slot that were due at this time have fired."""

    at_us: int
    slot: int


class ForwardedIn(msgspec.Struct, array_like=True, tag="I", frozen=True):
    """Something from another slot's outbox was applied."""

    at_us: int
    forward: Forward

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.forward.target


class ForwardAcked(msgspec.Struct, array_like=True, tag="A", frozen=True):
    """The receiver has an outbox entry: forget it."""

    slot: int
    target: int
    seq: int


class Lost(msgspec.Struct, array_like=True, tag="L", frozen=True):
    """A worker died while it had these activations."""

    at_us: int
    slot: int
    blamed: tuple[bytes, ...]
    worker: str


class Flushed(msgspec.Struct, array_like=True, tag="F", frozen=True):
    """Somebody asked for partial batches to run now."""

    at_us: int
    slot: int


class Cancelled(msgspec.Struct, array_like=True, tag="X", frozen=True):
    """A workflow was cancelled."""

    at_us: int
    slot: int
    workflow: str


class Installed(msgspec.Struct, array_like=True, tag="S", frozen=True):
    """A version of the subscription table took effect."""

    at_us: int
    slot: int
    table: TableSpec


Record = Published | Completed | Ticked | ForwardedIn | ForwardAcked | Lost | Flushed | Cancelled | Installed

encode_record = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(Record).decode
