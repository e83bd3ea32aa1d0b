"""Usage records as Lago events.

Facts: lago-api and lago-openapi 1.51.0 (2026-08). `POST {base}/events/batch` takes 1 to 100 events. Lago keeps the
`transaction_id` of every event for ever, so sending the same bytes again is safe and bills once. It answers 200 to
events that it will never bill: those of unknown subscriptions, and amounts that are not plain fixed-point decimals of
at most 12 integer digits. Such events are refused here instead.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec

from askii_middleware._version import __version__
from askii_middleware.errors import SinkError
from askii_middleware.records import UsageRecord

from .base import BACK_OFF, KEPT, Delivery, Verdict
from .lago_answers import Answer, read_answer

MAX_EVENTS: Final = 100
"""Lago's bound on one batch."""
MAX_COINS: Final = 999_999_999_999
"""12 integer digits: larger amounts count as 0 in Lago's ClickHouse store."""
NO_SUBSCRIPTION: Final = (
    "records without a subscription cannot be billed and were put with the dead letters: name one for every tenant"
)
_MAX_ANSWER_BYTES = 1 << 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_encode = msgspec.json.Encoder().encode

RecordExternal = Callable[[str, int, str], Awaitable[None]]
"""Puts `(external_subscription_id, coins, call_id)` into the ledger and the outbox."""


class UnbillableError(SinkError, ValueError):
    """A record or amount that Lago would accept and never bill, or that would break the batch it is in."""


class MissingSubscriptionError(UnbillableError):
    """A record that names nobody to bill."""


def encode_event(record: UsageRecord, code: str = "askii_coins") -> bytes:
    """The event of a record as JSON: always the same bytes for the same record. Raises UnbillableError."""
    if not record.subscription.strip():
        raise MissingSubscriptionError("no subscription to bill")
    if not 0 <= record.askii_coins <= MAX_COINS:
        raise UnbillableError(f"{record.askii_coins} coins: Lago bills 0 to {MAX_COINS} per event")
    if not record.call_id or "\0" in record.call_id + record.subscription + record.served_model:
        raise UnbillableError("an empty call id, or a NUL character, which would break the whole batch")
    return _encode(
        {
            "transaction_id": record.call_id,
            "external_subscription_id": record.subscription,
            "code": code,
            "timestamp": unix_seconds(record.timestamp),
            "properties": {
                "askii_coins": str(record.askii_coins),
                "call_id": record.call_id,
                "model": record.served_model,
                "input_tokens": str(record.usage.input_tokens),
                "output_tokens": str(record.usage.output_tokens),
            },
        }
    )


def unix_seconds(timestamp: str) -> str:
    """RFC 3339 to Unix seconds with three decimals, cut (not rounded) to milliseconds. Raises UnbillableError."""
    try:
        moment = datetime.fromisoformat(timestamp)
        milliseconds = (moment - _EPOCH) // _MILLISECOND
    except (ValueError, TypeError):
        raise UnbillableError(f"timestamp {timestamp[:64]!r} is not RFC 3339 with an offset") from None
    if milliseconds < 0:
        raise UnbillableError(f"timestamp {timestamp!r} lies before 1970")
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def whole_coins(cost: float) -> int:
    """An amount that can be billed as it is: finite, whole, 0 to 12 digits. Raises UnbillableError (a ValueError)."""
    try:
        # False for NaN, and never reaches `int` with an infinity.
        billable = not isinstance(cost, bool) and 0 <= cost <= MAX_COINS and cost == int(cost)
    except ArithmeticError:  # Decimal("NaN") has no order
        billable = False
    if not billable:
        raise UnbillableError(f"cost {cost!r}: Lago is sent whole coins from 0 to {MAX_COINS}")
    return int(cost)


class _Event(NamedTuple):
    place: int
    transaction_id: str
    body: bytes


