"""A stand-in for Lago, for the demo and for tests. It is not Lago, and says so in the header `x-lago-stand-in`.

It keeps the rules of lago-api's events (2026-08, PostgreSQL store) that matter to a sender: the bearer key; 1 to 100
events to a batch, which is taken whole or not at all; a transaction id that stays taken for ever; and above all the
events that are answered with 200 and never billed. Faults can be injected, as a network, a proxy or a bug would.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

LABEL: Final = {"x-lago-stand-in": "askii-middleware demo; not Lago"}
MAX_EVENTS: Final = 100
_MAX_BODY_BYTES: Final = 8 << 20
_MAX_PAGE: Final = 1000
_BILLABLE = re.compile(r"-?\d{1,12}(\.\d+)?", re.ASCII)
_FAR_FUTURE_S: Final = 32_503_680_000
"""The year 3000: milliseconds taken for seconds lie far behind it, in no billing period."""


class LagoEvent(NamedTuple):
    """An event that was accepted."""

    transaction_id: str
    external_subscription_id: str
    code: str
    timestamp_s: float
    properties: Mapping[str, Any]
    coins: Decimal | None
    """What it adds to the bill; None: accepted and never billed."""


class LagoLedger:
    """What the stand-in has accepted.

    Args:
        codes: the billable metrics; each sums the property of its own name. Events of others are never billed.
        subscriptions: those that exist; None: every one that is not empty.
    """

    def __init__(
        self, *, codes: frozenset[str] = frozenset({"askii_coins"}), subscriptions: set[str] | None = None
    ) -> None:
        self.codes = codes
        self.subscriptions = subscriptions
        self.events: dict[tuple[str, str], LagoEvent] = {}
        """By subscription and transaction id, in the order of arrival."""
        self.requests = 0
        """How many requests have come to the events endpoints, refused ones included."""
        self._coins: dict[str, Decimal] = {}

    def coins(self, subscription: str) -> Decimal:
        """The billed coins of a subscription."""
        return self._coins.get(subscription, Decimal(0))

    @property
    def total_coins(self) -> Decimal:
        """The billed coins of all subscriptions."""
        return sum(self._coins.values(), Decimal(0))

    @property
    def unbilled(self) -> list[LagoEvent]:
        """Events that were accepted and will never be billed: each is a mistake of the sender."""
        return [event for event in self.events.values() if event.coins is None]

    def accept(self, event: LagoEvent) -> None:
        self.events[event.external_subscription_id, event.transaction_id] = event
        if event.coins is not None:
            subscription = event.external_subscription_id
            self._coins[subscription] = self.coins(subscription) + event.coins

    def price(self, subscription: str, code: str, timestamp_s: float, properties: Mapping[str, Any]) -> Decimal | None:
        """What an event adds to the bill, or None."""
        known = bool(subscription) if self.subscriptions is None else subscription in self.subscriptions
        value = str(properties.get(code, ""))
        if not known or code not in self.codes or timestamp_s >= _FAR_FUTURE_S or not _BILLABLE.fullmatch(value):
            return None
        return Decimal(value)


@dataclass(slots=True)
class Fault:
    """What happens to one request instead of, or after, its proper treatment.

    Attributes:
        status: of the answer; 0: the proper answer, if it comes to that.
        headers: of the answer, such as `{"x-ratelimit-reset": "7"}`.
        body: of the answer; empty: a short one as Lago's are.
        commit: take the events first, so that only the answer is lost.
        hang_s: wait so long before the answer, or until the client leaves.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    commit: bool = False
    hang_s: float = 0.0


@dataclass(slots=True)
class LagoFaults:
    """Faults to inject; may be changed while the stand-in runs.

    Attributes:
        script: one for each coming request, the first first.
        always: for every request for which the script has none.
        poison: by transaction id, what happens to every request that has it, such as `Fault(500)`.
        max_body_bytes: larger requests get a proxy's 413 in HTML.
        max_events: the server's bound on a batch.
        delay_s: before every commit and before every answer.
    """

    script: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    poison: dict[str, Fault] = field(default_factory=dict)
    max_body_bytes: int = _MAX_BODY_BYTES
    max_events: int = MAX_EVENTS
    delay_s: float = 0.0


