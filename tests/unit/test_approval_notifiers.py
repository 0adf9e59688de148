"""Telling approvers: Slack, webhooks, e-mail to a real SMTP server of this process, functions."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any
from uuid import UUID

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, Session
from pydantic import SecretStr

from flock_ray import ApprovalSpec, ApprovalTimeout, Flock, Webhook
from flock_ray.approvals.links import read_token
from flock_ray.approvals.notifiers import EmailNotifier, WebhookNotifier, plain_body, slack_body
from flock_ray.approvals.telling import with_notices
from flock_ray.core.notifications import Notification
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock
from flock_ray.webhooks import WebhookUnavailable
from tests.unit.test_approvals import asked, declare, events, virtually

SECRET = SecretStr("0123456789abcdef0123456789abcdef")
PASSWORD = "hunter2-hunter2"

NOTICE = Notification(
    "requested", str(UUID(int=7)), "Order", "trader", "w", ("ann@example.com", "risk"), 2, (), "buy ACME",
    "ab" * 32, datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
)  # fmt: skip


class Mailbox:
    """What a mail server got, and how it behaves."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.answer = "250 OK"
        self.logins: list[tuple[str, str]] = []

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:  # aiosmtpd's name
        if self.answer.startswith("250"):
            content = envelope.content
            assert isinstance(content, bytes)
            message: Any = message_from_bytes(content, policy=policy.default)
            self.messages.append(message)
        return self.answer

    def login(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=data.password.decode() == PASSWORD, handled=False)


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    """A real SMTP server on a port of its own."""
    box = Mailbox()
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    controller = Controller(
        box, hostname="127.0.0.1", port=port, authenticator=box.login, auth_require_tls=False
    )  # fmt: skip
    controller.start()
    try:
        yield box, port
    finally:
        controller.stop()


def email(port: int, **options: Any) -> EmailNotifier:
    given = {
        "addresses": {"risk": "risk@example.com"},
        "tls": "none",
        "timeout": timedelta(seconds=20),
        **options,
    }
    return EmailNotifier("127.0.0.1", "flock@example.com", port=port, **given)


def body_of(message: EmailMessage) -> str:
    text: str = message.get_content()
    return text


# -- e-mail --------------------------------------------------------------------------------------


async def test_each_approver_gets_one_message(mailbox: tuple[Mailbox, int]) -> None:
    box, port = mailbox
    reminder = replace(NOTICE, kind="reminder", approval=str(UUID(int=8)), approvers=("risk",))
    await email(port).notify([NOTICE, reminder], key="k1")
    await email(port).notify([NOTICE], key="k1")  # again, after a failure: the same message by its id

    told = {str(m["To"]): m for m in box.messages}
    assert sorted(told) == ["ann@example.com", "risk@example.com"]
    assert str(told["risk@example.com"]["Message-ID"]) == str(box.messages[1]["Message-ID"])
    first = box.messages[1]
    assert first["Subject"] == "Order waits for approval and 1 more"
    text = body_of(first)
    assert "buy ACME" in text and NOTICE.approval in text and "still waits" in text
    assert "until 2026-01-02 03:04 UTC" in text
    assert "token=" not in text


async def test_links_work_for_the_person_alone(mailbox: tuple[Mailbox, int]) -> None:
    box, port = mailbox
    notifier = email(port, link_base="https://flock.example.com/decide", secret=SECRET)
    await notifier.notify([replace(NOTICE, approvers=("ann@example.com",))], key="k")
    [message] = box.messages
    links = [line.split(": ", 1) for line in body_of(message).splitlines() if "token=" in line]
    assert [choice.strip() for choice, _ in links] == ["approve", "reject"]
    token = read_token(SECRET, links[0][1].partition("token=")[2], now_s=0)
    assert (token.by, token.decision, token.case) == (
        "ann@example.com",
        "approve",
        UUID(NOTICE.approval).bytes,
    )
    assert token.shown.hex() == NOTICE.shown


