from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import asyncpg
import pytest

from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.postgres_index import PostgresStore
from flock_ray.core.rows import Decision
from flock_ray.errors import ConfigurationError
from flock_ray.ports import Persistence
from tests.integration.stores.conftest import Sql
from tests.servers import PostgresServer
from tests.store_contract_audit import AuditContract
from tests.unit.adapters.store_rows import activation, artifact, batch, key, workflow


@pytest.fixture
def audited(postgres_server: PostgresServer, postgres_schema: str) -> PostgresPersistence:
    return PostgresPersistence(postgres_server.url(), schema=postgres_schema, enable_audit_log=True)


@pytest.fixture
async def store(audited: PostgresPersistence) -> AsyncIterator[PostgresStore]:
    await audited.prepare("board", 1)
    store = audited.store("board", 0, range(256))
    await store.acquire()
    yield store
    await store.close()


@pytest.fixture
async def six(store: PostgresStore, postgres_sql: Sql) -> None:
    """A chain of six entries, whose table anybody with rights may change."""
    for lsn in range(1, 7):
        await store.append(batch(lsn, [artifact(lsn)], first_seq=lsn))
    await postgres_sql.run("ALTER TABLE {schema}.audit DISABLE TRIGGER audit_is_append_only")


async def found(audited: PostgresPersistence) -> list[tuple[int, int]]:
    report = await audited.verify_audit("board")
    assert report.sound == (report.problems == [])
    return [(shard, problem.number) for shard, problem in report.problems]


async def test_every_decision_has_an_entry(store: PostgresStore, postgres_sql: Sql) -> None:
    await store.append(
        batch(
            1,
            [artifact("in"), artifact("out", activation_id=key("run"))],
            activations=[
                activation("run", inputs=["in"]),
                activation("bad", status="failed", error_type="KeyError"),
            ],
            workflows=[workflow()],
            decisions=[Decision(7, "access.denied", "wf-1", "mallory", "no role \x00")],
        )
    )
    await store.erase([key("in"), key("unknown")])
    await store.remove_workflows([(0, "wf-1"), (0, "unknown")])
    await store.append(batch(2, [artifact("again")], first_seq=3))

    rows = await postgres_sql.rows(
        "SELECT number, kind, subject, actor, detail FROM {schema}.audit ORDER BY number"
    )

    assert [
        (1, "artifact.published", key("in").hex(), "clerk", "Order in wf-1"),
        (2, "activation.completed", key("run").hex(), "clerk", ""),
        (3, "activation.failed", key("bad").hex(), "clerk", "KeyError"),
        (4, "access.denied", "wf-1", "mallory", "no role ␀0"),
        (5, "artifact.erased", key("in").hex(), "", ""),
        (6, "workflow.removed", "wf-1", "", "slot 0, 2 artifacts"),
        (7, "artifact.published", key("again").hex(), "clerk", "Order in wf-1"),
    ] == [tuple(row) for row in rows]


async def test_sound_log_is_verified_while_it_grows(
    audited: PostgresPersistence, store: PostgresStore
) -> None:
    await store.append(batch(1, [artifact(n) for n in range(12_000)]))
    report = await audited.verify_audit("board")
    await store.append(batch(2, [artifact("more")], first_seq=20_000))

    later = await audited.verify_audit("board", noted=report.heads)

    assert (12_000, True) == (report.entries, report.sound)
    assert (12_001, True) == (later.entries, later.sound)


async def test_repeated_batch_is_logged_once(audited: PostgresPersistence, store: PostgresStore) -> None:
    for _ in range(3):
        await store.append(batch(1, [artifact("a")]))
    await store.append(batch(2, [artifact("b")], first_seq=2))

    assert 2 == (await audited.verify_audit("board")).entries
    assert [] == await found(audited)


async def test_chain_goes_on_with_the_next_writer(audited: PostgresPersistence, store: PostgresStore) -> None:
    await store.append(batch(1, [artifact("a")]))
    await store.acquire()
    await store.append(batch(2, [artifact("b")], first_seq=2))

    assert [] == await found(audited)


