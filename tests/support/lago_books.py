"""What the stand-in for Lago knows, in a SQLite file, so that it outlives `kill -9` of the process that serves it.

The rules are those of lago-api's events on PostgreSQL (2026-08): a transaction id is taken for ever, for each
subscription; a batch is taken whole or not at all; much is accepted that is never billed.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

_BILLABLE = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_SCHEMA = """
PRAGMA journal_mode = wal;
PRAGMA synchronous = normal;
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, subscription TEXT NOT NULL, transaction_id TEXT NOT NULL, code TEXT NOT NULL,
    timestamp_s REAL NOT NULL, properties TEXT NOT NULL, UNIQUE (subscription, transaction_id)
);
CREATE TABLE IF NOT EXISTS sent (
    subscription TEXT, transaction_id TEXT, sha256 TEXT, times INTEGER NOT NULL,
    PRIMARY KEY (subscription, transaction_id, sha256)
) WITHOUT ROWID;
"""


class InvalidError(Exception):
    """The request is refused with 422 and these `error_details`."""

    def __init__(self, details: Any) -> None:
        super().__init__(details)
        self.details = details


class DatabaseError(Exception):
    """The server's database refused the rows, which the server did not expect: 500."""


class LagoEvent(NamedTuple):
    """An event that was accepted."""

    transaction_id: str
    subscription: str
    code: str
    timestamp_s: float
    properties: dict[str, Any]


