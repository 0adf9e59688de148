"""Summaries of artifacts: counted from some, and added up over chunks and shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from flock_ray.core.rows import Summary, visibility_kind
from flock_ray.core.wire import Envelope


def summarize(envelopes: Sequence[Envelope]) -> Summary:
    """Count artifacts by type, producer, visibility kind and tag."""
    times = [envelope.created_us for envelope in envelopes]
    return Summary(
        len(envelopes),
        dict(Counter(e.type for e in envelopes)),
        dict(Counter(e.produced_by for e in envelopes)),
        dict(Counter(visibility_kind(e.visibility) for e in envelopes)),
        dict(Counter(tag for e in envelopes for tag in e.tags)),
        min(times, default=0),
        max(times, default=0),
    )


def add_summaries(one: Summary, other: Summary) -> Summary:
    """Return the summary of both together."""
    if not one.total or not other.total:
        return one if one.total else other

    def both(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
        return {name: counts.get(name, 0) + more.get(name, 0) for name in counts | more}

    return Summary(
        one.total + other.total,
        both(one.by_type, other.by_type),
        both(one.by_producer, other.by_producer),
        both(one.by_visibility, other.by_visibility),
        both(one.tag_counts, other.tag_counts),
        min(one.earliest_us, other.earliest_us),
        max(one.latest_us, other.latest_us),
    )
