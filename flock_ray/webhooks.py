"""Webhooks: where they may point, how they are signed, and one delivery.

A webhook's address comes from configuration, and the program that calls it sits inside a network that others
can't reach. So an address is checked when it is declared, and again after every DNS lookup; the connection goes
to the address that was checked. Redirects and proxies of the environment are not followed.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import SplitResult, quote, urlsplit

from pydantic import SecretStr

from flock_ray.errors import ConfigurationError

__all__ = ["Webhook", "WebhookUnavailable", "deliver", "sign", "verify_signature"]

SIGNATURE_HEADER = "X-Flock-Signature"
EVENT_HEADER = "X-Flock-Event"
KEY_HEADER = "Idempotency-Key"

MAX_RETRY_AFTER_S = 3600.0
MAX_TIMEOUT_S = 300.0
MIN_SECRET_BYTES = 16
MAX_SIGNATURE_CHARS = 4096

_LOCAL_NAMES = ("localhost", "localhost.localdomain", "metadata", "metadata.google.internal")
_METADATA = frozenset(
    ipaddress.ip_address(text)
    # Instance metadata: AWS and most others, AWS over IPv6, Alibaba, Oracle, and Azure's, which looks public.
    for text in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
_PATH = "!$%&'()*+,-./:;=?@_~"
"""What stays as it is in a path: its author has escaped the rest."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks up the addresses of a host for a port."""


class WebhookUnavailable(ConnectionError):  # an outcome, like the ConnectionErrors of the standard library
    """The receiver could not be reached, or asked for another try later; retryable."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        """Say why; `retry_after_s` is what the receiver asked for, None when it did not."""
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[0])


@dataclass(frozen=True, slots=True, repr=False)
class Webhook:
    """An address that gets signed POST requests.

    Neither the path of the address nor the secret is ever shown: the path of many webhooks is a secret, too.
    """

    url: str
    secret: SecretStr | str | None = field(default=None, compare=False)
    """Signs the requests, at least 16 bytes; None: `FLOCK_WEBHOOK_SECRET`, and without that they are not signed."""
    format: Literal["json", "slack"] = "json"
    timeout: timedelta = timedelta(seconds=10)
    """Limit of one delivery with everything; at most 5 minutes."""
    allow_private: bool = False
    """Whether it may point into a private network or to this machine, and be plain http. Metadata services never."""

    def __post_init__(self) -> None:
        """Check what can be checked without the network.

        Raises:
            ConfigurationError: The address is none that may be called, or another value makes no sense.
        """
        parts = _parts(self.url, allow_private=self.allow_private)
        host = str(parts.hostname)
        literal = _literal(host)
        if literal is not None and (why := forbidden(literal, allow_private=self.allow_private)):
            raise ConfigurationError(_refusal(host, why, self.allow_private))
        if _is_local_name(host) and not (self.allow_private and "metadata" not in host):
            raise ConfigurationError(_refusal(host, "is a name of this machine or its cloud", False))
        if self.format not in ("json", "slack"):
            raise ConfigurationError(f"Webhook(format={self.format!r}): give 'json' or 'slack'.")
        given: object = self.timeout
        seconds = given.total_seconds() if isinstance(given, timedelta) else -1.0
        if not 0 < seconds <= MAX_TIMEOUT_S:
            raise ConfigurationError("Webhook(timeout=...) takes a timedelta above 0 and up to 5 minutes.")
        if isinstance(self.secret, str):
            object.__setattr__(self, "secret", SecretStr(self.secret))
        if self.secret is not None:
            _key_of(self.secret)

    @property
    def label(self) -> str:
        """The address without what may be secret of it: scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{_netloc(parts)}"

    def __repr__(self) -> str:
        """Show the label."""
        signed = "signed" if self.secret is not None else "not signed"
        return f"<Webhook {self.label} {self.format} {signed}>"

    def signed_by(self, secret: SecretStr | None) -> Webhook:
        """Return the webhook with this secret, if it has none of its own."""
        if self.secret is not None or secret is None:
            return self
        return Webhook(self.url, secret, self.format, self.timeout, self.allow_private)


# -- signatures ----------------------------------------------------------------------------------


