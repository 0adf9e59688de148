from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

SCRIPT = textwrap.dedent("""
    import asyncio
    import json

    import ray
    from topics import Question, Answer, answer

    from flock_ray import Flock

    async def main():
        async with Flock(max_workers=1) as flock:
            flock.agent("answer").consumes(Question).publishes(Answer).runs(answer)
            await flock.publish_many([Question(n=n) for n in range(5)])
            await flock.run_until_idle(timeout=100)
            print("RESULT", json.dumps(sorted(a.n for a in await flock.store.get_by_type(Answer))))
        named = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]
        print("LEFT", json.dumps([name for name in named if name.startswith("flock:")]))

    asyncio.run(main())
""")

TOPICS = textwrap.dedent("""
    from pydantic import BaseModel
    from flock_ray import flock_type

    @flock_type
    class Question(BaseModel):
        n: int

    @flock_type
    class Answer(BaseModel):
        n: int

    def answer(question: Question) -> Answer:
        return Answer(n=question.n ** 2)
""")


RAY = "ray.scripts.scripts"


@dataclass(frozen=True)
class Head:
    """A Ray cluster of one node, as an operator starts it."""

    gcs: str
    dashboard: str
    python: str
    """Of this environment, by a path without spaces: `ray start` does not quote it."""

    def submit(self, folder: Path) -> list[str]:
        """Return the command that submits a folder; what runs there is appended."""
        return [
            self.python,
            "-m",
            RAY,
            "job",
            "submit",
            "--address",
            self.dashboard,
            "--working-dir",
            str(folder),
        ]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def _end_tree(pid: int) -> None:
    """End a process and everything that descends from it, and nothing else."""
    tree = [pid]
    for one in tree:
        tree.extend(_children(one))
    for one in tree:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _can_connect(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start a head node with token authentication on free ports; ended by its own process ids."""
    gcs, dashboard, agent, client, metrics = _free_ports(5)
    # Ray's sockets live below it, and their paths may not be longer than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = Path(folder) / "env"
        environment.symlink_to(sys.prefix)
        python = str(environment / "bin" / "python")
        with (Path(folder) / "head.log").open("w") as log:
            command = [
                python, "-m", RAY, "start", "--head", "--block", f"--port={gcs}", "--num-cpus=4",
                f"--temp-dir={folder}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats",
                f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
                f"--metrics-export-port={metrics}",
            ]  # fmt: skip
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while not _can_connect(f"127.0.0.1:{dashboard}"):
                assert process.poll() is None, (Path(folder) / "head.log").read_text()
                assert time.monotonic() < deadline, "the head did not start"
                time.sleep(0.2)
            yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", python)
        finally:
            _end_tree(process.pid)
            process.wait()


@pytest.fixture
def job_folder(tmp_path: Path) -> Path:
    """A folder as a user has it: a script and a module that it imports."""
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "topics.py").write_text(TOPICS)
    return tmp_path


def _run(command: list[str], folder: Path, **env: str) -> str:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, **env},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def _value_of(key: str, output: str) -> object:
    line = next(line for line in output.splitlines() if line.startswith(key))
    return json.loads(line.removeprefix(key))


def test_a_script_runs_as_a_submitted_job_and_by_address_and_leaves_no_actor(
    head: Head, job_folder: Path
) -> None:
    # When a folder is submitted to a cluster
    submitted = _run([*head.submit(job_folder), "--", head.python, "job.py"], job_folder)

    # Then the job succeeds on that cluster's workers, and its board is gone
    assert "succeeded" in submitted
    assert _value_of("RESULT", submitted) == [0, 1, 4, 9, 16]
    assert _value_of("LEFT", submitted) == []

    # And the same script run from outside with the cluster's address does the same
    direct = _run([head.python, "job.py"], job_folder, RAY_ADDRESS=head.gcs)
    assert _value_of("RESULT", direct) == [0, 1, 4, 9, 16]
    assert _value_of("LEFT", direct) == []


def test_the_demo_runs_as_a_submitted_job(head: Head, tmp_path: Path) -> None:
    # Given a folder with the demo and a small tree to review
    shutil.copytree(
        Path(__file__).parents[2] / "examples",
        tmp_path / "examples",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "risky.py").write_text("def run(code):\n    return eval(code)\n")
    (tmp_path / "tree" / "plain.py").write_text('"""Nothing to see."""\n')

    # When it is submitted
    output = _run(
        [
            *head.submit(tmp_path),
            "--",
            head.python,
            "-m",
            "examples.review",
            "--input",
            "tree",
            "--out",
            "out",
        ],
        tmp_path,
    )

    # Then it finds what there is to find, on that cluster
    assert "succeeded" in output
    assert "eval runs text as code" in output
    assert "2 files" in output
