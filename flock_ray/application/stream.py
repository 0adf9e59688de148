"""What a caller holds of a workflow: its outputs as they come, its result, and the way to cancel it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Self

from flock_ray.application.types import WorkflowEvent, WorkflowResult
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.application.workflow import Workflow

__all__ = ["WorkflowStream"]


class WorkflowStream:
    """A workflow, as `async with app.stream(...) as workflow` gives it.

    Leaving the block while the workflow runs cancels it, unless another stream of this process is on it or
    `detach` was called. The iteration ends with the workflow; how it ended is what `result` says.
    """

    def __init__(self, admit: Callable[[], Awaitable[Workflow]], workflow_id: str, after: int | None) -> None:
        """Prepare; entering admits the workflow."""
        self.workflow_id = workflow_id
        """Its id."""
        self._admit = admit
        self._next = 0 if after is None else after + 1
        self._detached = False
        self._workflow: Workflow | None = None

    async def __aenter__(self) -> Self:
        """Start the workflow or attach to it; when this returns, it is on the board or waits for its session.

        Raises:
            WorkflowRejected: It was not admitted; nothing was started.
            StoreUnavailableError: The board does not answer; call again with the same id. Retryable.
        """
        workflow = await self._admit()
        workflow.streams += 1
        self._workflow = workflow
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave it."""
        workflow = self._entered()
        workflow.streams -= 1
        if not workflow.over.is_set() and not self._detached and not workflow.streams:
            workflow.cancel()
            await workflow.over.wait()

    def __aiter__(self) -> Self:
        """Iterate over the outputs."""
        return self

    async def __anext__(self) -> WorkflowEvent:
        """Return the next output, as soon as it is there.

        Raises:
            ApplicationNotRunning: The application has stopped, and the workflow goes on: attach elsewhere.
            StoreUnavailableError: The board does not answer; attach again.
        """
        workflow = self._entered()
        while (event := workflow.output(self._next)) is None:
            if workflow.over.is_set():
                if workflow.error is not None:
                    raise workflow.error
                raise StopAsyncIteration
            await workflow.change()
        self._next += 1
        return event

    async def result(self) -> WorkflowResult:
        """Wait for the end and return how it came.

        Raises:
            ApplicationNotRunning: The application has stopped, and the workflow goes on: attach elsewhere.
            StoreUnavailableError: The board does not answer; attach again.
            WorkflowRejected: It waited for its session and was not admitted after all.
        """
        workflow = self._entered()
        await workflow.over.wait()
        if workflow.error is not None:
            raise workflow.error
        assert workflow.result is not None
        return workflow.result

    def cancel(self) -> None:
        """Ask for the cancellation; the result then says `cancelled`, if nothing else came first."""
        self._entered().cancel()

    def detach(self) -> None:
        """Leave the workflow running when this block ends; the application goes on to follow it."""
        self._detached = True

    @property
    def attached(self) -> bool:
        """Whether the workflow was on the board already, so that this call did not start it."""
        return self._entered().attached

    def _entered(self) -> Workflow:
        if self._workflow is None:
            raise ConfigurationError(
                "The stream is not open: write `async with app.stream(...) as workflow:`."
            )
        return self._workflow
