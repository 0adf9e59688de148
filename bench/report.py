"""Judges results against the targets, and prints ours beside the toy of the same run."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from bench.workload import BATCHES

Results = dict[str, dict[str, Any]]
Verdict = Literal["PASS", "FAIL", "ERROR", ""]

MIN_RATE_RATIO, GOAL_RATE_RATIO = 0.35, 0.60
MAX_LATENCY_RATIO = 2.0
MIN_DURABLE_RATIO = 0.40
MAX_COMMIT_RATIO = 3.0
MAX_RECOVERY_S = 5.0
MAX_STORED_RATIO = 1.5
MAX_BOARD_RATIO = 1.3
MAX_GROWTH_BYTES = 10_000_000
"""Of a process, for 100,000 artifacts more than retention keeps: 100 bytes each is fragmentation."""
MAX_SLOW_S = 5.0
MAX_WORKERS = 4
MAX_START_S = 8.0
MAX_MODEL_MEMORY_BYTES = 2_000_000_000
MAX_GATEWAY_MS = 5.0
MAX_FIRST_ANSWER_S = 12.0
MAX_MATCH_US = 50.0
MAX_MATCH_GROWTH = 1.3
MIN_CHUNKS_PER_S = 5_000.0
MAX_FAN_RATIO = 1.5
MAX_FAN_SHARD_BYTES = 200_000_000
MAX_YEAR_S = 10.0
MAX_QUIET_LOAD = 1.3
MAX_LARGE_RATIO = 1.5
MAX_LARGE_SHARD_BYTES = 200_000_000


class Row(NamedTuple):
    """One line of the table; an empty verdict is for information."""

    measure: str
    ours: str
    toy: str = ""
    ratio: str = ""
    target: str = ""
    verdict: Verdict = ""


def _judge(good: bool) -> Verdict:
    return "PASS" if good else "FAIL"


def _rate_rows(results: Results, shards: int) -> list[Row]:
    ours, toy = results.get(f"chain-{shards}"), results.get(f"toy-{shards}")
    rows = []
    for size in map(str, BATCHES):
        name = f"chain items/s, {shards} shard{'s' * (shards > 1)}, {size} per publish_many"
        mine = _number(ours, "batches", size, "items_per_s")
        ceiling = _number(toy, "batches", size, "items_per_s")
        if mine is None or ceiling is None:
            rows.append(Row(name, _count(mine), _count(ceiling)))
            continue
        ratio = mine / ceiling
        # Only one shard is judged: on two cores more shards are more processes than cores.
        judged = shards == 1
        target = f">= {MIN_RATE_RATIO:.0%}, goal {GOAL_RATE_RATIO:.0%}" if judged else ""
        verdict = _judge(ratio >= MIN_RATE_RATIO) if judged else ""
        rows.append(Row(name, _count(mine), _count(ceiling), f"{ratio:.0%}", target, verdict))
    return rows


def _pushed_rows(results: Results) -> list[Row]:
    """Put ours beside the toy with the architecture's hops; for information, the quicker toy is what is judged."""
    ours, toy = results.get("chain-1"), results.get("toy-pushed")
    size = str(min(BATCHES))
    mine, ceiling = (_number(result, "batches", size, "items_per_s") for result in (ours, toy))
    ratio = "" if mine is None or ceiling is None else f"{mine / ceiling:.0%}"
    name = f"the same, {size} per call, toy whose results are pushed"
    return [] if toy is None else [Row(name, _count(mine), _count(ceiling), ratio)]


def _number(result: dict[str, Any] | None, *path: str) -> float | None:
    value: Any = result
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return float(value)


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _cpu_rows(results: Results) -> list[Row]:
    """Say where the time goes, by process; a rate by CPU also holds on a busy machine."""
    costs = {
        label: result["batches"][size]["cpu_us_per_item"]
        for label in ("chain-1", "toy-1")
        if (result := results.get(label)) is not None
        for size in [str(max(BATCHES))]
    }
    rows = [
        Row(
            f"CPU us per item, {label}", ", ".join(f"{role} {us:.0f}" for role, us in cost.items() if us >= 1)
        )
        for label, cost in costs.items()
    ]
    if len(costs) == 2:
        ours, toy = sum(costs["chain-1"].values()), sum(costs["toy-1"].values())
        rows.append(Row("CPU us per item, all processes", f"{ours:.0f}", f"{toy:.0f}", f"{toy / ours:.0%}"))
    return rows


