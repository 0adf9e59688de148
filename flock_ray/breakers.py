"""`flock.breakers` and `flock.limits`: what limits hold back, and circuit breakers opened and closed by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.breakers import State
from flock_ray.core.limit_status import BreakerStatus, LimitStatus
from flock_ray.core.measures import Measurement, summed
from flock_ray.errors import ConfigurationError, UnknownAgentError

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.board import Board

__all__ = ["AgentLoad", "BreakerView", "Breakers", "Limiting", "Limits", "limit_notes"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_decode = msgspec.msgpack.Decoder(list[LimitStatus]).decode
_measurements = msgspec.msgpack.Decoder(list[Measurement]).decode

MAX_BY_CHARS = 200


@dataclass(frozen=True, slots=True)
class BreakerView:
    """A circuit breaker at one moment."""

    agent: str
    state: State
    """closed: runs start. open: none does. half_open: so many as it was given attempts."""
    failures: int
    """In a row, while it is closed."""
    since: datetime | None
    """When the state changed last; None: never."""
    until: datetime | None
    """While it is open: when runs may try again; None: only when somebody closes it."""
    waiting: int
    """Runs that have not been let through."""

    def __str__(self) -> str:
        """Say it in a line."""
        parts = [f"{self.agent}: {self.state}", f"{self.waiting} wait"]
        if self.since is not None:
            parts.insert(1, f"since {self.since:%Y-%m-%d %H:%M:%S} UTC")
        if self.state == "open":
            parts.insert(2, f"until {self.until:%H:%M:%S}" if self.until else "until it is closed by hand")
        if self.failures:
            parts.append(f"{self.failures} failures in a row")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class AgentLoad:
    """What the limits of an agent let through and hold back."""

    agent: str
    running: int
    """Runs that were let through and have not ended."""
    waiting: int
    """Runs that the limits hold back, or for which no worker has room."""
    delayed: int
    """Runs that wait for a time: a debounce, or a retry."""
    keys: dict[str, int] = field(default_factory=dict)
    """Of those that wait, how many by key: the longest ones of each shard. Empty without a key."""


class _Asking:
    """Asks all shards about limits."""

    def __init__(self, board: Callable[[], Awaitable[Board]]) -> None:
        """Ask the board that `board` returns."""
        self._board = board

    async def _statuses(self) -> dict[str, LimitStatus]:
        found: dict[str, LimitStatus] = {}
        for blob in await (await self._board()).each("limits"):
            for part in _decode(blob):
                total = found.setdefault(part.agent, LimitStatus(part.agent))
                total.running += part.running
                total.waiting += part.waiting
                total.delayed += part.delayed
                total.keys = {k: total.keys.get(k, 0) + part.keys.get(k, 0) for k in total.keys | part.keys}
                total.breaker = total.breaker or part.breaker
        return dict(sorted(found.items()))

    async def _refuse(self, name: str, missing: str) -> ConfigurationError:
        """Return why there is nothing to say about an agent."""
        known = (await self._board()).edge.table.definitions
        if known and name not in known:  # the command line loads no code, so it knows none
            raise UnknownAgentError(
                f"No agent {name!r} is on this board. Check the name against flock.agents."
            )
        return ConfigurationError(f"agent {name!r} has {missing}")


class Limits(_Asking):
    """Limits of the agents on a board. Get it as `flock.limits`."""

    async def list(self) -> list[AgentLoad]:
        """Return every agent that has limits, by name."""
        return [_load(status) for status in (await self._statuses()).values()]

    async def get(self, agent: AgentBuilder | str) -> AgentLoad:
        """Return one agent.

        Raises:
            UnknownAgentError: No such agent is on the board.
            ConfigurationError: It has no limits.
        """
        name = _name(agent)
        status = (await self._statuses()).get(name)
        if status is None:
            raise await self._refuse(name, "no limits: declare rate_limit(), concurrency() or others.")
        return _load(status)


class Breakers(_Asking):
    """Circuit breakers of the agents on a board. Get it as `flock.breakers`."""

    async def list(self) -> list[BreakerView]:
        """Return every circuit breaker, by agent."""
        return [_view(s, s.breaker) for s in (await self._statuses()).values() if s.breaker is not None]

    async def get(self, agent: AgentBuilder | str) -> BreakerView:
        """Return the circuit breaker of an agent.

        Raises:
            UnknownAgentError: No such agent is on the board.
            ConfigurationError: It has no circuit breaker.
        """
        name = _name(agent)
        status = (await self._statuses()).get(name)
        if status is None or status.breaker is None:
            raise await self._refuse(name, _NO_BREAKER)
        return _view(status, status.breaker)

    async def open(self, agent: AgentBuilder | str, *, by: str = "") -> BreakerView:
        """Let no run of an agent start until somebody closes its breaker; inputs wait, what runs goes on.

        Durable once it returns; safe to repeat.

        Args:
            agent: A builder, or its name.
            by: Who does it, and why: goes to the event and to the audit log.

        Raises:
            UnknownAgentError: No such agent is on the board.
            ConfigurationError: It has no circuit breaker.
            StoreUnavailableError: A shard does not answer. Retryable.
        """
        return await self._force(_name(agent), True, by)

    async def close(self, agent: AgentBuilder | str, *, by: str = "") -> BreakerView:
        """Let runs of an agent start again at once, whatever had opened its breaker; otherwise like `open`."""
        return await self._force(_name(agent), False, by)

    async def _force(self, name: str, open_: bool, by: str) -> BreakerView:
        given: object = by
        if not isinstance(given, str) or len(by) > MAX_BY_CHARS:
            raise ConfigurationError(
                f"by= is text of at most {MAX_BY_CHARS} characters: who does it, and why."
            )
        if not any(await (await self._board()).each("force_breaker", name, open_, by)):
            raise await self._refuse(name, _NO_BREAKER)
        return await self.get(name)


_NO_BREAKER = "no circuit breaker: declare circuit_breaker()."


class Limiting:
    """What `Flock` offers about limits."""

    async def _ready_board(self) -> Board:
        raise NotImplementedError  # Flock's

    async def measurements(self) -> list[Measurement]:
        """Return the board's numbers for dashboards, over all shards: runs, retries, dead letters, breakers, queues.

        They are what the shards also tell Ray's metrics every ten seconds; see the reference for their names. Counters
        count since the process of a shard began.

        Raises:
            StoreUnavailableError: A shard does not answer. Retryable.
        """
        blobs = await (await self._ready_board()).each("measurements")
        return summed(one for blob in blobs for one in _measurements(blob))

    @property
    def breakers(self) -> Breakers:
        """Circuit breakers of the agents: look at them, open and close them."""
        return Breakers(self._ready_board)

    @property
    def limits(self) -> Limits:
        """What the limits of the agents let through and hold back."""
        return Limits(self._ready_board)


async def limit_notes(board: Board, agent: str) -> list[str]:
    """Return what `flock.why(agent)` says about limits; nothing for an agent without."""

    async def the_board() -> Board:
        return board

    status = (await _Asking(the_board)._statuses()).get(agent)
    if status is None:
        return []
    notes = [f"limits: {status.running} let through, {status.waiting} wait, {status.delayed} wait for a time"]
    if status.breaker is not None and status.breaker.state != "closed":
        notes.append(f"circuit breaker of {_view(status, status.breaker)}")
    return notes


def _name(agent: AgentBuilder | str) -> str:
    return agent if isinstance(agent, str) else agent.name


def _load(status: LimitStatus) -> AgentLoad:
    return AgentLoad(status.agent, status.running, status.waiting, status.delayed, status.keys)


def _view(status: LimitStatus, breaker: BreakerStatus) -> BreakerView:
    return BreakerView(
        status.agent, breaker.state, breaker.failures, _time(breaker.changed_us), _time(breaker.until_us),
        status.waiting,
    )  # fmt: skip


def _time(at_us: int) -> datetime | None:
    return _EPOCH + timedelta(microseconds=at_us) if at_us else None
