"""What a shard does when its store refuses it, because somebody else has taken its slots.

A board that was started elsewhere wins: the newest start is what somebody wants, and a shard that took its slots
back would fight it for ever. But the other one may be of this very board: a predecessor that was thought dead and
came late. Nobody reaches that one any more, so the shard that everybody reaches starts again, and fences it.
"""

from __future__ import annotations

import logging
import os
from socket import gethostname
from typing import TYPE_CHECKING

from flock_ray.errors import FlockError, StaleEpochError, StoreUnavailableError

if TYPE_CHECKING:
    from flock_ray.actors.keeping import Keeper
    from flock_ray.core.shard import ShardCore

logger = logging.getLogger(__name__)


def owner_name(run: str) -> str:
    """Return what a shard says of itself when it takes its slots: the run of its board, and where it is."""
    return f"{run} {gethostname()}:{os.getpid()}" if run else ""


class ShardFencing:
    """The part of `Shard` that finds out who has replaced it."""

    core: ShardCore
    index: int
    _keeper: Keeper | None
    _run_id: str

    def _now_us(self) -> int:
        raise NotImplementedError  # Shard's

    def outrun(self) -> None:
        """Called when a late process of the same board has the slots: a host that can start this one again does."""

    async def _explained(self, failure: FlockError) -> FlockError:
        """Return what callers are told of a failure that ends the shard."""
        keeper = self._keeper
        if not isinstance(failure, StaleEpochError) or keeper is None:
            return failure
        said = await keeper.patiently(keeper.store.owner)
        run, _, place = said.partition(" ")
        if self._run_id and run == self._run_id:
            logger.warning(
                "shard %d was replaced by a late process of its own board (%s): it starts again",
                self.index,
                place,
            )
            self.outrun()
            return StoreUnavailableError(
                f"Shard {self.index} starts again: a late process of the same board had its slots. Repeating is safe."
            )
        who = f"The board was started elsewhere ({place})" if place else "The board was started elsewhere"
        return StaleEpochError(
            f"{who}, and shard {self.index} there has taken over: what was accepted here goes on there. Stop this "
            "board; to have it here again, stop the other one and start this one anew."
        )
