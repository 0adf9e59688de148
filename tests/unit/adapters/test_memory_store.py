from __future__ import annotations

import pytest

from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.ports import Persistence
from tests.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def persistence(self) -> Persistence:
        return MemoryPersistence()