async def test_what_agents_say_adds_no_headers(mailbox: tuple[Mailbox, int]) -> None:
    box, port = mailbox
    hostile = replace(
        NOTICE,
        artifact_type="O\r\nBcc: all@example.com",
        summary="x\r\n.\r\nRCPT TO:<eve@example.com>\x1b[2J",
    )
    await email(port).notify([replace(hostile, approvers=("risk",))], key="k")
    [message] = box.messages
    assert message["Bcc"] is None
    assert "\x1b" not in body_of(message)


async def test_a_password_is_given_and_never_shown(
    mailbox: tuple[Mailbox, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    box, port = mailbox
    with pytest.raises(ConfigurationError, match="password is not sent"):
        email(port, username="flock", password=PASSWORD)
    notifier = email(port, username="flock", password=PASSWORD, tls="starttls")
    assert PASSWORD not in repr(notifier) + str(notifier.password)
    with pytest.raises(ConfigurationError, match="does not offer"):
        await notifier.notify([NOTICE], key="k")  # the server speaks no TLS: nothing was sent
    assert box.logins == []
    object.__setattr__(notifier, "tls", "none")  # as a server inside a tunnel would be
    await notifier.notify([NOTICE], key="k")
    assert box.logins == [("flock", PASSWORD)]
    object.__setattr__(notifier, "password", SecretStr("wrong"))
    with pytest.raises(ConfigurationError) as info:
        await notifier.notify([NOTICE], key="k")
    assert "wrong" not in str(info.value)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("451 later", WebhookUnavailable),
        ("421 bye", WebhookUnavailable),
        ("550 no risk@example.com", ConfigurationError),
    ],
)
async def test_the_server_says_whether_to_try_again(
    mailbox: tuple[Mailbox, int], answer: str, error: type
) -> None:
    box, port = mailbox
    box.answer = answer
    with pytest.raises(error) as info:
        await email(port).notify([NOTICE], key="k")
    assert "risk@example.com" not in str(info.value)


async def test_a_server_that_is_away_is_tried_again() -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WebhookUnavailable):
        await email(port).notify([NOTICE], key="k")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sender": "nobody"}, "e-mail address"),
        ({"sender": "a@b\r\nBcc: c@d"}, "e-mail address"),
        ({"addresses": {"risk": "risk"}}, "e-mail address"),
        ({"host": ""}, "SMTP server"),
        ({"port": 0}, "number"),
        ({"tls": "maybe"}, "starttls"),
        ({"username": "x"}, "go together"),
        ({"timeout": timedelta(0)}, "timedelta"),
        ({"link_base": "flock"}, "address"),
    ],
)
def test_a_mail_server_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EmailNotifier(**{"host": "mail.example.com", "sender": "flock@example.com", **options})


# -- webhooks ------------------------------------------------------------------------------------


def test_slack_shows_what_waits_and_reads_no_markup_of_agents() -> None:
    hostile = replace(NOTICE, summary="<!channel> `x` & <https://evil.example|y>", agent="<@U1>")
    text = slack_body([hostile] * 12)["text"]
    assert "<" not in text and "&lt;!channel&gt;" in text
    assert text.endswith("… and 2 more")
    assert "waits for approval" in text


def test_a_webhook_gets_everything_but_the_content() -> None:
    [entry] = plain_body([NOTICE])["approvals"]
    assert entry["id"] == NOTICE.approval
    assert set(entry) == {
        "notice", "id", "artifact_type", "agent", "workflow", "approvers", "quorum", "approved_by", "summary",
        "shown", "expires_at", "about", "shadow",
    }  # fmt: skip


# -- on a board ----------------------------------------------------------------------------------


