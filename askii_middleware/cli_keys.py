"""`askii keys …`: API keys of ours, stored and declared."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Any

from .cli_open import Opened, opened_ledger, shown_time
from .cli_options import span_s
from .cli_output import show
from .errors import ConfigurationError
from .key_ring import MAX_PAGE, ListedKey, NewKey


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, do one thing, close it."""
    async with opened_ledger(arguments.config) as ledger:
        try:
            return await _ACTIONS[action](ledger, arguments)
        except ValueError as error:
            raise ConfigurationError(f"keys {action}: {error}") from None


async def _add(ledger: Opened, arguments: argparse.Namespace) -> int:
    expires = arguments.expires
    made = await ledger.keys.create(
        arguments.tenant,
        key_id=arguments.id,
        name=arguments.name,
        user=arguments.user,
        team=arguments.team,
        tags=arguments.tag or (),
        models=arguments.model or (),
        expires_at_s=None if expires is None else _moment_s(expires, ledger.tracker.clock()),
    )
    _tell_secret(made, as_json=arguments.json)
    return 0


async def _rotate(ledger: Opened, arguments: argparse.Namespace) -> int:
    made = await ledger.keys.rotate(arguments.id, overlap_s=arguments.overlap)
    _tell_secret(made, as_json=arguments.json)
    if made.row.former_until_s is not None:
        print(f"askii: the secret before opens it until {shown_time(made.row.former_until_s)}", file=sys.stderr)
    return 0


async def _revoke(ledger: Opened, arguments: argparse.Namespace) -> int:
    if not await ledger.keys.revoke(arguments.id):
        raise ConfigurationError(f"no key has the id {arguments.id!r}; askii keys list shows all")
    show({"id": arguments.id, "revoked": True}, as_json=arguments.json)
    return 0


async def _list(ledger: Opened, arguments: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    after = ""
    while page := await ledger.keys.list(tenant=arguments.tenant, after=after, limit=MAX_PAGE):
        rows += map(_row, page)
        after = page[-1].row.id
    show(rows, as_json=arguments.json)
    return 0


def _tell_secret(made: NewKey, *, as_json: bool) -> None:
    row = _row(ListedKey(made.row, "store"))
    show({**row, "secret": made.secret, "sha256": made.row.sha256}, as_json=as_json)
    print("askii: the secret is shown only now; the ledger keeps its hash", file=sys.stderr)


def _row(listed: ListedKey) -> dict[str, Any]:
    row = listed.row
    return {
        "id": row.id,
        "name": row.name,
        "tenant": row.tenant,
        "user": row.user,
        "team": row.team,
        "tags": ",".join(row.tags) or None,
        "models": ",".join(row.models) or None,
        "created_at": shown_time(row.created_at_s),
        "expires_at": shown_time(row.expires_at_s),
        "former_until": shown_time(row.former_until_s),
        "revoked": row.revoked,
        "source": listed.source,
    }


def _moment_s(text: str, now_s: float) -> float:
    """A moment, or a span from now such as 30d."""
    try:
        return now_s + span_s(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"--expires takes a span such as 30d or a moment such as 2026-01-31T12:00Z, not {text[:64]!r}"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_ACTIONS = {"add": _add, "rotate": _rotate, "revoke": _revoke, "list": _list}
