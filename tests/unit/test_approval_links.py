"""Signed links: bound to person, decision and content, for a while, once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from flock_ray import ApprovalSpec
from flock_ray.approvals.links import make_token, read_token, with_token
from flock_ray.errors import ApprovalError, ApprovalExpiredError, ConfigurationError, ForbiddenError
from flock_ray.testing import VirtualFlock
from tests.unit.test_approvals import BOTH, Order, asked, declare, events, virtually

SECRET = SecretStr("0123456789abcdef0123456789abcdef")
DAY = timedelta(days=1)
GIVEN: dict[str, Any] = {
    "case": b"c" * 16, "shown": b"s" * 32, "by": "ann", "decision": "approve", "now_s": 1000.0, "expires": DAY,
}  # fmt: skip


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOCK_APPROVAL_SECRET", SECRET.get_secret_value())


def test_a_token_says_what_was_signed_until_its_time_is_over() -> None:
    token = make_token(SECRET, **GIVEN)
    read = read_token(SECRET, token, now_s=1000 + 86_399)
    assert (read.case, read.shown, read.by, read.decision) == (b"c" * 16, b"s" * 32, "ann", "approve")
    assert make_token(SECRET, **GIVEN) != token  # two links are two decisions
    with pytest.raises(ApprovalExpiredError):
        read_token(SECRET, token, now_s=1000 + 86_400)


@given(data=st.data())
def test_a_token_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    token = make_token(SECRET, **GIVEN)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABCabc019-_.="))
    changed = token[:at] + other + token[at + 1 :]
    if changed == token:
        return
    try:
        read = read_token(SECRET, changed, now_s=1000)
    except ForbiddenError:
        return
    # Only the unused bits at the end of a base64 text may differ
    assert read == read_token(SECRET, token, now_s=1000)


@pytest.mark.parametrize(
    "token", ["", ".", "a.b", "a" * 5000, "ä.ö", "a.b.c", None, "e30.e30", "AAAA", "\x00.\x00"]
)
def test_what_is_no_token_is_refused(token: Any) -> None:
    with pytest.raises(ForbiddenError):
        read_token(SECRET, token, now_s=0)


def test_another_secret_signs_other_links() -> None:
    with pytest.raises(ForbiddenError):
        read_token(SecretStr("x" * 32), make_token(SECRET, **GIVEN), now_s=1000)


@pytest.mark.parametrize("secret", [None, SecretStr("short")])
def test_without_a_secret_there_are_no_links(secret: SecretStr | None) -> None:
    with pytest.raises(ConfigurationError, match="FLOCK_APPROVAL_SECRET"):
        make_token(secret, **GIVEN)


@pytest.mark.parametrize(
    "wrong", [{"expires": timedelta(0)}, {"expires": 31 * DAY}, {"expires": 5}, {"decision": "edit"}]
)
def test_a_link_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        make_token(SECRET, **{**GIVEN, **wrong})


def test_a_token_is_added_to_an_address() -> None:
    assert with_token("https://x.example/d", "t") == "https://x.example/d?token=t"
    assert with_token("https://x.example/d?a=1", "t") == "https://x.example/d?a=1&token=t"
    for wrong in ("x.example", "javascript:alert(1)", "https://", "https://x.example/#a"):
        with pytest.raises(ConfigurationError):
            with_token(wrong, "t")


def test_a_link_decides_once_as_the_person_it_names() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock)
            waiting = await asked(flock)
            link = await flock.approvals.link(
                waiting, by="ann", decision="approve", base="https://x.example/d"
            )
            token = link.removeprefix("https://x.example/d?token=")
            after = await flock.approvals.redeem(token, comment="from my phone")
            assert (after.approved_by, after.decisions[0].comment) == (("ann",), "from my phone")
            with pytest.raises(ApprovalError, match="used already"):
                await flock.approvals.redeem(token)
            other = await flock.approvals.link(waiting, by="ann", decision="reject")
            with pytest.raises(ApprovalError, match="decided about"):
                await flock.approvals.redeem(other)
            await flock.approvals.approve(waiting, by="bob")
            await flock.run_until_idle()
            assert filled == ["ACME 5000"]
            for used in (token, other):  # also when the approval is over
                with pytest.raises(ApprovalError):
                    await flock.approvals.redeem(used)
            # Nobody finds a token where one can look
            assert token not in str(await events(flock)) + repr(flock.approvals)

    virtually(main())


def test_a_link_dies_with_what_it_was_made_for() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ApprovalSpec(approvers=["ann", "bob"], allow_edit=True))
            waiting = await asked(flock)
            token = await flock.approvals.link(waiting, by="ann", decision="approve")
            await flock.approvals.edit(waiting, Order(symbol="ACME", amount=1e9), by="bob")
            with pytest.raises(ApprovalError, match="something else"):
                await flock.approvals.redeem(token)

    virtually(main())


def test_a_link_gives_nobody_a_right_that_they_do_not_have() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            waiting = await asked(flock)
            for by in ("mallory", "trader"):
                token = await flock.approvals.link(waiting, by=by, decision="approve")
                with pytest.raises(ForbiddenError):
                    await flock.approvals.redeem(token)
            await flock.approvals.reject(waiting, by="ann")
            with pytest.raises(ApprovalExpiredError):
                await flock.approvals.link(waiting, by="bob", decision="approve")

    virtually(main())


def test_a_link_expires() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ApprovalSpec(approvers=["ann"], timeout=timedelta(days=9)))
            waiting = await asked(flock)
            token = await flock.approvals.link(
                waiting, by="ann", decision="approve", expires=timedelta(hours=1)
            )
            await asyncio.sleep(3601)
            with pytest.raises(ApprovalExpiredError, match="expired"):
                await flock.approvals.redeem(token)
            assert (await flock.approvals.get(waiting)).decisions == ()

    virtually(main())


def test_one_link_used_twice_at_once_counts_once() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, BOTH)
            waiting = await asked(flock)
            token = await flock.approvals.link(waiting, by="ann", decision="approve")
            answers = await asyncio.gather(
                *(flock.approvals.redeem(token) for _ in range(5)), return_exceptions=True
            )
            assert sum(isinstance(answer, ApprovalError) for answer in answers) == 4
            assert len((await flock.approvals.get(waiting)).decisions) == 1

    virtually(main())