def _load_rows(results: Results) -> list[Row]:
    loads = [result[key] for result in results.values() for key in ("load_before", "load_after")]
    worst = max(loads, default=1.0)
    note = "busy: measure again before believing a rate" if worst > MAX_QUIET_LOAD else "quiet"
    return [Row("machine's load, worst (1.0: all cores free)", f"{worst:.2f} ({note})")]


def _latency_rows(results: Results) -> list[Row]:
    ours, toy = results.get("chain-1"), results.get("toy-1")
    rows = []
    for key, until, judged in (("latency_ms", "idle", True), ("latency_wait_ms", "flock.wait", False)):
        for point in ("p50", "p99"):
            mine, floor = _number(ours, key, point), _number(toy, "latency_ms", point)
            name = f"chain latency {point}, publish until {until}"
            if mine is None or floor is None:
                rows.append(Row(name, _milliseconds(mine), _milliseconds(floor)))
                continue
            ratio = mine / floor
            counts = judged and point == "p50"
            target = f"<= {MAX_LATENCY_RATIO:g}x" if counts else ""
            verdict: Verdict = _judge(ratio <= MAX_LATENCY_RATIO) if counts else ""
            rows.append(
                Row(name, _milliseconds(mine), _milliseconds(floor), f"{ratio:.2f}x", target, verdict)
            )
    return rows


def _board_rows(result: dict[str, Any]) -> list[Row]:
    curve = result["per_artifact"]
    rows = [
        Row(
            f"{kind} us per artifact by board size",
            ", ".join(f"{cost[f'{kind}_us']:.0f} at {int(size):,}" for size, cost in curve.items()),
        )
        for kind in ("wall", "cpu")
    ]
    rows += [
        Row(f"CPU at {result['artifacts']:,} / lowest", f"{result['cpu_ratio']:.2f}"),
        Row(
            f"wall at {result['artifacts']:,} / lowest",
            f"{result['ratio']:.2f}",
            target=f"<= {MAX_BOARD_RATIO}",
            verdict=_judge(result["ratio"] <= MAX_BOARD_RATIO),
        ),
    ]
    below, past = (result["growth_bytes_per_100k"][key] for key in ("below_retention", "past_retention"))
    kept = f"past retention of {result['retained']:,}"
    rows.append(
        Row(f"wall us per artifact {kept}", f"{result['per_artifact_past_retention']['wall_us']:.0f}")
    )
    for role in sorted(role for role in below if "shard" in role.lower() or role == "driver"):
        rows.append(
            Row(
                f"{role} MB per 100k artifacts, then {kept}",
                f"{below[role] / 1e6:+.0f}, {past[role] / 1e6:+.0f}",
                target=f"then <= {MAX_GROWTH_BYTES / 1e6:.0f} MB",
                # A quick run has too few artifacts to tell growth from the allocator's last steps.
                verdict=_judge(past[role] <= MAX_GROWTH_BYTES) if result["artifacts"] >= 100_000 else "",
            )
        )
    return rows


def _slow_rows(result: dict[str, Any]) -> list[Row]:
    seconds, workers = result["seconds"], result["worker_processes"]
    return [
        Row(
            f"{result['activations']:,} activations of {result['sleep_s']:g} s",
            f"{seconds:.2f} s",
            target=f"< {MAX_SLOW_S:g} s",
            verdict=_judge(seconds < MAX_SLOW_S),
        ),
        Row(
            "worker processes for them",
            str(workers),
            target=f"1 to {MAX_WORKERS}",
            verdict=_judge(1 <= workers <= MAX_WORKERS),
        ),
    ]


