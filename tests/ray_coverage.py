"""A coverage plugin that writes the data of Ray worker processes while they run.

A Ray worker is ended by a signal that its main thread, waiting in C++, never gets to
handle, so what it executed would be lost.  The plugin is loaded by coverage itself in
every child process (see `[tool.coverage.run]`); outside Ray workers it does nothing.
"""

from __future__ import annotations

import sys
import threading
import time

import coverage
from coverage.plugin_support import Plugins

SAVE_INTERVAL = 0.25
"""Seconds between two saves; a worker that is killed loses at most this much."""


def coverage_init(reg: Plugins, options: dict[str, str]) -> None:
    """Start saving if this process is a Ray worker."""
    if getattr(sys, "orig_argv", []) and any(arg.endswith("default_worker.py") for arg in sys.orig_argv):
        threading.Thread(target=_save_forever, name="coverage-save", daemon=True).start()


def _save_forever() -> None:
    while True:
        time.sleep(SAVE_INTERVAL)
        if (current := coverage.Coverage.current()) is not None:
            current.save()
