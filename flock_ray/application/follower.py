"""Following a workflow that is on the board, until it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flock_ray.application.ledger import Ledger
from flock_ray.application.observation import Observation, Verdict
from flock_ray.application.records import WorkflowEnded
from flock_ray.errors import StoreUnavailableError
from flock_ray.ports import PeerGoneError

if TYPE_CHECKING:
    from flock_ray.core.status import WorkflowPart

RETRY_S = 0.5
"""Pause before a board that did not answer is asked again."""


class Follower:
    """Reads the artifacts of one workflow and says when, and how, it is over."""

    def __init__(
        self, ledger: Ledger, observed: Observation, workflow_id: str, deadline_us: int, give_up_s: float
    ) -> None:
        """Follow nothing yet.

        Args:
            ledger: The board.
            observed: Takes what is read.
            workflow_id: Which workflow.
            deadline_us: When it is cancelled, in microseconds since the Unix epoch.
            give_up_s: How long past its deadline or cancellation a board that does not answer is asked again.
        """
        self.observed = observed
        self.deadline_us = deadline_us
        self.ended: WorkflowEnded | None = None
        """Its end, once that is on the board."""
        self.flushed = 0
        """Partial batches that were run."""
        self.status: WorkflowPart | None = None
        """As it was last asked for."""
        self.settled = False
        """Nothing can happen any more, and `status` says so."""
        self.on_outputs: Callable[[], None] = lambda: None
        """Called when there are new outputs."""
        self._ledger = ledger
        self._workflow_id = workflow_id
        self._give_up_s = give_up_s
        self._position = 0
        self._cancelled_us: int | None = None
        self._wake = asyncio.Event()

    @property
    def cancelled(self) -> bool:
        """Whether somebody here wants it cancelled."""
        return self._cancelled_us is not None

    def cancel(self) -> None:
        """Cancel it."""
        if self._cancelled_us is None:
            self._cancelled_us = self._ledger.now_us()
        self._wake.set()

    def wake(self) -> None:
        """Look again."""
        self._wake.set()

    def left_s(self) -> float:
        """Return the seconds to the deadline; negative behind it."""
        return (self.deadline_us - self._ledger.now_us()) / 1e6

    async def woken(self, others: set[asyncio.Future[Any]]) -> None:
        """Wait for a wake-up, one of these or the deadline."""
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            left = max(self.left_s(), 0.001)
            await asyncio.wait({woken, *others}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        self._wake.clear()

    async def follow(self) -> Verdict | None:
        """Read until the workflow is over; returns None when its end is on the board already.

        Raises:
            StoreUnavailableError: The board did not answer until past the deadline, or is gone for good.
        """
        quiet: asyncio.Future[None] | None = None
        try:
            while True:
                try:
                    settled = quiet is not None and quiet.done() and await self._settled(quiet)
                    await self.read()
                    if self.ended is not None:
                        return None
                    if (verdict := await self._verdict(settled)) is not None:
                        return verdict
                except StoreUnavailableError as error:
                    if is_final(error) or self._gives_up():
                        raise
                    await _dropped(quiet)
                    quiet = None
                    await asyncio.sleep(RETRY_S)  # a shard restarts
                    continue
                if quiet is None or (quiet.done() and not self._rests()):
                    quiet = asyncio.ensure_future(self._ledger.quiet(self._workflow_id))
                await self.woken(set() if quiet.done() else {quiet})
        finally:
            await _dropped(quiet)

    def _gives_up(self) -> bool:
        """Say whether a board that does not answer has had its time: it is due, or nobody waits for it any more."""
        waited_s = -self.left_s()
        if self._cancelled_us is not None:
            waited_s = max(waited_s, (self._ledger.now_us() - self._cancelled_us) / 1e6)
        return waited_s >= self._give_up_s

    def _rests(self) -> bool:
        """Nothing runs, and something waits for a time: an event tells when it has come."""
        return self.status is not None and not self.status.open and self.status.delayed > 0

    async def read(self) -> None:
        """Take everything that is new, up to the workflow's end."""
        while self.ended is None:
            found, self._position = await self._ledger.read(self._workflow_id, self._position)
            if not found:
                return
            before = len(self.observed.outputs)
            for envelope in found:
                self.ended = self._ledger.ended(self._workflow_id, envelope)
                if self.ended is not None:
                    break
                self.observed.see(envelope)
            if len(self.observed.outputs) > before:
                self.on_outputs()

    async def _settled(self, quiet: asyncio.Future[None]) -> bool:
        """Say whether nothing can happen any more, after partial batches were run."""
        quiet.result()
        status = await self.refresh()
        if status is None:
            return True
        if status.open or status.delayed:
            return False
        if status.waiting and not status.cancelled and self.left_s() > 0 and not self.observed.closed:
            flushed = await self._ledger.flush(self._workflow_id)
            self.flushed += flushed
            return not flushed
        return True

    async def refresh(self) -> WorkflowPart | None:
        """Ask what the board knows of it."""
        self.status = await self._ledger.status(self._workflow_id)
        return self.status

    async def _verdict(self, settled: bool) -> Verdict | None:
        due = self.left_s() <= 0
        if due and not settled and not self.observed.closed:
            # It may have ended in time, and nobody was there to see it.
            status = await self.refresh()
            settled = status is None or not (
                status.open or status.delayed or status.updated_us > self.deadline_us
            )
            if settled:
                await self.read()
                if self.ended is not None:
                    return None
        due = due and not settled
        self.settled = settled
        on_board = self.status is not None and self.status.cancelled
        return self.observed.verdict(
            cancelled=self.cancelled or (on_board and not due), due=due, settled=settled
        )


async def _dropped(task: asyncio.Future[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_final(error: StoreUnavailableError) -> bool:
    """Say whether a shard is gone for good: that of a memory board."""
    return isinstance(error.__cause__, PeerGoneError) and error.__cause__.final