def _early_rows(result: dict[str, Any]) -> list[Row]:
    from bench.early_decisions import rows

    return [Row(*cells[:-1], verdict=_judge(cells[-1])) for cells in rows(result)]


def _model_rows(result: dict[str, Any]) -> list[Row]:
    memory, first = result["total_memory_bytes"], result["first_answer_s"]
    added = result["gateway_ms"] - result["litellm_ms"]
    cpu = ", ".join(f"{role} {cost / 1000:.1f}" for role, cost in list(result["cpu_us_per_call"].items())[:4])
    return [
        Row(
            f"memory of all processes, {result['calls']:,} model calls at once",
            f"{memory / 1e6:,.0f} MB",
            target=f"< {MAX_MODEL_MEMORY_BYTES / 1e9:g} GB",
            verdict=_judge(memory < MAX_MODEL_MEMORY_BYTES),
        ),
        Row("seconds for them (server: 2 s each)", f"{result['seconds']:.1f} s"),
        Row("CPU per call, ms", cpu),
        Row(
            "a model call through the gateway, p50 (column toy: litellm directly)",
            f"{result['gateway_ms']:.1f} ms",
            f"{result['litellm_ms']:.1f} ms",
            target=f"< {MAX_GATEWAY_MS:g} ms more",
            verdict=_judge(added < MAX_GATEWAY_MS),
        ),
        Row(
            "Flock() to first answer of a model, cold, without the server's 2 s",
            f"{first:.1f} s",
            target=f"< {MAX_FIRST_ANSWER_S:g} s",
            verdict=_judge(first < MAX_FIRST_ANSWER_S),
        ),
    ]


def _startup_rows(result: dict[str, Any]) -> list[Row]:
    seconds = result["first_result_s"]
    return [
        Row(
            "Flock() to first result, cold",
            f"{seconds:.1f} s",
            target=f"< {MAX_START_S:g} s",
            verdict=_judge(seconds < MAX_START_S),
        ),
        Row("whole process, with import and shutdown", f"{result['process_s']:.1f} s"),
    ]


def _match_rows(result: dict[str, Any]) -> list[Row]:
    cost, growth = result["worst_match_us"], result["growth"]
    return [
        Row(
            "match one artifact, 1,000 subscriptions of 200 types",
            f"{cost:.1f} us",
            target=f"< {MAX_MATCH_US:g} us",
            verdict=_judge(cost < MAX_MATCH_US),
        ),
        Row(
            "match cost, 5,000 subscriptions / 5",
            f"{growth:.2f}",
            target=f"<= {MAX_MATCH_GROWTH}",
            verdict=_judge(growth <= MAX_MATCH_GROWTH),
        ),
    ]


def _year_rows(result: dict[str, Any]) -> list[Row]:
    seconds = result["year_s"]
    return [
        Row(
            "a year with 100 daily schedules, in virtual time",
            f"{seconds:.1f} s CPU",
            target=f"< {MAX_YEAR_S:g} s",
            verdict=_judge(seconds < MAX_YEAR_S),
        )
    ]


def _durable_rows(results: Results) -> list[Row]:
    """Each backend beside the in-memory figure, and beside what it can do by itself."""
    memory = results.get("durable-memory")
    rows = []
    for backend in ("memory", "sqlite", "postgres", "redis"):
        result = results.get(f"durable-{backend}")
        if result is None:
            continue
        rate, base = result["items_per_s"], _number(memory, "items_per_s")
        judged = backend != "memory" and base is not None
        rows.append(
            Row(
                f"durable chain on {backend}, {result['shards']} shard(s), items/s (column toy: in memory)",
                _count(rate),
                _count(base),
                f"{rate / base:.0%}" if base else "",
                f">= {MIN_DURABLE_RATIO:.0%}" if judged else "",
                _judge(rate >= MIN_DURABLE_RATIO * base) if judged and base else "",
            )
        )
        rows.append(
            Row(f"one chain on an idle {backend} board, p50", _milliseconds(result["chain_ms"]["p50"]))
        )
        if backend == "memory":
            rows.append(
                Row("one publish on an idle memory board, p50", _milliseconds(result["publish_ms"]["p50"]))
            )
        rows.append(Row(f"a call of a shard on {backend}, p50", _milliseconds(result["call_ms"]["p50"])))
        if floor := result["floor"]:
            rows += _floor_rows(backend, result, floor)
    return rows


