from __future__ import annotations

from flock_ray.core.parking import Parked
from flock_ray.core.state import Activation


def waiting(key: bytes) -> Activation:
    return Activation(key, "a", "s", 0, "w", (), 0)


def test_an_activation_is_tried_once_more_under_a_table_before_it_waits() -> None:
    parked, activation = Parked(), waiting(b"1")
    assert [parked.park(activation, 1), parked.park(activation, 1)] == [False, True]
    assert len(parked) == 1
    assert parked.release(None) == [activation]
    # Then there was a deploy: the first refusal may still come from the code of before
    assert [parked.park(activation, 2), parked.park(activation, 2)] == [False, True]
    assert parked.release(None) == [activation]
    assert parked.park(activation, 2) is False  # nothing is remembered past a deploy


def test_workers_that_come_or_go_set_free_what_waits_and_others_do_not() -> None:
    parked, activation = Parked(), waiting(b"1")
    parked.release({"one"})
    parked.park(activation, 1)
    parked.park(activation, 1)
    assert parked.release({"one"}) == []
    assert parked.release({"one", "two"}) == [activation]
    assert parked.park(activation, 1) is True  # the same table: it waits at once
    assert parked.release({"two"}) == [activation]
    assert parked.release({"two"}) == []
