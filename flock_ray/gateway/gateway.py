"""`Gateway`: answers requests within limits, with retries, cache and cassettes. One per process, on one loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from flock_ray.errors import (
    BudgetExceededError,
    ModelAnswerError,
    ModelError,
    ModelRequestError,
    ModelTimeoutError,
    RateLimitError,
)
from flock_ray.gateway.breaker import ModelBreakers, OnBreaker, is_resting
from flock_ray.gateway.budgets import Hold, LedgerLink, Payer, within_budget
from flock_ray.gateway.cache import ResponseCache
from flock_ray.gateway.cassette import Cassette
from flock_ray.gateway.fallbacks import with_fallbacks
from flock_ray.gateway.limits import Limits, Turn
from flock_ray.gateway.provider import Answer, Provider
from flock_ray.gateway.requests import canonical, estimate_tokens, hash_of
from flock_ray.gateway.settings import GatewayPlan, ModelSettings
from flock_ray.model import ModelReply, ModelRequest

__all__ = ["Gateway"]

MAX_TRIES = 4
MAX_TRIES_WITH_FALLBACK = 2
PATIENCE_WITH_FALLBACK_S = 2.0
"""So long a call waits for a limit when another model could answer instead."""
BACKOFF_S = 0.5
MAX_BACKOFF_S = 20.0


class Gateway:
    """The Model port over a provider's library. Calls may be concurrent; everything is bounded."""

    def __init__(
        self,
        plan: GatewayPlan | None = None,
        *,
        provider: Provider | None = None,
        ledger: LedgerLink | None = None,
        on_breaker: OnBreaker | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """Create a gateway; nothing is imported or connected yet.

        Args:
            plan: Keys, limits, cassette; None: the environment's keys and no limits.
            provider: Makes the calls; None: litellm, imported at the first one.
            ledger: Keeps the budgets; None: calls that are in one are refused.
            on_breaker: Hears when a model's circuit breaker changes; None: only the log does.
            monotonic: A clock in seconds that never goes back.
            rng: Draws the pauses between tries; None: seeded by the system.

        Raises:
            ConfigurationError: There is no cassette to replay.
        """
        self.plan = plan or GatewayPlan()
        self._given = provider
        self._ledger = ledger
        self._monotonic = monotonic
        self._rng = rng or random.Random()  # pauses, no secrets
        self._limits = Limits(monotonic=monotonic)
        self._breakers = ModelBreakers(monotonic=monotonic, tell=on_breaker)
        self._cache = ResponseCache()
        self._cassette: Cassette | None = None
        if self.plan.cassette is not None and self.plan.cassette_mode != "off":
            self._cassette = Cassette(self.plan.cassette, self.plan.cassette_mode)

    @property
    def needs_provider(self) -> bool:
        """Whether calls may go to a provider: not so when everything is replayed."""
        return self.plan.cassette_mode != "replay"

    async def warm_up(self) -> None:
        """Import what the first call would import."""
        warm = getattr(self._provider(), "warm_up", None) if self.needs_provider else None
        if warm is not None:
            await warm()

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        """Answer a request, if need be with a fallback model; see `Model`."""
        if request.caller.charges:
            return await within_budget(self._complete, request, on_text)
        return await self._complete(request, on_text)

    async def _complete(self, request: ModelRequest, on_text: Callable[[str], None] | None) -> ModelReply:
        fallbacks = tuple(self.plan.settings(request.model).fallbacks)
        return await with_fallbacks(self.complete_one, request, on_text, fallbacks, self._monotonic)

    async def complete_one(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None, hurried: bool = False
    ) -> ModelReply:
        """Answer a request with the model that it names.

        Args:
            request: The call; its fallbacks don't count.
            on_text: Takes text; "" says that it starts again.
            hurried: Another model could answer: give up sooner.

        Raises:
            ModelError: It failed; `tries` and `request_hash` are set on the error.
        """
        data = canonical(request)
        key = hash_of(data)
        played = None if self._cassette is None else self._cassette.play(request, key)
        if played is not None:
            return _told(*played, on_text)
        ttl = request.cache_ttl_s
        if ttl is not None and (cached := self._cache.get(key, self._monotonic(), ttl)) is not None:
            return _told(cached, [cached.text], on_text)
        pieces = _Pieces(on_text) if on_text is not None else None
        call = _Call(self, request, estimate_tokens(request, len(data)), pieces, hurried)
        try:
            reply = msgspec.structs.replace(await call.run(), request_hash=key)
        except BudgetExceededError as error:
            error.tries = call.tries  # type: ignore[attr-defined]  # the tries before this one were made
            raise
        except ModelError as error:
            error.request_hash = key  # type: ignore[attr-defined]  # for the record of the call
            error.tries = max(call.tries, 1)  # type: ignore[attr-defined]  # the same
            raise
        if ttl is not None:
            self._cache.put(key, reply, self._monotonic())
        if self._cassette is not None:
            self._cassette.record(request, key, reply, pieces.pieces if pieces is not None else ())
        return reply

    def _provider(self) -> Provider:
        if self._given is None:
            from flock_ray.gateway.litellm import LitellmProvider

            self._given = LitellmProvider(monotonic=self._monotonic)
        return self._given


class _Call:
    """One call on its way: its tries and their time."""

    def __init__(
        self, gateway: Gateway, request: ModelRequest, tokens: int, pieces: _Pieces | None, hurried: bool
    ) -> None:
        self._gateway = gateway
        self._request = request
        self._tokens = tokens
        self._pieces = pieces
        self._hurried = hurried
        self._settings: ModelSettings = gateway.plan.settings(request.model)
        self._limits = gateway.plan.limits(request.model)
        self._started = gateway._monotonic()
        self._payer: Payer | None = None
        if request.caller.charges:
            self._payer = Payer(
                gateway._ledger, request, self._settings, gateway._provider, gateway._monotonic
            )
        self.tries = 0

    async def run(self) -> ModelReply:
        """Try until it is answered, refused for good, or out of tries or time."""
        total = self._request.timeouts.total_s
        last: ModelError | None = None
        try:
            async with asyncio.timeout(total):
                while True:
                    try:
                        return await self._guarded()
                    except ModelError as error:
                        last = error
                        await self._pause(error)
        except TimeoutError as error:
            if isinstance(error, ModelError):
                raise
            why = "" if last is None else f" The last try ended with: {last}"
            raise ModelTimeoutError(
                f"{self._request.model} has not answered within {total:g} s, {max(self.tries, 1)} tries together. "
                f"Raise the timeout, or name a fallback.{why}"
            ) from None

    async def _guarded(self) -> ModelReply:
        """Try once, unless the model is left alone for now."""
        if self._settings.breaker is None:
            return await self._try()
        tries, gateway = self.tries, self._gateway
        passage = gateway._breakers.enter(self._request.model, self._settings.breaker)
        try:
            reply = await self._try()
        except BaseException as error:
            total = self._request.timeouts.total_s
            late = total is not None and gateway._monotonic() - self._started >= total
            passage.ended(error, asked=self.tries > tries, late=late)
            raise
        passage.ended(None)
        return reply

    async def _try(self) -> ModelReply:
        request, gateway = self._request, self._gateway
        turn, hold = await self._enter()
        self.tries += 1
        used: int | None = None
        try:
            if self._pieces is not None:
                self._pieces.begin()
            answer: Answer = await gateway._provider().call(request, self._settings, self._pieces)
            reply = answer.reply
            if hold is not None:
                hold.answered(reply.usage)
            used = reply.usage.input_tokens + reply.usage.output_tokens or None
            turn.answered(answer.requests, answer.tokens)
        except RateLimitError as error:
            if hold is not None:
                hold.failed(error)
            used = 0
            wait = turn.refused(error.retry_after_s if getattr(error, "told", True) else None)
            error.retry_after_s = max(error.retry_after_s, wait)
            raise
        except BaseException as error:
            if hold is not None:
                hold.failed(error)
            raise
        finally:
            turn.end(used)
        latency = gateway._monotonic() - self._started
        first = reply.first_token_s
        if first is not None:
            first += latency - reply.latency_s
        return msgspec.structs.replace(
            reply,
            model=reply.model or request.model,
            tries=self.tries,
            latency_s=latency,
            first_token_s=first,
        )

    async def _enter(self) -> tuple[Turn, Hold | None]:
        """Wait until limits and budgets allow a try."""
        turn = await self._turn()
        if self._payer is None:
            return turn, None
        try:
            hold = await self._payer.hold()
        except BaseException:
            turn.end(0)
            raise
        if hold is not None:
            return turn, hold
        turn.end(0)  # who waits for money lets others call
        hold = await self._payer.wait()
        try:
            return await self._turn(), hold
        except BaseException:
            hold.unused()
            raise

    async def _turn(self) -> Turn:
        request, caller = self._request, self._request.caller
        return await self._gateway._limits.turn(
            request.model, self._limits, tenant=caller.tenant, agent=caller.agent, tokens=self._tokens,
            patience_s=self._patience(),
        )  # fmt: skip

    def _patience(self) -> float | None:
        total = self._request.timeouts.total_s
        left = None if total is None else max(0.0, total - (self._gateway._monotonic() - self._started))
        if self._hurried:
            return PATIENCE_WITH_FALLBACK_S if left is None else min(left, PATIENCE_WITH_FALLBACK_S)
        return left

    async def _pause(self, error: ModelError) -> None:
        """Wait before the next try; raises the error when there is none."""
        final = isinstance(error, (ModelRequestError, ModelAnswerError)) or is_resting(error)
        if final or not error.retryable:
            raise error
        most = self._settings.max_tries or MAX_TRIES
        if self._hurried:
            most = min(most, MAX_TRIES_WITH_FALLBACK)
        if self.tries >= most or not self.tries:
            raise error
        if isinstance(error, RateLimitError):
            due = error.retry_after_s
            if self._hurried and due > PATIENCE_WITH_FALLBACK_S:
                raise error
            # The limiter keeps everybody back for so long; a little more, so that not all come at once.
            wait = self._gateway._rng.uniform(0.0, min(1.0, due * 0.1))
        else:
            highest = min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (self.tries - 1))
            wait = due = max(self._gateway._rng.uniform(0.0, highest), getattr(error, "retry_after_s", 0.0))
        total = self._request.timeouts.total_s
        if total is not None and self._gateway._monotonic() - self._started + due >= total:
            raise error
        await asyncio.sleep(wait)


class _Pieces:
    """Hands text on as it comes, says when it starts again, and keeps the pieces for a cassette."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self.pieces: list[str] = []

    def begin(self) -> None:
        """A try begins: what was told before is void."""
        if self.pieces:
            self.pieces = []
            self._on_text("")

    def __call__(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            self._on_text(text)


def _told(reply: ModelReply, pieces: list[str], on_text: Callable[[str], None] | None) -> ModelReply:
    if on_text is not None:
        for piece in pieces:
            if piece:
                on_text(piece)
    return reply
