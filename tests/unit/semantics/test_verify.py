from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.adapters.memory import MemoryDisk
from flock_ray.errors import ConfigurationError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from flock_ray.verifying import Verdict, verify_board


@flock_type(name="verify.In")
class In(BaseModel):
    n: int


@flock_type(name="verify.Mid")
class Mid(BaseModel):
    n: int


@flock_type(name="verify.Out")
class Out(BaseModel):
    n: int


def fail(mid: Mid) -> Out:
    raise ValueError("no")


async def board(shards: int = 1) -> MemoryPersistence:
    """A stored board on which a chain, an AND gate and a failing agent have run."""
    kept = MemoryPersistence()
    async with VirtualFlock(persistence=kept, shards=shards) as flock:
        flock.agent("first").consumes(In).publishes(Mid).runs(lambda item: Mid(n=item.n))
        flock.agent("both").consumes(In, Mid).publishes(Out).runs(lambda item, mid: Out(n=item.n))
        flock.agent("fails").consumes(Mid).publishes(Out).runs(fail)
        for n in range(5):
            await flock.publish(In(n=n))
        await flock.run_until_idle()
    return kept


@pytest.mark.parametrize("shards", [1, 3])
def test_a_board_that_ran_undisturbed_has_nothing_to_explain(shards: int) -> None:
    verdict: Verdict = run_virtual(_verdict(shards, lambda disk: None))
    assert verdict.violations == []
    assert (verdict.artifacts, verdict.activations) == (20, 15)


async def _verdict(shards: int, tamper: Callable[[MemoryDisk], None]) -> Verdict:
    kept = await board(shards)
    for disk in kept.boards["default"].values():
        tamper(disk)
    return await verify_board(kept, "default")


def lose_an_artifact(disk: MemoryDisk) -> None:
    position = next(seq for seq, e in disk.artifacts.items() if e.type == "verify.Mid")
    del disk.artifacts[position]


def lose_an_activation(disk: MemoryDisk) -> None:
    del disk.ended[next(key for key, row in disk.ended.items() if row.agent == "first")]


def store_an_artifact_twice(disk: MemoryDisk) -> None:
    disk.artifacts[max(disk.artifacts) + 1] = next(iter(disk.artifacts.values()))


def run_twice(disk: MemoryDisk) -> None:
    row = next(row for row in disk.ended.values() if row.agent == "first")
    again = msgspec.structs.replace(row, id=b"another activatn", outputs=())
    disk.ended[again.id] = again


def put_a_child_before_its_parent(disk: MemoryDisk) -> None:
    child = next(seq for seq, e in disk.artifacts.items() if e.type == "verify.Mid")
    disk.artifacts = {1 - child: disk.artifacts.pop(child), **disk.artifacts}
    disk.artifacts = {seq + child + 1: e for seq, e in disk.artifacts.items()}


def write_another_slot(disk: MemoryDisk) -> None:
    seq, envelope = next(iter(disk.artifacts.items()))
    disk.artifacts[seq] = msgspec.structs.replace(envelope, slot=(envelope.slot + 1) % 256)


@pytest.mark.parametrize(
    ("tamper", "guarantee", "says"),
    [
        (lose_an_artifact, "G2", "is not on the board"),
        (lose_an_artifact, "G1", "counted"),
        (lose_an_activation, "G2", "never ended"),
        (store_an_artifact_twice, "G2", "stored twice"),
        (run_twice, "G2", "consumed it twice"),
        (run_twice, "G2", "is not the activation of"),
        (put_a_child_before_its_parent, "G4", "before its parent"),
        (write_another_slot, "G3", "does not belong to slot"),
    ],
)
def test_what_breaks_a_guarantee_is_found_and_explained(
    tamper: Callable[[MemoryDisk], None], guarantee: str, says: str
) -> None:
    verdict: Verdict = run_virtual(_verdict(1, tamper))
    assert any(v.guarantee == guarantee and says in v.explanation for v in verdict.violations), (
        verdict.violations
    )


def test_what_was_acknowledged_must_be_there(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    lost = "00" * 16
    history.write_text(
        f'{{"board": "default", "op": "accepted", "id": "{lost}"}}\n{{"board": "default", "op"'
    )

    async def scenario() -> Verdict:
        return await verify_board(await board(), "default", history=history)

    verdict = run_virtual(scenario())
    assert [(v.guarantee, v.subject) for v in verdict.violations] == [("G1", lost)]


def test_an_unknown_board_is_said_so() -> None:
    with pytest.raises(ConfigurationError, match="no board 'defualt'"):
        run_virtual(verify_board(MemoryPersistence(), "defualt"))
