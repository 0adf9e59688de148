from __future__ import annotations

from collections import Counter
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core import gates
from flock_ray.core.state import Item, Slot
from flock_ray.core.wire import Envelope, Match, SubscriptionSpec

_numbers = count()


def item_of(type_name: str, workflow: str = "w") -> Item:
    identity = next(_numbers).to_bytes(16, "big")
    return Item(Envelope(identity, type_name, 1, b"{}", workflow, 0, "external", 0), 0)


def spec_of(kind: str, *types: str, **options: int) -> SubscriptionSpec:
    return SubscriptionSpec("agent/sub", "agent", types, kind, **options)  # type: ignore[arg-type]  # numbers only


def held_by(slot: Slot) -> list[Item]:
    return [item for keys in slot.gates.values() for gate in keys.values() for item in gate.items()]


def ids(items: list[Item]) -> list[bytes]:
    return [item.envelope.id for item in items]


arrivals = st.lists(st.sampled_from("ABC"), max_size=40)


@settings(deadline=None, max_examples=60)
@given(arrivals)
def test_and_gate_fires_as_often_as_its_inputs_allow_and_uses_each_once_in_arrival_order(
    names: list[str],
) -> None:
    # Given a gate for (A, A, B) and any order of arrivals
    slot, spec = Slot(0), spec_of("and", "A", "A", "B")
    fed = [item_of(name) for name in names if name in "AB"]
    # When everything arrives
    firings = [f for item in fed for f in gates.feed(slot, spec, b"k", item, 1)[0]]
    # Then it fired min(#A // 2, #B) times, with the oldest inputs of each type, and the rest waits
    a, b = ([i for i in fed if i.envelope.type == name] for name in "AB")
    expected = [[a[2 * n], a[2 * n + 1], b[n]] for n in range(min(len(a) // 2, len(b)))]
    assert [ids(f.items) for f in firings] == [ids(group) for group in expected]
    assert sorted(ids(held_by(slot)) + [i for f in firings for i in ids(f.items)]) == sorted(ids(fed))
    assert bool(slot.gates) == bool(held_by(slot)), "a gate that holds nothing is forgotten"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.sampled_from([b"x", b"y", b"z"]), st.integers(0, 30)), max_size=40
    ),
    st.sampled_from(["join", "join_batch"]),
    st.sampled_from([{"within_us": 40}, {"within_count": 3}]),
)
def test_join_never_mixes_keys_keeps_its_window_and_accounts_for_every_input(
    steps: list[tuple[str, bytes, int]], kind: str, window: dict[str, int]
) -> None:
    # Given a join with a window in time or in arrivals
    slot = Slot(0)
    spec = spec_of(kind, "A", "B", **window, batch_size=2 if kind == "join_batch" else 0)
    now, fate = 0, Counter[bytes]()
    born: dict[bytes, tuple[bytes, int, int]] = {}
    for number, (name, key, wait) in enumerate(steps):
        now += wait
        item = item_of(name)
        born[item.envelope.id] = (key, now, number)
        # When inputs arrive one by one
        firings, expired = gates.feed(slot, spec, key, item, now)
        for firing in firings:
            fate.update(ids(firing.items))
            for pair in zip(firing.items[::2], firing.items[1::2], strict=True):
                (key_a, at_a, nr_a), (key_b, at_b, nr_b) = (born[i.envelope.id] for i in pair)
                # Then only equal keys inside the window meet
                assert key_a == key_b
                assert [i.envelope.type for i in pair] == ["A", "B"]
                # (surplus inputs begin a new window, so only the first pair of a key is sure to be close)
                if sum(1 for other, _, _ in born.values() if other == key_a) == 2:
                    assert abs(nr_a - nr_b) <= window.get("within_count", nr_a + nr_b)
                    assert abs(at_a - at_b) < window.get("within_us", now + 1)
        for expiry in expired:
            fate.update(ids(expiry.items))
    fate.update(ids(held_by(slot)))
    assert fate == Counter(born.keys()), "every input has fired, expired or waits: once"


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(0, 30), st.booleans())
def test_batch_fires_when_full_and_its_deadline_releases_the_rest(
    size: int, arriving: int, late: bool
) -> None:
    # Given a batch with a size and a timeout
    slot, spec = Slot(0), spec_of("batch", "A", batch_size=size, batch_timeout_us=100)
    fed = [item_of("A") for _ in range(arriving)]
    firings = [f for item in fed for f in gates.feed(slot, spec, b"", item, 7)[0]]
    assert [len(f.items) for f in firings] == [size] * (arriving // size)
    # When its time comes (or not yet)
    outcome = gates.on_deadline(slot, spec.id, b"", 107 if late else 106)
    rest = arriving % size
    # Then exactly the rest comes, in order of arrival
    if late and rest:
        assert isinstance(outcome, gates.Firing)
        assert ids(outcome.items) == ids(fed[arriving - rest :])
        assert not slot.gates
    else:
        assert outcome is None
        assert ids(held_by(slot)) == ids(fed[arriving - rest :])


def test_count_window_expires_old_groups_behind_one_that_started_anew() -> None:
    # Given join then batch with a window of 3 arrivals: x began first and got complete, so it starts anew
    slot, spec = Slot(0), spec_of("join_batch", "A", "B", within_count=3, batch_size=9)
    first_x, old_y = item_of("A"), item_of("A")
    gates.feed(slot, spec, b"x", item_of("A"), 0)
    gates.feed(slot, spec, b"x", first_x, 0)
    gates.feed(slot, spec, b"y", old_y, 0)
    gates.feed(slot, spec, b"x", item_of("B"), 0)
    # When the window of y has passed
    expired = [e for _ in range(3) for e in gates.feed(slot, spec, b"z", item_of("A"), 0)[1]]
    # Then y expires although x, restarted later, was opened before it
    assert old_y.envelope.id in [i for e in expired for i in ids(e.items)]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["single", "and", "join", "batch", "join_batch"]), st.integers(0, 3), st.text(max_size=5)
)
def test_inputs_of_one_workflow_gate_meet_in_one_slot_whatever_their_partition(
    kind: str, within: int, workflow: str
) -> None:
    # Given inputs of one workflow in different slots
    spec = spec_of(kind, "A", "B", within_count=within)
    one = Envelope(b"1", "A", 1, b"", workflow, 17, "external", 0, partition_key="p")
    two = Envelope(b"2", "B", 1, b"", workflow, 99, "external", 0, partition_key="q")
    # Then their gate is in the same slot, and has the same key
    match = Match(spec.id, b"key")
    assert gates.gate_slot(spec, match, one) == gates.gate_slot(spec, match, two)
    assert gates.gate_key(spec, match, one) == gates.gate_key(spec, match, two)