def _floor_rows(backend: str, result: dict[str, Any], floor: dict[str, Any]) -> list[Row]:
    share = result["items_per_s"] * 4 / floor["rows_per_s"]
    rows = [
        Row(
            f"artifacts/s on {backend} (column toy: rows of 300 B in batches of 100)",
            _count(result["items_per_s"] * 4),
            _count(floor["rows_per_s"]),
            f"{share:.0%}",
        ),
        _single_row(f"{backend}, p50 (column toy: one row, one commit)", result),
    ]
    if far := result["away"]:
        rows.append(_single_row(f"{backend} {far['away_ms']:g} ms away, p50 (column toy: the same)", far))
    return rows


def _single_row(where: str, result: dict[str, Any]) -> Row:
    single, commit = result["publish_ms"]["p50"], result["floor"]["commit_ms"]["p50"]
    return Row(
        f"one durable publish on {where}",
        f"{single:.2f} ms",
        f"{commit:.2f} ms",
        f"{single / commit:.2f}x",
        f"<= {MAX_COMMIT_RATIO:g}x",
        _judge(single <= MAX_COMMIT_RATIO * commit),
    )


def _recovery_rows(results: Results) -> list[Row]:
    """How long shards take to come back, and what ten and a hundred times more on the board changes."""
    rows = []
    for backend in ("sqlite", "postgres", "redis"):
        sizes = {
            key: part
            for key, part in results.get(f"recovery-{backend}", {}).items()
            if isinstance(part, dict)
        }
        for key, part in sizes.items():
            kind, size = key.split("-")
            limit = MAX_RECOVERY_S if kind == "live" and int(size) == 100_000 and backend != "redis" else None
            rows.append(
                Row(
                    f"recovery from {backend}, {int(size):,} artifacts, {'all' if kind == 'live' else 'none'} live",
                    f"{part['recovery_s']:.2f} s",
                    target=f"< {limit:g} s" if limit else "",
                    verdict=_judge(part["recovery_s"] < limit) if limit else "",
                )
            )
        small, large = sizes.get("settled-10000"), sizes.get("settled-1000000")
        if small and large:
            for name in ("type_page_ms", "workflow_page_ms", "tag_page_ms", "recovery_s"):
                ratio = large[name] / small[name]
                rows.append(
                    Row(
                        f"{name.removesuffix('_ms').removesuffix('_s')} on {backend}, 1,000,000 / 10,000 artifacts",
                        f"{large[name]:.2f}", f"{small[name]:.2f}", f"{ratio:.2f}x", f"<= {MAX_STORED_RATIO:g}x",
                        _judge(ratio <= MAX_STORED_RATIO),
                    )
                )  # fmt: skip
            ratio = small["publish_per_s"] / large["publish_per_s"]
            rows.append(
                Row(
                    f"artifacts/s on {backend}, 10,000 / 1,000,000", _count(small["publish_per_s"]),
                    _count(large["publish_per_s"]), f"{ratio:.2f}x", f"<= {MAX_STORED_RATIO:g}x",
                    _judge(ratio <= MAX_STORED_RATIO),
                )
            )  # fmt: skip
    return rows


def _fan_rows(result: dict[str, Any]) -> list[Row]:
    small, large = result["small"], result["large"]
    rate, ratio = small["chunks_per_s"], result["ratio"]
    largest = large["shard_bytes"]
    name = f"{large['megabytes']:,} MB in chunks of 1 MB, beside plain Ray tasks"
    return [
        Row(f"fan-out of {small['chunks']:,} small chunks, merged in a tree, chunks/s", _count(rate), "", "",
            f">= {MIN_CHUNKS_PER_S:,.0f}", _judge(rate >= MIN_CHUNKS_PER_S)),
        Row("largest shard meanwhile", f"{small['shard_bytes'] / 1e6:,.0f} MB"),
        Row(name, f"{large['seconds']:.1f} s", f"{large['plain_s']:.1f} s", f"{ratio:.2f}", f"<= {MAX_FAN_RATIO}",
            _judge(ratio <= MAX_FAN_RATIO)),
        Row("largest shard meanwhile", f"{largest / 1e6:,.0f} MB", "", "", f"< {MAX_FAN_SHARD_BYTES / 1e6:,.0f} MB",
            _judge(largest < MAX_FAN_SHARD_BYTES)),
    ]  # fmt: skip


