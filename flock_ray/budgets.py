"""Budgets of calls to language models: how users declare them, and `flock.budgets`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import msgspec

from flock_ray.approvals.declaring import ApprovalSpec
from flock_ray.artifact import Artifact
from flock_ray.core.budget_rules import BudgetRule, Per, budget_tag
from flock_ray.core.budgets import NUSD, AccountRow, Limit, SetBudget, Terms, account_name, home_of_account
from flock_ray.core.tenants import tenant_tag
from flock_ray.errors import ConfigurationError
from flock_ray.publishing import new_workflow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flock_ray.agent import AgentBuilder
    from flock_ray.board import Board
    from flock_ray.core.definition import AgentDefinition

__all__ = [
    "Budget",
    "BudgetDeclaring",
    "BudgetStatus",
    "Budgets",
    "Degrade",
    "degrade",
    "give_budgets",
    "rules_of",
]

Renews = Literal["day", "month"]
OnExceeded = Literal["stop", "queue", "degrade", "ask"]

DEGRADE_AT = 0.8
MAX_USD = 1_000_000_000
MAX_COUNT = 2**53
MAX_REMEMBERED = 10_000
"""Workflows with a budget of their own that a Flock remembers, for what it publishes into them later."""
PAGE = 1_000

_ACCOUNT = re.compile(
    r"(#\d+/)?(agent:[^/]+/)?(day|((day|month)/)?(workflow|tenant):.*)|(#\d+/)?((day|month)/)?agent:[^/]+",
    re.DOTALL,
)
_encode = msgspec.msgpack.Encoder().encode
_rows = msgspec.msgpack.Decoder(list[AccountRow]).decode


@dataclass(frozen=True, slots=True)
class Degrade:
    """What `degrade()` returns."""

    model: str
    at: float


def degrade(model: str, *, at: float = DEGRADE_AT) -> Degrade:
    """Go on with a cheaper model when most of a budget is used: `Budget(usd=5, on_exceeded=degrade("..."))`.

    Args:
        model: Which one; its calls are reserved and settled like all others.
        at: Share of the budget, above 0 and up to 1, that other models may use; the rest is for this one.
    """
    return Degrade(model, at)


@dataclass(frozen=True, slots=True)
class Budget:
    """What calls to language models may use: US dollars, tokens, calls, or several of them.

    The worst case of every call is reserved before it is made and settled with what it used after it, so the limits
    hold whatever runs at the same time and whatever crashes.
    """

    usd: float | Decimal | None = None
    """US dollars, to a billionth of one; None: no limit."""
    tokens: int | None = None
    """Input and output together; None: no limit."""
    calls: int | None = None
    """Calls that a provider has taken; None: no limit."""
    per: Per = "workflow"
    """What has it: each workflow, each tenant, each agent, or all together on each UTC day, when it begins anew."""
    on_exceeded: OnExceeded | Degrade = "stop"
    """What happens when a call does not fit any more.

    `stop`: the run fails with BudgetExceededError. `queue`: the run waits, without its worker, for the next UTC day or
    month, or for somebody who raises the limit. `degrade`: the call goes to `degrade_to`. `ask`: people decide about
    more, as `approval` says; the run waits like one of `queue`, and fails when they say no."""
    degrade_to: str | None = None
    """Model of `degrade`: it gets the last fifth of the budget; `degrade(model, at=...)` says another share."""
    approval: ApprovalSpec | None = None
    """Of `ask`: who decides, by when, with which quorum."""

    renews: Renews | None = None
    """When each account of it begins anew: with every UTC day or month; None: never, unless it is per day."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: One makes no sense.
        """
        self._check_renewal()
        if self.usd is None and self.tokens is None and self.calls is None:
            raise ConfigurationError("Budget() limits nothing: give usd=, tokens= or calls=.")
        _limit(self.usd, self.tokens, self.calls, "Budget")
        if self.per not in get_args(Per):
            raise ConfigurationError(f"Budget(per={self.per!r}): choose one of {', '.join(get_args(Per))}.")
        if isinstance(self.on_exceeded, Degrade):
            if self.degrade_to is not None:
                raise ConfigurationError(
                    "Budget: name the cheaper model once, in degrade(...) or degrade_to=."
                )
            _check_degrade(self.on_exceeded.model, self.on_exceeded.at)
            return
        if self.on_exceeded not in get_args(OnExceeded):
            raise ConfigurationError(
                f'Budget(on_exceeded={self.on_exceeded!r}): choose "stop", "queue", "degrade" or "ask".'
            )
        self._check_asking()
        if (self.on_exceeded == "degrade") != (self.degrade_to is not None):
            raise ConfigurationError(
                'Budget: on_exceeded="degrade" and degrade_to="a/model" go together, or write degrade("a/model").'
            )
        if self.degrade_to is not None:
            _check_degrade(self.degrade_to, DEGRADE_AT)

    def _check_renewal(self) -> None:
        if self.renews is not None and self.renews not in get_args(Renews):
            raise ConfigurationError(f'Budget(renews={self.renews!r}): choose "day", "month" or None.')
        if self.per == "day" and self.renews == "month":
            raise ConfigurationError(
                'Budget(per="day", renews="month"): one that is per day begins anew every day.'
            )

    def _check_asking(self) -> None:
        given: object = self.approval
        if (self.on_exceeded == "ask") != (given is not None):
            raise ConfigurationError(
                'Budget: on_exceeded="ask" and approval=ApprovalSpec(approvers=["..."]) go together: who decides?'
            )
        if given is None:
            return
        if not isinstance(given, ApprovalSpec):
            raise ConfigurationError(f"Budget(approval={given!r}): give ApprovalSpec(approvers=[...]).")
        if given.shadow or given.allow_edit or given.when is not None or given.summary is not None:
            raise ConfigurationError(
                "Budget(approval=...): shadow, allow_edit, when and summary are for artifacts; leave them out."
            )

    @property
    def limit(self) -> Limit:
        """The limits for the core."""
        return _limit(self.usd, self.tokens, self.calls, "Budget")

    @property
    def terms(self) -> Terms:
        """What happens when it is used up, for the core."""
        if isinstance(self.on_exceeded, Degrade):
            return Terms("degrade", self.on_exceeded.model, round(self.on_exceeded.at * 1000))
        if self.degrade_to is not None:
            return Terms("degrade", self.degrade_to, round(DEGRADE_AT * 1000))
        return Terms(self.on_exceeded, approval=None if self.approval is None else self.approval.terms())


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """One account of a budget, as it is now."""

    account: str
    """Its name, for `flock.budgets.set`: `tenant:acme`, `agent:writer`, `day`, `workflow:...`, `agent:writer/day` for
    what one agent's own budget counts, or `month/tenant:acme` for one that renews."""
    limit_usd: float | None
    limit_tokens: int | None
    limit_calls: int | None
    spent_usd: float
    spent_tokens: int
    spent_calls: int
    reserved_usd: float
    """Worst cases of calls that run now, or whose gateway died."""
    reserved_tokens: int
    reserved_calls: int
    on_exceeded: str
    is_set: bool
    """The limit was set for this account; else its agents declare it."""


