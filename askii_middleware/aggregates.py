"""What one record adds to the hourly sums of the ledger, by scope."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .budgets import scope_text
from .records import UsageRecord
from .stores.base import PARTITIONS, AggregateRow, partition_of

EVERYTHING: Final = tuple(f"global/{partition}" for partition in range(PARTITIONS))
"""The scopes that together hold every call once. In parts, so that calls of different tenants do not wait for each
other's row: a record's part is the partition of the outbox it goes to as well.
"""


def aggregates(record: UsageRecord, *, requests: int = 1) -> Iterator[AggregateRow]:
    """One row for each scope that spend is kept for: everything, the tenant, its user, and key, user and team by
    themselves. `requests` is 0 for what is no call.
    """
    usage = record.usage
    row = (record.served_model, record.provider, requests, usage.input_tokens, usage.output_tokens)
    for scope in _scopes(record):
        yield AggregateRow(scope, *row, record.cost_nano_usd)


def _scopes(record: UsageRecord) -> Iterator[str]:
    yield EVERYTHING[partition_of(record.tenant)]
    yield scope_text({"tenant": record.tenant})
    if record.user is not None:
        yield scope_text({"tenant": record.tenant, "user": record.user})
    for name in ("key", "user", "team"):
        value = getattr(record, name)
        if value is not None:
            yield scope_text({name: value})
