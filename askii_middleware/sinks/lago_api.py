"""Reading from Lago: metrics, subscriptions and events, for `askii check` and for reconciliation.

Facts: lago-api and lago-openapi 1.51.0 (2026-08). What does not exist is 404 with a `code` that ends in `_not_found`;
`GET /subscriptions/{external_id}` shows active ones unless `status` says otherwise. `GET /events` gives pages with
`meta.next_page`, the newest `timestamp` first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from askii_middleware.errors import SinkError

from .http import FAILURES, Connection, Reply, asked_wait_s, describe
from .lago_answers import read_answer

PER_PAGE: Final = 100
MAX_PAGES: Final = 10_000
"""A million events to one listing: narrow the time instead."""
MAX_PAGE_BYTES: Final = 8 << 20
MAX_TRIES: Final = 4
MAX_WAIT_S: Final = 30.0


class LagoApiError(SinkError):
    """Lago could not be asked, or its answer is none. The message says what to look at."""


class Metric(NamedTuple):
    """A billable metric."""

    code: str
    aggregation_type: str
    field_name: str
    """The property it aggregates; empty where it needs none."""
    recurring: bool = False
    """What one period sums counts in all later ones, too."""


class Subscription(NamedTuple):
    external_id: str
    external_customer_id: str
    plan_code: str
    status: str


class StoredEvent(NamedTuple):
    """An event that Lago has."""

    transaction_id: str
    external_subscription_id: str
    code: str
    timestamp: str
    """RFC 3339 with milliseconds."""
    properties: Mapping[str, Any]


class LagoApi:
    """Asks Lago. Waits where Lago asks for it (429), tries a failure again, and raises LagoApiError in the end.

    Args:
        clock: Unix seconds.
        sleep: how to wait.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        max_pages: int = MAX_PAGES,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._sleep = sleep
        self._max_pages = max_pages

    async def metric(self, code: str) -> Metric | None:
        """A billable metric by its code; None where there is none."""
        found = await self._object("/billable_metrics", code, "billable_metric")
        if found is None:
            return None
        code, aggregation_type, field_name = _texts(found, "code", "aggregation_type", "field_name")
        return Metric(code, aggregation_type, field_name, found.get("recurring") is True)

    async def subscription(self, external_id: str) -> Subscription | None:
        """The active subscription of an external id; None where there is none."""
        found = await self._object("/subscriptions", external_id, "subscription")
        if found is None:
            return None
        return Subscription(*_texts(found, "external_id", "external_customer_id", "plan_code", "status"))

    async def events(
        self,
        subscription: str | None = None,
        code: str | None = None,
        *,
        from_s: float | None = None,
        to_s: float | None = None,
    ) -> AsyncGenerator[StoredEvent, None]:
        """Events by subscription, code and time (Unix seconds, both ends included), the newest first.

        Events that arrive meanwhile move the others towards later pages, so what the last page had is left out of the
        next. Name a `to_s` in the past for a listing that stands still.
        """
        params: dict[str, str | int] = {"per_page": PER_PAGE}
        asked = {
            "external_subscription_id": subscription,
            "code": code,
            "timestamp_from": None if from_s is None else _moment(from_s),
            "timestamp_to": None if to_s is None else _moment(to_s),
        }
        params |= {name: value for name, value in asked.items() if value is not None}
        before: set[tuple[str, str]] = set()
        page = 1
        for _ in range(self._max_pages):
            answer = await self._get("/events", {**params, "page": page})
            listed = answer.get("events") if answer is not None else None
            if answer is None or not isinstance(listed, list):
                raise LagoApiError("GET /events: no list of events in the answer; does the URL end in /api/v1?")
            found = [_stored(each) for each in listed]
            for event in found:
                if (event.external_subscription_id, event.transaction_id) not in before:
                    yield event
            before = {(event.external_subscription_id, event.transaction_id) for event in found}
            meta = answer.get("meta")
            following = meta.get("next_page") if isinstance(meta, dict) else None
            if not found or not isinstance(following, int) or following <= page:
                return
            page = following
        raise LagoApiError(f"GET /events: more than {self._max_pages} pages; ask for a shorter time")

    async def _object(self, path: str, name: str, root: str) -> dict[str, Any] | None:
        # Dots alone would be taken for folders.
        segment = quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")
        if not name.strip() or "\0" in name:
            return None
        answer = await self._get(f"{path}/{segment}")
        found = answer.get(root) if answer is not None else None
        if answer is not None and not isinstance(found, dict):
            raise LagoApiError(f"GET {path}/…: no {root} in the answer; does the URL end in /api/v1?")
        return found

    async def _get(self, path: str, params: Mapping[str, str | int] | None = None) -> dict[str, Any] | None:
        """The answer's object; None for what does not exist."""
        what = f"GET {path.rpartition('/')[0] or path}"
        reason = ""
        for attempt in range(MAX_TRIES):
            try:
                reply = await self._connection.request("GET", path, params=params, max_bytes=MAX_PAGE_BYTES)
            except FAILURES as error:
                reason, wait_s = describe(error), 0.0
            else:
                if reply.status == 200:
                    return _decoded(what, reply)
                if reply.status == 404 and _is_missing(reply.body):
                    return None
                answer = read_answer(reply.status, reply.headers, reply.body, events=1, now_s=self._clock())
                reason = answer.reason or answer.split or f"HTTP {reply.status}"
                if answer.alarm or answer.pause_s is None:
                    break
                wait_s = asked_wait_s(reply.headers, self._clock())
            if attempt < MAX_TRIES - 1:
                await self._sleep(min(wait_s or 2.0**attempt / 2, MAX_WAIT_S))
        raise LagoApiError(f"{what}: {reason}")


def _decoded(what: str, reply: Reply) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise LagoApiError(f"{what}: the answer is not Lago's JSON; does the URL end in /api/v1?")
    return answer


def _is_missing(body: bytes) -> bool:
    """Whether Lago says that it has no such thing, and not a proxy or a wrong URL that there is no such page."""
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return isinstance(answer, dict) and str(answer.get("code", "")).endswith("_not_found")


def _stored(event: Any) -> StoredEvent:
    if not isinstance(event, dict):
        raise LagoApiError("GET /events: an event that is no object")
    properties = event.get("properties")
    transaction_id, subscription, code, timestamp = _texts(
        event, "transaction_id", "external_subscription_id", "code", "timestamp"
    )
    shown = properties if isinstance(properties, dict) else {}
    return StoredEvent(transaction_id, subscription, code, timestamp, shown)


def _texts(found: Mapping[str, Any], *names: str) -> list[str]:
    return [value if isinstance(value := found.get(name), str) else "" for name in names]


def _moment(at_s: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