def _large_rows(results: Results) -> list[Row]:
    """Agents beside plain Ray tasks on the same chunks, and what the shard's process had at most."""
    rows: list[Row] = []
    for backend in ("memory", "sqlite"):
        result = results.get(f"large-{backend}")
        if result is None:
            continue
        ours, tasks = result["large"], result.get("tasks")
        name = f"{result['chunks']:,} chunks of 1 MB, made, counted and merged, {backend}"
        if tasks is None:
            rows.append(Row(name, f"{ours['seconds']:.1f} s"))
        else:
            ratio = ours["seconds"] / tasks["seconds"]
            rows.append(
                Row(
                    f"{name} (column toy: Ray tasks)", f"{ours['seconds']:.1f} s", f"{tasks['seconds']:.1f} s",
                    f"{ratio:.2f}x", f"<= {MAX_LARGE_RATIO:g}x", _judge(ratio <= MAX_LARGE_RATIO),
                )
            )  # fmt: skip
        cpu = ", ".join(f"{role} {us / 1000:.1f}" for role, us in list(ours["cpu_us_per_chunk"].items())[:6])
        rows.append(Row(f"CPU ms per chunk, {backend}", cpu))
        for key, what in (("large", ""), ("small", ", ten times the chunks of a tenth")):
            if key in result:
                peak = result[key]["shard_peak_bytes"]
                rows.append(
                    Row(
                        f"peak memory of the shard, {backend}{what}", f"{peak / 1e6:.0f} MB",
                        target=f"< {MAX_LARGE_SHARD_BYTES / 1e6:.0f} MB", verdict=_judge(peak < MAX_LARGE_SHARD_BYTES),
                    )
                )  # fmt: skip
    return rows


def judge(results: Results) -> list[Row]:
    """Turn results by job label into rows; a failed job is a row with the verdict ERROR."""
    from bench.crowded_rows import crowded_rows, overload_rows  # it needs `Row`

    good = {label: result for label, result in results.items() if "error" not in result}
    rows: list[Row] = []
    for shards in (1, 2, 4):
        if f"chain-{shards}" in good or f"toy-{shards}" in good:
            rows += _rate_rows(good, shards)
            if shards == 1:
                rows += _pushed_rows(good)
    if "chain-1" in good or "toy-1" in good:
        rows += _cpu_rows(good)
        rows += _latency_rows(good)
    if "naive" in good:
        rows.append(Row("naive per-artifact hops, items/s", "", _count(good["naive"]["items_per_s"])))
    single = {
        "board_size": _board_rows,
        "slow_async": _slow_rows,
        "model_calls": _model_rows,
        "overload": overload_rows,
        "fan_out": _fan_rows,
        "early_decisions": _early_rows,
        "crowded": crowded_rows,
        "startup": _startup_rows,
        "match_cost": _match_rows,
        "year": _year_rows,
    }
    for label, make in single.items():
        if label in good:
            rows += make(good[label])
    rows += _large_rows(good) + _durable_rows(good) + _recovery_rows(good)
    rows += [Row(label, results[label]["error"], verdict="ERROR") for label in results.keys() - good.keys()]
    return rows + _load_rows(results)


def table(rows: list[Row]) -> str:
    """Format rows as aligned columns."""
    lines = [Row("measure", "ours", "toy", "ratio", "target"), *rows]
    # A sentence in a cell runs over the columns to its right, which it leaves empty.
    widths = [
        max((len(line[column]) for line in lines if any(line[column + 1 :])), default=0)
        for column in range(len(Row._fields))
    ]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
