from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.scaling import UP_AFTER_S, PoolView, target_workers

seconds = st.floats(0, 1000)
views = st.builds(
    lambda low, extra, **rest: PoolView(min=low, max=low + extra, **rest),
    st.integers(0, 4), st.integers(1, 8), workers=st.integers(0, 12), ready=st.integers(0, 99),
    running=st.integers(0, 99), oldest_age_s=seconds, idle_s=seconds, since_change_s=seconds,
    idle_timeout_s=st.floats(1, 100),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(views)
def test_a_pool_stays_in_its_limits_and_moves_for_a_reason(view: PoolView) -> None:
    target = target_workers(view)
    assert view.min <= target <= max(view.min, view.max)
    if target < view.workers and view.workers <= view.max:
        assert not view.ready
        assert not view.running
        assert target == view.workers - 1, "it shrinks by one"
    if target > view.workers >= view.min and view.workers:
        assert view.ready
        assert view.oldest_age_s >= UP_AFTER_S


@settings(deadline=None, max_examples=60)
@given(views)
def test_work_without_a_worker_starts_one_at_once(view: PoolView) -> None:
    assert target_workers(replace(view, workers=0, ready=1, oldest_age_s=0.0, since_change_s=0.0)) >= 1


def test_a_pool_whose_work_keeps_waiting_reaches_its_maximum_and_an_idle_one_its_minimum() -> None:
    busy = PoolView(1, 8, 1, 100, 1, 5.0, 0.0, 60.0, 10.0)
    for _ in range(8):
        busy = replace(busy, workers=target_workers(busy))
    idle = replace(busy, ready=0, running=0, idle_s=60.0)
    assert busy.workers == 8
    for _ in range(8):
        idle = replace(idle, workers=target_workers(idle))
    assert idle.workers == 1
