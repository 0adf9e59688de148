"""Who is told of approvals, and how: Slack and other webhooks, e-mail, a function."""

from __future__ import annotations

import asyncio
import inspect
import json
import smtplib
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import SecretStr

from flock_ray.approvals.links import LinkDecision, make_token, with_token
from flock_ray.core.notifications import Notification
from flock_ray.errors import ConfigurationError
from flock_ray.letters.alerts import escaped
from flock_ray.ports import Notifier
from flock_ray.webhooks import Webhook, WebhookUnavailable, deliver

__all__ = ["CallbackNotifier", "EmailNotifier", "WebhookNotifier", "notifier_of"]

EVENT = "approvals"
SLACK_LINES = 10
MAX_ITEMS = 100

Tls = Literal["starttls", "tls", "none"]

_SAYS = {
    "requested": "waits for approval",
    "reminder": "still waits for approval",
    "escalated": "waits for you now: nobody decided",
    "edited": "was edited: it has to be approved anew",
    "delegated": "was handed to you",
}


class WebhookNotifier:
    """Sends notices to a `Webhook`, as JSON or in the form of Slack; signed, with checks of where it leads."""

    def __init__(self, webhook: Webhook) -> None:
        """Use a webhook."""
        self.webhook = webhook
        self.label = webhook.label

    async def notify(self, notices: Sequence[Notification], *, key: str) -> None:
        """Send one request for all of them."""
        body = slack_body(notices) if self.webhook.format == "slack" else plain_body(notices)
        await deliver(self.webhook, json.dumps(body).encode(), event=EVENT, key=key)