class BudgetDeclaring:
    """The part of an agent's builder that knows budgets."""

    _definition: AgentDefinition

    def budget(self, *budgets: Budget) -> AgentBuilder:
        """Limit what this agent's calls to language models may use; several budgets hold all at once.

        They count this agent's calls only, beside the budgets of the flock.

        Args:
            budgets: `Budget(usd=..., per=...)`.

        Raises:
            ConfigurationError: It is no Budget.
        """
        at = f"agent {self._definition.name!r}: budget()"
        self._definition.budgets += rules_of(budgets, own=True, at=at)
        return cast("AgentBuilder", cast(Any, self)._changed())


def rules_of(
    budgets: Iterable[Budget], *, own: bool = False, at: str = "Flock(budgets=...)"
) -> tuple[BudgetRule, ...]:
    """Return what workers must know of budgets.

    Raises:
        ConfigurationError: One is no Budget.
    """
    if isinstance(budgets, Budget):
        budgets = (budgets,)
    rules: list[BudgetRule] = []
    for budget in budgets:
        if not isinstance(budget, Budget):
            raise ConfigurationError(f"{at} takes Budget(...), got {type(budget).__name__}")
        rules.append(BudgetRule(budget.per, budget.limit, budget.terms, own, budget.renews or ""))
    return tuple(rules)


