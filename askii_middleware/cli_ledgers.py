"""`askii migrate` and `askii copy-store`: what is done to a whole ledger while nobody uses it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .cli_output import Progress, plain_text, progress, show
from .errors import ConfigurationError, StoreError
from .settings import load_settings
from .settings_tables import StoreUrl
from .stores import open_copier
from .stores.copying import Compared, Copier, alive_workers, check_target, copy_ledger

PROGRESS_S = 2.0


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Do one of the two; the exit status."""
    return await _ACTIONS[action](arguments)


async def _migrate(arguments: argparse.Namespace) -> int:
    """Bring the configured store's schema up to date; with `--check` only say what would be done (1: something)."""
    ledger = open_copier(load_settings(arguments.config).store)
    stored, known = await ledger.versions()
    outdated = stored < known
    if outdated and not arguments.check:
        await ledger.migrate()
    steps = {(False, False): "nothing to do", (True, True): "to be migrated", (True, False): "migrated"}
    show(
        {
            "store": ledger.url,
            "from": stored or None,
            "to": known,
            "result": steps[outdated, outdated and arguments.check],
        },
        as_json=arguments.json,
    )
    return 1 if outdated and arguments.check else 0


async def _copy_store(arguments: argparse.Namespace) -> int:
    """Copy one ledger into another one that is empty, and show what each has; 1 if they differ."""
    source, target = (_ledger(what, getattr(arguments, what)) for what in ("source", "target"))
    if source.url == target.url:
        raise ConfigurationError("copy-store: both are the same ledger")
    async with _opened(source), _opened(target):
        if await source.unfinished():
            raise StoreError(f"{source.url} is itself an unfinished copy: finish or discard that one first")
        await check_target(target)
        if not arguments.force:
            for ledger in (source, target):
                await _check_idle(ledger)
        with progress("rows") as on_progress:
            found = await copy_ledger(source, target, _Progress(on_progress))
    equal = all(table.equal for table in found)
    tables = [_row(table) for table in found]
    show({"equal": equal, "tables": tables} if arguments.json else tables, as_json=arguments.json)
    if not equal:
        print(
            f"askii: the two differ, so {target.url} stays marked as unfinished and nothing can use it; repeat the "
            "command once nobody writes to either",
            file=sys.stderr,
        )
    return 0 if equal else 1


def _ledger(what: str, url: str) -> Copier:
    try:
        return open_copier(TypeAdapter(StoreUrl).validate_python(url))
    except ValidationError as error:
        reason = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise ConfigurationError(f"copy-store: the {what}: {reason}") from None


@contextlib.asynccontextmanager
async def _opened(ledger: Copier) -> AsyncIterator[None]:
    await ledger.open()
    try:
        yield
    finally:
        await ledger.close()


async def _check_idle(ledger: Copier) -> None:
    alive = await alive_workers(ledger)
    if alive:
        raise StoreError(
            f"{len(alive)} workers of {ledger.url} live ({', '.join(sorted(alive)[:3])}): stop them; "
            f"{max(alive.values()):.0f} "
            "s after the last one has stopped this goes on, or at once with --force if you know that they are gone"
        )


def _row(table: Compared) -> dict[str, Any]:
    return {
        "table": table.table,
        "rows_from": table.rows_from,
        "rows_to": table.rows_to,
        "usd_from": _usd(table.nano_usd_from),
        "usd_to": _usd(table.nano_usd_to),
        "equal": table.equal,
    }


def _usd(nano_usd: int | None) -> str | None:
    return None if nano_usd is None else plain_text(Decimal(nano_usd).scaleb(-9))


class _Progress:
    """A line on standard error now and then, where no terminal shows all the time how far it is."""

    def __init__(self, on_progress: Progress) -> None:
        self._on_progress = on_progress
        self._next_s = time.monotonic() + PROGRESS_S

    def __call__(self, what: str, table: str, rows: int) -> None:
        self._on_progress(rows)
        if sys.stderr.isatty():
            return
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PROGRESS_S
            print(f"askii: {what} {rows} {table}", file=sys.stderr, flush=True)


_ACTIONS = {"migrate": _migrate, "copy_store": _copy_store}
