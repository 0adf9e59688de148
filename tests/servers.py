"""A throw-away PostgreSQL server for tests: started, stopped, killed and restarted on one port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_START_TIMEOUT_S = 30.0
_SHARED_MEMORY = "/dev/shm"
_ROOMY_BYTES = 4 * 2**30


class ServerMissingError(Exception):
    """PostgreSQL is not installed on this machine."""


def _programs() -> Path:
    """Return the folder of the server's programs, of the newest version."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True
    )
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    if found is None:
        raise ServerMissingError("PostgreSQL is not installed: run scripts/services.sh.")
    return Path(found).resolve().parent


def _fast_folder() -> str | None:
    """Return a place in memory, where waiting for the disk takes no time, if there is plenty; else None."""
    try:
        disk = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return _SHARED_MEMORY if disk.f_bavail * disk.f_frsize > _ROOMY_BYTES else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """A server with a folder of its own; PostgreSQL refuses to run as root, so root runs it as `postgres`."""

    def __init__(self, *options: str) -> None:
        """Make an empty database cluster; `options` are settings such as `fsync=off`."""
        self._programs = _programs()
        self._user = "postgres" if os.getuid() == 0 else None
        self._options = [part for option in options for part in ("-c", option)]
        # Not pytest's own folder: the server's user must be able to reach it, by a path short enough for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="flock-pg-", dir=_fast_folder()))
        if self._user:
            shutil.chown(self.folder, self._user)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            "-D",
            "data",
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        )

    def _run(self, program: str, *args: str) -> None:
        command = [str(self._programs / program), *args]
        subprocess.run(
            command, cwd=self.folder, user=self._user, group=self._user, check=True, capture_output=True
        )

    def url(self, user: str = "postgres", password: str = "", database: str = "postgres") -> str:
        """Return the URL of a database."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start, on the port of the last start; returns when connections are accepted."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        chosen = self.port
        while True:
            # Another process may take a free port first, and children of a killed server live on for a moment.
            self.port = chosen or free_port()
            if self._try_start(deadline):
                return
            if time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def _try_start(self, deadline: float) -> bool:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", "data", "-h", "127.0.0.1", "-p", str(self.port),
                 "-k", str(self.folder), *self._options],
                cwd=self.folder, user=self._user, group=self._user, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        while process.poll() is None:
            if self._is_ready(process.pid):
                self._process = process
                return True
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.02)
        return False

    def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def require_password(self, user: str) -> None:
        """Let a user in with a password only; everybody else needs none."""
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {user} all scram-sha-256\n" + rules.read_text())
        self.send(signal.SIGHUP)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server's main process."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Shut down: connections are cut, everything is flushed."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server with -9, in the middle of whatever it does."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self.send(how)
            self._process.wait(_START_TIMEOUT_S)
            self._process = None

    def restart(self, *, kill: bool = False) -> None:
        """End the server and start it again on the same port."""
        self._end(signal.SIGKILL if kill else signal.SIGINT)
        self.start()

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)
