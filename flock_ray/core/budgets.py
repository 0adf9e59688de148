"""Budgets: what calls to language models may use, and what they have used. Pure; part of a slot's durable state.

Every account has one home slot, and so one writer. A call reserves its worst case before it is made and is
settled once after it; one whose fate is never known stays spent at its worst case. So what is spent and
reserved together never exceeds a limit, whatever dies in between.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import blake2b

import msgspec

from flock_ray.core.approval_terms import ApprovalTerms
from flock_ray.core.ids import derive_id, slot_of

__all__ = [
    "NUSD", "Account", "AccountRow", "Amount", "Charge", "Ledger", "Limit", "Refusal", "Reserve", "SetBudget", "Settle",
    "Terms", "account_name", "home_of_account", "period_of",
]  # fmt: skip

NUSD = 1_000_000_000
"""Nano-dollars, in which money is counted, of a dollar."""

DAY_US = 24 * 3_600_000_000
HOLD_US = 3_600_000_000
"""A reservation that is not settled by then was lost with its gateway: it is spent."""

MAX_ACCOUNTS = 20_000
"""Accounts of a slot; past them workflows that did nothing for the longest time are forgotten."""
MAX_SETTLED = 256
"""Settled reservations that a slot remembers, so that messages that come twice change nothing."""
MAX_NAME = 200
_WORKFLOW = re.compile(r"(#\d+/)?(agent:[^/]+/)?((day|month)/)?workflow:")
_RENEWED = re.compile(r"(?:#\d+/)?(?:agent:[^/]+/)?(day|month)(?:/.*)?", re.DOTALL)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Amount(msgspec.Struct, array_like=True, frozen=True):
    """What calls use."""

    nusd: int = 0
    """Nano-dollars."""
    tokens: int = 0
    """Input and output together."""
    calls: int = 0

    def plus(self, other: Amount) -> Amount:
        """Return the sum."""
        return Amount(self.nusd + other.nusd, self.tokens + other.tokens, self.calls + other.calls)

    def minus(self, other: Amount) -> Amount:
        """Return the difference."""
        return Amount(self.nusd - other.nusd, self.tokens - other.tokens, self.calls - other.calls)


class Limit(msgspec.Struct, array_like=True, frozen=True):
    """What calls may use at most; None: as much as they like."""

    nusd: int | None = None
    tokens: int | None = None
    calls: int | None = None

    def plus(self, more: Limit) -> Limit:
        """Return a higher limit; what is not limited stays so."""
        one, two, three = (
            None if mine is None else mine + (added or 0)
            for mine, added in ((self.nusd, more.nusd), (self.tokens, more.tokens), (self.calls, more.calls))
        )
        return Limit(one, two, three)


class Terms(msgspec.Struct, array_like=True, frozen=True):
    """What happens when an account is used up."""

    policy: str = "stop"
    """stop, queue, degrade or ask."""
    degrade_to: str = ""
    """The model that is called instead."""
    soft_permille: int = 1000
    """Share of the limit that is there for other models than `degrade_to`."""
    approval: ApprovalTerms | None = None
    """Of `ask`: who decides about more."""


class Charge(msgspec.Struct, array_like=True, frozen=True):
    """An account that pays for a call, as the agent's declaration has it."""

    account: str
    limit: Limit = Limit()
    terms: Terms | None = None
    """None: the account has to be there already, with a limit of its own."""


class Reserve(msgspec.Struct, array_like=True, frozen=True):
    """A call that wants to be made: all of these accounts pay for it, or none does."""

    key: bytes
    """Names the reservation: the same one when it is asked again because an answer was lost."""
    amount: Amount
    """The worst case."""
    charges: tuple[Charge, ...]
    degraded: bool = False
    """The call goes to the cheaper model already."""
    missing: str = ""
    """`price`: what it costs is not known; `size`: nor how many tokens it may use. The amount does not say it then."""
    agent: str = ""
    workflow: str = ""


class Settle(msgspec.Struct, array_like=True, frozen=True):
    """A call that ended."""

    key: bytes
    account: str
    used: Amount | None = None
    """None: nobody knows, so its worst case is spent."""


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """Why a call may not be made now."""

    account: str
    what: str
    """nusd, tokens or calls: which limit it is; `accounts`: there are too many; `gone`: there is no such account; price
    or size: what the call may use is not known (`Reserve.missing`)."""
    limit: int = 0
    left: int = 0
    """Of the limit, what nothing has used or reserved; below 0 when a limit was lowered."""
    needed: int = 0
    may_free: bool = False
    """Only what is reserved stands in the way: calls that end may give back enough."""
    renews_us: int = 0
    """When the account begins anew; 0: it does not."""
    terms: Terms = Terms()


class SetBudget(msgspec.Struct, array_like=True, frozen=True):
    """A limit for one account."""

    account: str
    limit: Limit | None
    """None: what agents declare holds again."""
    terms: Terms | None = None
    add: bool = False
    by: str = ""


