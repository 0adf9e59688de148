from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "tests.simulation.audit", "tests.simulation.checks", "tests.simulation.scenario"
)
