"""What `bench.crowded` and `bench.overload` have measured, against their targets."""

from __future__ import annotations

from typing import Any

from bench.report import Row, _judge

MIN_POISON_RATIO = 0.80
MAX_REDRIVE_RATIO = 1.1
MAX_TENANT_RATIO = 2.0
MAX_FLOOD_GROWTH = 1.05
"""Of the memory of all processes, from a third of the time to its end."""
MAX_CANCEL_S = 1.0


def crowded_rows(result: dict[str, Any]) -> list[Row]:
    """Judge tenants, the flood and the calls that were given up."""
    tenants, flood, cancel = result["tenants"], result["flood"], result["cancel"]
    slower = tenants["beside_p99_ms"] / tenants["alone_p99_ms"]
    growth = flood["most_bytes"] / flood["full_bytes"]
    return [
        Row(
            f"p99 of a tenant beside another one's backlog of {tenants['backlog']:,}",
            f"{tenants['beside_p99_ms']:.1f} ms, alone {tenants['alone_p99_ms']:.1f} ms",
            ratio=f"{slower:.2f}x",
            target=f"<= {MAX_TENANT_RATIO:g}x",
            verdict=_judge(slower <= MAX_TENANT_RATIO),
        ),
        Row(
            f"memory while {flood['offered_per_s']:,.0f}/s are published for {flood['seconds']:.0f} s, capacity "
            f"{flood['capacity_per_s']:.0f}/s",
            f"{flood['full_bytes'] / 1e6:.0f} MB full, {flood['most_bytes'] / 1e6:.0f} MB at most",
            ratio=f"{growth:.2f}x",
            target=f"<= {MAX_FLOOD_GROWTH:g}x",
            verdict=_judge(growth <= MAX_FLOOD_GROWTH),
        ),
        Row(
            f"cancel {cancel['calls']} model calls, until their server sees the connections go",
            f"{cancel['dropped_s']:.2f} s",
            target=f"< {MAX_CANCEL_S:g} s",
            verdict=_judge(cancel["dropped_s"] < MAX_CANCEL_S),
        ),
    ]


def overload_rows(result: dict[str, Any]) -> list[Row]:
    """Judge poison among good messages, and a redrive beside a live workload."""
    rate = result["among_poison_per_s"] / result["pure_per_s"]
    slower = result["redrive_p99_ms"] / result["live_p99_ms"]
    return [
        Row(
            f"good messages/s with {result['poison']:,} poison ones among {result['good']:,}",
            f"{result['among_poison_per_s']:,.0f}, without {result['pure_per_s']:,.0f}",
            ratio=f"{rate:.0%}",
            target=f">= {MIN_POISON_RATIO:.0%}",
            verdict=_judge(rate >= MIN_POISON_RATIO),
        ),
        Row(
            f"live p99 beside a redrive of {result['redriven']:,} letters, 50/s",
            f"{result['redrive_p99_ms']:.1f} ms, without {result['live_p99_ms']:.1f} ms",
            ratio=f"{slower:.2f}x",
            target=f"<= {MAX_REDRIVE_RATIO:g}x",
            verdict=_judge(slower <= MAX_REDRIVE_RATIO),
        ),
    ]