class AccountRow(msgspec.Struct, array_like=True, frozen=True):
    """One account as readers get it."""

    slot: int
    account: str
    limit: Limit
    own: bool
    """The limit was set for this account."""
    spent: Amount
    held: Amount
    open: int
    terms: Terms


class Account(msgspec.Struct, array_like=True):
    """What one budget has used."""

    spent: Amount = Amount()
    held: Amount = Amount()
    """Sum of `open`."""
    open: dict[bytes, tuple[Amount, int]] = {}
    """By reservation, its worst case and when it was made; the oldest first."""
    limit: Limit = Limit()
    """What the last call's agent declared."""
    own: Limit | None = None
    """What somebody has set for this account; it wins."""
    terms: Terms = Terms()
    own_terms: Terms | None = None
    day: int = 0
    """UTC day or month that everything here belongs to, as its number; 0: it never begins anew."""
    asked: int = 0
    """How often people were asked for more."""
    denied: bool = False
    """They have said no: calls that do not fit fail, until the limit is raised or a new day begins."""


class Ledger(msgspec.Struct, array_like=True):
    """The accounts of one slot; the one used last at the end."""

    accounts: dict[str, Account] = {}
    settled: dict[bytes, None] = {}
    """Reservations settled lately."""

    # -- looking ----------------------------------------------------------------------------------

    def refusal(self, charge: Charge, ask: Reserve, now_us: int) -> Refusal | None:
        """Say why an account does not allow a call; None: it does, or it has allowed this one before.

        Args:
            charge: The account, and the limit that holds unless it has one of its own.
            ask: The call.
            now_us: Now.
        """
        account = self.accounts.get(charge.account)
        if account is None:
            if charge.terms is None:
                return Refusal(charge.account, "gone")
            if len(self.accounts) >= MAX_ACCOUNTS and self._forgettable() is None:
                return Refusal(charge.account, "accounts", MAX_ACCOUNTS)
            account = Account()
        if self.knows(charge.account, ask.key):
            return None
        limit = charge.limit if account.own is None else account.own
        terms = account.own_terms or charge.terms or account.terms
        period = period_of(charge.account)
        spent, held = account.spent, account.held
        for worst, since_us in account.open.values():  # the oldest first; `take` does the same for good
            if since_us + HOLD_US > now_us:
                break
            spent, held = spent.plus(worst), held.minus(worst)
        renewed = bool(period) and _number(period, now_us) > account.day
        if renewed:
            spent = held = Amount()
        if account.denied and not renewed and terms.policy == "ask":
            terms = msgspec.structs.replace(terms, policy="stop")
        unsized = ask.missing == "size" and limit.tokens is not None
        if unsized or (ask.missing and limit.nusd is not None):
            return Refusal(charge.account, ask.missing, terms=terms)
        permille = 1000 if ask.degraded or terms.policy != "degrade" else terms.soft_permille
        found = _limit_hit(limit, spent, held, ask.amount, permille)
        if found is None:
            return None
        what, most, left, needed, may_free = found
        renews_us = _begin_us(period, _number(period, now_us) + 1) if period else 0
        return Refusal(charge.account, what, most, left, needed, may_free, renews_us, terms)

    def _forgettable(self) -> str | None:
        """Return the workflow that was not used for the longest time and has nothing open."""
        for name, account in self.accounts.items():
            if not account.open and _WORKFLOW.match(name):
                return name
        return None

    # -- changing: only by what is in the journal ---------------------------------------------------

    def take(self, charge: Charge, key: bytes, amount: Amount, now_us: int) -> None:
        """Reserve; a reservation that is there already changes nothing."""
        account = self._used(charge.account)
        if charge.terms is not None:
            account.limit, account.terms = charge.limit, charge.terms
        self._renew(charge.account, account, now_us)
        if key in account.open:
            return
        while account.open:
            first = next(iter(account.open))
            worst, since_us = account.open[first]
            if since_us + HOLD_US > now_us:
                break
            self._close(account, first, worst, worst)
        account.open[key] = (amount, now_us)
        account.held = account.held.plus(amount)

    def settle(self, name: str, key: bytes, used: Amount | None) -> bool:
        """End a reservation; returns False when it is not open (any more): that changes nothing.

        Args:
            name: The account.
            key: Id of the reservation.
            used: What the call used; None: nobody knows, so its worst case is spent.
        """
        account = self.accounts.get(name)
        found = None if account is None else account.open.get(key)
        if account is None or found is None:
            return False
        self._close(account, key, found[0], found[0] if used is None else used)
        self.settled[_mark(key, name)] = None
        while len(self.settled) > MAX_SETTLED:
            del self.settled[next(iter(self.settled))]
        return True

    def knows(self, name: str, key: bytes) -> bool:
        """Say whether a reservation was made, be it settled (lately) or not."""
        return self.is_open(name, key) or _mark(key, name) in self.settled

    def is_open(self, name: str, key: bytes) -> bool:
        """Say whether a reservation waits to be settled."""
        account = self.accounts.get(name)
        return account is not None and key in account.open

    def set(self, name: str, limit: Limit | None, terms: Terms | None, now_us: int) -> None:
        """Give an account a limit of its own; None: the one that agents declare holds again."""
        account = self._used(name)
        account.own, account.denied = limit, False
        if limit is None:
            account.own_terms = None
        elif terms is not None:
            account.own_terms = terms
        self._renew(name, account, now_us)

    def _used(self, name: str) -> Account:
        """Return an account and put it to the end; an old workflow goes for a new one."""
        account = self.accounts.pop(name, None)
        if account is None:
            if len(self.accounts) >= MAX_ACCOUNTS and (old := self._forgettable()) is not None:
                while (first := next(iter(self.accounts))) != old:
                    self.accounts[first] = self.accounts.pop(
                        first
                    )  # or the next search would pass them again
                del self.accounts[old]
            account = Account()
        self.accounts[name] = account
        return account

    def _renew(self, name: str, account: Account, now_us: int) -> None:
        if (period := period_of(name)) and (number := _number(period, now_us)) > account.day:
            # Calls of the day or month before that are still open were paid by that one.
            account.day = number
            account.spent = account.held = Amount()
            account.open = {}
            account.denied = False

    def ask(self, charge: Charge, now_us: int) -> int:
        """Note that people are asked for more; returns how often they were, this time included."""
        account = self._used(charge.account)
        if charge.terms is not None:
            account.limit, account.terms = charge.limit, charge.terms
        self._renew(charge.account, account, now_us)
        account.asked += 1
        return account.asked

    def deny(self, name: str) -> None:
        """Let calls that do not fit into an account fail, rather than wait."""
        account = self.accounts.get(name)
        if account is not None:
            account.denied = True

    def _close(self, account: Account, key: bytes, worst: Amount, used: Amount) -> None:
        del account.open[key]
        account.held = account.held.minus(worst)
        account.spent = account.spent.plus(used)