class LagoSink:
    """Sends records to Lago in batches, in their order, one request at a time.

    Args:
        url: the API's base with its path, such as `https://lago.example.com/api/v1`.
        api_key: a Lago API key. It appears in the `Authorization` header only.
        code: the billable metric; its aggregated property is `askii_coins`.
        timeout_s: for one request as a whole. A `send` needs up to twice that.
        client: to share connections or set certificates; it stays open when the sink closes.
        clock: Unix seconds, to read the dates in answers.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        code: str = "askii_coins",
        timeout_s: float = 10.0,
        client: httpx.AsyncClient | None = None,
        name: str = "lago",
        max_batch: int = MAX_EVENTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.code = code
        self.timeout_s = timeout_s
        self.url = _base_url(url)
        if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            # A transport would quote a malformed header in its error; this message does not.
            raise SinkError("the Lago API key is empty or has characters that no header can carry")
        if not 1 <= max_batch <= MAX_EVENTS:
            raise SinkError(f"max_batch {max_batch}: Lago takes 1 to {MAX_EVENTS} events at once")
        self._headers = {
            "authorization": f"Bearer {api_key}",
            "content-type": "application/json",
            "user-agent": f"askii-middleware/{__version__}",
        }
        self._given_client = client
        self._client: httpx.AsyncClient | None = None
        # Loading certificates takes tens of milliseconds: at construction, not on the event loop. A context without
        # any trusts nobody, and plain http never asks it.
        secure = client is None and self.url.startswith("https:")
        self._tls = httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._clock = clock
        self._record_external: RecordExternal | None = None
        self._at_once = max_batch
        """How many events a request may have at present: halved when it was too large, doubled when it went well."""

    def __repr__(self) -> str:
        return f"LagoSink(url={self.url!r}, name={self.name!r})"

    def bind(self, record_external: RecordExternal) -> None:
        """Give `send_usage_event` its way into the outbox; the tracker does this."""
        self._record_external = record_external

    async def send_usage_event(self, external_subscription_id: str, cost: float, call_id: str) -> None:
        """Bill `cost` coins for a call that was made elsewhere. Returns when the event is safe in the outbox.

        Raises:
            ValueError: `cost` is not a whole number of coins from 0 to 12 digits, or an id is empty or has a NUL.
            SinkError: no tracker carries this sink.
        """
        coins = whole_coins(cost)
        if not external_subscription_id.strip() or not call_id or "\0" in external_subscription_id + call_id:
            raise UnbillableError("external_subscription_id and call_id must not be empty nor contain NUL")
        if self._record_external is None:
            raise SinkError("this LagoSink is not bound: give it to a tracker, CostTracker(sinks=[sink]), and start it")
        await self._record_external(external_subscription_id, coins, call_id)

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        verdicts = [KEPT] * len(records)
        todo: list[_Event] = []
        alarm = ""
        for index, record in enumerate(records):
            try:
                todo.append(_Event(index, record.call_id, encode_event(record, self.code)))
            except UnbillableError as error:
                verdicts[index] = Verdict("rejected", str(error))
                if isinstance(error, MissingSubscriptionError):
                    alarm = NO_SUBSCRIPTION
        started_s = time.monotonic()
        # Every turn settles an event or halves the request. What is left when the time is up keeps its place.
        while todo and time.monotonic() - started_s < self.timeout_s:
            batch = self._take(todo)
            answer = await self._post(batch)
            if answer.pause_s is not None:
                for event in todo:
                    verdicts[event.place] = Verdict("again", answer.reason)
                return Delivery(tuple(verdicts), answer.pause_s, answer.alarm or alarm, answer.suspect)
            settled = answer.verdicts
            if answer.split:
                if len(batch) > 1:
                    self._at_once = len(batch) // 2
                    continue
                settled = {0: Verdict("rejected", answer.split)}
            elif len(batch) >= self._at_once:
                self._at_once = min(self.max_batch, self._at_once * 2)
            for index, verdict in settled.items():
                verdicts[batch[index].place] = verdict
            done = {batch[index].place for index in settled}
            todo = [event for event in todo if event.place not in done]
        if todo and all(verdict is KEPT for verdict in verdicts):  # nothing but refusals of a slow receiver
            return Delivery((Verdict("again", "time was up"),) * len(records), BACK_OFF, alarm)
        return Delivery(tuple(verdicts), alarm=alarm)

    def _take(self, todo: list[_Event]) -> list[_Event]:
        """The next request's events. No request has one transaction id twice: Lago would roll it back."""
        batch: dict[str, _Event] = {}
        for event in todo:
            batch.setdefault(event.transaction_id, event)
            if len(batch) == self._at_once:
                break
        return list(batch.values())

    async def _post(self, batch: list[_Event]) -> Answer:
        body = b'{"events":[' + b",".join([event.body for event in batch]) + b"]}"
        client = self._given_client or self._client
        if client is None:
            client = self._client = httpx.AsyncClient(verify=self._tls, timeout=self.timeout_s)
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                client.stream(
                    "POST",
                    f"{self.url}/events/batch",
                    content=body,
                    headers=self._headers,
                    follow_redirects=False,
                ) as response,
            ):
                text = await _read(response)
                return read_answer(response.status_code, response.headers, text, events=len(batch), now_s=self._clock())
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Answer(pause_s=BACK_OFF, reason=_describe(error))
        except (httpx.RequestError, TimeoutError) as error:
            # The receiver had the bytes, or part of them. Whether it kept them, its answer to the same bytes says.
            return Answer(pause_s=BACK_OFF, reason=_describe(error), suspect=True)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or "?" in url or "#" in url or not url.isprintable() or " " in url:
        # Not quoted: it may have a password in it.
        raise SinkError(
            "the Lago URL must be http(s)://host/path without user, query or fragment, such as "
            "https://lago.example.com/api/v1"
        )
    return url.rstrip("/")


async def _read(response: httpx.Response) -> bytes:
    """The body up to 1 MiB: no answer of Lago's comes near."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= _MAX_ANSWER_BYTES:
            break
    return bytes(body)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
