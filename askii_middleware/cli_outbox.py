"""`askii outbox …`: what waits for the sinks, what they refused, and what to do about it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import IO, Any

import msgspec

from .cli_open import check_reachable, confirmed
from .cli_output import lines_to, show
from .delivery_age import DESPITE_AGE, TOO_OLD, oldest_s
from .errors import ConfigurationError
from .registrations import forget
from .settings import Settings, load_settings
from .stores import open_store
from .stores.base import PARTITIONS, DeadLetter, Store

DESPITE_AGE_S = 3600.0
ALL = 10_000_000
"""More than an outbox can have."""
COUNTED = 1000
"""Dead letters come with their records: beyond so many they are not counted."""


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, do one thing, close it. The sinks are not needed and not built."""
    settings = load_settings(arguments.config)
    check_reachable(settings)
    options: dict[str, Any] = {"sqlite_sync": settings.sqlite_sync} if settings.store.startswith("sqlite://") else {}
    store = open_store(settings.store, **options)
    await store.open()
    try:
        return await _ACTIONS[action](store, settings, arguments)
    finally:
        await store.close()


async def _status(store: Store, settings: Settings, arguments: argparse.Namespace) -> int:
    now_s = time.time()
    rows = []
    for sink, pending in sorted((await store.pending()).items()):
        since_s = await oldest_s(store, sink) if pending else None
        rows.append(
            {
                "sink": sink,
                "configured": sink in settings.sinks.places,
                "pending": pending,
                "oldest_age_s": None if since_s is None else max(round(now_s - since_s), 0),
                "dead": _counted(await store.dead_letters(sink, COUNTED)),
                **await _delivery(store, sink, now_s),
            }
        )
    show(rows, as_json=arguments.json)
    return 0


def _counted(letters: Sequence[DeadLetter]) -> int | str:
    return len(letters) if len(letters) < COUNTED else f"{COUNTED} or more"


async def _delivery(store: Store, sink: str, now_s: float) -> dict[str, Any]:
    """Who delivers to a sink, with how many of the partitions, and how it goes."""
    places = await store.places(sink)
    owners = [place.owner for place in places if place.owner is not None and place.lease_until_s > now_s]
    paused = [place.retry_at_s for place in places if place.retry_at_s > now_s]
    return {
        "failures": max((place.failures for place in places), default=0),
        "retry_at": _time(min(paused)) if paused else None,
        "leases": ", ".join(f"{owner} ({owners.count(owner)})" for owner in sorted(set(owners))) or None,
    }


async def _retry(store: Store, _settings: Settings, arguments: argparse.Namespace) -> int:
    await _known(store, arguments.sink)
    letters = await store.dead_letters(arguments.sink, COUNTED)
    old = sum(letter.reason.startswith(TOO_OLD) for letter in letters)
    if arguments.despite_age:
        await store.put_item(DESPITE_AGE, arguments.sink, b"{}", until_s=time.time() + DESPITE_AGE_S)
    retried = await store.retry_dead(arguments.sink)
    show({"sink": arguments.sink, "retried": retried}, as_json=arguments.json)
    if old and not arguments.despite_age:
        which = "them" if len(letters) < COUNTED else f"the first {COUNTED}"
        print(
            f"askii: {old} of {which} were too old to be sent and will be dead letters again; look whether the "
            "receiver has them, and repeat with --despite-age if it has not",
            file=sys.stderr,
        )
    return 0


async def _dead(store: Store, _settings: Settings, arguments: argparse.Namespace) -> int:
    await _known(store, arguments.sink)
    rows = [
        {
            "call_id": letter.call_id,
            "tenant": letter.tenant,
            "attempts": letter.attempts,
            "first_attempt": _time(letter.first_attempt_s),
            "last_attempt": _time(letter.last_attempt_s),
            "reason": letter.reason,
        }
        for letter in await store.dead_letters(arguments.sink, arguments.limit)
    ]
    show(rows, as_json=arguments.json)
    return 0


async def _export(store: Store, _settings: Settings, arguments: argparse.Namespace) -> int:
    sink = arguments.sink
    waiting = await _known(store, sink)
    dead = pending = 0
    with lines_to(arguments.file, what="outbox export") as file:
        letters = await store.dead_letters(sink, ALL)
        for letter in letters:
            told = {"reason": letter.reason, "last_attempt": _time(letter.last_attempt_s)}
            _write_line(file, sink, "dead", letter, told)
        dead = len(letters)
        for n in range(PARTITIONS):  # one at a time, since all that is read stands in memory
            entries = await store.fetch(sink, [n], ALL, early=True)
            for entry in entries:
                _write_line(file, sink, "pending", entry, {})
            pending += len(entries)
    if arguments.file:
        show({"sink": sink, "dead": dead, "pending": pending, "file": arguments.file}, as_json=arguments.json)
    if pending < waiting:
        print(
            f"askii: {waiting - pending} more waited and are not in it: they were delivered or refused meanwhile; stop "
            "who delivers, and export again, before anything is forgotten",
            file=sys.stderr,
        )
    return int(pending < waiting)


def _write_line(file: IO[bytes], sink: str, state: str, entry: Any, told: dict[str, Any]) -> None:
    line = {"sink": sink, "state": state, "call_id": entry.call_id, "tenant": entry.tenant, "attempts": entry.attempts}
    file.write(msgspec.json.encode({**line, **told, "record": msgspec.Raw(entry.record)}) + b"\n")


async def _forget(store: Store, settings: Settings, arguments: argparse.Namespace) -> int:
    sink = arguments.sink
    waiting = await _known(store, sink)
    if sink in settings.sinks.places:
        raise ConfigurationError(
            f"outbox forget: sink {sink!r} is configured, and would begin anew at the next start: remove it first"
        )
    now_s = time.time()
    owners = {place.owner for place in await store.places(sink) if place.owner and place.lease_until_s > now_s}
    if owners:
        raise ConfigurationError(f"outbox forget: {', '.join(sorted(owners))} delivers to sink {sink!r}: stop it first")
    dead = _counted(await store.dead_letters(sink, COUNTED))
    if not arguments.yes:
        question = f"forget sink {sink!r}, {waiting} records that wait and {dead} dead letters?"
        if not await confirmed(question):
            print("askii: nothing was forgotten", file=sys.stderr)
            return 1
    await forget(store, sink)
    show({"sink": sink, "forgotten": True, "pending": waiting, "dead": dead}, as_json=arguments.json)
    return 0


async def _known(store: Store, sink: str) -> int:
    """How many records wait for a sink. Raises ConfigurationError for one that has no place in the outbox."""
    pending = await store.pending()
    if sink not in pending:
        raise ConfigurationError(f"outbox: no sink is called {sink!r}; there are {_listed(pending)}")
    return pending[sink]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


_ACTIONS = {"status": _status, "retry": _retry, "dead": _dead, "export": _export, "forget": _forget}
