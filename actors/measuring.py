"""What a shard tells a meter, from time to time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.measures import HELP, Measurement, measure

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from flock_ray.core.shard import ShardCore
    from flock_ray.ports import Clock, Meter

logger = logging.getLogger(__name__)

MEASURE_EVERY_S = 10.0


class ShardMeasuring:
    """The part of `Shard` that measures."""

    core: ShardCore
    index: int
    _clock: Clock
    _closed: bool

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        raise NotImplementedError  # Shard's

    async def measurements(self) -> bytes:
        """Return msgpack of the shard's `Measurement`s."""
        return msgspec.msgpack.encode(measure(self.core, self._clock.now_us()))

    def measure_into(self, meter: Meter, every_s: float = MEASURE_EVERY_S) -> None:
        """Tell a meter every so many seconds."""
        self._spawn(self._keep_measuring(Told(meter, self.index), every_s))

    async def _keep_measuring(self, told: Told, every_s: float) -> None:
        while not self._closed:
            await asyncio.sleep(every_s)
            try:
                told.tell(measure(self.core, self._clock.now_us()))
            except Exception:  # an exporter that fails must not end the shard; it is tried again
                logger.warning("shard %d can't be measured", self.index, exc_info=True)


class Told:
    """What a meter knows of one shard: counters are told as what was added, gauges that are gone as 0."""

    def __init__(self, meter: Meter, shard: int) -> None:
        """Begin with a meter that knows nothing."""
        self._meter = meter
        self._shard = {"shard": str(shard)}
        self._counted: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._gauges: set[tuple[str, tuple[tuple[str, str], ...]]] = set()

    def tell(self, found: list[Measurement]) -> None:
        """Tell it what was measured now."""
        gauges = set()
        for one in found:
            key = (one.name, one.labels)
            labels = {**self._shard, **dict(one.labels)}
            if one.kind == "gauge":
                gauges.add(key)
                self._meter.gauge(one.name, one.value, labels, HELP[one.name])
            elif added := one.value - self._counted.get(key, 0.0):
                self._counted[key] = one.value
                self._meter.count(one.name, added, labels, HELP[one.name])
        for name, gone in self._gauges - gauges:
            self._meter.gauge(name, 0.0, {**self._shard, **dict(gone)}, HELP[name])
        self._gauges = gauges
