from __future__ import annotations

import asyncio

from flock_ray.actors.claims import ByteRoom
from flock_ray.testing import run_virtual


def test_no_more_bytes_are_in_than_there_is_room_for_and_what_is_larger_goes_alone() -> None:
    inside: dict[int, int] = {}
    order: list[int] = []

    async def main() -> None:
        room = ByteRoom(10)

        async def enter(number: int, size: int) -> None:
            async with room.take(size):
                inside[number] = size
                order.append(number)
                assert sum(inside.values()) <= 10 or len(inside) == 1
                await asyncio.sleep(1)
                del inside[number]

        sizes = (4, 4, 4, 25, 1, 0, 10, 3)
        await asyncio.gather(*(enter(number, size) for number, size in enumerate(sizes)))
        assert order == list(range(len(sizes)))  # nobody is overtaken

    run_virtual(main())


def test_who_gives_up_waiting_takes_no_room() -> None:
    async def main() -> None:
        room = ByteRoom(10)

        async def enter(size: int) -> None:
            async with room.take(size):
                await asyncio.sleep(1)

        first = asyncio.ensure_future(enter(10))
        await asyncio.sleep(0.1)
        waiting = [asyncio.ensure_future(enter(10)) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
        await asyncio.wait([first])
        waiting[1].cancel()  # its turn has come, and it has not noticed
        await asyncio.wait(waiting)
        await asyncio.wait_for(enter(10), 5)

    run_virtual(main())