def give_budgets(definition: AgentDefinition, rules: tuple[BudgetRule, ...]) -> None:
    """Give an agent the budgets of its flock."""
    if rules:
        definition.budgets = rules + definition.budgets


class Budgets:
    """`flock.budgets`: what was spent, and limits that are changed while everything runs."""

    def __init__(self, board: Callable[[], Awaitable[Board]]) -> None:
        """Ask the board that `board` returns."""
        self._board = board
        self._workflows: dict[str, None] = {}

    async def list(self, *, per: Per | None = None, limit: int = 1000) -> list[BudgetStatus]:
        """Return the accounts that were used or set, by name.

        Args:
            per: Of this kind only, those of single agents, too; None: all.
            limit: At most so many, from 1; which ones, when there are more, is not defined.

        Raises:
            ConfigurationError: `per` is unknown, or `limit` is below 1.
        """
        if per is not None and per not in get_args(Per):
            raise ConfigurationError(f"budgets.list(per={per!r}): choose one of {', '.join(get_args(Per))}.")
        if limit < 1:
            raise ConfigurationError(f"budgets.list(limit={limit}): give 1 or more.")
        board = await self._board()
        found: list[AccountRow] = []
        for shard in range(board.num_shards):
            place: tuple[int, str] = (0, "")
            while len(found) < limit:
                rows = _rows(await board.ask_shard(shard, "budget_accounts", *place, PAGE))
                found += [row for row in rows if per is None or _kind(row.account) == per]
                if len(rows) < PAGE:
                    break
                place = (rows[-1].slot, rows[-1].account)
        return sorted((_status(row) for row in found[:limit]), key=lambda status: status.account)

    async def get(self, account: str) -> BudgetStatus | None:
        """Return one account; None: nothing was spent or set there."""
        slot = _home(account)
        board = await self._board()
        rows = _rows(await board.ask_shard(slot % board.num_shards, "budget_account", slot, account))
        return _status(rows[0]) if rows else None

    async def set(
        self,
        account: str,
        *,
        usd: float | Decimal | None = None,
        tokens: int | None = None,
        calls: int | None = None,
        by: str = "",
    ) -> None:
        """Give an account a limit of its own, which wins over what agents declare; what is spent stays spent.

        Args:
            account: Such as `tenant:acme`; see `BudgetStatus.account`.
            usd: US dollars in all; None: no limit in dollars.
            tokens: None: no limit in tokens.
            calls: None: no limit in calls.
            by: Who wants it, for the audit log.

        Raises:
            ConfigurationError: A value makes no sense, or there is none.
        """
        await self._send(account, _given(usd, tokens, calls, "set"), None, False, by)

    async def add(
        self,
        account: str,
        *,
        usd: float | Decimal | None = None,
        tokens: int | None = None,
        calls: int | None = None,
        by: str = "",
    ) -> None:
        """Raise the limit of an account by so much; what it does not limit stays without a limit.

        Raises:
            ConfigurationError: A value makes no sense, there is none, or no call has used the account yet and nobody
                has set a limit for it.
            StoreUnavailableError: The shard did not answer. Look with `get` before adding again: it may have.
        """
        await self._send(account, _given(usd, tokens, calls, "add"), None, True, by)

    async def clear(self, account: str, *, by: str = "") -> None:
        """Take back what `set` and `add` gave: the limit that agents declare holds again."""
        await self._send(account, None, None, False, by)

    async def _send(self, account: str, limit: Limit | None, terms: Terms | None, add: bool, by: str) -> None:
        slot = _home(account)
        board = await self._board()
        blob = _encode(SetBudget(account, limit, terms, add, by))
        if not await board.ask_shard(slot % board.num_shards, "set_budget", blob):
            raise ConfigurationError(
                f"The budget {account} has no limit yet that could be raised: no call has used it. Give it one with "
                "flock.budgets.set(...)."
            )

    async def publishing(
        self, obj: object, workflow: str | None, key: str | None, tenant: str | None, budget: Budget | None
    ) -> tuple[str | None, tuple[str, ...]]:
        """Return the workflow and the tags of an artifact of a tenant, or of a workflow with a budget of its own.

        Args:
            obj: What is published.
            workflow: Its workflow, if one was given.
            key: Its idempotency key, if there is one.
            tenant: Whose it is; None: of nobody in particular.
            budget: Of the workflow; None: the one that it has.

        Raises:
            ConfigurationError: The tenant's id or the budget makes no sense.
        """
        marks: tuple[str, ...] = () if tenant is None else (tenant_tag(tenant),)
        own = obj.correlation_id if isinstance(obj, Artifact) else None
        workflow = workflow if own is None else str(own)
        if budget is not None:
            workflow = workflow or new_workflow(key)
            await self._begin(workflow, budget)
        if workflow in self._workflows:
            marks += (budget_tag(workflow),)
        return workflow, marks

    async def _begin(self, workflow: str, budget: Budget) -> None:
        if not isinstance(budget, Budget):
            raise ConfigurationError(f"publish(budget=...) takes Budget(...), got {type(budget).__name__}.")
        if budget.per != "workflow":
            raise ConfigurationError(
                f'publish(budget=...) is for one workflow: per="{budget.per}" makes no sense.'
            )
        if budget.renews is not None:
            raise ConfigurationError("publish(budget=...): the budget of one workflow does not renew.")
        # First: an artifact must not be there before what pays for it.
        await self._send(account_name("workflow", workflow), budget.limit, budget.terms, False, "publish")
        if len(self._workflows) >= MAX_REMEMBERED:
            del self._workflows[next(iter(self._workflows))]
        self._workflows[workflow] = None


