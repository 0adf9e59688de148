"""Approvals on every store: through a restart, and in the audit log with the hash of what was shown."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.redis import RedisPersistence
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.core.audit import AuditFact
from flock_ray.core.registry import type_registry
from flock_ray.errors import ApprovalError
from flock_ray.testing import VirtualFlock
from tests.chaos.backends import Backend, running
from tests.redis_server import RedisServer
from tests.servers import PostgresServer
from tests.unit.test_approvals import asked, declare

_fact = msgspec.msgpack.Decoder(AuditFact).decode


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    with running(request.param, tmp_path / "backend") as backend:
        yield backend


def audited(backend: Backend) -> Any:
    if isinstance(backend.server, PostgresServer):
        return PostgresPersistence(backend.server.url(), enable_audit_log=True)
    if isinstance(backend.server, RedisServer):
        return RedisPersistence(backend.server.url, enable_audit_log=True)
    return SQLitePersistence(str(backend.folder / "boards"), enable_audit_log=True)


async def facts(backend: Backend) -> list[tuple[str, str, str, str]]:
    """Return (kind, subject, actor, detail) of everything that the audit log says of approvals."""
    if isinstance(backend.server, PostgresServer):
        connection = await asyncpg.connect(backend.server.url())
        try:
            rows = await connection.fetch(
                "SELECT kind, subject, actor, detail FROM flock.audit ORDER BY number"
            )
        finally:
            await connection.close()
        found = [tuple(row.values()) for row in rows]
    elif isinstance(backend.server, RedisServer):
        with backend.server.client() as client:
            entries = client.xrange("flock:{desk:0}:audit")
        found = [_said(_fact(fields[b"f"])) for _, fields in entries]
    else:
        with closing(sqlite3.connect(backend.folder / "boards" / "desk" / "shard-0000.db")) as file:
            found = [_said(_fact(row[0])) for row in file.execute("SELECT fact FROM audit ORDER BY number")]
    return [fact for fact in found if fact[0].startswith("approval")]


def _said(fact: AuditFact) -> tuple[str, str, str, str]:
    return fact.kind, fact.subject, fact.actor, fact.detail


async def test_what_people_decide_survives_and_is_audited(backend: Backend) -> None:
    with type_registry.isolated():
        async with VirtualFlock(persistence=audited(backend), namespace="desk") as flock:
            declare(flock)
            waiting = await asked(flock)
            await flock.approvals.approve(waiting, by="ann", comment="fine by me")
        async with VirtualFlock(persistence=audited(backend), namespace="desk") as flock:
            filled = declare(flock)
            await flock.start()
            with pytest.raises(ApprovalError, match="has decided"):
                await flock.approvals.approve(waiting, by="ann")
            await flock.approvals.approve(waiting, by="bob")
            await flock.run_until_idle()
            assert filled == ["ACME 5000"]
            other = await asked(flock)
            await flock.approvals.reject(other, by="bob")
        shown = f"shown sha256:{waiting.shown}"
        assert await facts(backend) == [
            ("approval.requested", str(waiting.id), "trader", shown),
            ("approval.approve", str(waiting.id), "ann", f"{shown}: fine by me"),
            ("approval.approve", str(waiting.id), "bob", shown),
            ("approval.requested", str(other.id), "trader", f"shown sha256:{other.shown}"),
            ("approval.reject", str(other.id), "bob", f"shown sha256:{other.shown}"),
        ]
        assert (await audited(backend).verify_audit("desk")).sound