class CallbackNotifier:
    """Calls a function with each notice, on a worker."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        """Use a function of a `Notification`, sync or async."""
        self.function = function
        self.label = getattr(function, "__name__", type(function).__name__)

    async def notify(self, notices: Sequence[Notification], *, key: str) -> None:
        """Call it, one notice after the other; a sync function runs in a thread."""
        await self.call(notices, threads=True)

    async def call(self, notices: Sequence[Notification], *, threads: bool) -> None:
        """Do that, or call it on the event loop."""
        for notice in notices:
            if threads and not inspect.iscoroutinefunction(self.function):
                answer = await asyncio.to_thread(self.function, notice)
            else:
                answer = self.function(notice)
            if inspect.isawaitable(answer):
                await answer


@dataclass(frozen=True, slots=True, repr=False)
class EmailNotifier:
    """Sends e-mail to approvers over SMTP: one message to each address.

    With `link_base` and `FLOCK_APPROVAL_SECRET`, a message to a person (not to a role) has links to approve and to
    reject with, which work for that person alone.
    """

    host: str
    sender: str
    """Address of the sender."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Of approvers: people and roles by name. A name that is an address is its own; others are told in no other way."""
    port: int = 587
    username: str | None = None
    password: SecretStr | str | None = field(default=None, compare=False)
    tls: Tls = "starttls"
    """`starttls` (port 587), `tls` from the start (port 465), or `none` inside a network of your own."""
    timeout: timedelta = timedelta(seconds=30)
    link_base: str | None = None
    """Address of the page that redeems links; None: messages have none."""
    secret: SecretStr | None = field(default=None, compare=False)
    """Signs the links; None: `FLOCK_APPROVAL_SECRET`."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: One makes no sense.
        """
        at = "EmailNotifier:"
        for name, given in {"sender": self.sender, **dict(self.addresses)}.items():
            _check_address(given, f"{at} {name}=")
        host: object = self.host
        if not isinstance(host, str) or not host or not host.isascii() or any(c.isspace() for c in host):
            raise ConfigurationError(f"{at} host={host!r}: name the SMTP server.")
        if type(self.port) is not int or not 0 < self.port < 65536:
            raise ConfigurationError(f"{at} port={self.port!r}: give a number from 1 to 65535.")
        if self.tls not in ("starttls", "tls", "none"):
            raise ConfigurationError(f"{at} tls={self.tls!r}: give starttls, tls or none.")
        if (self.username is None) != (self.password is None):
            raise ConfigurationError(f"{at} username= and password= go together.")
        if self.tls == "none" and self.password is not None:
            raise ConfigurationError(
                f'{at} a password is not sent over a connection that everybody can read: tls="starttls".'
            )
        limit: object = self.timeout
        if not isinstance(limit, timedelta) or not timedelta(0) < limit <= timedelta(minutes=5):
            raise ConfigurationError(f"{at} timeout= takes a timedelta above zero and up to 5 minutes.")
        if isinstance(self.password, str):
            object.__setattr__(self, "password", SecretStr(self.password))
        if self.link_base is not None:
            with_token(self.link_base, "")

    @property
    def label(self) -> str:
        """The server."""
        return f"smtp://{self.host}:{self.port}"

    def __repr__(self) -> str:
        """Show the server."""
        return f"<EmailNotifier {self.label}>"

    async def notify(self, notices: Sequence[Notification], *, key: str) -> None:
        """Send one message to each address that should hear of something.

        Raises:
            WebhookUnavailable: The server does not answer, or asks for another try later; retryable.
            ConfigurationError: The server refuses sender, password or every recipient.
        """
        messages = self.messages(notices, key)
        if messages:
            await asyncio.to_thread(self._send, messages)

    def messages(self, notices: Sequence[Notification], key: str) -> list[EmailMessage]:
        """Return the messages; a notice whose approvers have no address is in none."""
        by_name: dict[str, list[Notification]] = {}
        for notice in notices:
            for name in notice.to:
                if name in self.addresses or _is_address(name):
                    by_name.setdefault(name, []).append(notice)
        return [self._message(name, told, key) for name, told in by_name.items()]

    def known(self, notices: Sequence[Notification]) -> set[str]:
        """Return those who should hear of something and have an address."""
        return {name for n in notices for name in n.to if name in self.addresses or _is_address(name)}

    def _message(self, name: str, notices: list[Notification], key: str) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self.sender
        message["To"] = self.addresses.get(name, name)
        message["Message-ID"] = f"<{key}.{_mark(name)}@flock.invalid>"
        first = notices[0]
        count = f" and {len(notices) - 1} more" if len(notices) > 1 else ""
        message["Subject"] = _header(f"{first.artifact_type} {_SAYS[first.kind]}{count}")
        message["Auto-Submitted"] = "auto-generated"
        shown = notices[:MAX_ITEMS]
        lines = [line for notice in shown for line in (*self._lines(name, notice), "")]
        if len(notices) > len(shown):
            lines.append(f"... and {len(notices) - len(shown)} more")
        message.set_content("\n".join(lines))
        return message

    def _lines(self, name: str, notice: Notification) -> list[str]:
        lines = [f"{notice.artifact_type} of agent {notice.agent} {_SAYS[notice.kind]}."]
        if notice.summary:
            lines.append(f"  {_header(notice.summary)}")
        lines.append(f"  id {notice.approval}")
        lines.append(
            f"  {len(notice.approved_by)} of {notice.quorum} approved; until {notice.expires_at:%Y-%m-%d %H:%M} UTC"
        )
        if self.link_base is not None and self.secret is not None and not notice.shadow:
            choices: tuple[LinkDecision, ...] = ("approve", "reject")
            for choice in choices:
                lines.append(f"  {choice}: {self._link(notice, name, choice)}")
        return lines

    def _link(self, notice: Notification, name: str, decision: LinkDecision) -> str:
        """Return a link for one person; for a role it decides nothing, as no person has that name."""
        import time

        token = make_token(
            self.secret, case=UUID(notice.approval).bytes, shown=bytes.fromhex(notice.shown), by=name,
            decision=decision, now_s=time.time(), expires=timedelta(days=7),
        )  # fmt: skip
        return with_token(self.link_base or "", token)

    def _send(self, messages: list[EmailMessage]) -> None:
        seconds = self.timeout.total_seconds()
        try:
            with self._connect(seconds) as server:
                if self.tls == "starttls":
                    server.starttls(context=ssl.create_default_context())
                if self.username is not None and isinstance(self.password, SecretStr):
                    server.login(self.username, self.password.get_secret_value())
                for message in messages:
                    server.send_message(message)
        except smtplib.SMTPResponseException as error:
            if 400 <= error.smtp_code < 500:
                raise WebhookUnavailable(f"{self.label} answered {error.smtp_code}") from None
            # What the server says may quote the password or the recipient.
            raise ConfigurationError(
                f"{self.label} refused with {error.smtp_code}. Check user, password and sender."
            ) from None
        except smtplib.SMTPRecipientsRefused as error:
            codes = sorted({code for code, _ in error.recipients.values()})
            if all(400 <= code < 500 for code in codes):
                raise WebhookUnavailable(
                    f"{self.label} takes no mail for a recipient now ({codes})"
                ) from None
            raise ConfigurationError(
                f"{self.label} refused a recipient ({codes}). Check addresses=."
            ) from None
        except smtplib.SMTPNotSupportedError as error:
            raise ConfigurationError(f"{self.label} does not offer what is asked of it: {error}") from None
        except ssl.SSLCertVerificationError:
            raise ConfigurationError(f"The certificate of {self.label} can't be verified.") from None
        except (OSError, smtplib.SMTPException) as error:
            raise WebhookUnavailable(f"{self.label} can't be reached ({type(error).__name__})") from None

    def _connect(self, seconds: float) -> smtplib.SMTP:
        if self.tls == "tls":
            return smtplib.SMTP_SSL(
                self.host, self.port, timeout=seconds, context=ssl.create_default_context()
            )
        return smtplib.SMTP(self.host, self.port, timeout=seconds)