def _check_degrade(model: object, at: object) -> None:
    if not isinstance(model, str) or not model.strip():
        raise ConfigurationError(f"degrade(): name a model, as litellm does; got {model!r}.")
    if not isinstance(at, int | float) or isinstance(at, bool) or not 0 < at <= 1:
        raise ConfigurationError(f"degrade(at={at!r}): give a share above 0 and up to 1.")


def more_of(what: str, amount: object) -> int:
    """Return an amount of dollars (`nusd`), `tokens` or `calls` as the ledger counts it.

    Raises:
        ConfigurationError: It makes no sense.
    """
    if what == "nusd":
        return _nusd(amount, "approvals.approve") or 0
    return _count(amount, f"approvals.approve({what}") or 0


def _given(usd: object, tokens: object, calls: object, method: str) -> Limit:
    if usd is None and tokens is None and calls is None:
        raise ConfigurationError(f"budgets.{method}(): give usd=, tokens= or calls=.")
    return _limit(usd, tokens, calls, f"budgets.{method}")


def _limit(usd: object, tokens: object, calls: object, at: str) -> Limit:
    return Limit(_nusd(usd, at), _count(tokens, f"{at}(tokens"), _count(calls, f"{at}(calls"))


def _nusd(usd: object, at: str) -> int | None:
    if usd is None:
        return None
    fits = isinstance(usd, int | float | Decimal) and not isinstance(usd, bool) and math.isfinite(usd)
    nusd = math.floor(Decimal(str(usd)) * NUSD) if fits and 0 < cast(Any, usd) <= MAX_USD else 0
    if nusd < 1:
        raise ConfigurationError(f"{at}(usd={usd!r}): give US dollars, above 0 and up to {MAX_USD}.")
    return nusd


def _count(value: object, at: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
        raise ConfigurationError(f"{at}={value!r}): give a whole number from 1.")
    return value


def _home(account: object) -> int:
    if not isinstance(account, str) or _ACCOUNT.fullmatch(account) is None:
        raise ConfigurationError(
            f"There is no budget account {account!r}: they are named like tenant:acme, agent:writer, workflow:<id>, "
            "day, month/tenant:acme, or agent:writer/day; see flock.budgets.list()."
        )
    return home_of_account(account)


def _kind(account: str) -> str:
    """Return what an account is per."""
    rest = re.sub(r"^#\d+/", "", account)
    if rest.startswith("agent:") and "/" in rest:
        rest = rest.partition("/")[2]
    rest = re.sub(r"^(day|month)/", "", rest)
    return rest.partition(":")[0]


def _status(row: AccountRow) -> BudgetStatus:
    limit, spent, held = row.limit, row.spent, row.held
    return BudgetStatus(
        row.account, None if limit.nusd is None else limit.nusd / NUSD, limit.tokens, limit.calls, spent.nusd / NUSD,
        spent.tokens, spent.calls, held.nusd / NUSD, held.tokens, held.calls, row.terms.policy, row.own,
    )  # fmt: skip
