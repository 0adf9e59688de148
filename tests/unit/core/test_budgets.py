"""Ledgers: never above a limit, settled once, whatever order and wherever the process dies."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.budget_rules import MAX_CHARGES, BudgetRule, budget_tag, charges_of
from flock_ray.core.budgets import (
    DAY_US,
    HOLD_US,
    MAX_ACCOUNTS,
    Account,
    Amount,
    Charge,
    Ledger,
    Limit,
    Reserve,
    Settle,
    Terms,
    account_name,
    home_of_account,
    period_of,
)
from flock_ray.core.ids import NUM_SLOTS
from flock_ray.core.records import decode_record, encode_record
from flock_ray.core.recovery import Recovery, snapshot_shard, snapshot_slot
from flock_ray.core.rows import SHARD, Loaded, Snapshot
from flock_ray.core.shard import ShardCore
from flock_ray.core.tenants import tenant_of, tenant_tag
from flock_ray.errors import ConfigurationError

NOW = 1_767_225_600_000_000
STOP = Terms()


def ask(key: int, nusd: int, *charges: Charge, **more: object) -> Reserve:
    """Want to spend."""
    return Reserve(bytes([key]) * 16, Amount(nusd, nusd, 1), charges, **more)  # type: ignore[arg-type]


def charge(account: str, nusd: int | None = None) -> Charge:
    """Pay by an account with a limit."""
    return Charge(account, Limit(nusd), STOP)


def core(*names: str) -> ShardCore:
    """Return a shard with the slots of some accounts, or with all."""
    return ShardCore({home_of_account(name) for name in names} or range(NUM_SLOTS))


def account(shard: ShardCore, name: str) -> Account:
    """Return an account."""
    return shard.slots[home_of_account(name)].ledger.accounts[name]


def restored(shard: ShardCore) -> ShardCore:
    """Return the shard as a new process finds it: from snapshots of all slots."""
    found = [Snapshot(index, 1, snapshot_slot(shard, index)) for index in shard.slots]
    loaded = Loaded(
        snapshots=[Snapshot(SHARD, 1, snapshot_shard(shard)), *found], frames=[], last_lsn=1, last_seq=0
    )
    again = ShardCore(list(shard.slots))
    Recovery(loaded).rebuild(again, 2)
    return again


def test_a_call_is_refused_when_its_worst_case_does_not_fit() -> None:
    shard, paid = core(), charge("tenant:acme", 100)

    assert shard.reserve(ask(1, 60, paid), NOW) is None
    refusal = shard.reserve(ask(2, 60, paid), NOW)

    assert refusal is not None
    assert (refusal.what, refusal.limit, refusal.left, refusal.needed) == ("nusd", 100, 40, 60)
    assert refusal.may_free  # the first one may give back enough
    shard.settle(Settle(ask(1, 0).key, "tenant:acme", Amount(60, 1, 1)), NOW)
    refusal = shard.reserve(ask(2, 60, paid), NOW)
    assert refusal is not None and not refusal.may_free


def test_all_accounts_pay_or_none() -> None:
    shard, rich, poor = core(), charge("agent:a", 1000), charge("tenant:b", 10)

    refusal = shard.reserve(ask(1, 50, rich, poor), NOW)

    assert refusal is not None and refusal.account == "tenant:b"
    assert "agent:a" not in shard.slots[home_of_account("agent:a")].ledger.accounts
    assert not shard.records


def test_asking_again_reserves_once_and_settling_again_changes_nothing() -> None:
    shard, paid = core(), charge("day", 100)
    assert shard.reserve(ask(1, 60, paid), NOW) is None
    assert shard.reserve(ask(1, 60, paid), NOW) is None
    assert account(shard, "day").held.nusd == 60

    end = Settle(ask(1, 0).key, "day", Amount(10, 10, 1))
    assert shard.settle(end, NOW)
    assert not shard.settle(end, NOW)
    assert (
        shard.reserve(ask(1, 60, paid), NOW) is None
    )  # a message that came late: the call was made long ago

    assert account(shard, "day").spent == Amount(10, 10, 1)
    assert account(shard, "day").held == Amount()
    assert len(shard.records) == 2


def test_what_nobody_knows_stays_spent_at_its_worst_case() -> None:
    shard, paid = core(), charge("day", 100)
    shard.reserve(ask(1, 60, paid), NOW)

    shard.settle(Settle(ask(1, 0).key, "day", None), NOW)

    assert account(shard, "day").spent.nusd == 60


def test_a_lost_reservation_is_spent_after_an_hour() -> None:
    shard, paid = core(), charge("agent:a", 100)
    shard.reserve(ask(1, 60, paid), NOW)

    assert shard.reserve(ask(2, 50, paid), NOW + HOLD_US) is not None
    assert shard.reserve(ask(3, 40, paid), NOW + HOLD_US) is None

    assert account(shard, "agent:a").spent.nusd == 60
    assert account(shard, "agent:a").held.nusd == 40
    assert not shard.settle(Settle(ask(1, 0).key, "agent:a", Amount(1, 1, 1)), NOW + HOLD_US)


def test_a_day_begins_anew_at_midnight_utc_and_calls_of_the_day_before_do_not_count() -> None:
    shard, paid = core(), charge("day", 100)
    shard.reserve(ask(1, 60, paid), NOW)
    refusal = shard.reserve(ask(2, 60, paid), NOW + DAY_US - 1)
    assert refusal is not None and refusal.renews_us == NOW + DAY_US

    assert shard.reserve(ask(2, 60, paid), NOW + DAY_US) is None
    assert not shard.settle(Settle(ask(1, 0).key, "day", Amount(60, 1, 1)), NOW + DAY_US)

    assert account(shard, "day") == Account(
        Amount(), Amount(60, 60, 1), {ask(2, 0).key: (Amount(60, 60, 1), NOW + DAY_US)}, Limit(100),
        day=(NOW + DAY_US) // DAY_US,
    )  # fmt: skip


def test_another_account_never_begins_anew() -> None:
    shard, paid = core(), charge("workflow:agent:x/day", 100)
    shard.reserve(ask(1, 60, paid), NOW)

    refusal = shard.reserve(ask(2, 60, paid), NOW + 400 * DAY_US)

    assert refusal is not None and refusal.renews_us == 0


def test_a_limit_that_is_set_wins_and_can_be_raised_and_taken_back() -> None:
    shard, paid = core(), charge("tenant:acme", 100)
    shard.reserve(ask(1, 90, paid), NOW)
    assert shard.set_budget("tenant:acme", Limit(50), None, add=True, by="me", now_us=NOW)
    assert shard.reserve(ask(2, 60, paid), NOW) is None
    shard.set_budget("tenant:acme", Limit(None, None, 2), None, add=False, by="me", now_us=NOW)
    assert (refusal := shard.reserve(ask(3, 1, paid), NOW)) is not None and refusal.what == "calls"
    shard.set_budget("tenant:acme", None, None, add=False, by="me", now_us=NOW)
    assert (refusal := shard.reserve(ask(3, 1, paid), NOW)) is not None and refusal.limit == 100


def test_an_account_that_nobody_knows_pays_nothing() -> None:
    refusal = core().reserve(ask(1, 1, Charge("workflow:w")), NOW)

    assert refusal is not None and refusal.what == "gone"


@pytest.mark.parametrize(
    ("missing", "limit", "what"),
    [
        ("price", Limit(nusd=1), "price"),
        ("price", Limit(tokens=100), None),
        ("size", Limit(tokens=100), "size"),
        ("size", Limit(calls=1), None),
    ],
)
def test_what_is_not_known_is_refused_only_where_it_is_limited(
    missing: str, limit: Limit, what: str | None
) -> None:
    refusal = core().reserve(ask(1, 0, Charge("day", limit, STOP), missing=missing), NOW)

    assert (None if refusal is None else refusal.what) == what


def test_the_last_share_of_a_budget_is_for_the_cheaper_model() -> None:
    terms = Terms("degrade", "cheap", 800)
    shard, paid = core(), Charge("day", Limit(100), terms)
    assert shard.reserve(ask(1, 80, paid), NOW) is None

    refusal = shard.reserve(ask(2, 10, paid), NOW)

    assert refusal is not None and refusal.terms == terms and refusal.limit == 80
    assert shard.reserve(ask(2, 10, paid, degraded=True), NOW) is None
    assert (last := shard.reserve(ask(3, 11, paid, degraded=True), NOW)) is not None and last.limit == 100


def test_old_workflows_are_forgotten_and_nothing_else() -> None:
    ledger, small = Ledger(), Amount(1)
    for number in range(200):
        ledger.take(charge(f"tenant:{number}", 1), b"k", small, NOW)
    ledger.take(charge("workflow:open", 1), b"k", small, NOW)
    for number in range(MAX_ACCOUNTS - 201):
        ledger.take(charge(f"workflow:{number}", 1), b"k", small, NOW)
        ledger.settle(f"workflow:{number}", b"k", small)

    for number in range(3):
        assert ledger.refusal(charge(f"workflow:new{number}", 1), ask(1, 1), NOW) is None
        ledger.take(charge(f"workflow:new{number}", 1), b"k", small, NOW)

    assert len(ledger.accounts) == MAX_ACCOUNTS
    assert not {"workflow:0", "workflow:1", "workflow:2"} & set(ledger.accounts)
    kept = {
        "workflow:open",
        "workflow:3",
        "workflow:new0",
        "workflow:new2",
        *(f"tenant:{n}" for n in range(200)),
    }
    assert kept <= set(ledger.accounts)
    assert next(iter(ledger.accounts)) == "workflow:3"  # the next one to go is found at once


def test_a_ledger_full_of_tenants_refuses_more() -> None:
    ledger = Ledger({f"tenant:{number}": Account() for number in range(MAX_ACCOUNTS)})

    refusal = ledger.refusal(charge("tenant:new", 1), ask(1, 1), NOW)

    assert refusal is not None and refusal.what == "accounts"


def test_everything_is_in_the_snapshot() -> None:
    shard, paid = core(), charge("tenant:acme", 100)
    shard.reserve(ask(1, 10, paid), NOW)
    shard.settle(Settle(ask(1, 0).key, "tenant:acme", Amount(5, 5, 1)), NOW)
    shard.reserve(ask(2, 10, paid), NOW)
    shard.set_budget("tenant:acme", Limit(33), Terms("queue"), add=False, by="", now_us=NOW)

    again = restored(shard)

    assert (
        again.slots[home_of_account("tenant:acme")].ledger
        == shard.slots[home_of_account("tenant:acme")].ledger
    )
    assert not again.settle(Settle(ask(1, 0).key, "tenant:acme", Amount(5, 5, 1)), NOW)
    assert again.settle(Settle(ask(2, 0).key, "tenant:acme", None), NOW)


@dataclass
class Bank:
    """What really happened, to compare with."""

    limit: int
    spent: int = 0
    running: dict[bytes, int] = field(default_factory=dict)


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 30), st.integers(0, 60)),
        st.tuples(st.just("settle"), st.integers(0, 30), st.integers(0, 60)),
        st.tuples(st.just("lost"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("crash"), st.just(0), st.just(0)),
        st.tuples(st.just("snapshot"), st.just(0), st.just(0)),
        st.tuples(st.just("later"), st.integers(0, 2), st.just(0)),
    ),
    max_size=60,
)


@given(OPS, st.integers(1, 200))
@settings(max_examples=150, deadline=None)
def test_never_above_the_limit_whatever_happens(ops: list[tuple[str, int, int]], limit: int) -> None:
    accounts = ("agent:a", "tenant:t")
    charges = (charge("agent:a", limit), charge("tenant:t", 2 * limit))
    shard, now = core(*accounts), NOW
    base, journal = core(*accounts), list[bytes]()
    bank, ended = Bank(limit), set[bytes]()

    def drain() -> None:
        journal.extend(encode_record(record) for record in shard.records)
        shard.records.clear()

    for op, number, amount in ops:
        key = bytes([number]) * 16
        if op == "reserve" and key not in ended:
            allowed = shard.reserve(ask(number, amount, *charges), now) is None
            assert allowed == (
                key in bank.running or bank.spent + sum(bank.running.values()) + amount <= limit
            )
            if allowed:
                bank.running.setdefault(key, amount)
        elif op in ("settle", "lost") and (key in bank.running or key in ended):
            used = None if op == "lost" else Amount(min(amount, bank.running.get(key, 0)), 1, 1)
            done = [shard.settle(Settle(key, name, used), now) for name in accounts]
            assert done == [key in bank.running] * 2
            worst = bank.running.pop(key, None)
            if worst is not None:
                bank.spent += worst if used is None else used.nusd
                ended.add(key)
        elif op == "crash":
            drain()
            shard = restored(base)
            for data in journal:
                shard.replay(decode_record(data))
            shard.records.clear()
        elif op == "snapshot":
            drain()
            base, journal = restored(shard), []
        elif op == "later":
            now += number * 1_000_000
        for name in accounts:
            known = shard.slots[home_of_account(name)].ledger.accounts.get(name) or Account()
            assert known.spent.nusd + known.held.nusd <= limit
            assert known.spent.nusd == bank.spent
            assert known.held.nusd == sum(bank.running.values())


def test_records_of_budgets_can_be_read_again() -> None:
    shard, paid = core(), charge("tenant:acme", 100)
    shard.reserve(ask(1, 10, paid), NOW)
    shard.settle(Settle(ask(1, 0).key, "tenant:acme", None), NOW)
    shard.set_budget("tenant:acme", None, None, add=False, by="", now_us=NOW)

    assert [decode_record(encode_record(record)) for record in shard.records] == shard.records
    assert len(shard.records) == 3


def test_a_page_of_accounts_goes_on_where_the_last_one_ended() -> None:
    shard = core()
    for number in range(50):
        shard.reserve(ask(number, 1, charge(f"tenant:{number}", 10)), NOW)
    found: list[str] = []
    place = (0, "")
    while page := list(shard.budget_accounts(place, 7)):
        assert len(page) <= 7
        found += [name for _, name, _ in page]
        place = page[-1][:2]

    assert sorted(found) == sorted(f"tenant:{number}" for number in range(50))


# -- which accounts pay -------------------------------------------------------------------------------


def rule(per: str, *, own: bool = False) -> BudgetRule:
    """Return a rule."""
    return BudgetRule(per, Limit(1), STOP, own)  # type: ignore[arg-type]


def test_names_of_accounts() -> None:
    rules = [rule(per, own=own) for own in (False, True) for per in ("workflow", "tenant", "agent", "day")]

    found = charges_of(
        [*rules, rule("day")], agent="a", workflow="w", tenant="t", tags=[budget_tag("v"), "x"]
    )

    assert [c.account for c in found] == [
        "#2/agent:a", "#2/day", "agent:a", "agent:a/day", "agent:a/tenant:t", "agent:a/workflow:w", "day", "tenant:t",
        "workflow:v", "workflow:w",
    ]  # fmt: skip
    assert [c.account for c in found if period_of(c.account)] == ["#2/day", "agent:a/day", "day"]
    assert [c.account for c in found if c.terms is None] == ["workflow:v"]


def test_a_workflows_own_budget_takes_the_place_of_the_declared_one() -> None:
    (only,) = charges_of([rule("workflow")], agent="a", workflow="w", tenant="", tags=[budget_tag("w")])
    (alone,) = charges_of([], agent="a", workflow="w", tenant="", tags=[budget_tag("w")])

    assert (only.account, alone) == (
        "workflow:w",
        Charge("workflow:w"),
    )  # the account's own limit wins over both


def test_too_many_budgets_for_one_run_are_refused() -> None:
    tags = [budget_tag(str(number)) for number in range(MAX_CHARGES + 1)]
    with pytest.raises(ConfigurationError, match="make its batches smaller"):
        charges_of([], agent="a", workflow="w", tenant="", tags=tags)


def test_long_names_are_cut_and_told_apart() -> None:
    one, two = account_name("workflow", "x" * 10_000 + "1"), account_name("workflow", "x" * 10_000 + "2")

    assert one != two and len(one) < 250


# -- tenants ------------------------------------------------------------------------------------------


def test_the_tenant_is_the_first_that_tags_name() -> None:
    assert tenant_of(["z", "tenant:b", "tenant:a", "tenants:0"]) == "a"
    assert tenant_of(()) == tenant_of(["a"]) == ""
    assert tenant_tag("a-Z.9@x_") == "tenant:a-Z.9@x_"


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "a:b", "x" * 101, "é", "a\n", None, 3])
def test_strange_tenants_are_refused(name: object) -> None:
    with pytest.raises(ConfigurationError, match="A tenant's id"):
        tenant_tag(name)


def test_messages_are_small() -> None:
    one = Reserve(b"k" * 16, Amount(10**9, 5000, 1), (Charge("tenant:acme", Limit(10**9), STOP),))
    assert len(msgspec.msgpack.encode(one)) < 100


def test_what_a_dead_gateway_held_is_spent_after_an_hour_also_for_who_is_refused() -> None:
    shard, name = core("tenant:a"), "tenant:a"
    assert shard.reserve(ask(1, 100, charge(name, 100)), NOW) is None

    soon = shard.reserve(ask(2, 1, charge(name, 100)), NOW + 1)
    later = shard.reserve(ask(2, 1, charge(name, 100)), NOW + HOLD_US + 1)

    assert soon is not None and soon.may_free
    assert later is not None and not later.may_free


def test_adding_to_an_account_that_nobody_has_used_takes_no_limit_away() -> None:
    shard, name = core("tenant:a"), "tenant:a"

    assert not shard.set_budget(name, Limit(50), None, add=True, by="me", now_us=NOW)
    assert shard.reserve(ask(1, 101, charge(name, 100)), NOW) is not None


def test_the_tag_of_a_workflow_with_a_budget_does_not_hide_the_declared_one() -> None:
    rule = BudgetRule("workflow", Limit(100), STOP)
    charges = charges_of([rule], agent="a", workflow="w", tenant="", tags=(budget_tag("w"),))
    name = account_name("workflow", "w")
    shard = core(name)

    assert shard.reserve(ask(1, 101, *charges), NOW) is not None
    assert shard.set_budget(name, Limit(200), None, add=False, by="publish", now_us=NOW)
    assert shard.reserve(ask(2, 101, *charges), NOW) is None


# -- what begins anew ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "period"),
    [
        ("day", "day"), ("#2/day", "day"), ("agent:a/day", "day"), ("day/tenant:t", "day"), ("month/agent:a", "month"),
        ("#3/agent:a/month/workflow:w/x", "month"), ("tenant:day", ""), ("agent:day", ""), ("workflow:day/x", ""),
        ("agent:a/tenant:month", ""), ("daytime", ""),
    ],
)  # fmt: skip
def test_the_name_of_an_account_says_when_it_begins_anew(name: str, period: str) -> None:
    assert period_of(name) == period


def test_accounts_that_renew_are_named_beside_those_that_do_not() -> None:
    rules = [
        BudgetRule("tenant", Limit(1), STOP), BudgetRule("tenant", Limit(1), STOP, renews="day"),
        BudgetRule("tenant", Limit(1), STOP, own=True, renews="month"),
        BudgetRule("agent", Limit(1), STOP, renews="day"), BudgetRule("day", Limit(1), STOP, renews="day"),
    ]  # fmt: skip
    found = charges_of(rules, agent="a", workflow="w", tenant="t", tags=())
    assert [c.account for c in found] == [
        "agent:a/month/tenant:t", "day", "day/agent:a", "day/tenant:t", "tenant:t"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (datetime(2027, 2, 1, tzinfo=UTC), datetime(2027, 3, 1, tzinfo=UTC)),
        (datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),
        (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_month_begins_anew_when_the_calendar_says_so(begin: datetime, end: datetime) -> None:
    begin_us, end_us = (int(moment.timestamp()) * 1_000_000 for moment in (begin, end))
    shard = core("month/tenant:a")
    paid = charge("month/tenant:a", 100)
    assert shard.reserve(ask(1, 60, paid), begin_us) is None
    refusal = shard.reserve(ask(2, 60, paid), end_us - 1)
    assert refusal is not None and refusal.renews_us == end_us
    assert shard.reserve(ask(2, 60, paid), end_us) is None
    # What a clock that is set back brings does not give the month back
    assert shard.reserve(ask(3, 60, paid), end_us - 1) is not None
