from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import pytest

from askii_middleware.stores.sqlite import SQLiteStore

from .support import put, record, running_lago

KILLS = 25
RECORDS = 700


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks to restart quickly")
async def test_point_21_kill_9_at_random_moments_loses_nothing_and_lago_sees_one_event_per_record(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    store = SQLiteStore(str(path))
    await store.open()
    await store.register_sinks(["lago"])
    await put(store, *(record(n, coins=n, subscription=f"tenant-{n % 3}") for n in range(RECORDS)))
    await store.close()
    chance = random.Random(2026)
    async with running_lago() as lago:
        lago.faults.delay_s = 0.001
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.sinks.deliverer",
            str(path),
            f"{lago.url}/api/v1",
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        kills = 0
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()) != b"done\n":
                assert line, "the deliverer failed"
                if kills < KILLS:
                    seen = lago.ledger.requests
                    while lago.ledger.requests == seen:  # it is at work
                        await asyncio.sleep(0.0005)
                    await asyncio.sleep(chance.uniform(0, 0.02))
                    os.kill(int(line), signal.SIGKILL)
                    kills += 1
            await process.wait()
        assert kills == KILLS
        sent = Counter(event for batch in lago.recorder.ids for event in batch)
        assert set(sent) == {f"call-{n:05d}" for n in range(RECORDS)}
        assert max(sent.values()) > 1, "no kill fell between commit and acknowledgement: the test shows nothing"
        assert len(lago.ledger.events) == RECORDS
        assert lago.ledger.total_coins == sum(range(RECORDS))
        assert lago.ledger.unbilled == []
        bodies = Counter((event["transaction_id"], str(event)) for batch in lago.recorder.events for event in batch)
        assert len(bodies) == RECORDS  # and every repetition was the same
    store = SQLiteStore(str(path))
    await store.open()
    assert await store.pending() == {"lago": 0}
    assert await store.dead_letters("lago") == []
    await store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
