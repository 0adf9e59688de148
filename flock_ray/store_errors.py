"""Errors of what keeps a board; users import them from `flock_ray.errors`."""

from __future__ import annotations

from flock_ray.error_base import FlockError


class StoreError(FlockError):
    """The store failed."""

    code = "store_error"
    text = "The store failed. Look at the log of the shard and of the store."


class StoreUnavailableError(StoreError):
    """The store did not answer; whether the last write happened is unknown."""

    code = "store_unavailable"
    retryable = True
    http_status = 503
    text = "The store does not answer. Check its address and health; repeating the call is safe."


class StaleEpochError(StoreError):
    """A writer that was replaced tried to write; it must stop, so it is not retryable."""

    code = "stale_epoch"
    http_status = 409
    text = "Another writer owns these slots. Stop this one, and refresh the slot map to reach the owner."


class StoreCorruptError(StoreError):
    """What is stored was damaged, or is not what this program wrote; nothing was changed."""

    code = "store_corrupt"
    text = "The store holds damaged data. Restore it from a backup; nothing was overwritten."


class LeaseLostError(StoreError):
    """A lease ended before its holder was done; somebody else does the work now."""

    code = "lease_lost"
    http_status = 409
    text = "The lease ended before the work was done. Drop the result: another attempt has taken over."
