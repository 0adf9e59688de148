"""Budgets of calls: the worst case is reserved before every try and settled after it, once.

The ledgers are the shards' (`core.budgets`). A call that several accounts pay for reserves with all or with none:
shard by shard in ascending order, so that two calls never wait for each other, and what was reserved is given back
when a later one refuses. A gateway that dies in between leaves reservations: they stay spent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from flock_ray.core.budgets import NUSD, Amount, Refusal, Reserve, Settle, home_of_account, period_of
from flock_ray.errors import BudgetExceededError, ModelRequestError, RateLimitError, StoreUnavailableError
from flock_ray.gateway.quotes import Quote, TellsTariffs, given_prices, quote
from flock_ray.gateway.settings import ModelSettings
from flock_ray.model import ModelReply, ModelRequest, Usage
from flock_ray.ports import PeerGoneError

__all__ = ["Hold", "LedgerLink", "Payer", "within_budget"]

logger = logging.getLogger(__name__)

WAIT_S = 30.0
"""So long a call waits for others to give back what they reserved and did not need."""
DEGRADE_WAIT_S = 5.0
"""The same when a cheaper model could answer at once."""
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 2.0
GIVE_UP_S = 30.0
"""So long a call waits for a shard that is away."""
AWAY_S, MAX_AWAY_S = 0.2, 2.0
MAX_BATCH = 1_000
MAX_ENDS = 200_000
"""Settlements that wait for one shard; more are dropped: their worst cases stay spent."""
SOON_S = 5.0
LATER_S = 60.0
ASKED_S = 30.0
"""What a refused run is told: soon when calls that run may give back enough, else later (`engines.paying`)."""

_encode = msgspec.msgpack.Encoder().encode
_decode_refusals = msgspec.msgpack.Decoder(list[Refusal | None]).decode


@dataclass(slots=True)
class _Line:
    """What waits for one shard, and is sent as one message."""

    asks: deque[tuple[Reserve, asyncio.Future[Refusal | None], float]] = field(default_factory=deque)
    ends: deque[Settle] = field(default_factory=deque)
    sender: asyncio.Task[None] | None = None
    failures: int = 0
    """Messages in a row that did not get through."""


class LedgerLink:
    """A gateway's way to the ledgers of a board: everything that waits for a shard goes in one message."""

    def __init__(
        self,
        shard: Callable[[int], Any],
        num_shards: Callable[[], Awaitable[int]],
        *,
        monotonic: Callable[[], float],
        new_key: Callable[[], bytes] = lambda: uuid.uuid4().bytes,
    ) -> None:
        """Connect to nothing yet.

        Args:
            shard: Returns the link of a shard, with `reserve` and `settle`.
            num_shards: Tells how many there are; asked once.
            monotonic: A clock in seconds that never goes back.
            new_key: Names a try: never twice the same, not even after the process has died.
        """
        self._shard = shard
        self._ask_num_shards = num_shards
        self._num_shards = 0
        self._monotonic = monotonic
        self.new_key = new_key
        self._lines: dict[int, _Line] = {}

    async def reserve(self, ask: Reserve) -> Refusal | None:
        """Reserve with all accounts of a call, or with none; None: with all.

        Raises:
            StoreUnavailableError: A shard is away; retryable.
        """
        if not self._num_shards:
            self._num_shards = await self._ask_num_shards()
        by_shard: dict[int, list[Any]] = {}
        for charge in ask.charges:
            by_shard.setdefault(home_of_account(charge.account) % self._num_shards, []).append(charge)
        taken: list[Any] = []
        for index in sorted(by_shard):
            charges = tuple(by_shard[index])
            try:
                refusal = await self._reserve_at(index, msgspec.structs.replace(ask, charges=charges))
            except BaseException:
                self._give_back(ask.key, taken)
                raise
            if refusal is not None:
                self._give_back(ask.key, taken)
                return refusal
            taken += charges
        return None

    def settle(self, ends: list[Settle]) -> None:
        """Say how calls ended; sent again until the shards know."""
        for end in ends:
            index = home_of_account(end.account) % self._num_shards
            line = self._lines.setdefault(index, _Line())
            if len(line.ends) < MAX_ENDS:
                line.ends.append(end)
            self._stir(index, line)

    async def flushed(self) -> None:
        """Wait until everything that was said is on its way or known; for the end of a process."""
        while senders := [line.sender for line in self._lines.values() if line.sender is not None]:
            await asyncio.wait(senders)

    def _give_back(self, key: bytes, charges: list[Any]) -> None:
        self.settle([Settle(key, charge.account, Amount()) for charge in charges])

    async def _reserve_at(self, index: int, ask: Reserve) -> Refusal | None:
        line = self._lines.setdefault(index, _Line())
        future: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        line.asks.append((ask, future, self._monotonic() + GIVE_UP_S))
        self._stir(index, line)
        try:
            return await future
        except BaseException:
            # The message may have got through. What is said now goes behind it, so it is given back for sure.
            self._give_back(ask.key, list(ask.charges))
            raise

    def _stir(self, index: int, line: _Line) -> None:
        if line.sender is None:
            line.sender = asyncio.ensure_future(self._send(index, line))

    async def _send(self, index: int, line: _Line) -> None:
        try:
            await asyncio.sleep(0)  # what else this turn of the loop brings goes along
            while line.asks or line.ends:
                if await self._send_once(index, line):
                    line.failures = 0
                else:
                    line.failures += 1
                    await asyncio.sleep(min(AWAY_S * 2 ** min(line.failures - 1, 10), MAX_AWAY_S))
        finally:
            line.sender = None

    async def _send_once(self, index: int, line: _Line) -> bool:
        """Send what waits, first the asks: what is given back by a caller that is gone comes behind its ask."""
        asks = [line.asks.popleft() for _ in range(min(MAX_BATCH, len(line.asks)))]
        asks = [entry for entry in asks if not entry[1].done()]
        ends = [line.ends.popleft() for _ in range(min(MAX_BATCH, len(line.ends)))]
        sent = False
        try:
            if asks:
                blob = await self._shard(index).reserve(_encode([ask for ask, _, _ in asks]))
                for (_, future, _), refusal in zip(asks, _decode_refusals(blob), strict=True):
                    if not future.done():
                        future.set_result(refusal)
                asks = []
            if ends:
                await self._shard(index).settle(_encode(ends))
                ends = []
            sent = True
        except PeerGoneError:
            pass
        except Exception as error:  # whatever it was: nothing is paid for, and nothing is forgotten
            if not line.failures:
                logger.warning("budgets: shard %d did not take a message: %s", index, type(error).__name__)
        line.ends.extendleft(reversed(ends))
        now = self._monotonic()
        for entry in reversed(asks):
            if entry[2] > now:
                line.asks.appendleft(entry)
            elif not entry[1].done():
                entry[1].set_exception(
                    StoreUnavailableError(
                        f"The ledger of a budget did not answer for {GIVE_UP_S:g} s, so the model was not called. "
                        "It may be tried again."
                    )
                )
        return sent