def lago_app(
    *,
    api_key: str,
    ledger: LagoLedger | None = None,
    faults: LagoFaults | None = None,
    clock: Callable[[], float] = time.time,
) -> Starlette:
    """The stand-in as an app, to be served at the root: its API lies under `/api/v1`. `app.state.ledger` and
    `app.state.faults` are what was passed, or new ones.
    """
    server = _Server(api_key, ledger or LagoLedger(), faults or LagoFaults(), clock)
    app = Starlette(
        routes=[
            Route("/api/v1/events/batch", server.batch, methods=["POST"]),
            Route("/api/v1/events", server.single, methods=["POST"]),
            Route("/api/v1/events", server.listing, methods=["GET"]),
            Route("/api/v1/events/{transaction_id:path}", server.show, methods=["GET"]),
            Route("/api/v1/billable_metrics/{code}", server.metric, methods=["GET"]),
            Route("/api/v1/subscriptions/{name}", server.subscription, methods=["GET"]),
        ]
    )
    app.state.ledger = server.ledger
    app.state.faults = server.faults
    return app


class _Server:
    def __init__(self, api_key: str, ledger: LagoLedger, faults: LagoFaults, clock: Callable[[], float]) -> None:
        self.ledger = ledger
        self.faults = faults
        self._bearer = f"Bearer {api_key}".encode()
        self._clock = clock

    async def batch(self, request: Request) -> Response:
        return await self._post(request, self._take_batch)

    async def single(self, request: Request) -> Response:
        return await self._post(request, self._take_single)

    async def _post(self, request: Request, take: Callable[[bytes], Response]) -> Response:
        self.ledger.requests += 1
        body = await _read(request, min(self.faults.max_body_bytes, _MAX_BODY_BYTES))
        if body is None:
            return HTMLResponse("<html><h1>413 Request Entity Too Large</h1></html>", 413, headers=LABEL)
        fault = self._fault(body)
        if fault is None:
            await asyncio.sleep(self.faults.delay_s)
            answer = self._authorised(request) or take(body)
            await asyncio.sleep(self.faults.delay_s)
            return answer
        answer = _error(fault.status or 500, "injected fault")
        if fault.body:
            answer = Response(fault.body, fault.status or 500, headers=LABEL)
        if fault.commit or not fault.status:
            taken = self._authorised(request) or take(body)
            answer = answer if fault.status else taken
        if fault.hang_s:
            await _hang(request, fault.hang_s)
        answer.headers.update(fault.headers)
        return answer

    def _fault(self, body: bytes) -> Fault | None:
        if self.faults.script:
            return self.faults.script.popleft()
        for transaction_id, fault in self.faults.poison.items():
            if msgspec.json.encode(transaction_id) in body:
                return fault
        return self.faults.always

    def _authorised(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "").encode()
        return None if hmac.compare_digest(given, self._bearer) else _error(401, "Unauthorized")

    def _take_batch(self, body: bytes) -> Response:
        try:
            events = msgspec.json.decode(body)["events"]
        except (msgspec.DecodeError, KeyError, TypeError):
            return _error(400, "BadRequest: malformed body")
        if not isinstance(events, list) or not events:
            return _invalid({"events": ["no_events"]})
        if len(events) > self.faults.max_events:
            return _invalid({"events": ["too_many_events"]})
        read = [self._read_event(event) for event in events]
        errors = {str(index): event for index, event in enumerate(read) if not isinstance(event, LagoEvent)}
        if errors:
            return _invalid(errors)
        taken = [event for event in read if isinstance(event, LagoEvent)]
        if self._breaks(taken):
            return _error(500, "Internal Server Error")
        for event in taken:
            self.ledger.accept(event)
        return JSONResponse({"events": [_shown(event) for event in taken]}, headers=LABEL)

    def _take_single(self, body: bytes) -> Response:
        try:
            event = msgspec.json.decode(body)["event"]
        except (msgspec.DecodeError, KeyError, TypeError):
            return _error(400, "BadRequest: malformed body")
        read = self._read_event(event)
        if not isinstance(read, LagoEvent):
            return _invalid(read)
        if self._breaks([read]):
            return _error(500, "Internal Server Error")
        self.ledger.accept(read)
        return JSONResponse({"event": _shown(read)}, headers=LABEL)

    def _read_event(self, event: Any) -> LagoEvent | dict[str, Any]:
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
        if not errors and (subscription, transaction_id) in self.ledger.events:
            errors["transaction_id"] = ["value_already_exist"]
        if errors or timestamp_s is None:
            return errors
        coins = self.ledger.price(subscription, str(code), timestamp_s, properties)
        return LagoEvent(str(transaction_id), subscription, str(code), timestamp_s, properties, coins)

    def _breaks(self, events: list[LagoEvent]) -> bool:
        """What the database refuses while the batch is being written: one id twice and NUL characters."""
        keys = {(event.external_subscription_id, event.transaction_id) for event in events}
        return len(keys) < len(events) or any(
            "\0" in str(value) for event in events for value in (*event, *event.properties.values())
        )

    async def listing(self, request: Request) -> Response:
        refused = self._authorised(request)
        if refused is not None:
            return refused
        query = request.query_params
        try:
            page, per_page = int(query.get("page", "1")), int(query.get("per_page", "100"))
        except ValueError:
            return _error(400, "BadRequest: page and per_page are numbers")
        page, per_page = max(page, 1), min(max(per_page, 1), _MAX_PAGE)
        subscription, code = query.get("external_subscription_id"), query.get("code")
        found = [
            event
            for event in self.ledger.events.values()
            if subscription in (None, event.external_subscription_id) and code in (None, event.code)
        ]
        pages = math.ceil(len(found) / per_page)
        meta = {
            "current_page": page,
            "next_page": page + 1 if page < pages else None,
            "prev_page": page - 1 if page > 1 else None,
            "total_pages": pages,
            "total_count": len(found),
        }
        shown = [_shown(event) for event in found[(page - 1) * per_page : page * per_page]]
        return JSONResponse({"events": shown, "meta": meta}, headers=LABEL)

    async def show(self, request: Request) -> Response:
        refused = self._authorised(request)
        if refused is not None:
            return refused
        wanted = request.path_params["transaction_id"]
        for event in self.ledger.events.values():
            if event.transaction_id == wanted:
                return JSONResponse({"event": _shown(event)}, headers=LABEL)
        return _error(404, "Not Found")

    async def metric(self, request: Request) -> Response:
        code = request.path_params["code"]
        if (refused := self._authorised(request)) is not None:
            return refused
        if code not in self.ledger.codes:
            return _error(404, "Not Found", code="billable_metric_not_found")
        shown = {"code": code, "aggregation_type": "sum_agg", "field_name": code, "recurring": False}
        return JSONResponse({"billable_metric": shown}, headers=LABEL)

    async def subscription(self, request: Request) -> Response:
        name = request.path_params["name"]
        if (refused := self._authorised(request)) is not None:
            return refused
        if self.ledger.subscriptions is not None and name not in self.ledger.subscriptions:
            return _error(404, "Not Found", code="subscription_not_found")
        shown = {"external_id": name, "external_customer_id": name, "plan_code": "demo", "status": "active"}
        return JSONResponse({"subscription": shown}, headers=LABEL)


def _seconds(timestamp: Any, now_s: float) -> float | None:
    """As Lago reads it: nothing means now, else whatever Ruby's `Float` takes. A JSON float breaks the published
    schema, so it is refused here.
    """
    if timestamp is None:
        return now_s
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | str):
        return None
    try:
        seconds = float(timestamp)
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None


def _shown(event: LagoEvent) -> dict[str, Any]:
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
        "external_subscription_id": event.external_subscription_id,
        "created_at": None,
    }


def _invalid(details: dict[str, Any]) -> Response:
    return _error(422, "Unprocessable Entity", code="validation_errors", error_details=details)


def _error(status: int, error: str, **more: Any) -> Response:
    return JSONResponse({"status": status, "error": error, **more}, status, headers=LABEL)


async def _read(request: Request, limit: int) -> bytes | None:
    """The body, or None beyond `limit` bytes."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                return None
            body += chunk
    except ClientDisconnect:
        return b""
    return bytes(body)


async def _hang(request: Request, seconds: float) -> None:
    """Wait, but not longer than the client: after the body, the only message that can come is its leaving."""
    try:
        async with asyncio.timeout(seconds):
            await request.receive()
    except TimeoutError:
        pass
