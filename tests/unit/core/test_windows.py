"""Windows on event time against an oracle that looks at whole streams, thousands of them, out of order."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.ballots import WindowRule
from flock_ray.core.windows import Panes

Window = tuple[int, int, tuple[int, ...]]


class Outcome(NamedTuple):
    windows: list[Window]
    late: list[int]


def ran(rule: WindowRule, stream: list[int], *, rebuild: bool = False) -> Outcome:
    """Feed a stream one by one; `rebuild` makes the panes anew from what they hold before every event."""
    panes = Panes[int](rule)
    windows: list[Window] = []
    late: list[int] = []
    for place, at in enumerate(stream):
        if rebuild:
            held = panes.held()
            things = [(t, p) for p, t in enumerate(stream[:place]) if id(p) in held]
            panes = Panes(rule, panes.watermark_us, things)
        if not panes.add(at, place):
            late.append(place)
        windows += [(p.from_us, p.until_us, tuple(p.things)) for p in panes.take_over()]
    windows += [(p.from_us, p.until_us, tuple(p.things)) for p in panes.take_all()]
    assert not panes.spans
    return Outcome(windows, late)


def expected(rule: WindowRule, stream: list[int]) -> Outcome:
    """What the definition says: a window takes what came before the watermark reached its end."""
    return sessions(rule, stream) if rule.kind == "session" else pieces(rule, stream)


def pieces(rule: WindowRule, stream: list[int]) -> Outcome:
    slide = rule.slide_us or rule.size_us
    found: dict[int, list[int]] = {}
    late = []
    watermark = -(10**9)
    for place, at in enumerate(stream):
        starts = [
            s for s in range(at - at % slide - rule.size_us - slide, at + 1)
            if s % slide == 0 and s <= at < s + rule.size_us and s + rule.size_us > watermark
        ]  # fmt: skip
        for start in starts:
            found.setdefault(start, []).append(place)
        if not starts:
            late.append(place)
        else:
            watermark = max(watermark, at - rule.lateness_us)
    return Outcome([(s, s + rule.size_us, tuple(places)) for s, places in found.items()], late)


def sessions(rule: WindowRule, stream: list[int]) -> Outcome:
    """Chains of events less than a gap apart, of those that came while the chain was open."""
    gap = rule.size_us
    closed: list[Window] = []
    opened: list[int] = []
    late = []
    watermark = -(10**9)
    for place, at in enumerate(stream):
        touches = any(abs(stream[other] - at) < gap for other in opened)
        if at + gap <= watermark and not touches:
            late.append(place)
            continue
        opened.append(place)
        watermark = max(watermark, at - rule.lateness_us)
        for chain in chains(stream, opened, gap):
            end = max(stream[p] for p in chain) + gap
            if end <= watermark:
                closed.append((min(stream[p] for p in chain), end, tuple(sorted(chain))))
                opened = [p for p in opened if p not in chain]
    for chain in chains(stream, opened, gap):
        closed.append(
            (min(stream[p] for p in chain), max(stream[p] for p in chain) + gap, tuple(sorted(chain)))
        )
    return Outcome(closed, late)


def chains(stream: list[int], places: list[int], gap: int) -> list[list[int]]:
    found: list[list[int]] = []
    for place in sorted(places, key=lambda p: (stream[p], p)):
        if found and stream[place] - stream[found[-1][-1]] < gap:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def rule_of(rng: random.Random) -> WindowRule:
    kind = rng.choice(("tumbling", "sliding", "session"))
    size = rng.randint(1, 12)
    slide = rng.randint(1, size) if kind == "sliding" else 0
    return WindowRule(kind, size, slide, rng.choice((0, 0, 1, 5, 20)))


def check(rule: WindowRule, stream: list[int]) -> None:
    got, want = ran(rule, stream), expected(rule, stream)
    assert sorted(got.windows) == sorted(want.windows), (rule, stream)
    assert got.late == want.late
    assert ran(rule, stream, rebuild=True) == got, "what a recovery rebuilds goes on in another way"


@pytest.mark.parametrize("block", range(4))
def test_three_thousand_random_streams_out_of_order(block: int) -> None:
    for seed in range(block * 750, block * 750 + 750):
        rng = random.Random(seed)
        now, disorder, stream = 0, rng.choice((0, 2, 8, 30)), []
        for _ in range(rng.randint(1, 40)):
            now += rng.choice((0, 1, 1, 2, 7))
            stream.append(max(0, now - rng.randint(0, disorder)))
        check(rule_of(rng), stream)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 60), max_size=25))
@settings(max_examples=300, deadline=None)
def test_any_stream(seed: int, stream: list[int]) -> None:
    check(rule_of(random.Random(seed)), stream)


def test_every_event_has_one_fate_and_panes_hold_only_what_is_open() -> None:
    panes = Panes[int](WindowRule("tumbling", 10, 0, 5))
    for at in range(0, 10_000, 3):
        panes.add(at, at)
        panes.take_over()
        assert len(panes.held()) <= 10


def test_windows_that_are_over_come_in_the_order_of_their_ends() -> None:
    panes = Panes[int](WindowRule("sliding", 10, 5, 0))
    for at in (1, 6, 40):
        panes.add(at, at)
    assert [5, 10, 15] == [pane.until_us for pane in panes.take_over()]
