from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from flock_ray.adapters.postgres import PostgresPersistence
from tests.integration.stores.conftest import Sql
from tests.servers import PostgresServer
from tests.unit.adapters.store_rows import PAYLOADS, activation, artifact, batch, key, workflow

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "postgres.md"
DAY_US = 86_400_000_000


@pytest.fixture
async def filled(postgres: PostgresPersistence, postgres_sql: Sql) -> AsyncIterator[Sql]:
    """A board `shop` with an order that became an invoice, and a run that failed."""
    await postgres.prepare("shop", 1)
    store = postgres.store("shop", 0, range(256))
    await store.acquire()
    order = artifact("order", payload=b'{"amount": 12.5, "customer": "Ada"}', tags=("eu",), created_us=DAY_US)
    invoice = artifact("invoice", type="Invoice", activation_id=key("run"), created_us=DAY_US + 1)
    runs = [
        activation("run", inputs=["order"], outputs=(key("invoice"),), ended_us=DAY_US + 5, run_us=2_500_000),
        activation("bad", inputs=["invoice"], ended_us=2 * DAY_US, status="failed", error_type="KeyError"),
    ]
    flows = [workflow(counts={"Order": 1, "Invoice": 1}), workflow("w2", open=1), workflow("w3", waiting=2)]
    await store.append(
        batch(1, [order, invoice], activations=runs, workflows=[*flows, workflow("w4", cancelled=True)])
    )
    yield postgres_sql
    await store.close()


async def test_artifacts(filled: Sql) -> None:
    rows = await filled.rows(
        "SELECT position, id, type, correlation_id, produced_by, activation_id, tags, visibility, "
        "payload->>'customer', extract(epoch FROM created_at)::int "
        "FROM {schema}.artifacts WHERE board = 'shop' ORDER BY position"
    )

    order, invoice, run = (UUID(bytes=key(name)) for name in ("order", "invoice", "run"))
    assert [
        (1, order, "Order", "wf-1", "clerk", None, ["eu"], "Public", "Ada", 86_400),
        (2, invoice, "Invoice", "wf-1", "clerk", run, [], "Public", None, 86_400),
    ] == [tuple(row) for row in rows]


async def test_payload_that_jsonb_cannot_hold_is_null(
    postgres: PostgresPersistence, postgres_sql: Sql
) -> None:
    await postgres.prepare("board", 1)
    store = postgres.store("board", 0, range(256))
    await store.acquire()
    await store.append(
        batch(1, [artifact(n, payload=payload) for n, payload in enumerate((*PAYLOADS, b"\xff{"))])
    )
    await store.close()

    rows = await postgres_sql.rows("SELECT payload::text FROM {schema}.artifacts ORDER BY position")

    assert ["{}", None] == [row[0] for row in rows[:2]]
    assert ['"a string"', "0", None] == [row[0] for row in rows[-3:]]


async def test_workflows(filled: Sql) -> None:
    rows = await filled.rows(
        "SELECT correlation_id, status, open, waiting, artifacts FROM {schema}.workflows ORDER BY correlation_id"
    )

    assert [
        ("w2", "running", 1, 0, 0),
        ("w3", "waiting", 0, 2, 0),
        ("w4", "cancelled", 0, 0, 0),
        ("wf-1", "settled", 0, 0, 2),
    ] == [tuple(row) for row in rows]


async def test_activations(filled: Sql) -> None:
    rows = await filled.rows(
        "SELECT id, agent, status, error_type, run_seconds::float, inputs, outputs FROM {schema}.activations "
        "ORDER BY ended_at"
    )

    run, bad, order, invoice = (UUID(bytes=key(name)) for name in ("run", "bad", "order", "invoice"))
    assert [
        (run, "clerk", "completed", "", 2.5, [order], [invoice]),
        (bad, "clerk", "failed", "KeyError", 0.0, [invoice], []),
    ] == [tuple(row) for row in rows]


async def test_usage(filled: Sql) -> None:
    rows = await filled.rows(
        "SELECT board, day::text, agent, runs, failures, run_seconds::float FROM {schema}.usage ORDER BY day"
    )

    assert [
        ("shop", "1970-01-02", "clerk", 1, 0, 2.5),
        ("shop", "1970-01-03", "clerk", 1, 1, 0.0),
    ] == [tuple(row) for row in rows]


async def test_statements_of_the_page_run_and_analysts_see_the_views_alone(
    filled: Sql, postgres_server: PostgresServer, postgres_schema: str
) -> None:
    # Given every statement of the documentation, in this test's schema
    role = f"analyst_{postgres_schema}"
    blocks = re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 7
    found = []
    for block in blocks:
        statement = block.replace("flock_analyst", role).replace("flock.", f"{postgres_schema}.")
        statement = statement.replace("SCHEMA flock", f"SCHEMA {postgres_schema}")
        for part in filter(str.strip, statement.split(";")):
            found.append([tuple(row) for row in await filled.connection.fetch(part)])

    # Then they find what is there
    lineage = [(0, "Invoice", UUID(bytes=key("invoice"))), (1, "Order", UUID(bytes=key("order")))]
    assert lineage in found
    assert [(1,)] in found

    # And the analysts' role reads views, and no more
    await filled.run(f"ALTER ROLE {role} LOGIN")
    analyst = await asyncpg.connect(postgres_server.url(role))
    assert 2 == await analyst.fetchval(f"SELECT count(payload) FROM {postgres_schema}.artifacts")
    assert 2 == await analyst.fetchval(f"SELECT count(inputs) FROM {postgres_schema}.activations")
    for table in ("artifact_rows", "audit", "journal"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await analyst.fetch(f"SELECT * FROM {postgres_schema}.{table}")
    await analyst.close()
    await filled.run(f"DROP OWNED BY {role}; DROP ROLE {role}")