class Hold:
    """What was reserved for one try; ended once."""

    __slots__ = ("_key", "_ledger", "_quote", "_request")

    def __init__(self, ledger: LedgerLink, request: ModelRequest, made: Quote, key: bytes) -> None:
        """Hold what was reserved."""
        self._ledger: LedgerLink | None = ledger
        self._request = request
        self._quote = made
        self._key = key

    def answered(self, usage: Usage) -> None:
        """Settle with what the call used; when the provider did not say, the worst case is spent."""
        self._end(self._quote.used(usage))

    def unused(self) -> None:
        """Give everything back: the call was never made."""
        self._end(Amount())

    def failed(self, error: BaseException) -> None:
        """Settle a try that failed: what a provider refuses costs nothing, everything else may have been billed."""
        refused = isinstance(error, (RateLimitError, ModelRequestError))
        self._end(Amount() if refused else None)

    def _end(self, used: Amount | None) -> None:
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            charges = self._request.caller.charges
            ledger.settle([Settle(self._key, charge.account, used) for charge in charges])


class Payer:
    """Pays for the tries of one call."""

    def __init__(
        self,
        ledger: LedgerLink | None,
        request: ModelRequest,
        settings: ModelSettings,
        provider: Callable[[], Any],
        monotonic: Callable[[], float],
    ) -> None:
        """Prepare.

        Args:
            ledger: Of the board; None: there is none, and calls that are in a budget are refused.
            request: The call, with its charges.
            settings: Of its model.
            provider: Makes the calls; it may be a `TellsTariffs`.
            monotonic: A clock in seconds that never goes back.
        """
        self._ledger = ledger
        self._request = request
        self._settings = settings
        self._provider = provider
        self._monotonic = monotonic
        self._quote: Quote | None = None
        self._pause_s = FIRST_PAUSE_S
        self._until: float | None = None

    async def hold(self) -> Hold | None:
        """Reserve the worst case of one try; None: calls that run now may give back enough, so try again soon.

        Raises:
            BudgetExceededError: An account does not allow it. `retry_after_s` is set when the run may wait for it,
                `degrade_to` when another model is to be called.
            ModelRequestError: Nobody knows what the call may use.
            StoreUnavailableError: A ledger does not answer; retryable.
        """
        request, ledger = self._request, self._ledger
        if ledger is None:
            raise ModelRequestError(
                "This call is in a budget, and there is no board here that keeps it. Make it from an agent's run."
            )
        if self._quote is None:
            self._quote = await self._quoted()
        made, caller = self._quote, request.caller
        key = ledger.new_key()
        refusal = await ledger.reserve(
            Reserve(
                key, made.amount, caller.charges, caller.degraded, made.missing, caller.agent, caller.workflow
            )
        )
        if refusal is None:
            return Hold(ledger, request, made, key)
        if self._waits(refusal):
            return None
        raise refused(refusal, request)

    async def wait(self) -> Hold:
        """Reserve as soon as calls that run now have given back enough; raises what `hold` raises."""
        while True:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            hold = await self.hold()
            if hold is not None:
                return hold

    def _waits(self, refusal: Refusal) -> bool:
        if not refusal.may_free or refusal.terms.policy in ("queue", "ask"):
            return False  # a run that may wait does so without its worker
        now = self._monotonic()
        if self._until is None:
            degrades = refusal.terms.policy == "degrade" and not self._request.caller.degraded
            self._until = now + (DEGRADE_WAIT_S if degrades else WAIT_S)
        return now < self._until

    async def _quoted(self) -> Quote:
        provider, request, settings = self._provider(), self._request, self._settings
        if isinstance(provider, TellsTariffs):
            tariff = await provider.tariff(request, settings)
            return quote(request, settings, tariff, await provider.prompt_tokens(request))
        return quote(request, settings, given_prices(settings))


