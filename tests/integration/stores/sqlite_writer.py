"""A process that writes to a SQLite board until it is told to stop, killed or fenced.

Arguments: folder, number of batches. It says `ready`, then a line per batch; `stale` when it was fenced.
"""

from __future__ import annotations

import asyncio
import sys

from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.errors import StaleEpochError
from tests.unit.adapters.store_rows import artifact, batch


async def main(folder: str, batches: int) -> None:
    store = SQLitePersistence(folder).store("board", 0, range(256))
    await store.acquire()
    first = (await store.load()).last_lsn + 1
    print("ready", flush=True)
    try:
        for lsn in range(first, first + batches):
            if batches < 10:
                sys.stdin.readline()
            await store.append(batch(lsn, [artifact((lsn, n)) for n in range(3)], first_seq=3 * lsn))
            print(lsn, flush=True)
    except StaleEpochError:
        print("stale", flush=True)
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