async def test_append_follows_a_log_that_moved_on_behind_a_lost_answer(
    audited: PostgresPersistence, store: PostgresStore
) -> None:
    # Given an erasure that was committed although its answer never came
    await store.append(batch(1, [artifact("a")]))
    before = store._head
    await store.erase([key("a")])
    store._head = before

    await store.append(batch(2, [artifact("b")], first_seq=2))

    assert 3 == (await audited.verify_audit("board")).entries
    assert [] == await found(audited)


async def test_board_without_audit_log_writes_none(postgres: PostgresPersistence) -> None:
    await postgres.prepare("board", 1)
    store = postgres.store("board", 0, range(256))
    await store.acquire()
    await store.append(batch(1, [artifact("a")], decisions=[Decision(1, "x", "y")]))
    await store.erase([key("a")])
    await store.close()

    report = await postgres.verify_audit("board")

    assert (0, True) == (report.entries, report.sound)


@pytest.mark.parametrize(
    ("damage", "places"),
    [
        ("UPDATE {schema}.audit SET actor = 'somebody' WHERE number = 3", [(0, 3)]),
        ("UPDATE {schema}.audit SET at_us = at_us + 1 WHERE number = 6", [(0, 6)]),
        ("UPDATE {schema}.audit SET hash = '\\x00' WHERE number = 2", [(0, 2), (0, 3)]),
        ("DELETE FROM {schema}.audit WHERE number = 1", [(0, 1)]),
        ("DELETE FROM {schema}.audit WHERE number IN (3, 4)", [(0, 3)]),
        ("DELETE FROM {schema}.audit WHERE number >= 5", [(0, 5)]),
        ("TRUNCATE {schema}.audit", [(0, 1)]),
        ("UPDATE {schema}.audit SET number = 7 WHERE number = 6", [(0, 6), (0, 7)]),
        ("INSERT INTO {schema}.audit SELECT shard_id, 7, at_us, kind, '', '', '', hash FROM {schema}.audit LIMIT 1",
         [(0, 7)]),
        ("INSERT INTO {schema}.audit SELECT shard_id, 0, at_us, kind, '', '', '', hash FROM {schema}.audit LIMIT 1",
         [(0, 0)]),
    ],
)  # fmt: skip
async def test_damage_is_found(
    audited: PostgresPersistence, six: None, postgres_sql: Sql, damage: str, places: list[tuple[int, int]]
) -> None:
    assert [] == await found(audited)

    await postgres_sql.run(damage)

    assert places == await found(audited)


async def test_deleted_shard_is_found(audited: PostgresPersistence, postgres_sql: Sql) -> None:
    await audited.prepare("board", 2)
    await postgres_sql.run("DELETE FROM {schema}.shards WHERE shard = 1")

    assert [(1, 0)] == await found(audited)


async def test_entries_that_changed_places_are_found(
    audited: PostgresPersistence, six: None, postgres_sql: Sql
) -> None:
    for old, new in ((3, -3), (4, 3), (-3, 4)):
        await postgres_sql.run(f"UPDATE {{schema}}.audit SET number = {new} WHERE number = {old}")

    assert [(0, 3), (0, 4), (0, 5)] == await found(audited)


async def test_newest_entries_cut_together_with_the_head_are_found_by_a_note(
    audited: PostgresPersistence, six: None, postgres_sql: Sql
) -> None:
    noted = (await audited.verify_audit("board")).heads
    await postgres_sql.run("DELETE FROM {schema}.audit WHERE number > 4")
    await postgres_sql.run(
        "UPDATE {schema}.shards SET audit_count = 4, audit_hash = (SELECT hash FROM {schema}.audit WHERE number = 4)"
    )

    report = await audited.verify_audit("board", noted=noted)

    assert [] == await found(audited)
    assert [(0, 6)] == [(shard, problem.number) for shard, problem in report.problems]


async def test_unknown_board(audited: PostgresPersistence, store: PostgresStore) -> None:
    with pytest.raises(ConfigurationError, match="no board 'other'"):
        await audited.verify_audit("other")


