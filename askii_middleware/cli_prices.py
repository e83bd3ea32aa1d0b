"""`askii prices …`: prices that live in the ledger and win over declared ones."""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from .cli_open import Opened, opened_ledger
from .cli_output import plain_text, show
from .errors import ConfigurationError
from .model_price import ModelPrice
from .price_desk import price_table

MAX_FILE_BYTES = 32 << 20


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, do one thing, close it."""
    async with opened_ledger(arguments.config) as ledger:
        return await _ACTIONS[action](ledger, arguments)


async def _set(ledger: Opened, arguments: argparse.Namespace) -> int:
    table: dict[str, Any] = {
        "input_usd_per_mtok": arguments.input,
        "output_usd_per_mtok": arguments.output,
        "cache_read_usd_per_mtok": arguments.cache_read,
        "cache_write_usd_per_mtok": arguments.cache_write,
        "request_usd": arguments.request,
        "provider": arguments.provider or "",
        "allow_high": arguments.allow_high,
    }
    try:
        price = ModelPrice.from_table({name: value for name, value in table.items() if value is not None})
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("allow_high", "--allow-high")) from None
    await ledger.prices.set({arguments.model: price})
    show({"model": arguments.model, **price_table(price), "source": "store"}, as_json=arguments.json)
    return 0


async def _load(ledger: Opened, arguments: argparse.Namespace) -> int:
    models = await ledger.prices.load(_table(arguments.file))
    show({"set": len(models), "models": models} if arguments.json else {"set": len(models)}, as_json=arguments.json)
    return 0


async def _rm(ledger: Opened, arguments: argparse.Namespace) -> int:
    removed = await ledger.prices.remove(arguments.model, arguments.provider)
    show({"model": arguments.model, "removed": removed}, as_json=arguments.json)
    if not removed:
        print("askii: no such price was set at run time; declared ones are removed in askii.toml", file=sys.stderr)
    return 0 if removed else 1


async def _list(ledger: Opened, arguments: argparse.Namespace) -> int:
    listed = await ledger.prices.list()
    if arguments.json:
        show([{"model": one.model, **price_table(one.price), "source": one.source} for one in listed], as_json=True)
        return 0
    shown = ("input_usd_per_mtok", "output_usd_per_mtok", "cache_read_usd_per_mtok", "cache_write_usd_per_mtok")
    rows = []
    for one in listed:
        table = price_table(one.price)
        others = len(table.keys() - {*shown, "provider", "allow_high"})
        amounts = {
            name.removesuffix("_usd_per_mtok"): plain_text(Decimal(table[name])) if name in table else None
            for name in shown
        }
        rows.append(
            {"model": one.model, "provider": one.price.provider or None, **amounts, "more": others or None}
            | {"source": one.source}
        )
    show(rows, as_json=False)
    return 0


def _table(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            body = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"prices load: cannot read {path}: {error.strerror}") from None
    if len(body) > MAX_FILE_BYTES:
        raise ConfigurationError(f"prices load: {path} has more than {MAX_FILE_BYTES} bytes")
    try:
        table = json.loads(body, parse_float=str)  # as written, so that no digit is lost
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"prices load: {path} is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise ConfigurationError(f"prices load: {path} is not a table of models")
    return table


_ACTIONS = {"set": _set, "load": _load, "rm": _rm, "list": _list}
