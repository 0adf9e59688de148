from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.ports import Persistence
from flock_ray.testing import VirtualFlock
from tests.store_contract_audit import AuditContract
from tests.unit.adapters.store_rows import artifact, batch
from tests.unit.semantics.shop import Order, Parcel, Payment


class TestSQLiteAudit(AuditContract):
    @pytest.fixture
    def audited(self, tmp_path: Path) -> SQLitePersistence:
        return SQLitePersistence(tmp_path / "boards", enable_audit_log=True)

    @pytest.fixture
    def persistence(self, tmp_path: Path) -> Persistence:
        return SQLitePersistence(tmp_path / "boards")


@pytest.fixture
async def six(tmp_path: Path) -> tuple[SQLitePersistence, Path]:
    """A chain of six entries, and its file."""
    audited = SQLitePersistence(tmp_path / "boards", enable_audit_log=True)
    await audited.prepare("board", 1)
    store = audited.store("board", 0, range(256))
    await store.acquire()
    for lsn in range(1, 7):
        await store.append(batch(lsn, [artifact(lsn)], first_seq=lsn))
    await store.close()
    return audited, tmp_path / "boards" / "board" / "shard-0000.db"


def change(file: Path, *statements: str, triggers: bool = False) -> None:
    with closing(sqlite3.connect(file)) as connection:
        if not triggers:
            for event in ("UPDATE", "DELETE", "INSERT"):
                connection.execute(f"DROP TRIGGER audit_refuses_{event}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


async def found(audited: SQLitePersistence, noted: Any = None) -> list[int]:
    report = await audited.verify_audit("board", noted=noted)
    assert report.sound == (report.problems == [])
    return [problem.number for _, problem in report.problems]


@pytest.mark.parametrize(
    ("damage", "places"),
    [
        ("UPDATE audit SET fact = x'93' WHERE number = 3", [3]),
        ("UPDATE audit SET fact = (SELECT fact FROM audit WHERE number = 1) WHERE number = 6", [6]),
        ("UPDATE audit SET hash = x'00' WHERE number = 2", [2, 3]),
        ("UPDATE audit SET hash = 'text' WHERE number = 2", [2, 3]),
        ("DELETE FROM audit WHERE number = 1", [1]),
        ("DELETE FROM audit WHERE number IN (3, 4)", [3]),
        ("DELETE FROM audit WHERE number >= 5", [5]),
        ("DELETE FROM audit", [1]),
        ("UPDATE audit SET number = 7 WHERE number = 6", [6, 7]),
        ("INSERT INTO audit SELECT 7, fact, hash FROM audit LIMIT 1", [7]),
        ("DELETE FROM audit_head", [1]),
        ("UPDATE audit_head SET hash = x'01'", [6]),
    ],
)
async def test_damage_is_found(six: tuple[SQLitePersistence, Path], damage: str, places: list[int]) -> None:
    audited, file = six
    assert [] == await found(audited)

    change(file, damage)

    assert places == await found(audited)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET fact = x'00' WHERE number = 2",
        "DELETE FROM audit WHERE number = 2",
        "INSERT OR REPLACE INTO audit SELECT 2, fact, hash FROM audit LIMIT 1",
    ],
)
async def test_nobody_changes_the_log_by_accident(
    six: tuple[SQLitePersistence, Path], statement: str
) -> None:
    audited, file = six
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        change(file, statement, triggers=True)
    assert [] == await found(audited)


async def test_a_log_that_was_cut_with_its_end_or_dropped_is_found_by_a_note(
    six: tuple[SQLitePersistence, Path],
) -> None:
    audited, file = six
    noted = (await audited.verify_audit("board")).heads
    change(
        file,
        "DELETE FROM audit WHERE number > 4",
        "UPDATE audit_head SET count = 4, hash = (SELECT hash FROM audit WHERE number = 4)",
    )
    assert ([], [6]) == (await found(audited), await found(audited, noted))

    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE audit")
        connection.execute("DROP TABLE audit_head")
    assert ([], [6]) == (await found(audited), await found(audited, noted))


async def test_a_board_logs_what_users_and_operators_do(tmp_path: Path) -> None:
    audited = SQLitePersistence(tmp_path / "boards", enable_audit_log=True)
    async with VirtualFlock(persistence=audited, namespace="shop", shards=2) as flock:
        flock.agent("gate").consumes(Order, Payment).publishes(Parcel).runs(lambda o, p: Parcel(n=o.n))
        await flock.publish(Order(n=1), correlation_id="w")
        await flock.publish(Payment(n=1), correlation_id="w")
        await flock.run_until_idle()
        await flock.erase(correlation_id="w", reason="request 4")
    report = await audited.verify_audit("shop")

    kinds: list[str] = []
    for file in sorted((tmp_path / "boards" / "shop").glob("shard-*.db")):
        with closing(sqlite3.connect(file)) as connection:
            kinds += [
                msgspec.msgpack.decode(fact)[1]
                for (fact,) in connection.execute("SELECT fact FROM audit ORDER BY number")
            ]
    assert report.sound
    assert report.entries == len(kinds)
    assert kinds.count("artifact.published") == 2
    assert kinds.count("activation.completed") == 1
    assert kinds.count("artifact.erased") >= 3
    assert "table.installed" in kinds
