"""Runs one measurement in a fresh process, so that clusters do not overlap and no warmth is inherited."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import REPOSITORY, spin_load
from bench.processes import descendants, role_of

TIMEOUT_S = 300.0


class Job(NamedTuple):
    """A measurement: a module of this package and the arguments of its `run`."""

    module: str
    arguments: dict[str, Any]
    label: str
    timeout_s: float = TIMEOUT_S


def prepare_environment(environment: MutableMapping[str, str]) -> None:
    """Set a token for this run's clusters and let Python keep bytecode; before `import ray`.

    Without bytecode `import ray` takes three times as long, which is not what we measure.
    """
    environment["RAY_AUTH_MODE"] = "token"
    environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    environment.pop("RAY_ADDRESS", None)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment.setdefault("PYTHONPYCACHEPREFIX", str(REPOSITORY / ".cache" / "pycache"))


def run_here(module: str, arguments: dict[str, Any], output: Path) -> None:
    """Run a measurement in this process and write its result as JSON."""
    result = importlib.import_module(f"bench.{module}").run(**arguments)
    output.write_text(json.dumps(result))


def run_job(job: Job) -> dict[str, Any]:
    """Run a measurement in a process of its own.

    Returns:
        Its result, with the machine's load before and after; `error` instead when it failed.
    """
    environment = dict(os.environ)
    prepare_environment(environment)
    before = spin_load()
    with tempfile.TemporaryDirectory(prefix="flock-bench-") as folder:
        output = Path(folder, "result.json")
        command = [sys.executable, "-m", "bench", "--child", job.module]
        command += ["--arguments", json.dumps(job.arguments), "--output", str(output)]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
        error = _wait(process, job.timeout_s)
        result: dict[str, Any] = {"error": error} if error else json.loads(output.read_text())
    return {**result, "load_before": round(before, 2), "load_after": round(spin_load(), 2)}


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> str | None:
    """Return None when the process ended well, otherwise what happened."""
    try:
        code = process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"no result in {timeout_s:.0f} s"
    except BaseException:
        _end(process)
        raise
    return f"exit code {code}; see the output above" if code else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a measurement and the cluster it started, politely first."""
    started = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in _still_ours(started):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _still_ours(started: dict[int, str]) -> set[int]:
    """Return the pids that still run what they ran; a number may have been given to another process."""
    return {pid for pid, role in started.items() if role_of(pid) == role}