def _limit_hit(
    limit: Limit, spent: Amount, held: Amount, amount: Amount, permille: int
) -> tuple[str, int, int, int, bool] | None:
    """Return (which, limit, left, needed, may free) of the first limit that is too small; None: all allow it."""
    hit: tuple[str, int, int, int, bool] | None = None
    for what in ("nusd", "tokens", "calls"):
        most = getattr(limit, what)
        if most is None:
            continue
        most = most * permille // 1000
        used, needed = getattr(spent, what), getattr(amount, what)
        left = most - used - getattr(held, what)
        if needed > left:
            may_free = used + needed <= most
            if hit is None or not may_free:
                hit = (what, most, left, needed, may_free)
            if not may_free:
                return hit
    return hit


def _number(period: str, now_us: int) -> int:
    """Return the number of a UTC day, from 1970, or of a month, from the year 0."""
    if period == "day":
        return now_us // DAY_US
    moment = _EPOCH + timedelta(microseconds=now_us)
    return moment.year * 12 + moment.month - 1


def _begin_us(period: str, number: int) -> int:
    """Return when a day or a month begins."""
    if period == "day":
        return number * DAY_US
    year, month = divmod(number, 12)
    return (datetime(year, month + 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def account_name(kind: str, name: str = "", *, agent: str = "", number: int = 1, renews: str = "") -> str:
    """Name an account: `tenant:acme`, or `agent:writer/tenant:acme` for what one agent does for it.

    Args:
        kind: workflow, tenant, agent or day.
        name: Which one; long ones are cut, and told apart by a hash.
        agent: Only what this agent does; empty: everybody.
        number: Of several budgets over the same thing, from 1.
        renews: `day` or `month`: it begins anew with each, and is `day/tenant:acme`; empty: never, unless its kind is
            day.
    """
    if len(name) > MAX_NAME:
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        name = f"{name[: MAX_NAME // 2]}~{digest}"
    which = f"#{number}/" if number > 1 else ""
    period = f"{renews}/" if renews and kind != "day" else ""
    if kind == "agent":
        return f"{which}{period}agent:{agent or name}"
    whose = f"agent:{agent}/" if agent else ""
    return f"{which}{whose}{kind}" if kind == "day" else f"{which}{whose}{period}{kind}:{name}"


def period_of(account: str) -> str:
    """Return `day` or `month`, if an account begins anew with each, in UTC; "" if it never does."""
    found = _RENEWED.fullmatch(account)
    return "" if found is None else found.group(1)


def home_of_account(name: str) -> int:
    """Return the slot that keeps an account."""
    return slot_of(f"budget:{name}")


def _mark(key: bytes, name: str) -> bytes:
    return derive_id(key, name.encode("utf-8", "surrogatepass"))