def sign(secret: SecretStr | str, body: bytes, *, timestamp: int) -> str:
    """Return the value of `X-Flock-Signature`: `t=<seconds>,v1=<hex>`, HMAC-SHA256 of `<seconds>.<body>`."""
    digest = hmac.new(_key_of(secret), b"%d." % timestamp + body, sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def verify_signature(
    secret: SecretStr | str,
    header: str,
    body: bytes,
    *,
    tolerance: timedelta = timedelta(minutes=5),
    now: float | None = None,
) -> bool:
    """Tell, in a receiver, whether a request comes from who knows the secret, and is not an old one sent again.

    Compares in constant time. Within the tolerance a request may come twice: remember its `Idempotency-Key`.

    Args:
        secret: The one that both sides know.
        header: Value of `X-Flock-Signature`.
        body: The body as it arrived: not decoded, not formatted anew.
        tolerance: How far its time may be from now, in both directions.
        now: Seconds since the Unix epoch; None: the clock's.
    """
    if len(header) > MAX_SIGNATURE_CHARS or not header.isascii():
        return False
    pairs = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in pairs if name == "t"]
    if len(times) != 1 or not re.fullmatch(r"[0-9]{1,12}", times[0]):
        return False
    timestamp = int(times[0])
    if abs((time.time() if now is None else now) - timestamp) > tolerance.total_seconds():
        return False
    expected = hmac.new(_key_of(secret), b"%d." % timestamp + body, sha256).hexdigest()
    # Every candidate is compared: a sender that changes its secret may sign with both.
    fits = [hmac.compare_digest(expected, value) for name, _, value in pairs if name == "v1"]
    return any(fits)


def _key_of(secret: SecretStr | str) -> bytes:
    text: object = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
    if not isinstance(text, str) or len(text.encode()) < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"A webhook's secret has at least {MIN_SECRET_BYTES} bytes: take `openssl rand -hex 32`."
        )
    return text.encode()


# -- where it may go -----------------------------------------------------------------------------


def forbidden(address: Address, *, allow_private: bool) -> str:
    """Say why an address must not be called; empty when it may."""
    for inner in _inner(address):
        if inner in _METADATA or inner.is_link_local:
            return "is link-local or a metadata service"
        if inner.is_multicast or inner.is_unspecified or (inner.is_reserved and not inner.is_private):
            return "is no address of one machine"
        if not allow_private and not inner.is_global:
            return "is in a private network or this machine"
    return ""


def _inner(address: Address) -> list[Address]:
    """Return an address and the IPv4 addresses that it stands for."""
    found: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            address = ipaddress.IPv6Address(int(address))
            found = [address]
        carried = (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()))
        inside = [inner for inner in carried if inner is not None]
        if address in _NAT64 or int(address) >> 32 == 0:  # the second form: IPv4-compatible, long deprecated
            inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped is not None:
            return list(inside)  # what the system connects to
        found += inside
    return found


