from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from flock_ray.adapters import postgres_migrations
from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.postgres_queries import page_query, read_query
from flock_ray.core.rows import SHARD, ArtifactQuery
from flock_ray.errors import StaleEpochError, StoreCorruptError, StoreUnavailableError
from flock_ray.ports import ShardStore
from tests.integration.stores.conftest import Sql
from tests.store_contract import NewStore, PersistenceContract, StoreContract, acquired
from tests.unit.adapters.store_rows import activation, artifact, batch, key, snapshot, workflow

EVERYTHING = ArtifactQuery()
BLOCKED = """
SELECT count(*) > 0 FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND query LIKE '%{schema}%' AND pid <> pg_backend_pid()
"""


def flipped(column: str, place: int) -> str:
    """SQL for a column with one byte that is another one, whatever it was."""
    return f"set_byte({column}, {place}, get_byte({column}, {place}) # 255)"


class TestPostgresStore(StoreContract, PersistenceContract):
    @pytest.fixture
    def persistence(self, postgres: PostgresPersistence) -> PostgresPersistence:
        return postgres

    async def test_append_that_began_before_the_new_writer_acquired_writes_nothing(
        self, new_store: NewStore, postgres_sql: Sql
    ) -> None:
        # Given an append that PostgreSQL executes already, and that waits for the row of its shard
        old = await acquired(new_store)
        taking_over = postgres_sql.connection.transaction()
        await taking_over.start()
        await postgres_sql.run("UPDATE {schema}.shards SET epoch = epoch + 1, epoch_lsn = last_lsn")
        late = asyncio.create_task(old.append(batch(1, [artifact("late")], workflows=[workflow()])))
        await postgres_sql.until(BLOCKED)

        # When the new writer's epoch commits first
        await taking_over.commit()

        # Then the old one is refused
        with pytest.raises(StaleEpochError):
            await late
        assert 0 == await postgres_sql.value("SELECT count(*) FROM {schema}.journal")
        assert [] == await old.read(EVERYTHING, 0, 10)
        assert [] == await old.workflows(["wf-1"])

    async def test_new_writer_waits_for_an_append_that_is_in_its_transaction_and_finds_it(
        self, new_store: NewStore, postgres_sql: Sql
    ) -> None:
        # Given an append that has the row of its shard, and stands still before its end
        old, new = await acquired(new_store), await new_store()
        await postgres_sql.run(
            "CREATE FUNCTION {schema}.stand_still() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END $$;"
            "CREATE TRIGGER stand_still AFTER INSERT ON {schema}.journal EXECUTE FUNCTION {schema}.stand_still();"
            "SELECT pg_advisory_lock(77)"
        )
        appending = asyncio.create_task(old.append(batch(1, [artifact("first")])))
        await postgres_sql.until(BLOCKED)

        # When another writer comes
        acquiring = asyncio.create_task(new.acquire())
        await postgres_sql.until(BLOCKED.replace("> 0", "> 1"))
        assert not acquiring.done()
        await postgres_sql.run("SELECT pg_advisory_unlock(77)")

        # Then it gets the shard behind the append, and loads it
        await appending
        assert await acquiring == 2
        assert [(1, b"frame-1")] == (await new.load()).frames
        with pytest.raises(StaleEpochError):
            await old.append(batch(2))

    async def test_writer_that_was_stopped_inside_a_transaction_does_not_block_the_next(
        self, postgres: PostgresPersistence, postgres_sql: Sql
    ) -> None:
        await postgres.prepare("board", 1)
        stopped = await postgres._address.connect(timeout=0.3)
        async with asyncio.timeout(20):
            await stopped.execute("BEGIN")
            await stopped.execute(f"SELECT 1 FROM {postgres._schema}.shards FOR UPDATE")
            new = postgres.store("board", 0, range(256))

            assert await new.acquire() == 1

        await new.close()
        stopped.terminate()

    @pytest.mark.parametrize(
        ("table", "column", "place"),
        [
            ("journal", "frame", "shard 0, table journal, lsn 2"),
            ("snapshots", "data", "shard 0, table snapshots, slot 5, lsn 1"),
        ],
    )
    async def test_flipped_byte_in_the_journal_is_found_and_located(
        self, new_store: NewStore, postgres_sql: Sql, table: str, column: str, place: str
    ) -> None:
        store = await acquired(new_store)
        await store.append(batch(1))
        await store.append(batch(2))
        await store.save_snapshots([snapshot(5, 1)])
        where = "lsn = 2" if table == "journal" else "slot = 5"
        await postgres_sql.run(f"UPDATE {{schema}}.{table} SET {column} = {flipped(column, 3)} WHERE {where}")

        with pytest.raises(StoreCorruptError, match=place):
            await store.load()

    @pytest.mark.parametrize("column", ["body", "meta"])
    async def test_flipped_byte_of_an_artifact_is_found_and_located(
        self, new_store: NewStore, postgres_sql: Sql, column: str
    ) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a"), artifact("b")]))
        id_ = key("a").hex()
        await postgres_sql.run(
            f"UPDATE {{schema}}.artifact_rows SET {column} = {flipped(column, 5)} WHERE id = '\\x{id_}'"
        )

        with pytest.raises(StoreCorruptError, match=f"shard 0, .*{id_}"):
            await store.get([key("a")])
        assert 1 == len(await store.get([key("b")]))

    async def test_payload_of_another_artifact_is_found(self, new_store: NewStore, postgres_sql: Sql) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a", payload=b"1"), artifact("b", payload=b"2")]))
        await postgres_sql.run(
            "UPDATE {schema}.artifact_rows a SET body = b.body, crc = b.crc "
            "FROM {schema}.artifact_rows b WHERE a.seq = 1 AND b.seq = 2"
        )

        with pytest.raises(StoreCorruptError, match=key("a").hex()):
            await store.bodies([key("a")])

    @pytest.mark.parametrize("lsn", [1, 2, 3])
    async def test_missing_frame_is_found(self, new_store: NewStore, postgres_sql: Sql, lsn: int) -> None:
        store = await acquired(new_store)
        for number in (1, 2, 3):
            await store.append(batch(number))
        await postgres_sql.run(f"DELETE FROM {{schema}}.journal WHERE lsn = {lsn}")

        with pytest.raises(StoreCorruptError, match=f"lsn {lsn}"):
            await store.load()

    async def test_foreign_frame_behind_the_end_is_found(
        self, new_store: NewStore, postgres_sql: Sql
    ) -> None:
        store = await acquired(new_store)
        await store.append(batch(1))
        await postgres_sql.run(
            "INSERT INTO {schema}.journal SELECT shard_id, 2, 1, '', 0 FROM {schema}.journal"
        )

        with pytest.raises(StoreCorruptError):
            await store.append(batch(2))
        with pytest.raises(StoreCorruptError, match="lsn 2"):
            await store.load()

    async def test_position_that_was_used_before_is_refused(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a")]))

        with pytest.raises(StoreCorruptError):
            await store.append(batch(2, [artifact("b")], first_seq=1))

        assert 1 == (await store.load()).last_lsn

    async def test_known_artifact_stays_as_it_was(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a", payload=b"1")]))

        await store.append(batch(2, [artifact("a", payload=b"2"), artifact("b")], first_seq=2))

        assert [(1, artifact("a", payload=b"1")), (3, artifact("b"))] == await store.read(EVERYTHING, 0, 10)

    async def test_last_position_survives_the_removal_of_rows(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a")], first_seq=9, workflows=[workflow()]))
        await store.remove_workflows([(0, "wf-1")])

        assert 9 == (await store.load()).last_seq

    async def test_removal_leaves_no_row_behind(self, new_store: NewStore, postgres_sql: Sql) -> None:
        store = await acquired(new_store)
        run = activation("run", inputs=["a"])
        await store.append(
            batch(1, [artifact("a", tags=("t", "u"))], activations=[run], workflows=[workflow()])
        )

        assert 1 == await store.remove_workflows([(0, "wf-1")])

        for table in ("artifact_rows", "artifact_tags", "activation_rows", "consumptions", "workflow_rows"):
            assert 0 == await postgres_sql.value(f"SELECT count(*) FROM {{schema}}.{table}")

    async def test_erased_payload_is_in_no_column(self, new_store: NewStore, postgres_sql: Sql) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a", payload=b'{"name":"Wanda Secret"}')]))

        await store.erase([key("a")])

        for (text,) in await postgres_sql.rows("SELECT a::text FROM {schema}.artifact_rows a"):
            assert "Wanda" not in text and b"Wanda".hex() not in text
        assert "null" == await postgres_sql.value("SELECT payload::text FROM {schema}.artifacts")

    async def test_dropped_table_is_corruption(self, new_store: NewStore, postgres_sql: Sql) -> None:
        store = await acquired(new_store)
        await postgres_sql.run("DROP TABLE {schema}.journal")

        with pytest.raises(StoreCorruptError, match="lacks a table"):
            await store.append(batch(1))

    async def test_nothing_is_connected_after_close(self, new_store: NewStore, postgres_sql: Sql) -> None:
        store = await acquired(new_store)
        await asyncio.gather(store.append(batch(1)), *(store.count(EVERYTHING) for _ in range(20)))
        mine = "SELECT {} FROM pg_stat_activity WHERE application_name = 'flock_ray' AND query LIKE '%{{schema}}%'"
        assert 2 <= int(str(await postgres_sql.value(mine.format("count(*)")))) <= 4

        await store.close()

        await postgres_sql.until(mine.format("count(*) = 0"))
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.count(EVERYTHING)

    async def test_cancelled_append_can_be_repeated(self, new_store: NewStore, postgres_sql: Sql) -> None:
        store = await acquired(new_store)
        holding = postgres_sql.connection.transaction()
        await holding.start()
        await postgres_sql.run("SELECT 1 FROM {schema}.shards FOR UPDATE")
        appending = asyncio.create_task(store.append(batch(1, [artifact("a")])))
        await postgres_sql.until(BLOCKED)

        appending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await appending
        await holding.commit()

        await store.append(batch(1, [artifact("a")]))
        assert 1 == await store.count(EVERYTHING)

    async def test_snapshot_of_the_shard_behind_the_first_frame_is_found(
        self, new_store: NewStore, postgres_sql: Sql
    ) -> None:
        store = await acquired(new_store)
        await store.append(batch(1))
        await store.append(batch(2))
        await store.save_snapshots([snapshot(SHARD, 2)])
        await store.truncate(2)
        await postgres_sql.run("DELETE FROM {schema}.snapshots")

        with pytest.raises(StoreCorruptError, match="lsn 3"):
            await store.load()


QUERIES = {
    "by type": ArtifactQuery(types=("Rare",)),
    "by two types": ArtifactQuery(types=("Rare", "Other")),
    "by workflow": ArtifactQuery(correlation_id="wf-1999"),
    "by tag": ArtifactQuery(tags=("seldom",)),
    "by frequent tag": ArtifactQuery(tags=("often",)),
    "everything": EVERYTHING,
}


class TestIndexes:
    @pytest.fixture
    async def store(self, postgres: PostgresPersistence) -> Any:
        await postgres.prepare("board", 1)
        store = postgres.store("board", 0, range(256))
        await store.acquire()
        artifacts = [
            artifact(
                n,
                type="Rare" if n % 500 == 0 else "Common",
                workflow=f"wf-{n // 4}",
                created_us=10_000 + n,
                tags=("seldom", "often") if n % 400 == 0 else ("often",) if n % 2 else (),
            )
            for n in range(8_000)
        ]
        for lsn in range(4):
            await store.append(batch(lsn + 1, artifacts[2_000 * lsn :][:2_000], first_seq=2_000 * lsn + 1))
        yield store
        await store.close()

    async def test_first_page_is_read_from_an_index(self, store: ShardStore, postgres_sql: Sql) -> None:
        await postgres_sql.run("ANALYZE {schema}.artifact_rows, {schema}.artifact_tags")
        shard_id = await postgres_sql.value("SELECT id FROM {schema}.shards")
        for name, query in QUERIES.items():
            for statement, values in (read_query(query, 0, 10), page_query(query, 10, 0, None)):
                rows = await postgres_sql.rows(
                    f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", shard_id, *values
                )
                visited = list(_visited(json.loads(rows[0][0])[0]["Plan"]))
                assert sum(visited) <= 120, (name, statement, visited)


def _visited(plan: dict[str, Any]) -> Any:
    """Yield how many rows each scan of a plan looked at."""
    if "Relation Name" in plan:
        yield plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
    for part in plan.get("Plans", ()):
        yield from _visited(part)


async def test_boards_of_two_schemas_know_nothing_of_each_other(
    postgres: PostgresPersistence, postgres_sql: Sql, postgres_schema: str
) -> None:
    other = PostgresPersistence(postgres._address.url, schema=f"{postgres_schema}_2")
    stores = []
    for place in (postgres, other):
        await place.prepare("board", 1)
        stores.append(place.store("board", 0, range(256)))
        await stores[-1].acquire()
    await stores[0].append(batch(1, [artifact("a")]))

    assert 0 == await stores[1].count(EVERYTHING)

    for store in stores:
        await store.close()


async def test_migrations_are_recorded_once(postgres: PostgresPersistence, postgres_sql: Sql) -> None:
    for _ in range(2):
        await postgres.prepare("board", 1)

    rows = await postgres_sql.rows("SELECT number, name FROM {schema}.schema_migrations")
    assert [(1, "0001_board.sql"), (2, "0002_owner.sql")] == [tuple(row) for row in rows]


async def test_server_that_could_lose_something_is_reported(
    postgres: PostgresPersistence, postgres_sql: Sql
) -> None:
    await postgres.prepare("board", 1)
    assert [] == postgres.warnings()
    await postgres_sql.run("CREATE ROLE hasty LOGIN SUPERUSER; ALTER ROLE hasty SET synchronous_commit = off")
    try:
        hasty = PostgresPersistence(postgres._address.url.replace("postgres@", "hasty@"))
        await hasty.prepare("board", 1)
    finally:
        await postgres_sql.run("DROP SCHEMA flock CASCADE; DROP ROLE hasty")

    assert ["synchronous_commit"] == [text.split()[0] for text in hasty.warnings()]


async def test_a_shard_of_the_version_before_goes_on_while_a_migration_runs_and_is_fenced_after_it(
    postgres: PostgresPersistence, postgres_sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a shard of the first version, which knows nothing of owners
    first = postgres_migrations.known_migrations()[:1]
    with monkeypatch.context() as old:
        old.setattr(postgres_migrations, "known_migrations", lambda: first)
        await postgres.prepare("board", 1)
    await postgres_sql.run("UPDATE {schema}.shards SET epoch = epoch + 1, epoch_lsn = last_lsn")
    before = postgres.store("board", 0, range(256))
    before._epoch = 1
    await before.append(batch(1, [artifact("a")]))

    # When the schema is migrated meanwhile
    await postgres.prepare("board", 1)
    await before.append(batch(2, [artifact("b")], first_seq=2))

    # Then a shard of this version finds everything, says who it is, and the old one is refused
    now = postgres.store("board", 0, range(256))
    assert "" == await now.owner()
    await now.acquire("new")
    assert 2 == (await now.load()).last_lsn
    with pytest.raises(StaleEpochError):
        await before.append(batch(3, [artifact("c")], first_seq=3))
    # And when one of the first version comes once more, nobody is taken for it
    await postgres_sql.run("UPDATE {schema}.shards SET epoch = epoch + 1, epoch_lsn = last_lsn")
    assert "" == await now.owner()
    for store in (before, now):
        await store.close()
