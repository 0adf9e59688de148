"""Webhooks: where they may point, what they sign, and receivers that mean no good."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import pickle
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from flock_ray.errors import ConfigurationError
from flock_ray.webhooks import Webhook, WebhookUnavailable, deliver, sign, verify_signature

SECRET = "correct horse battery staple"
ALERTS = "https://alerts.example.com/hook/T0PSECRET"


# -- where it may point ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://10.1.2.3", "https://192.168.0.1:8443/x", "https://172.16.0.1", "https://[::1]/",
        "https://169.254.169.254/latest/meta-data", "https://0.0.0.0", "https://100.64.0.1", "https://224.0.0.1",
        "https://[fe80::1]/", "https://[fd00:ec2::254]", "https://[::ffff:127.0.0.1]/", "https://[::ffff:a9fe:a9fe]",
        "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://2130706433/", "https://0x7f.1/",
        "https://127.1/", "https://017700000001/", "https://168.63.129.16/", "https://100.100.100.200/",
        "https://localhost/", "https://LOCALHOST./", "https://x.localhost/", "https://metadata.google.internal/",
        "https://[::]/", "https://255.255.255.255/", "http://alerts.example.com/", "ftp://alerts.example.com/",
        "https://user:password@alerts.example.com/", "https://b\u00fccher.example/",
        "https://\u246027.0.0.1/", "https:///x", "https://", "alerts.example.com", "",
        "https://alerts.example.com:99999/", "https://alerts.example.com:0/", "https://[::1", "https://a b/",
        "https://alerts.example.com\\@127.0.0.1/", "https://alerts.example.com/\r\nX-Evil: 1", None, 5,
    ],
)  # fmt: skip
def test_an_address_that_must_not_be_called_is_refused_at_its_declaration(url: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Webhook(url)
    assert "password@" not in str(caught.value)


def test_a_private_address_has_to_be_allowed_and_metadata_never_is() -> None:
    for url in (
        "http://127.0.0.1:8000/x",
        "https://10.1.2.3",
        "https://localhost",
        "https://[fd00::1]",
        "http://[::1]",
    ):
        assert Webhook(url, allow_private=True).url == url
    for url in (
        "http://169.254.169.254/", "https://[::ffff:a9fe:a9fe]", "https://[fd00:ec2::254]", "https://224.0.0.1",
        "https://metadata.google.internal", "https://0.0.0.0", "http://100.100.100.200",
    ):  # fmt: skip
        with pytest.raises(ConfigurationError):
            Webhook(url, allow_private=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "short"}, {"secret": ""}, {"format": "xml"}, {"timeout": timedelta(0)}, {"timeout": 5},
        {"timeout": timedelta(hours=1)},
    ],
)  # fmt: skip
def test_other_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Webhook(ALERTS, **wrong)


def test_neither_path_nor_secret_is_shown() -> None:
    webhook = Webhook(ALERTS, secret=SECRET)
    for shown in (repr(webhook), str(webhook), f"{webhook}", webhook.label, repr([webhook])):
        assert "T0PSECRET" not in shown
        assert SECRET not in shown
    for twin in (pickle.loads(pickle.dumps(webhook)), copy.deepcopy(webhook)):
        assert twin == webhook
        assert isinstance(twin.secret, SecretStr)
        assert twin.secret.get_secret_value() == SECRET


# -- signatures ------------------------------------------------------------------------------------


def test_a_signature_is_what_openssl_makes_of_time_and_body() -> None:
    assert sign("a secret of 24 bytes....", b'{"a": 1}', timestamp=1_700_000_000) == (
        "t=1700000000,v1=d5aa399fabad08bab412d94edf2396a9883662248e51b9d8a0124006fef3cb53"
    )


@given(st.binary(max_size=200), st.integers(0, 10**10), st.binary(min_size=1, max_size=10))
def test_a_signature_fits_its_body_and_time_and_nothing_else(body: bytes, at: int, more: bytes) -> None:
    header = sign(SECRET, body, timestamp=at)

    assert verify_signature(SECRET, header, body, now=at)
    assert verify_signature(SecretStr(SECRET), header, body, now=at + 299)
    assert not verify_signature(SECRET, header, body, now=at + 301)
    assert not verify_signature(SECRET, header, body, now=at - 301)
    assert not verify_signature(SECRET, header, body + more, now=at)
    assert not verify_signature(SECRET + "!", header, body, now=at)
    assert not verify_signature(SECRET, header.replace(f"t={at}", f"t={at + 1}"), body, now=at)
    changed = header.partition(",")[2]
    assert verify_signature(
        SECRET, f"t={at},v1={'0' * 64},{changed}", body, now=at
    )  # two secrets for a while


@given(st.text(max_size=200))
def test_a_header_of_anybody_is_refused_and_breaks_nothing(header: str) -> None:
    assert not verify_signature(SECRET, header, b"body", now=0)


@pytest.mark.parametrize(
    "header", ["t=1,t=1,v1=x", "v1=x", "t=1", "t=,v1=", "t=1,v1=é", "t=" + "1" * 13 + ",v1=x"]
)
def test_a_header_that_is_none_is_refused(header: str) -> None:
    assert not verify_signature(SECRET, header, b"body", now=1)


# -- delivery --------------------------------------------------------------------------------------

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(
    handler: Handler, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that reads one request per connection; yields its address and the requests."""
    requests: list[bytes] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            requests.append(head + await reader.readexactly(length))
            await handler(requests[-1], writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(on_connection, "127.0.0.1", 0, ssl=tls)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}/hook", requests