def _literal(host: str) -> Address | None:
    """Return the address that a host is, in any spelling that the system's resolver takes; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
    except OSError:
        return None


def _is_local_name(host: str) -> bool:
    name = host.rstrip(".").lower()
    return name in _LOCAL_NAMES or name.endswith((".localhost", ".internal"))


def _parts(url: object, *, allow_private: bool) -> SplitResult:
    text = url if isinstance(url, str) else ""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigurationError("A webhook's address is no URL: write https://host/path.") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or re.search(r"[\s\\\x00-\x1f]", text):
        raise ConfigurationError("A webhook's address must be an https:// URL with a host.")
    if not parts.hostname.isascii():
        raise ConfigurationError("A webhook's host must be in its ASCII form: xn--bcher-kva.example.")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("A webhook's address must have no user and password in it; use secret=.")
    if parts.scheme == "http" and not allow_private:
        raise ConfigurationError(
            f"The webhook http://{_netloc(parts)} would send everything readable: use https://, or "
            "Webhook(..., allow_private=True) inside a network of your own."
        )
    if port == 0:
        raise ConfigurationError("A webhook's port can't be 0.")
    return parts


def _netloc(parts: SplitResult) -> str:
    host = str(parts.hostname)
    shown = f"[{host}]" if ":" in host else host
    return shown if parts.port is None else f"{shown}:{parts.port}"


def _refusal(host: str, why: str, allow_private: bool) -> str:
    hint = "" if allow_private else " If that is meant: Webhook(..., allow_private=True)."
    return f"The webhook's host {host!r} {why}: it is not called.{hint}"


# -- delivery ------------------------------------------------------------------------------------


async def deliver(
    webhook: Webhook,
    body: bytes,
    *,
    event: str,
    key: str,
    now: float | None = None,
    resolve: Resolve | None = None,
) -> None:
    """Send one request; returns when the receiver has answered with a status of 2xx.

    Args:
        webhook: Where to.
        body: JSON.
        event: Kind of the message, a header.
        key: The same for every attempt to deliver this message, a header: receivers drop what they know.
        now: Seconds since the Unix epoch for the signature; None: the clock's.
        resolve: Looks up addresses; None: the system does.

    Raises:
        WebhookUnavailable: No connection, no answer in time, 408, 425, 429 or 5xx; retryable.
        ConfigurationError: The address leads to where webhooks may not go, or the receiver refuses; not retryable.
    """
    try:
        async with asyncio.timeout(webhook.timeout.total_seconds()):
            status, retry_after = await _post(webhook, body, event, key, now, resolve or _resolve)
    except TimeoutError:
        raise WebhookUnavailable(
            f"{webhook.label} did not answer within {webhook.timeout.total_seconds():g} s"
        ) from None
    if 200 <= status < 300:
        return
    if status in (408, 425, 429) or status >= 500:
        raise WebhookUnavailable(f"{webhook.label} answered {status}", _seconds(retry_after))
    moved = " Redirects are not followed: give the final address." if 300 <= status < 400 else ""
    raise ConfigurationError(
        f"{webhook.label} refused the webhook with {status}.{moved} Check address and secret."
    )


async def _post(
    webhook: Webhook, body: bytes, event: str, key: str, now: float | None, resolve: Resolve
) -> tuple[int, str | None]:
    # Not httpx: that follows the environment's proxies, which look the name up again, and logs whole addresses.
    import httpcore

    parts = urlsplit(webhook.url)
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    addresses = await _checked(webhook, host, port, resolve)
    headers: dict[str | bytes, str | bytes] = {
        "Host": _netloc(parts), "Content-Type": "application/json", "Content-Length": str(len(body)),
        "User-Agent": "flock_ray", "Accept-Encoding": "identity", EVENT_HEADER: event, KEY_HEADER: key,
    }  # fmt: skip
    if webhook.secret is not None:
        headers[SIGNATURE_HEADER] = sign(
            webhook.secret, body, timestamp=int(time.time() if now is None else now)
        )
    target = quote(parts.path or "/", safe=_PATH) + (
        f"?{quote(parts.query, safe=_PATH)}" if parts.query else ""
    )
    failed = ""
    async with httpcore.AsyncConnectionPool(ssl_context=ssl.create_default_context()) as pool:
        for address in addresses:
            request = httpcore.Request(
                "POST", httpcore.URL(scheme=parts.scheme, host=address, port=port, target=target),
                headers=headers, content=body, extensions={"sni_hostname": host},
            )  # fmt: skip
            try:
                answer = await pool.handle_async_request(request)
            except httpcore.ConnectError as error:
                failed = type(error).__name__
                continue
            except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
                failed = type(error).__name__
                break
            await answer.aclose()  # nobody reads what it says: it may be endless
            return answer.status, _header(answer.headers, b"retry-after")
    raise WebhookUnavailable(f"{webhook.label} can't be reached ({failed})") from None


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str | None:
    found = [value for key, value in headers if key.lower() == name]
    return found[0].decode("latin-1") if found else None


async def _checked(webhook: Webhook, host: str, port: int, resolve: Resolve) -> list[str]:
    """Return the addresses of a host, all of which may be called."""
    try:
        found = list(dict.fromkeys(await resolve(host, port)))
    except OSError as error:
        raise WebhookUnavailable(
            f"the address of {webhook.label} can't be found ({type(error).__name__})"
        ) from None
    if not found:
        raise WebhookUnavailable(f"the address of {webhook.label} can't be found")
    for text in found:
        # One bad address is enough: a name that leads to both is an attempt to get inside.
        if why := forbidden(ipaddress.ip_address(text), allow_private=webhook.allow_private):
            raise ConfigurationError(_refusal(host, f"leads to {text}, which {why}", webhook.allow_private))
    return found[:4]


async def _resolve(host: str, port: int) -> Sequence[str]:
    found: list[Any] = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [entry[4][0] for entry in found]


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header in seconds; a date is not worth its trouble here."""
    if retry_after is None or not re.fullmatch(r"[0-9]{1,9}", retry_after.strip()):
        return None
    return min(float(retry_after), MAX_RETRY_AFTER_S)