def test_approvers_are_told_reminded_and_told_of_escalations() -> None:
    told: list[Notification] = []

    async def main() -> None:
        hook = Webhook("https://hooks.slack.com/services/T0PSECRET", format="slack")
        async with VirtualFlock(notifiers=[hook, told.append]) as flock:
            spec = ApprovalSpec(
                approvers=["ann", "bob"], quorum=2, timeout=timedelta(hours=3), remind_every=timedelta(hours=1),
                on_timeout=ApprovalTimeout.ESCALATE, escalate_to=["cfo"], summary=lambda order: f"buy {order.symbol}",
            )  # fmt: skip
            declare(flock, spec)
            waiting = await asked(flock)
            await asyncio.sleep(60)
            await flock.approvals.delegate(waiting, by="bob", to="dan")
            await asyncio.sleep(3600)
            await flock.approvals.approve(waiting, by="ann")
            await asyncio.sleep(7200)
            kinds = [(n.kind, n.to) for n in told]
            assert kinds[:2] == [("requested", ("ann", "bob")), ("delegated", ("dan",))]
            assert ("reminder", ("ann", "bob")) in kinds and ("reminder", ("bob",)) in kinds
            assert kinds[-1] == ("escalated", ("cfo",))
            assert {n.summary for n in told} == {"buy ACME"}
            assert len(flock.alerts) == len(told)
            assert "5000" not in str(told)
            assert "T0PSECRET" not in str(await events(flock, "activation")) + repr(flock.alerts)

    virtually(main())


def test_a_receiver_that_is_away_holds_up_nobody_else() -> None:
    told: list[Any] = []
    failures = [ConnectionError("away")] * 3

    def flaky(notice: Notification) -> None:
        if failures:
            raise failures.pop()
        told.append("flaky")

    async def main() -> None:
        async with VirtualFlock(notifiers=[flaky, lambda notice: told.append("other")]) as flock:
            declare(flock)
            await asked(flock)
            await asyncio.sleep(600)
            assert sorted(told) == ["flaky", "other"]

    virtually(main())


def test_whoever_has_no_address_is_named() -> None:
    async def main() -> None:
        mail = EmailNotifier("mail.example.com", "flock@example.com", addresses={"ann": "ann@example.com"})
        async with VirtualFlock(notifiers=[mail]) as flock:
            declare(flock)
            await asked(flock)
            await asyncio.sleep(60)
            assert len(flock.alerts) == 1
            assert ("engine.log", "no address of bob: not told by e-mail") in await events(flock, "engine")

    virtually(main())


def test_without_approvals_nobody_tells_and_without_notifiers_no_notice_is_made() -> None:
    flock = Flock(notifiers=[print])
    flock.agent("a")
    assert [d.name for d in flock._definitions()] == ["a"]

    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            await asked(flock)
            assert [a.type for a in await flock.store.list() if a.type == "ApprovalNotice"] == []

    virtually(main())


def test_names_of_telling_agents_are_taken() -> None:
    flock = Flock(notifiers=[print])
    declare(flock)
    flock.agent("approval-notices-1")
    with pytest.raises(ConfigurationError, match="notices of approvals"):
        flock._definitions()


@pytest.mark.parametrize("wrong", [5, "https://hooks.slack.com", Webhook])
def test_what_is_no_notifier_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="notifiers="):
        Flock(notifiers=[wrong])


def test_webhooks_are_signed_and_secrets_stay_secret() -> None:
    flock = Flock(notifiers=[Webhook("https://x.example/hook"), email(25, link_base="https://x.example")])
    declare(flock)
    made = with_notices(
        [b.definition for b in flock.agents], flock._notifiers, flock._registry,
        webhook_secret=SecretStr("w" * 20), approval_secret=SECRET,
    )  # fmt: skip
    engines = [d.engines[0] for d in made if d.name.startswith("approval-notices")]
    hook: WebhookNotifier = engines[0].notifier
    assert hook.webhook.secret is not None and engines[1].notifier.secret == SECRET
    shown = repr(made) + str(engines) + repr(engines[1].notifier)
    assert "w" * 20 not in shown and SECRET.get_secret_value() not in shown
    assert pickle.loads(pickle.dumps(engines[1].notifier)).secret == SECRET
