"""`askii check` and `askii price`: what would go wrong, before it does."""

from __future__ import annotations

import argparse
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from .cli_check_sinks import check_sinks
from .cli_open import opened_ledger
from .cli_output import plain_text, show
from .currency import DEFAULT_RATE_TEXT, RATE_VARIABLE, parse_rate
from .errors import AskiiError, StoreError, UnknownModelError
from .settings import Settings, UpstreamSettings, limits_nothing, load_settings
from .tracker import CostTracker

TIMEOUT_S = 10.0
MAX_LISTED = 1000
SHOWN_BUCKETS = ("input", "output", "cache_read", "cache_write", "reasoning")


async def check(config: str | None, *, as_json: bool) -> int:
    """Print one line for each finding; 1 if any is a failure."""
    findings: list[dict[str, Any]] = []

    def found(what: str, result: str, detail: str = "") -> None:
        findings.append({"check": what, "result": result, "detail": detail})

    try:
        parse_rate(os.environ.get(RATE_VARIABLE, DEFAULT_RATE_TEXT))
        found("exchange rate", "ok")
    except ValueError as error:
        found("exchange rate", "failed", str(error))
    try:
        settings = load_settings(config)
        found("configuration", "ok", str(settings.config or "no file"))
        tracker = CostTracker.from_settings(settings)
    except AskiiError as error:
        found("configuration", "failed", str(error))
    else:
        try:
            await tracker.store.open()
            await tracker.store.ping()
            await tracker.watcher.look()  # prices that were set at run time
            stored = bool(await tracker.store.budgets(limit=1))
            found("store", "ok", tracker.store.url)
            if limits_nothing(settings) and not stored:
                found("budgets", "warning", "no budget limits anything")
            if tracker.journal_path is not None:
                found("journal", *_journal(tracker.journal_path))
            if tracker.rejected_path is not None:
                found("journal", "warning", f"charges that no ledger could take wait in {tracker.rejected_path}")
            await check_sinks(settings, tracker, found)
        except StoreError as error:
            found("store", "failed", str(error))
        finally:
            await tracker.store.close()
            for sink in tracker.sinks:
                await sink.close()
        await _check_upstreams(settings, tracker, found)
    show(findings, as_json=as_json)
    return 1 if any(finding["result"] == "failed" for finding in findings) else 0


def _journal(prefix: Path) -> tuple[str, str]:
    """Whether charges find a place while the store is away: in files that begin like this."""
    folder = prefix.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return "failed", f"{folder} is no directory that can be written: create it, or set journal_path"
    return "ok", f"{prefix.absolute()}.*"


async def _check_upstreams(settings: Settings, tracker: CostTracker, found: Any) -> None:
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
        for name, table in settings.upstreams.items():
            try:
                answer = await client.get(f"{table.url}/models", headers=_credentials(name, table))
                answer.raise_for_status()
                models = [str(model["id"]) for model in answer.json()["data"]][:MAX_LISTED]
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                found(f"upstream {name}", "warning", f"its models cannot be listed: {error}")
                continue
            missing = [m for m in models if tracker.price_of(m, provider=table.provider or name) is None]
            found(f"upstream {name}", "ok", f"{len(models)} models")
            if missing:
                found(f"upstream {name}", "warning", f"without a price: {', '.join(missing)}")


def _credentials(name: str, table: UpstreamSettings) -> dict[str, str]:
    if table.api_key is None:
        return {}
    key = table.api_key.get_secret_value()
    if (table.provider or name) == "anthropic":
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}
    return {"authorization": f"Bearer {key}"}


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Check the configuration, or show a price."""
    if action == "check":
        return await check(arguments.config, as_json=arguments.json)
    return await show_price(arguments.model, arguments.config, as_json=arguments.json)


async def show_price(model: str, config: str | None, *, as_json: bool) -> int:
    """Print the rates of a model. Raises UnknownModelError where it has none, StoreError."""
    settings = load_settings(config)
    stored: set[str] = set()
    if _may_hold_prices(settings):
        async with opened_ledger(config) as ledger:
            tracker = ledger.tracker
            stored = {one.model for one in await ledger.prices.list() if one.source == "store"}
    else:
        tracker = CostTracker.from_settings(settings)
    price = tracker.price_of(model)
    if price is None:
        raise UnknownModelError(model)
    source = "configuration" if price.explicit else tracker.prices.version
    show(
        {
            "model": price.model,
            "provider": price.provider,
            "source": "store" if price.explicit and price.model in stored else source,
            **{f"{bucket}_usd_per_mtok": _text(price.usd_per_mtok(bucket)) for bucket in SHOWN_BUCKETS},
        },
        as_json=as_json,
    )
    return 0


def _may_hold_prices(settings: Settings) -> bool:
    """Whether there is a ledger to look into: to ask for a price makes none."""
    scheme, _, place = settings.store.partition(":///")
    if scheme == "sqlite":
        return Path(place.partition("?")[0]).is_file()
    return not settings.store.startswith("memory://")


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else plain_text(amount)
