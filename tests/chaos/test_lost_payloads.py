"""A node is lost with the large payloads on it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

SCRIPT = """
    import asyncio, sys

    import ray
    from pydantic import BaseModel
    from ray.cluster_utils import Cluster

    from flock_ray import BatchSpec, Flock, flock_type
    from flock_ray.adapters.sqlite import SQLitePersistence
    from flock_ray.core.system_types import WorkflowError

    @flock_type
    class Order(BaseModel):
        n: int

    @flock_type
    class Blob(BaseModel):
        n: int
        data: str

    @flock_type
    class Report(BaseModel):
        sizes: list[int]

    def make(order):
        return Blob(n=order.n, data="x" * 1_000_000)

    def declare(flock):
        flock.agent("make").consumes(Order).publishes(Blob).runs(make).pool(min=1, max=1, resources={"far": 1})
        flock.agent("read").consumes(Blob, batch=BatchSpec(size=3)).publishes(Report).runs(
            lambda blobs: Report(sizes=[len(b.data) for b in blobs])
        )

    async def story(cluster, folder):
        persistence = SQLitePersistence(folder) if folder else None
        flock = Flock(persistence=persistence, namespace="payloads", max_workers=1, no_output=True)
        declare(flock)
        await flock.start()  # before there is another node: the shard must not be lost with it
        far = cluster.add_node(num_cpus=2, resources={"far": 1})  # blocks: Ray wants the main thread
        await flock.publish_many([Order(n=n) for n in range(2)])
        await flock.run_until_idle(timeout=120)
        print("MADE", await flock.store.count(Blob), flush=True)
        await asyncio.to_thread(cluster.remove_node, far, False)
        print("LOST", flush=True)
        await flock.publish(Blob(n=2, data="x" * 1_000_000))
        for _ in range(1000):
            done = await flock.store.get_by_type(Report), await flock.store.get_by_type(WorkflowError)
            if any(done):
                break
            await asyncio.sleep(0.1)
        print("REPORT", [r.sizes for r in done[0]], [e.error_type for e in done[1]], flush=True)
        await flock.shutdown(flush_batches=False)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        asyncio.run(story(cluster, *sys.argv[1:]))
    finally:  # whoever starts Ray next would join what is left
        ray.shutdown()
        cluster.shutdown()
"""


@pytest.mark.parametrize(
    ("is_kept", "report"),
    [(True, "REPORT [[1000000, 1000000, 1000000]] []"), (False, "REPORT [] ['PayloadLostError']")],
    ids=["kept", "memory"],
)
async def test_payloads_of_a_lost_node_are_read_back_or_said_to_be_lost(
    start_script: Callable[..., subprocess.Popen[str]], tmp_path: Path, is_kept: bool, report: str
) -> None:
    # Given large payloads that a worker on another node has made, and that wait in a gate
    script = start_script(SCRIPT, str(tmp_path / "board") if is_kept else "")
    # When that node disappears, and what they waited for comes
    out, err = await asyncio.to_thread(script.communicate, None, 250)
    # Then a board that is kept reads them from its store; one in memory says that they are gone
    assert "MADE 2" in out, f"{out}\n{err[-3000:]}"
    assert "LOST" in out, f"{out}\n{err[-3000:]}"
    assert report in out, f"{out}\n{err[-3000:]}"
