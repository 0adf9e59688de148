"""What both sides carry: ours and the toy must be given the same work in the same bites. Imports no Ray."""

from __future__ import annotations

HOPS = 3
"""Agents in the chain."""
PAYLOAD_BYTES = 300
TEXT = "x" * 270
"""Makes a model of the chain about as long in JSON."""
BATCHES = (100, 500)
"""Items per publish call; the architecture's 28,000 items/s were measured with 100."""
OUTSTANDING = 8
"""Publish calls that the driver keeps open for each shard."""
ITEMS, QUICK_ITEMS = 20_000, 5_000
LATENCY_SAMPLES, QUICK_LATENCY_SAMPLES = 300, 50
REPS = 3
