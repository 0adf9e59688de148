from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.backends import running
from tests.servers import PostgresServer

pytestmark = pytest.mark.timeout(400)

SCRIPT = """
    import asyncio, sys

    import ray
    from ray.cluster_utils import Cluster

    from flock_ray import Flock
    from flock_ray.adapters.postgres import PostgresPersistence
    from flock_ray.verifying import verify_board
    from tests.chaos.orders import check_orders, declare, publish_orders

    async def main(url):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        doomed = {node.node_id: node for node in nodes}
        flock = Flock(persistence=PostgresPersistence(url), namespace="nodes", shards=4, max_workers=2, no_output=True)
        declare(flock)
        await flock.start()
        numbers = range(150)

        async def lose_a_node():
            await asyncio.sleep(1.0)
            places = await asyncio.to_thread(where)
            victim = next(place for place in places if place in doomed)
            await asyncio.to_thread(cluster.remove_node, doomed[victim], False)
            print("LOST a node with", places.count(victim), "of", len(places), "shards", flush=True)

        await asyncio.gather(lose_a_node(), publish_orders(flock, numbers))
        await flock.run_until_idle(timeout=150)
        await flock.flush_batches()
        await flock.run_until_idle(timeout=60)
        await check_orders(flock, numbers)
        verdict = await verify_board(PostgresPersistence(url), "nodes")
        assert verdict.violations == [] and verdict.artifacts >= 6 * len(numbers), verdict
        print("CHECKED", flush=True)
        await flock.shutdown()
        ray.shutdown()
        cluster.shutdown()

    def where():
        from ray._private.state import actors
        alive = [a for a in actors().values() if a["State"] == "ALIVE" and "shard" in str(a.get("Name", ""))]
        return [a["Address"]["NodeID"] for a in alive]

    asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_lost_node_takes_shards_and_workers_with_it_and_nothing_else(
    start_script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    # Given a board of four shards on a cluster of three nodes
    with running("postgres", tmp_path) as backend:
        assert isinstance(backend.server, PostgresServer)
        script = start_script(SCRIPT, backend.server.url())
        # When one of them disappears while everything works
        out, err = await asyncio.to_thread(script.communicate, None, 300)
        # Then the others take over, and the results are those of an undisturbed run
        print(out)
        assert "LOST" in out and "CHECKED" in out, f"{out}\n{err[-3000:]}"