def notifier_of(given: Any) -> Notifier:
    """Return the notifier that a program gave: a webhook, a function, or an object with `notify`.

    Raises:
        ConfigurationError: It is none of these.
    """
    if isinstance(given, Webhook):
        return WebhookNotifier(given)
    if callable(getattr(given, "notify", None)):
        notifier: Notifier = given
        return notifier
    if callable(given) and not isinstance(given, type):
        return CallbackNotifier(given)
    raise ConfigurationError(
        f"notifiers= takes webhooks, EmailNotifier(...), functions, and objects with notify(); got {given!r}."
    )


# -- what is said --------------------------------------------------------------------------------


def plain_body(notices: Sequence[Notification]) -> dict[str, Any]:
    """Return the JSON of a webhook's request."""
    return {
        "type": EVENT,
        "count": len(notices),
        "approvals": [
            {
                "notice": n.kind, "id": n.approval, "artifact_type": n.artifact_type, "agent": n.agent,
                "workflow": n.workflow, "approvers": list(n.approvers), "quorum": n.quorum,
                "approved_by": list(n.approved_by), "summary": n.summary, "shown": n.shown,
                "expires_at": n.expires_at.isoformat(), "about": n.about, "shadow": n.shadow,
            }
            for n in notices
        ],
    }  # fmt: skip


def slack_body(notices: Sequence[Notification]) -> dict[str, Any]:
    """Return what Slack, and what understands it, takes."""
    lines = []
    for notice in notices[:SLACK_LINES]:
        summary = f": {escaped(' '.join(notice.summary.split()))}" if notice.summary else ""
        who = escaped(", ".join(notice.to) or "anybody")
        lines.append(
            f"• *{escaped(notice.artifact_type)}* of `{escaped(notice.agent)}` {_SAYS[notice.kind]}{summary} "
            f"({who}; until {notice.expires_at:%Y-%m-%d %H:%M} UTC; `{notice.approval}`)"
        )
    if len(notices) > SLACK_LINES:
        lines.append(f"… and {len(notices) - SLACK_LINES} more")
    return {"text": "\n".join(lines), "unfurl_links": False}


def _header(text: str) -> str:
    """Return text as one line: what agents make must not add headers, nor steer a mail program."""
    return "".join(c if c.isprintable() else " " for c in text)[:500]


def _mark(name: str) -> str:
    from hashlib import blake2b

    return blake2b(name.encode(), digest_size=8).hexdigest()


def _is_address(text: str) -> bool:
    if "@" not in text or not text.isascii() or not text.isprintable() or any(c in text for c in " ,;<>"):
        return False
    try:
        Address(addr_spec=text)
    except Exception:  # the parser raises what it likes
        return False
    return bool(urlsplit(f"//{text.rpartition('@')[2]}").hostname)


def _check_address(given: object, where: str) -> None:
    if not isinstance(given, str) or not _is_address(given):
        raise ConfigurationError(f"{where}{given!r} is no e-mail address of the form name@host.")
