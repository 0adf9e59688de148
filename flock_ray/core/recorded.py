"""What a journal says of a board without replaying it: the types that were deployed with its agents."""

from __future__ import annotations

import msgspec

from flock_ray.core.records import Installed, decode_frame
from flock_ray.core.recovery import ShardState
from flock_ray.core.rows import SHARD, Loaded
from flock_ray.core.wire import TypeInfo
from flock_ray.errors import StoreCorruptError


def recorded_types(loaded: Loaded) -> tuple[TypeInfo, ...]:
    """Return the types that a shard's journal records, by name and version; none when no agent was ever deployed.

    Raises:
        StoreCorruptError: The journal can't be read, or a newer version wrote it.
    """
    types: tuple[TypeInfo, ...] = ()
    for snapshot in loaded.snapshots:
        if snapshot.slot == SHARD:
            try:
                types = msgspec.msgpack.decode(snapshot.data, type=ShardState).table.types
            except msgspec.DecodeError as error:
                raise StoreCorruptError(f"The snapshot of a shard can't be read: {error}.") from error
    for _, data in loaded.frames:
        for record in decode_frame(data).records:
            if isinstance(record, Installed):
                types = record.table.types
    return types