async def within_budget(
    ask: Callable[[ModelRequest, Callable[[str], None] | None], Awaitable[ModelReply]],
    request: ModelRequest,
    on_text: Callable[[str], None] | None,
) -> ModelReply:
    """Ask for an answer; when a budget says so, of the cheaper model that it names.

    Args:
        ask: Asks the model of a request, and its fallbacks.
        request: The call.
        on_text: Takes text; "" says that it starts again.
    """
    told = False

    def listen(text: str) -> None:
        nonlocal told
        told = bool(text)
        if on_text is not None:
            on_text(text)

    try:
        return await ask(request, None if on_text is None else listen)
    except BudgetExceededError as error:
        other = getattr(error, "degrade_to", "")
        if not other or request.caller.degraded or request.embed:  # vectors of two models can't be compared
            raise
    if told and on_text is not None:
        on_text("")
    caller = msgspec.structs.replace(request.caller, degraded=True)
    return await ask(msgspec.structs.replace(request, model=other, fallbacks=[], caller=caller), on_text)


def refused(refusal: Refusal, request: ModelRequest) -> BudgetExceededError | ModelRequestError:
    """Make the error of a call that an account does not allow."""
    account, model, caller = refusal.account, request.model, request.caller
    if refusal.what == "size":
        return ModelRequestError(
            f"The budget {account} has to know how long an answer of {model} can be, and its table does not say. "
            "Set max_tokens, on the engine or the request."
        )
    if refusal.what == "price":
        return ModelRequestError(
            f"The budget {account} is in US dollars, and the price of {model} is not known. Give one with "
            f'Flock(models={{"{model}": ModelSettings(input_usd_per_mtok=..., output_usd_per_mtok=...)}}).'
        )
    error = BudgetExceededError(_why(refusal, model), agent=caller.agent or None)
    found: Any = error
    found.tries = 0
    if refusal.terms.policy == "degrade" and not caller.degraded:
        found.degrade_to = refusal.terms.degrade_to
    elif refusal.terms.policy in ("queue", "ask") and refusal.what in ("nusd", "tokens", "calls"):
        later_s = LATER_S if refusal.terms.policy == "queue" else ASKED_S
        found.retry_after_s = SOON_S if refusal.may_free else later_s
        found.renews_us = refusal.renews_us
    return error


def _why(refusal: Refusal, model: str) -> str:
    if refusal.what == "gone":
        return (
            f"The budget {refusal.account} is not known (any more), so {model} was not called. "
            f"Set it with flock.budgets.set({refusal.account!r}, ...)."
        )
    if refusal.what == "accounts":
        return f"There are more than {refusal.limit} budgets in one place, so {model} was not called."
    unit = {"nusd": "usd", "tokens": "tokens", "calls": "calls"}[refusal.what]
    shown = _usd if refusal.what == "nusd" else str
    held = " while other calls run" if refusal.may_free else ""
    return (
        f"The budget {refusal.account} is used up{held}: a call to {model} may use {shown(refusal.needed)} {unit}, "
        f"and {shown(max(0, refusal.left))} of {shown(refusal.limit)} are left. "
        f"Raise it with flock.budgets.add({refusal.account!r}, {unit}=...)"
        + (f", or wait for the next UTC {period_of(refusal.account)}." if refusal.renews_us else ".")
    )


def _usd(nusd: int) -> str:
    return f"{math.ceil(nusd / 1000) / (NUSD / 1000):.6f}".rstrip("0").rstrip(".")
