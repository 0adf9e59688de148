"""The contract of stores: subclass `StoreContract`, say which `persistence`, and every promise is tested.

A subclass in a test module::

    class TestSQLiteStore(StoreContract):
        @pytest.fixture
        def persistence(self, tmp_path: Path) -> Persistence:
            return SQLitePersistence(tmp_path / "board")
"""

# The parts' asserts are explained like those of test modules only when pytest rewrites them.
# ruff: noqa: E402

from __future__ import annotations

import pytest

for _part in ("journal", "index", "random"):
    pytest.register_assert_rewrite(f"tests.store_contract_{_part}")

from tests.store_contract_index import IndexContract
from tests.store_contract_journal import JournalContract, NewStore, PersistenceContract, acquired
from tests.store_contract_random import RandomContract

__all__ = ["NewStore", "PersistenceContract", "StoreContract", "acquired"]


class StoreContract(JournalContract, IndexContract, RandomContract):
    """Everything that `Journal` and `ArtifactIndex` promise; `PersistenceContract` is the rest."""
