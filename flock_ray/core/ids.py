"""Identities: every id is derived, so that a second execution names the same things.

All ids are 16 bytes of BLAKE2b. Callers outside the core show them as UUIDs.
"""

from __future__ import annotations

from hashlib import blake2b
from zlib import crc32

NUM_SLOTS = 256
"""Slots of a board. Fixed when a board is created."""


EPOCH_SHIFT = 32
"""Events and attempts of an epoch are numbered from epoch << 32: never the numbers of a former one."""


def attempt_of(number: int) -> int:
    """Return the attempt within its epoch, from 1."""
    return number & ((1 << EPOCH_SHIFT) - 1)


def shown_id(key: bytes) -> str:
    """Return an id as callers outside the core write it: the text of a UUID."""
    text = key.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def slot_of(partition_key: str) -> int:
    """Return the slot (0-255) that owns a partition key."""
    return crc32(partition_key.encode()) & (NUM_SLOTS - 1)


def shard_of(slot: int, num_shards: int) -> int:
    """Return the index of the shard that owns a slot under the default slot map."""
    return slot % num_shards


def owned_slots(shard: int, num_shards: int) -> list[int]:
    """Return the slots of a shard under the default slot map."""
    return [slot for slot in range(NUM_SLOTS) if shard_of(slot, num_shards) == shard]


def derive_id(*parts: bytes) -> bytes:
    """Hash length-prefixed parts to a 16-byte id; the same parts always give the same id."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


def activation_id(agent: str, subscription_id: str, input_ids: tuple[bytes, ...], round_: int) -> bytes:
    """Name one run of one agent on one set of inputs, the same after any crash."""
    return blake2b(
        b"\x00".join((agent.encode(), subscription_id.encode(), b"%d" % round_, b"".join(input_ids))),
        digest_size=16,
    ).digest()


def single_prefix(agent: str, subscription_id: str) -> bytes:
    """Return what `single_activation_id` takes: the part of its hash that all inputs share."""
    return b"%s\x00%s\x000\x00" % (agent.encode(), subscription_id.encode())


def single_activation_id(prefix: bytes, input_id: bytes) -> bytes:
    """Return `activation_id(agent, subscription_id, (input_id,), 0)`, at half its cost."""
    return blake2b(prefix + input_id, digest_size=16).digest()


def output_id(activation: bytes, position: int) -> bytes:
    """Name the output at a position (from 0) of an activation, whichever attempt made it."""
    return blake2b(activation + position.to_bytes(4, "big"), digest_size=16).digest()


def workflow_id_for(activation: bytes) -> str:
    """Name the workflow that starts where one activation joins several workflows."""
    return "wf-" + activation.hex()
