"""Delivers an outbox until it is empty, in a child process that the test kills as often as it likes.

Forks one child after the other and prints the process id of each; ends with the first that finishes its work. So a
restart costs milliseconds, not the imports.
"""

from __future__ import annotations

import asyncio
import os
import sys

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.stores.sqlite import SQLiteStore


async def deliver(path: str, url: str) -> None:
    store = SQLiteStore(path)
    await store.open()
    sink = LagoSink(url, "lago-key-for-tests-7d1f", max_batch=7, timeout_s=1.0)
    loop = DeliveryLoop(store, [sink], owner="one machine", base_backoff_s=0.01, idle_s=0.01)
    loop.start()
    while sum((await store.pending()).values()):
        await asyncio.sleep(0.01)
    await loop.stop(1.0)
    await sink.close()
    await store.close()


def main() -> None:
    status = -1
    while status != 0:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.run(deliver(*sys.argv[1:]))
                code = 0
            finally:
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
    print("done", flush=True)


if __name__ == "__main__":
    main()
