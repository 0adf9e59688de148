"""What the audit log of every store that keeps one promises; `audited` is a persistence with `enable_audit_log`."""

from __future__ import annotations

from typing import Any

import pytest

from flock_ray.core.rows import Decision
from flock_ray.errors import ConfigurationError, StaleEpochError
from tests.unit.adapters.store_rows import activation, artifact, batch, key, workflow

BOARD = "board"


async def log_of(audited: Any) -> Any:
    return await audited.verify_audit(BOARD)


class AuditContract:
    @pytest.fixture
    def audited(self) -> Any:
        """An empty place whose boards keep an audit log."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self, audited: Any) -> Any:
        await audited.prepare(BOARD, 1)
        store = audited.store(BOARD, 0, range(256))
        await store.acquire()
        yield store
        await store.close()

    async def test_every_decision_has_an_entry(self, audited: Any, store: Any) -> None:
        runs = [
            activation("run", inputs=["in"]),
            activation("bad", status="failed", error_type="KeyError"),
        ]
        came = [artifact("in"), artifact("out", activation_id=key("run"))]
        denied = Decision(7, "access.denied", "wf-1", "mallory", "no role \x00")
        await store.append(batch(1, came, activations=runs, workflows=[workflow()], decisions=[denied]))
        # in, two runs, the decision; what an agent made is told by its run
        assert 4 == (await log_of(audited)).entries

        await store.erase([key("in"), key("unknown")])
        await store.remove_workflows([(0, "wf-1"), (0, "unknown")])
        await store.append(batch(2, [artifact("again")], first_seq=3))

        report = await log_of(audited)
        assert (7, []) == (report.entries, report.problems)

    async def test_a_repeated_batch_is_logged_once(self, audited: Any, store: Any) -> None:
        for _ in range(3):
            await store.append(batch(1, [artifact("a")]))
        await store.append(batch(2, [artifact("b")], first_seq=2))

        report = await log_of(audited)
        assert (2, []) == (report.entries, report.problems)

    async def test_the_chain_goes_on_with_the_next_writer(self, audited: Any, store: Any) -> None:
        await store.append(batch(1, [artifact("a")]))
        other = audited.store(BOARD, 0, range(256))
        await other.acquire()
        await other.append(batch(2, [artifact("b")], first_seq=2))
        with pytest.raises(StaleEpochError):
            await store.erase([key("a")])
        await other.close()

        report = await log_of(audited)
        assert (2, []) == (report.entries, report.problems)

    async def test_many_workflows_are_removed_with_an_entry_each(self, audited: Any, store: Any) -> None:
        rows = [workflow(f"w{n}", slot=n) for n in range(20)]
        came = [artifact(n, workflow=f"w{n}", slot=n) for n in range(20)]
        await store.append(batch(1, came, workflows=rows))

        assert 19 == await store.remove_workflows([(n, f"w{n}") for n in range(1, 20)] + [(77, "w0")])

        report = await log_of(audited)
        assert (39, []) == (report.entries, report.problems)

    async def test_a_long_log_is_verified_while_it_grows(self, audited: Any, store: Any) -> None:
        await store.append(batch(1, [artifact(n) for n in range(6_000)]))
        report = await log_of(audited)
        await store.append(batch(2, [artifact("more")], first_seq=20_000))

        later = await audited.verify_audit(BOARD, noted=report.heads)

        assert (6_000, True) == (report.entries, report.sound)
        assert (6_001, True) == (later.entries, later.sound)

    async def test_a_board_without_a_log_has_an_empty_one_until_it_keeps_one(
        self, audited: Any, persistence: Any
    ) -> None:
        await persistence.prepare(BOARD, 1)
        store = persistence.store(BOARD, 0, range(256))
        await store.acquire()
        await store.append(batch(1, [artifact("a")], decisions=[Decision(1, "x", "y")]))
        await store.close()
        assert (0, True) == ((await log_of(audited)).entries, (await log_of(audited)).sound)

        store = audited.store(BOARD, 0, range(256))
        await store.acquire()
        await store.append(batch(2, [artifact("b")], first_seq=2))
        await store.close()
        assert (1, True) == ((await log_of(audited)).entries, (await log_of(audited)).sound)

    async def test_a_log_of_an_unknown_board(self, audited: Any, store: Any) -> None:
        with pytest.raises(ConfigurationError, match="no board 'other'"):
            await audited.verify_audit("other")