def answer(head: str, body: bytes = b"") -> Handler:
    async def handler(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    return handler


def local(url: str, **options: Any) -> Webhook:
    return Webhook(url, **{"secret": SECRET, "allow_private": True, **options})


async def test_a_delivery_is_signed_and_carries_its_key() -> None:
    async with server(answer("204 No Content")) as (url, requests):
        await deliver(local(url), b'{"a": 1}', event="dead_letters", key="k1")

    head, _, body = requests[0].partition(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    headers = {name.lower(): value for name, value in lines.items()}
    assert head.startswith(b"POST /hook HTTP/1.1\r\n")
    assert headers["host"] == url.removeprefix("http://").removesuffix("/hook")
    assert (headers["idempotency-key"], headers["x-flock-event"]) == ("k1", "dead_letters")
    assert headers["content-type"] == "application/json"
    assert verify_signature(SECRET, headers["x-flock-signature"], body)
    assert json.loads(body) == {"a": 1}


async def test_no_log_has_the_path_or_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for status in ("200 OK", "302 Found\r\nLocation: http://127.0.0.1/hook", "500 Oops"):
        async with server(answer(status)) as (url, _):
            with contextlib.suppress(WebhookUnavailable, ConfigurationError):
                await deliver(local(url), b"{}", event="e", key="k")
    assert caplog.records
    requests = [line for line in caplog.text.splitlines() if "Location" not in line]
    assert not [line for line in requests if "/hook" in line or SECRET in line]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/a/b?c=d&e=%20f", "/a/b?c=d&e=%20f"), ("", "/"), ("/\u00fc", "/%C3%BC"), ("/x#part", "/x"),
        ('/"<>{}', "/%22%3C%3E%7B%7D"), ("/services/T0/B0/x-_y.z~", "/services/T0/B0/x-_y.z~"),
    ],
)  # fmt: skip
async def test_a_path_arrives_as_it_was_written(path: str, target: str) -> None:
    async with server(answer("200 OK")) as (url, requests):
        await deliver(local(url.removesuffix("/hook") + path), b"{}", event="e", key="k")
    assert requests[0].split(b" ")[1].decode() == target


async def test_without_a_secret_nothing_is_signed() -> None:
    async with server(answer("200 OK")) as (url, requests):
        await deliver(local(url, secret=None), b"{}", event="e", key="k")
    assert b"x-flock-signature" not in requests[0].lower()


@pytest.mark.parametrize("status", ["500 Oops", "503 Later", "429 Slow", "408 Late", "502 Bad"])
async def test_a_receiver_in_trouble_is_tried_again(status: str) -> None:
    async with server(answer(f"{status}\r\nRetry-After: 7")) as (url, _):
        with pytest.raises(WebhookUnavailable) as caught:
            await deliver(local(url), b"{}", event="e", key="k")
    assert caught.value.retry_after_s == 7
    assert "/hook" not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).retry_after_s == 7


@pytest.mark.parametrize(
    "given", ["-1", "x", "99999999999999", "Wed, 21 Oct 2015 07:28:00 GMT", "1e9", "0x10"]
)
async def test_a_wait_that_is_no_number_is_ignored(given: str) -> None:
    async with server(answer(f"503 Later\r\nRetry-After: {given}")) as (url, _):
        with pytest.raises(WebhookUnavailable) as caught:
            await deliver(local(url), b"{}", event="e", key="k")
    assert caught.value.retry_after_s is None


async def test_a_wait_is_never_longer_than_an_hour() -> None:
    async with server(answer("503 Later\r\nRetry-After: 999999999")) as (url, _):
        with pytest.raises(WebhookUnavailable) as caught:
            await deliver(local(url), b"{}", event="e", key="k")
    assert caught.value.retry_after_s == 3600