class Books:
    """Events, and how often each was sent.

    Args:
        path: the file; created where there is none.
        metrics: billable metrics by code, with the property they sum.
        subscriptions: those that exist; None: every one that is not empty.
    """

    def __init__(
        self,
        path: str,
        *,
        metrics: dict[str, str] | None = None,
        subscriptions: Sequence[str] | None = None,
        max_events: int = 100,
        clock: Callable[[], float],
    ) -> None:
        self.metrics = {"askii_coins": "askii_coins"} if metrics is None else metrics
        self.subscriptions = None if subscriptions is None else list(subscriptions)
        self.max_events = max_events
        self._clock = clock
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    # Taking ----------------------------------------------------------------------------------------------------------

    def note(self, events: Sequence[msgspec.Raw]) -> None:
        """Remember the bytes of what was sent, whatever becomes of it."""
        rows = []
        for raw in events:
            event = msgspec.json.decode(raw)
            if isinstance(event, dict):
                ids = str(event.get("external_subscription_id")), str(event.get("transaction_id"))
                rows.append((*ids, sha256(raw).hexdigest()))
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "INSERT INTO sent VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1",
            [tuple(part.replace("\0", "\\0") for part in row) for row in rows],
        )
        self._db.execute("COMMIT")

    def take_batch(self, events: Sequence[Any]) -> list[LagoEvent]:
        """All of them, or none. Raises InvalidError, DatabaseError."""
        if not events:
            raise InvalidError({"events": ["no_events"]})
        if len(events) > self.max_events:
            raise InvalidError({"events": ["too_many_events"]})
        read = [self._read(event) for event in events]
        errors = {str(index): event for index, event in enumerate(read) if not isinstance(event, LagoEvent)}
        if errors:
            raise InvalidError(errors)
        return self._insert([event for event in read if isinstance(event, LagoEvent)])

    def take_single(self, event: Any) -> list[LagoEvent]:
        """Raises InvalidError, DatabaseError."""
        read = self._read(event)
        if not isinstance(read, LagoEvent):
            raise InvalidError(read)
        return self._insert([read])

    def _insert(self, events: list[LagoEvent]) -> list[LagoEvent]:
        texts = [msgspec.json.encode(event.properties).decode() for event in events]
        if any("\0" in "".join(event[:3]) for event in events) or any("\\u0000" in text for text in texts):
            raise DatabaseError("PG::UntranslatableCharacter")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(
                "INSERT INTO events (transaction_id, subscription, code, timestamp_s, properties)"
                " VALUES (?, ?, ?, ?, ?)",
                [(*event[:4], text) for event, text in zip(events, texts, strict=True)],
            )
        except sqlite3.IntegrityError:
            self._db.execute("ROLLBACK")
            raise DatabaseError("PG::UniqueViolation") from None
        self._db.execute("COMMIT")
        return events

    def _read(self, event: Any) -> LagoEvent | dict[str, Any]:
        """The event, or its errors by field."""
        if not isinstance(event, dict):
            return {"event": ["invalid_format"]}
        transaction_id, code = event.get("transaction_id"), event.get("code")
        subscription, properties = event.get("external_subscription_id") or "", event.get("properties") or {}
        errors = {
            name: ["value_is_mandatory"]
            for name, value in (("transaction_id", transaction_id), ("code", code))
            if not isinstance(value, str) or not value
        }
        if not isinstance(subscription, str) or not isinstance(properties, dict):
            errors["properties"] = ["invalid_format"]
        timestamp_s = _seconds(event.get("timestamp"), self._clock())
        if timestamp_s is None:
            errors["timestamp"] = ["invalid_format"]
        if not errors and self.event(str(transaction_id), subscription) is not None:
            errors["transaction_id"] = ["value_already_exist"]
        if errors or timestamp_s is None:
            return errors
        return LagoEvent(str(transaction_id), subscription, str(code), timestamp_s, properties)

    # Looking ---------------------------------------------------------------------------------------------------------

    def event(self, transaction_id: str, subscription: str | None = None) -> LagoEvent | None:
        if subscription is None:
            return next(self._find("transaction_id = ?", transaction_id), None)
        return next(self._find("subscription = ? AND transaction_id = ?", subscription, transaction_id), None)

    def events(
        self,
        subscription: str | None = None,
        code: str | None = None,
        *,
        from_s: float = -math.inf,
        to_s: float = math.inf,
    ) -> list[LagoEvent]:
        """In the order in which they were accepted."""
        return list(
            self._find(
                "coalesce(?, subscription) = subscription AND coalesce(?, code) = code"
                " AND timestamp_s >= ? AND timestamp_s <= ? ORDER BY seq",
                *(subscription, code, from_s, to_s),
            )
        )

    def _find(self, condition: str, *values: Any) -> Iterator[LagoEvent]:
        names = ", ".join(LagoEvent._fields)
        for *ids, properties in self._db.execute(f"SELECT {names} FROM events WHERE {condition}", values):
            yield LagoEvent._make((*ids, msgspec.json.decode(properties)))

    @property
    def count(self) -> int:
        """Events that were accepted."""
        return int(self._db.execute("SELECT count(*) FROM events").fetchone()[0])

    def value(self, event: LagoEvent) -> Decimal | None:
        """What an event adds to the bill; None: it is accepted and never billed."""
        known = bool(event.subscription) if self.subscriptions is None else event.subscription in self.subscriptions
        field = self.metrics.get(event.code)
        text = str(event.properties.get(field or "", ""))
        billed = known and field is not None and event.timestamp_s < 32_503_680_000 and _BILLABLE.fullmatch(text)
        return Decimal(text) if billed and len(text.lstrip("-").partition(".")[0]) <= 12 else None

    def billed(self, code: str = "askii_coins") -> dict[str, Decimal]:
        """The sum of a metric by subscription."""
        sums: dict[str, Decimal] = {}
        for event in self.events(code=code):
            value = self.value(event)
            if value is not None:
                sums[event.subscription] = sums.get(event.subscription, Decimal(0)) + value
        return sums

    def unbilled(self) -> list[LagoEvent]:
        """Accepted and never billed: each is a mistake of the sender."""
        return [event for event in self.events() if self.value(event) is None]

    def sent(self) -> dict[tuple[str, str], list[int]]:
        """How often each event was sent, by subscription and transaction id; one number for each form of its bytes."""
        found: dict[tuple[str, str], list[int]] = {}
        for subscription, transaction_id, times in self._db.execute(
            "SELECT subscription, transaction_id, times FROM sent"
        ):
            found.setdefault((subscription, transaction_id), []).append(times)
        return found


def shown(event: LagoEvent) -> dict[str, Any]:
    """As the API shows it."""
    moment = datetime.fromtimestamp(min(max(event.timestamp_s, 0.0), 253_402_300_799.0), UTC)
    return {
        "lago_id": None,
        "transaction_id": event.transaction_id,
        "lago_customer_id": None,
        "code": event.code,
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "precise_total_amount_cents": None,
        "properties": event.properties,
        "lago_subscription_id": None,
        "external_subscription_id": event.subscription,
        "created_at": None,
    }


def _seconds(timestamp: Any, now_s: float) -> float | None:
    """As Lago reads it: nothing means now, else what Ruby's `Float` takes. A JSON float breaks the published schema."""
    if timestamp is None:
        return now_s
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | str):
        return None
    try:
        seconds = float(timestamp)
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None
