"""A model of a test behind the budgets of a board: reserved, called and settled as the gateway does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.budgets import NUSD
from flock_ray.gateway.budgets import LedgerLink, Payer, within_budget
from flock_ray.gateway.quotes import cost_of, given_prices

if TYPE_CHECKING:
    from flock_ray.gateway.settings import GatewayPlan
    from flock_ray.model import Model, ModelReply, ModelRequest

__all__ = ["PayingModel"]


class PayingModel:
    """Answers as another model does, within budgets, at the prices of `Flock(models=...)`."""

    def __init__(
        self, model: Model, plan: GatewayPlan, ledger: LedgerLink, *, monotonic: Callable[[], float]
    ) -> None:
        """Wrap a model.

        Args:
            model: Answers.
            plan: Has the prices.
            ledger: Keeps the budgets.
            monotonic: A clock in seconds that never goes back.
        """
        self._model = model
        self._plan = plan
        self._ledger = ledger
        self._monotonic = monotonic

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        """Answer as the model does.

        Raises:
            BudgetExceededError: A budget does not allow the call.
        """
        if request.caller.charges:
            return await within_budget(self._paid, request, on_text)
        return self._priced(request, await self._model.complete(request, on_text))

    async def _paid(self, request: ModelRequest, on_text: Callable[[str], None] | None) -> ModelReply:
        settings = self._plan.settings(request.model)
        payer = Payer(self._ledger, request, settings, lambda: self._model, self._monotonic)
        hold = await payer.hold() or await payer.wait()
        try:
            reply = self._priced(request, await self._model.complete(request, on_text))
        except BaseException as error:
            hold.failed(error)
            raise
        hold.answered(reply.usage)
        return reply

    def _priced(self, request: ModelRequest, reply: ModelReply) -> ModelReply:
        prices = given_prices(self._plan.settings(request.model))
        if prices.input_nusd is None:
            return reply
        usage = msgspec.structs.replace(reply.usage, cost_usd=None)
        cost = cost_of(usage, prices)
        usage = msgspec.structs.replace(usage, cost_usd=None if cost is None else cost / NUSD)
        return msgspec.structs.replace(reply, usage=usage)
