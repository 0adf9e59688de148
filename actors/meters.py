"""Numbers for the metrics that Ray exports to Prometheus, from any process of a cluster."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

__all__ = ["RayMeter"]


class RayMeter:
    """A `Meter` that gives its numbers to Ray; its exporter calls them `ray_flock_...`."""

    def __init__(self, namespace: str) -> None:
        """Label everything with the namespace of the board."""
        self._namespace = {"board": namespace}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}

    def count(self, name: str, added: float, labels: Mapping[str, str], text: str) -> None:
        """Add to a counter."""
        labels = {**self._namespace, **labels}
        made = self._counters.get(name)
        if made is None:
            made = self._counters[name] = Counter(name, text, tuple(labels))
        made.inc(added, labels)

    def gauge(self, name: str, value: float, labels: Mapping[str, str], text: str) -> None:
        """Say how much there is of something."""
        labels = {**self._namespace, **labels}
        made = self._gauges.get(name)
        if made is None:
            made = self._gauges[name] = Gauge(name, text, tuple(labels))
        made.set(value, labels)
