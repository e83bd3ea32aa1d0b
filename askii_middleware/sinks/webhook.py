"""Usage records as CloudEvents 1.0, posted in batches and signed.

Facts: CloudEvents 1.0.2 with its JSON batch format and HTTP binding; Standard Webhooks 1.0.0 for the signature;
OpenMeter's ingestion API takes the batches as they are (it wants a subject, and an object as data; numbers in it may be
strings), answers 204 and knows events again by source and id. All read 2026-11.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

import httpx
import msgspec

from askii_middleware.errors import ConfigurationError, SinkError
from askii_middleware.records import UsageRecord, unique_id
from askii_middleware.signing import signature, signing_key

from .base import BACK_OFF, DELIVERED, KEPT, Delivery, NumberFormat, Verdict
from .http import (
    FAILURES,
    Answer,
    Connection,
    asked_wait_s,
    base_url,
    excerpt,
    hold,
    is_exposed,
    no_answer,
)

MAX_EVENTS: Final = 1000
_BATCH = "application/cloudevents-batch+json"
_encode = msgspec.json.Encoder().encode


class _Event(NamedTuple):
    place: int
    id: str
    body: bytes


class WebhookSink:
    """Posts records to an HTTP endpoint. At least once: the same `id` (the call's; for what was charged under an id of
    the caller's own, with its subscription) and `source` is the same record, always with the same bytes.

    Args:
        url: http or https, without user, query and fragment. Beyond this machine https, unless `allow_http`.
        secrets: `whsec_` and the base64 of 24 to 64 bytes, shared with the receiver. With several, each signs, so that
            one can take another's place; none: unsigned.
        token: sent as `Authorization: Bearer`.
        type: the events' type; receivers choose by it.
        source: the events' source. It stays as it is: receivers know an event again by source and id.
        number_format: `integer`, or `string` for receivers that read numbers as floats: all integers of the record
            outside `metadata` are then strings.
        max_age_s, remembers_s: of the receiver, see `Sink`.
        timeout_s: for one request as a whole. A `send` needs up to twice that.
        client: to share connections or set certificates; it stays open when the sink closes.
        clock: Unix seconds, for the signed time of each try and to read the dates in answers.
    """

    def __init__(
        self,
        url: str,
        *,
        secrets: Sequence[str] = (),
        token: str | None = None,
        type: str = "askii.usage",  # noqa: A002 - the attribute's name in CloudEvents
        source: str = "askii-middleware",
        number_format: NumberFormat = "integer",
        max_age_s: float | None = None,
        remembers_s: float | None = None,
        allow_http: bool = False,
        timeout_s: float = 10.0,
        client: httpx.AsyncClient | None = None,
        name: str = "webhook",
        max_batch: int = 100,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.number_format = number_format
        self.max_age_s = max_age_s
        self.remembers_s = remembers_s
        base_url(url, what=f"the URL of sink {name!r}", example="https://example.com/events")
        self.url = url  # as it is: to some receivers a slash at its end is another place
        if is_exposed(self.url) and not allow_http:
            raise SinkError(f"the URL of sink {name!r} must be https, or set allow_http to send records in the clear")
        if not 1 <= max_batch <= MAX_EVENTS:
            raise SinkError(f"max_batch {max_batch} of sink {name!r}: 1 to {MAX_EVENTS} events are sent at once")
        if not type or not source:
            raise SinkError(f"type and source of sink {name!r} must not be empty")
        if isinstance(secrets, str):
            raise SinkError(f"secrets of sink {name!r} is a list")
        try:
            self._keys = tuple(signing_key(secret) for secret in secrets)
        except ConfigurationError as error:
            raise SinkError(f"sink {name!r}: {error}") from None
        self._head = {"specversion": "1.0", "type": type, "source": source}
        self._connection = Connection(
            self.url, token, what=f"the token of sink {name!r}", timeout_s=timeout_s, client=client
        )
        self._clock = clock
        self._at_once = max_batch
        """How many events a request may have at present: halved when it was refused, doubled when it went well."""

    def __repr__(self) -> str:
        return f"WebhookSink(url={self.url!r}, name={self.name!r})"

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        verdicts = [KEPT] * len(records)
        todo = [_Event(place, unique_id(record), self._event(record)) for place, record in enumerate(records)]
        timeout_s = self._connection.timeout_s
        started_s = time.monotonic()
        # Every turn settles an event or halves the request. What is left when the time is up keeps its place.
        while todo and time.monotonic() - started_s < timeout_s:
            batch = todo[: self._at_once]
            answer = await self._post(batch)
            if answer.pause_s is not None:
                for event in todo:
                    verdicts[event.place] = Verdict("again", answer.reason)
                return Delivery(tuple(verdicts), answer.pause_s, answer.alarm, answer.suspect)
            if answer.split and len(batch) > 1:
                self._at_once = len(batch) // 2
                continue
            if not answer.split and len(batch) >= self._at_once:
                self._at_once = min(self.max_batch, self._at_once * 2)
            verdict = Verdict("rejected", answer.split) if answer.split else DELIVERED
            for event in batch:
                verdicts[event.place] = verdict
            todo = todo[len(batch) :]
        if todo and all(verdict is KEPT for verdict in verdicts):  # nothing but refusals of a slow receiver
            return Delivery((Verdict("again", "time was up"),) * len(records), BACK_OFF)
        return Delivery(tuple(verdicts))

    def _event(self, record: UsageRecord) -> bytes:
        event = {**self._head, "id": unique_id(record), "time": record.timestamp, "datacontenttype": "application/json"}
        if record.subscription:
            event["subject"] = record.subscription
        data = record if self.number_format == "integer" else with_text_numbers(record)
        return _encode({**event, "data": data})

    async def _post(self, batch: list[_Event]) -> Answer:
        body = b"[" + b",".join([event.body for event in batch]) + b"]"
        try:
            reply = await self._connection.request("POST", content=body, headers=self._signed(batch, body))
        except FAILURES as error:
            return no_answer(error)
        return read_answer(reply.status, reply.headers, reply.body, now_s=self._clock())

    def _signed(self, batch: list[_Event], body: bytes) -> dict[str, str]:
        # The same events are the same message, whoever sends them and how often.
        message_id = "msg_" + sha256("\n".join([event.id for event in batch]).encode()).hexdigest()[:32]
        sent_s = str(int(self._clock()))
        headers = {"content-type": _BATCH, "webhook-id": message_id, "webhook-timestamp": sent_s}
        if self._keys:
            headers["webhook-signature"] = " ".join(signature(key, message_id, sent_s, body) for key in self._keys)
        return headers

    async def close(self) -> None:
        await self._connection.close()


def read_answer(status: int, headers: Mapping[str, str], body: bytes, *, now_s: float) -> Answer:
    """Judge an answer that speaks of the whole request: `split`, a pause, or neither where all was delivered."""
    said = f"HTTP {status}"
    if 200 <= status < 300:
        return Answer()
    if status in (400, 413, 422):
        return Answer(split=f"{said}: {excerpt(body)}")
    if status in (429, 503):
        return Answer(pause_s=asked_wait_s(headers, now_s), reason=said)
    if status in (408, 425):
        return Answer(pause_s=BACK_OFF, reason=said)
    if status >= 500:
        return Answer(pause_s=BACK_OFF, reason=f"{said}: {excerpt(body)}", suspect=True)
    fixes = {401: "check the token and the secrets", 403: "the token may not send events", 404: "check the URL"}
    if status == 410:
        return hold(f"{said}: the endpoint is gone for good: correct the URL, or remove the sink and forget it")
    if 300 <= status < 400:
        return hold(f"{said}: redirections are not followed: set the URL it points at")
    return hold(f"{said}: {fixes.get(status, 'check the URL and what stands between')}")


def with_text_numbers(record: UsageRecord) -> dict[str, Any]:
    """The record with its integers as text, but for those in `metadata`, which are the user's own."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    text = _as_text(fields)
    text["usage"] = _as_text(fields["usage"])
    text["charges"] = [_as_text(charge) for charge in fields["charges"]]
    return text


def _as_text(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if type(value) is int else value for name, value in fields.items()}