@pytest.mark.parametrize("status", ["400 No", "401 Who", "404 What", "410 Gone"])
async def test_a_receiver_that_refuses_is_not_tried_again(status: str) -> None:
    async with server(answer(status)) as (url, _):
        with pytest.raises(ConfigurationError, match=status[:3]) as caught:
            await deliver(local(url), b"{}", event="e", key="k")
    assert "/hook" not in str(caught.value)


async def test_a_redirect_is_not_followed() -> None:
    async with server(answer("200 OK")) as (target, reached):
        for status in ("301 Moved", "302 Found", "307 There", "308 There"):
            async with server(answer(f"{status}\r\nLocation: {target}")) as (url, _):
                with pytest.raises(ConfigurationError, match="Redirects are not followed"):
                    await deliver(local(url), b"{}", event="e", key="k")
    assert reached == []


async def test_the_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(answer("200 OK")) as (proxy, through), server(answer("200 OK")) as (url, requests):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        await deliver(local(url), b"{}", event="e", key="k")
    assert len(requests) == 1
    assert through == []


async def endless_body(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


async def test_an_endless_answer_is_not_read() -> None:
    async with server(endless_body) as (url, _):
        await deliver(local(url), b"{}", event="e", key="k")


async def endless_headers(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-A: " + b"a" * 4000 + b"\r\n")
        await writer.drain()


async def silence(_: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drip(_: bytes, writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def garbage(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\xff" * 1000 + b"\r\n\r\n")
    await writer.drain()


async def hang_up(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("hostile", [endless_headers, silence, drip, garbage, hang_up])
async def test_a_hostile_receiver_costs_no_more_than_the_timeout(hostile: Handler) -> None:
    async with server(hostile) as (url, _):
        with pytest.raises(WebhookUnavailable):
            await deliver(local(url, timeout=timedelta(seconds=0.5)), b"{}", event="e", key="k")


async def test_a_closed_port_is_tried_again() -> None:
    async with server(answer("200 OK")) as (url, _):
        pass
    with pytest.raises(WebhookUnavailable, match="can't be reached"):
        await deliver(local(url), b"{}", event="e", key="k")


def resolving(*addresses: str) -> Any:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:10.0.0.1"],
        ["fe80::1%eth0"], ["fd00::1"], ["64:ff9b::a00:1"], ["0.0.0.0"],
    ],
)  # fmt: skip
async def test_a_name_that_leads_inside_is_refused_after_the_lookup(addresses: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="leads to"):
        await deliver(Webhook(ALERTS), b"{}", event="e", key="k", resolve=resolving(*addresses))


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    async with server(answer("200 OK")) as (url, requests):
        # A second lookup of this name would find nothing: what was checked is what is called.
        named = url.replace("127.0.0.1", "receiver.invalid")
        await deliver(
            Webhook(named, allow_private=True), b"{}", event="e", key="k", resolve=resolving("127.0.0.1")
        )
    assert b"host: receiver.invalid:" in requests[0].lower()


async def test_the_next_address_is_taken_when_one_does_not_answer() -> None:
    async with server(answer("200 OK")) as (url, requests):
        named = url.replace("127.0.0.1", "receiver.invalid")
        # Nothing listens at the first one.
        found = resolving("127.0.0.2", "127.0.0.1")
        await deliver(Webhook(named, allow_private=True), b"{}", event="e", key="k", resolve=found)
    assert len(requests) == 1


async def test_a_name_that_does_not_resolve_is_tried_again() -> None:
    async def fails(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    for resolve in (fails, resolving()):
        with pytest.raises(WebhookUnavailable, match="can't be found"):
            await deliver(Webhook(ALERTS), b"{}", event="e", key="k", resolve=resolve)


def certified(name: str, folder: Path) -> tuple[Path, Path]:
    """Make a key and a certificate for a name."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
         "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


async def test_the_certificate_must_be_that_of_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a receiver whose certificate says receiver.invalid
    key, certificate = certified("receiver.invalid", tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    found = resolving("127.0.0.1")
    async with server(answer("200 OK"), tls) as (url, requests):
        right = Webhook(url.replace("127.0.0.1", "receiver.invalid"), allow_private=True)
        wrong = Webhook(url.replace("127.0.0.1", "other.invalid"), allow_private=True)

        # Then an authority that nobody knows is refused, and so is another name
        with pytest.raises(WebhookUnavailable):
            await deliver(right, b"{}", event="e", key="k", resolve=found)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(WebhookUnavailable):
            await deliver(wrong, b"{}", event="e", key="k", resolve=found)
        assert requests == []

        # And the right one gets its message, over the address that was looked up
        await deliver(right, b"{}", event="e", key="k", resolve=found)
        assert len(requests) == 1
