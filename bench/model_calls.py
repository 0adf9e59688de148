"""10,000 model calls at the same time, what the gateway adds to litellm, and the first answer from a cold start.

The model is a server on localhost, in a process of its own that does not count. Gateway and litellm called directly
take turns of ten calls, so that both meet the same weather, and so that what litellm does behind an answer (its logs,
its prices) delays the next call of its own and not one of ours.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

from bench.chain_types import A, B
from bench.machine import REPOSITORY, median
from bench.processes import CpuMeter, pss_bytes, roles
from flock_ray import Flock, ModelSettings
from flock_ray.model import ModelRequest

MODEL = "openai/gpt-4.1-mini"
LATENCY_S = 2.0
NAMESPACE = "bench-model-calls"
IDLE_TIMEOUT_S = 280.0
TURN = 10
"""Calls of one kind, one after the other."""


class _Server:
    """The test server as a process, with answers after so many seconds."""

    def __init__(self, latency_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.llm_server", "--latency", str(latency_s)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        url = self._process.stdout.readline().strip()
        self.pid = self._process.pid
        self.settings = ModelSettings(api_key="sk-bench", api_base=url)

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class _Peak:
    """The largest memory of all our processes together, by role."""

    def __init__(self, ignored: set[int]) -> None:
        self.by_role: dict[str, int] = {}
        self._ignored = ignored
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            sums: dict[str, int] = {}
            for pid, role in roles().items():
                if pid not in self._ignored:
                    sums[role] = sums.get(role, 0) + pss_bytes(pid)
            if sum(sums.values()) > sum(self.by_role.values()):
                self.by_role = sums

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _flock(server: _Server, count: int) -> Flock:
    flock = Flock(MODEL, namespace=NAMESPACE, models={"*": server.settings}, no_output=True)
    flock.agent("asker").description("Copies.").consumes(A).publishes(B).max_concurrency(count)
    return flock


async def _concurrent(server: _Server, count: int) -> dict[str, Any]:
    called = time.perf_counter()
    async with _flock(server, count) as flock:
        await flock.publish(A(n=-1))
        await flock.run_until_idle(timeout=IDLE_TIMEOUT_S)
        first_answer_s = time.perf_counter() - called - LATENCY_S
        meter = CpuMeter()
        with _Peak({server.pid}) as peak:
            started = time.perf_counter()
            await flock.publish_many([A(n=n) for n in range(count)], correlation_id="load")
            await flock.run_until_idle(timeout=IDLE_TIMEOUT_S)
            seconds = time.perf_counter() - started
        cpu = meter.microseconds_per(count)
        rows = await flock.usage(workflow="load")
    answered = sum(row.calls - row.failed for row in rows)
    if answered != count:
        raise RuntimeError(f"{count} calls were made and {answered} were answered")
    return {
        "calls": count,
        "seconds": seconds,
        "first_answer_s": first_answer_s,
        "memory_bytes": peak.by_role,
        "total_memory_bytes": sum(peak.by_role.values()),
        "cpu_us_per_call": cpu,
    }


async def _overhead(server: _Server, count: int) -> dict[str, Any]:
    """Measure single calls, through the gateway's process and with litellm in this one, in turn."""
    from flock_ray.actors.gateway_process import model_link
    from flock_ray.gateway.litellm import litellm_module
    from flock_ray.gateway.settings import GatewayPlan

    async with _flock(server, 1) as flock:
        await flock.start()
        link = model_link("bench", NAMESPACE, GatewayPlan(models={"*": server.settings}))
        link.begin()
        litellm = await asyncio.to_thread(litellm_module)
        litellm.turn_off_message_logging = False  # its own default: so has it who calls it himself
        settings = server.settings
        messages = [{"role": "user", "content": "What is the answer?"}]
        ours, direct = list[float](), list[float]()

        async def through_gateway() -> None:
            await link.complete(ModelRequest(model=MODEL, messages=messages))

        async def directly() -> None:
            await litellm.acompletion(
                model=MODEL, messages=messages, api_base=settings.api_base, num_retries=0, max_retries=0,
                api_key=settings.api_key.get_secret_value(),  # type: ignore[union-attr]  # the settings made it one
            )  # fmt: skip

        for turn in range(count // TURN + 1):
            for call, times in ((through_gateway, ours), (directly, direct)):
                for _ in range(TURN):
                    begun = time.perf_counter()
                    await call()
                    if turn:  # the first ones connect
                        times.append((time.perf_counter() - begun) * 1000)
                await asyncio.sleep(0.05)  # what is left to do behind the last answer
    return {"gateway_ms": median(ours), "litellm_ms": median(direct)}


def run(*, quick: bool) -> dict[str, Any]:
    """Measure on clusters of its own."""
    with _Server(LATENCY_S) as server:
        result = asyncio.run(_concurrent(server, 500 if quick else 10_000))
    with _Server(0.0) as server:
        result |= asyncio.run(_overhead(server, 50 if quick else 300))
    return result
