"""Dead letters on a real Ray: over a killed shard, with two who redrive, by the command, and as alerts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flock_ray import DeadLetterQueue, Flock, SQLitePersistence, Webhook, flock_type
from flock_ray.letters.alerts import LetterAlert
from flock_ray.webhooks import verify_signature

NewFlock = Callable[..., Flock]
SECRET = "a secret of the tests, long enough"


@flock_type(name="dead.Order")
class Order(BaseModel):
    n: int
    folder: str = ""


@flock_type(name="dead.Parcel")
class Parcel(BaseModel):
    n: int


def pack(order: Order) -> Parcel:
    with (Path(order.folder) / f"runs-{order.n}").open("a") as file:
        file.write("x")
    if not (Path(order.folder) / "mended").exists():
        raise ValueError(f"can't pack {order.n}")
    return Parcel(n=order.n)


def declare(flock: Flock, queue: Any = "unpacked") -> None:
    flock.agent("packer").consumes(Order).publishes(Parcel).runs(pack).retry(
        max_attempts=1, dead_letter=queue
    )


async def kill_shard(flock: Flock, index: int) -> None:
    board = await flock._ready_board()
    os.kill(await board.shard(index).start_up(), signal.SIGKILL)


async def until(holds: Callable[[], Any]) -> None:
    for _ in range(300):
        if await holds():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it never came about")


async def test_letters_survive_killed_shards_and_are_redriven_once_by_two_clients(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given a stored board of two shards with forty dead letters
    name = f"letters-{uuid.uuid4().hex[:8]}"
    options = {"namespace": name, "persistence": SQLitePersistence(tmp_path / "boards"), "shards": 2}
    one = new_flock(**options)
    declare(one)
    for n in range(40):
        await one.publish(Order(n=n, folder=str(tmp_path)), correlation_id=f"w{n}")
    await one.run_until_idle(timeout=60)
    assert await one.dead_letters.count() == 40

    # When both shards are killed
    before = {letter.id for letter in await one.dead_letters.list()}
    await asyncio.gather(kill_shard(one, 0), kill_shard(one, 1))

    # Then the letters are there, and two clients that redrive all, while a shard dies again, do it once each
    assert {letter.id for letter in await one.dead_letters.list()} == before
    (tmp_path / "mended").touch()
    two = new_flock(namespace=name)
    declare(two)
    await two.start()
    await asyncio.gather(
        one.dead_letters.redrive_all(by="one"), two.dead_letters.redrive_all(by="two"), kill_shard(one, 0)
    )

    async def packed() -> bool:
        return await one.store.count(Parcel) == 40

    await until(packed)
    await one.run_until_idle(timeout=60)
    assert await one.dead_letters.count() == 0
    assert sorted(parcel.n for parcel in await one.store.get_by_type(Parcel)) == list(range(40))
    for key in list(before)[:5]:
        history = (await one.dead_letters.get(key)).history
        assert [action.action for action in history] == ["redriven"]
        assert history[0].by in ("one", "two")


async def test_the_command_lists_edits_and_redrives_on_a_running_board(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    import ray

    name = f"letters-{uuid.uuid4().hex[:8]}"
    flock = new_flock(namespace=name)
    declare(flock)
    await flock.publish(Order(n=1, folder="/nowhere"))
    await flock.run_until_idle(timeout=60)

    async def command(verb: str, *arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flock_ray.cli", "dlq", verb, name, *arguments,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
                 "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode, out.decode() + (err.decode() if process.returncode else "")

    code, out = await command("list", "--json")
    assert code == 0, out
    key = json.loads(out)["id"]
    (tmp_path / "mended").touch()
    payload = tmp_path / "payload.json"
    payload.write_text(json.dumps({"n": "many", "folder": str(tmp_path)}))
    code, out = await command("edit", key, str(payload))
    assert code == 2, out
    assert "ArtifactSchemaError" in out
    payload.write_text(json.dumps({"n": 2, "folder": str(tmp_path)}))
    code, out = await command("edit", key, str(payload), "--by", "ann")
    assert code == 0, out
    assert await command("redrive", key) == (0, f"{key}: redriven\n")
    await flock.run_until_idle(timeout=60)
    assert [parcel.n for parcel in await flock.store.get_by_type(Parcel)] == [2]
    code, out = await command("list", "--json")
    assert (code, out) == (0, "")


async def test_alerts_reach_a_receiver_that_was_away(new_flock: NewFlock, tmp_path: Path) -> None:
    # Given a receiver that refuses the first request
    requests: list[tuple[dict[str, str], bytes]] = []

    async def on_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = [line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line]
        headers = {name.lower(): value for name, value in lines}
        requests.append((headers, await reader.readexactly(int(headers["content-length"]))))
        status = "503 Later" if len(requests) == 1 else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    def note(alert: LetterAlert) -> None:
        with (tmp_path / "noted").open("a") as file:
            file.write(f"{alert.key} {len(alert.letters)}\n")

    server = await asyncio.start_server(on_request, "127.0.0.1", 0)
    async with server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/alerts"
        webhook = Webhook(address, secret=SECRET, allow_private=True)
        flock = new_flock()
        declare(flock, DeadLetterQueue("unpacked", alert_webhook=webhook, alert=note))

        # When two runs fail
        await flock.publish_many([Order(n=n, folder=str(tmp_path)) for n in range(2)])

        async def told() -> bool:
            return len(requests) >= 2

        await until(told)

    # Then both attempts say the same, signed, under the same key
    (first, body), (second, again) = requests[:2]
    assert body == again
    assert first["idempotency-key"] == second["idempotency-key"]
    assert verify_signature(SECRET, second["x-flock-signature"], again)
    message = json.loads(again)
    assert (message["queue"], message["count"]) == ("unpacked", 2)
    letters = {letter.id for letter in await flock.dead_letters.list()}
    assert {uuid.UUID(entry["id"]) for entry in message["letters"]} == letters
    assert (tmp_path / "noted").read_text().splitlines()[0] == f"{first['idempotency-key']} 2"