@pytest.mark.parametrize(
    "change",
    ["UPDATE {schema}.audit SET actor = ''", "DELETE FROM {schema}.audit", "TRUNCATE {schema}.audit"],
)
async def test_nobody_changes_the_log_by_accident(
    store: PostgresStore, postgres_sql: Sql, change: str
) -> None:
    await store.append(batch(1, [artifact("a")]))

    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await postgres_sql.run(change)
    await postgres_sql.run("SET session_replication_role = replica")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await postgres_sql.run(change)


class TestPostgresAudit(AuditContract):
    @pytest.fixture
    def persistence(self, postgres: PostgresPersistence) -> Persistence:
        return postgres

    @pytest.fixture
    def audited(self, postgres_server: PostgresServer, postgres_schema: str) -> PostgresPersistence:
        return PostgresPersistence(postgres_server.url(), schema=postgres_schema, enable_audit_log=True)


class TestTwoRoles:
    @pytest.fixture
    async def roles(
        self, postgres_server: PostgresServer, postgres_sql: Sql
    ) -> AsyncIterator[tuple[PostgresPersistence, str]]:
        """Shards run as `app`, who owns nothing; `owner` made the tables."""
        mark = secrets.token_hex(4)
        app, owner, schema = f"app_{mark}", f"owner_{mark}", f"two_{mark}"
        await postgres_sql.run(f"CREATE ROLE {app} LOGIN; CREATE ROLE {owner} LOGIN")
        await postgres_sql.run(f"CREATE SCHEMA {schema} AUTHORIZATION {owner}")
        place = PostgresPersistence(
            postgres_server.url(app),
            schema=schema,
            enable_audit_log=True,
            migration_connection=postgres_server.url(owner),
        )
        yield place, app
        await postgres_sql.run(f"DROP OWNED BY {app}, {owner} CASCADE; DROP ROLE {app}; DROP ROLE {owner}")

    async def test_role_of_the_shards_works_and_cannot_change_the_log(
        self, roles: tuple[PostgresPersistence, str], postgres_server: PostgresServer
    ) -> None:
        # Given a board that does everything as the shards' role
        place, app = roles
        await place.prepare("board", 1)
        store = place.store("board", 0, range(256))
        await store.acquire()
        run = activation("run", inputs=["a"])
        await store.append(batch(1, [artifact("a", tags=("t",))], activations=[run], workflows=[workflow()]))
        await store.erase([key("a")])
        await store.remove_workflows([(0, "wf-1")])
        await store.truncate(1)
        await store.close()
        assert (await place.verify_audit("board")).sound

        # When that role tries to change the log, or to take away what protects it
        connection = await asyncpg.connect(postgres_server.url(app))
        audit = f"{place._schema}.audit"
        for right, given in (("SELECT", True), ("INSERT", True), ("UPDATE, DELETE, TRUNCATE", False)):
            assert given == await connection.fetchval("SELECT has_table_privilege($1, $2)", audit, right)
        for change in (
            f"UPDATE {audit} SET actor = ''",
            f"DELETE FROM {audit}",
            f"TRUNCATE {audit}",
            f"DROP TABLE {audit}",
            f"ALTER TABLE {audit} DISABLE TRIGGER audit_is_append_only",
            f"DROP TRIGGER audit_is_append_only ON {audit}",
            f"UPDATE {place._schema}.schema_migrations SET number = 0",
            f"CREATE TABLE {place._schema}.mine ()",
            "SET session_replication_role = replica",
        ):
            # Then PostgreSQL refuses
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(change)
        await connection.close()

    async def test_shards_role_prepares_alone_once_the_tables_are_there(
        self, roles: tuple[PostgresPersistence, str], postgres_server: PostgresServer
    ) -> None:
        place, app = roles
        await place.prepare("board", 1)
        alone = PostgresPersistence(postgres_server.url(app), schema=place._schema.strip('"'))

        assert 3 == await alone.prepare("second", 3)

    async def test_one_user_for_both_is_refused(
        self, postgres_server: PostgresServer, postgres_schema: str
    ) -> None:
        url = postgres_server.url()
        place = PostgresPersistence(url, schema=postgres_schema, migration_connection=url)

        with pytest.raises(ConfigurationError, match="same user"):
            await place.prepare("board", 1)
