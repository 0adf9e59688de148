"""Throw-away Redis servers for tests: alone, with Sentinel, as a cluster. Each in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

START_S = 20.0
"""Longest time that anything here takes to come up."""


def need_redis() -> None:
    """Skip the test without redis-server; in CI that is a failure."""
    if shutil.which("redis-server") and shutil.which("redis-cli"):
        return
    message = "redis-server is not installed: apt-get install redis-server redis-tools"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    """Find a port whose cluster bus port (10,000 higher) can exist too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


@dataclass
class RedisServer:
    """One redis-server process; data survives a restart as far as its settings say."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict[str, str])
    password: str = ""
    port: int = field(default_factory=free_port)
    sentinel: bool = False
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> Any:
        """Connect a plain client, to look at and damage what is stored; its own types also cover awaiting it."""
        return redis.Redis(port=self.port, password=self.password or None, socket_timeout=START_S)

    def start(self, *, wait: bool = True) -> None:
        """Start the process on its old data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "redis.conf"
        if not (self.sentinel and config.exists()):
            config.write_text("".join(f"{name} {value}\n" for name, value in self._all_settings().items()))
        command = ["redis-server", str(config), *(["--sentinel"] if self.sentinel else [])]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        if wait:
            self.wait()

    def _all_settings(self) -> dict[str, str]:
        common = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder)}
        if self.sentinel:
            return common | self.settings
        sign_in = {"requirepass": self.password} if self.password else {}
        durable = {"save": '""', "appendonly": "yes", "appendfsync": "everysec"}
        return common | durable | sign_in | self.settings

    def wait(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            with contextlib.closing(self.client()) as client:
                try:
                    return bool(client.ping())
                except (redis.ConnectionError, redis.TimeoutError):
                    assert self.process is not None and self.process.poll() is None, self.log()
                    return False

        until(answers, f"redis-server in {self.folder}")

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Stop it from running, without closing its connections."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < end, f"took too long: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def redis_server(folder: Path, password: str = "", **settings: str) -> Iterator[RedisServer]:
    """Run a server; `_` in names of settings stands for `-`."""
    need_redis()
    server = RedisServer(
        folder, {name.replace("_", "-"): value for name, value in settings.items()}, password
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def redis_sentinels(
    folder: Path, sentinels: int = 3
) -> Iterator[tuple[list[RedisServer], list[RedisServer]]]:
    """Run a master, its replica and sentinels that watch them as `board`: ([master, replica], sentinels)."""
    need_redis()
    master = RedisServer(folder / "first")
    replica = RedisServer(
        folder / "second", {"replicaof": f"127.0.0.1 {master.port}", "repl-diskless-sync-delay": "0"}
    )
    watched = {
        "sentinel monitor board": f"127.0.0.1 {master.port} {sentinels // 2 + 1}",
        "sentinel down-after-milliseconds board": "500",
        "sentinel failover-timeout board": "3000",
    }
    watchers = [RedisServer(folder / f"sentinel-{n}", watched, sentinel=True) for n in range(sentinels)]
    everyone = [master, replica, *watchers]
    try:
        for server in everyone:
            server.start()
        with watchers[0].client() as client:
            until(lambda: _knows(client, sentinels), "sentinels find the replica and each other")
        yield [master, replica], watchers
    finally:
        for server in reversed(everyone):
            server.kill()


def _knows(sentinel: Any, sentinels: int) -> bool:
    state = sentinel.execute_command("SENTINEL", "MASTER", "board")
    facts = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
    texts = {_text(name): _text(value) for name, value in facts.items()}
    return texts.get("num-slaves") == "1" and texts.get("num-other-sentinels") == str(sentinels - 1)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def redis_cluster(folder: Path, nodes: int = 3, **settings: str) -> Iterator[list[RedisServer]]:
    """Run a cluster of masters that covers every slot."""
    need_redis()
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
    options |= {name.replace("_", "-"): value for name, value in settings.items()}
    servers = [RedisServer(folder / f"node-{n}", dict(options)) for n in range(nodes)]
    try:
        for server in servers:
            server.start()
        addresses = [server.address for server in servers]
        command = ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
        assert done.returncode == 0, done.stdout + done.stderr
        until(
            lambda: all(_covered(server) for server in servers), "every node knows that the cluster is whole"
        )
        yield servers
    finally:
        for server in servers:
            server.kill()


def _covered(server: RedisServer) -> bool:
    with server.client() as client:
        state = client.execute_command("CLUSTER INFO")
    if isinstance(state, dict):
        return bool(state["cluster_state"] == "ok")
    return "cluster_state:ok" in _text(state)
