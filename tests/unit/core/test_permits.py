from __future__ import annotations

import random

from flock_ray.core.permits import Permits
from flock_ray.core.state import Activation
from flock_ray.core.wire import Allowance, Grant, GrantBatch

AGENTS = tuple(f"a{n}" for n in range(4))
WORKERS = tuple(f"w{n}" for n in range(6))


def pools_of(rng: random.Random) -> list[Grant]:
    """Some pools, each with some workers and agents; one agent is in all of them."""
    workers = list(WORKERS)
    rng.shuffle(workers)
    grants = []
    for number, cut in enumerate(sorted(rng.sample(range(1, len(workers)), 2))):
        share, workers = workers[:cut], workers[cut:]
        agents = [
            Allowance("every", 7, 3),
            *(Allowance(a, rng.randint(1, 9), rng.randint(1, 3)) for a in AGENTS[number::2]),
        ]
        if share:
            grants.append(Grant(tuple(share), tuple(agents)))
    return grants


def shown(permits: Permits) -> dict[tuple[str, str], tuple[int, int, int]]:
    return {
        (agent, worker): (holding.credit, holding.concurrency, holding.used)
        for agent, holdings in permits.by_agent.items()
        for worker, holding in holdings.items()
    }


def test_taking_one_batch_after_another_ends_like_taking_the_last_one_alone() -> None:
    rng = random.Random(7)
    for _ in range(200):
        leases: dict[str, dict[bytes, Activation]] = {}
        for number in range(rng.randint(0, 12)):
            agent, worker = rng.choice(AGENTS), rng.choice(WORKERS)
            activation = Activation(bytes([number]) * 16, agent, "s", 0, "w", (), 0)
            leases.setdefault(worker, {})[activation.id] = activation
        permits, batches = Permits(), [pools_of(rng) for _ in range(5)]
        for seq, grants in enumerate(batches, 1):
            assert permits.take(GrantBatch(seq, 10.0, grants), 0, leases)
        alone = Permits()
        assert alone.take(GrantBatch(1, 10.0, batches[-1]), 0, leases)
        assert shown(permits) == shown(alone)


def test_a_renewal_extends_what_is_held_and_changes_nothing_else() -> None:
    permits = Permits()
    assert permits.take(GrantBatch(1, 10.0, [Grant(("w1", "w2"), (Allowance("a", 4, 2),))]), 0, {})
    before = shown(permits)
    assert not permits.take(GrantBatch(2, 10.0, [], renews=7), 5_000_000, {}), (
        "another batch than the one held"
    )
    assert permits.expires_us == 10_000_000
    assert permits.take(GrantBatch(3, 10.0, [], renews=1), 5_000_000, {})
    assert (permits.expires_us, shown(permits)) == (15_000_000, before)
    assert not permits.take(GrantBatch(3, 10.0, [], renews=1), 9_000_000, {}), "it came twice"


def test_a_worker_that_was_dropped_comes_back_with_a_whole_batch_and_by_no_renewal() -> None:
    permits = Permits()
    grants = [Grant(("w1", "w2"), (Allowance("a", 4, 2),))]
    assert permits.take(GrantBatch(1, 10.0, grants), 0, {})
    permits.drop("unknown")
    assert permits.whole, "nothing of the batch was dropped"
    permits.drop("w1")
    assert not permits.take(GrantBatch(2, 10.0, [], renews=1), 1, {})
    assert permits.take(GrantBatch(3, 10.0, grants), 1, {})
    assert {worker for _, worker in shown(permits)} == {"w1", "w2"}
    assert permits.take(GrantBatch(4, 10.0, [], renews=3), 2, {})
