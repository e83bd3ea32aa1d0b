"""Delivery to Lago: batches of events, and what becomes of each record by Lago's answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import httpx

from askii_middleware.errors import SinkError
from askii_middleware.records import UsageRecord

from .auditing import Line
from .base import BACK_OFF, DELIVERED, KEPT, Delivery, Verdict
from .checking import Finding
from .http import FAILURES, Answer, Connection, base_url, is_exposed, no_answer
from .lago_answers import read_answer
from .lago_api import LagoApi
from .lago_audit import sent_lines, stored_lines
from .lago_check import check_metrics, check_subscriptions
from .lago_events import (
    CODE,
    COIN_PROPERTIES,
    COINS_PROPERTY,
    MAX_COINS,
    TOKEN_PROPERTIES,
    TOKENS_PROPERTY,
    EventsOf,
    MissingSubscriptionError,
    UnbillableError,
    coin_events,
    encode_event,
    shown,
    token_events,
    unix_seconds,
    whole_coins,
)
from .lago_properties import Properties
from .lago_tokens import TOKEN_CODES

__all__ = [
    "MAX_COINS",
    "MAX_EVENTS",
    "TOKEN_CODES",
    "LagoSink",
    "MissingSubscriptionError",
    "UnbillableError",
    "encode_event",
    "unix_seconds",
    "whole_coins",
]

MAX_EVENTS: Final = 100
"""Lago's bound on one batch."""
MAX_CODE_CHARS: Final = 255
NO_SUBSCRIPTION: Final = (
    "records without a subscription cannot be billed and were put with the dead letters: name one for every tenant"
)
_JSON: Final = {"content-type": "application/json"}

RecordExternal = Callable[[str, int, str], Awaitable[None]]
"""Puts `(external_subscription_id, coins, call_id)` into the ledger and the outbox."""


class _Event(NamedTuple):
    place: int
    """Of its record in the batch of records."""
    transaction_id: str
    body: bytes


class LagoSink:
    """Sends records to Lago in batches, in their order, one request at a time.

    It sends one shape of events. Who wants both has two sinks, each with its own place in the outbox, so that trouble
    with the one never holds up the other.

    Args:
        url: the API's base with its path, such as `https://lago.example.com/api/v1`.
        api_key: a Lago API key. It appears in the `Authorization` header only.
        events: `coins`, one event for each record, or `tokens`, one for each kind of tokens in it.
        code: of `coins`, the billable metric; it sums the property `askii_coins`.
        token_codes: of `tokens`, the billable metrics by kind, which sum the property `value`; kinds without a code
            are not sent. Default: those of lago-agent-sdk (`TOKEN_CODES`).
        only_tenants: bill these only, at least one; what others use counts as delivered.
        properties: further properties of every event: constants, and fields of the record in braces, such as
            `{"env": "prod", "team": "{team}", "project": "{metadata.project}"}`.
        timeout_s: for one request as a whole. A `send` needs up to twice that.
        max_age_s: older records go to the dead letters; None: Lago takes any age, though no invoice that is final.
        allow_http: take a URL beyond this machine without TLS.
        client: to share connections or set certificates; it stays open when the sink closes.
        max_batch: how many records to take at once.
        clock: Unix seconds, to read the dates in answers.
    """

    number_format: Literal["string"] = "string"
    remembers_s: float | None = None
    """Lago keeps transaction ids for ever."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        events: Literal["coins", "tokens"] = "coins",
        code: str = CODE,
        token_codes: Mapping[str, str] | None = None,
        only_tenants: Collection[str] | None = None,
        properties: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        max_age_s: float | None = None,
        allow_http: bool = False,
        client: httpx.AsyncClient | None = None,
        name: str = "lago",
        max_batch: int = MAX_EVENTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.max_age_s = max_age_s
        self.timeout_s = timeout_s
        self.events = events
        base = base_url(url, what="the Lago URL", example="https://lago.example.com/api/v1")
        if is_exposed(base) and not allow_http:
            raise SinkError(
                "the Lago URL must be https, or set allow_http to send the API key and records in the clear"
            )
        self._connection = Connection(
            base,
            api_key,
            what="the Lago API key",
            timeout_s=timeout_s,
            client=client,
        )
        if not 1 <= max_batch <= MAX_EVENTS:
            raise SinkError(f"max_batch {max_batch}: Lago takes 1 to {MAX_EVENTS} events at once")
        if isinstance(only_tenants, str):
            raise SinkError(f"only_tenants is a list of names, not the text {shown(only_tenants)}")
        if only_tenants is not None and not only_tenants:
            raise SinkError("only_tenants is empty, so that nobody would be billed: name tenants, or leave it out")
        self._only_tenants = None if only_tenants is None else frozenset(only_tenants)
        self._metrics, self._events_of = _shape(events, code, token_codes, properties)
        self._clock = clock
        self._record_external: RecordExternal | None = None
        self._at_once = MAX_EVENTS
        """How many events a request may have at present: halved when it was too large, doubled when it went well."""

    @property
    def url(self) -> str:
        return self._connection.url

    def __repr__(self) -> str:
        return f"LagoSink(url={self.url!r}, name={self.name!r})"

    def bind(self, record_external: RecordExternal) -> None:
        """Give `send_usage_event` its way into the outbox; the tracker does this."""
        self._record_external = record_external

    async def send_usage_event(self, external_subscription_id: str, cost: float, call_id: str) -> None:
        """Bill `cost` coins for a call that was made elsewhere. Returns when the event is safe in the outbox.

        Raises:
            ValueError: `cost` is not a whole number of coins from 0 to 12 digits, or an id is empty or has a NUL.
            SinkError: no tracker carries this sink, or it would not bill these coins.
        """
        coins = whole_coins(cost)
        for text in (external_subscription_id, call_id):
            if not isinstance(text, str) or not text.strip() or "\0" in text:
                raise UnbillableError("external_subscription_id and call_id are texts, not empty and without NUL")
        if self.events != "coins":
            raise SinkError("this LagoSink sends tokens; coins are sent by one with events='coins'")
        if self._only_tenants is not None and external_subscription_id not in self._only_tenants:
            raise SinkError(f"only_tenants leaves out {shown(external_subscription_id)}: it would never be billed")
        if self._record_external is None:
            raise SinkError("this LagoSink is not bound: give it to a tracker, CostTracker(sinks=[sink]), and start it")
        await self._record_external(external_subscription_id, coins, call_id)

    def api(self) -> LagoApi:
        """A reader of what Lago has, over the same connection."""
        return LagoApi(self._connection, clock=self._clock)

    async def check(self, subscriptions: Mapping[str, str]) -> list[Finding]:
        """What Lago would take and never bill: metrics that are missing or made otherwise, and subscriptions it does
        not know. `subscriptions` are the external ids by tenant.
        """
        api = self.api()
        found = await check_metrics(api, self._metrics)
        if not found or found[0].result == "unreachable":
            return found
        billed = {t: s for t, s in subscriptions.items() if self._only_tenants is None or t in self._only_tenants}
        return found + await check_subscriptions(api, billed)

    def lines_of(self, record: UsageRecord) -> list[Line]:
        """What a record comes to, for reconciliation. Raises UnbillableError."""
        if self._only_tenants is not None and record.tenant not in self._only_tenants:
            return []
        return sent_lines(self._events_of(record), self._metrics)

    def lines(
        self, subscription: str | None = None, *, from_s: float | None = None, to_s: float | None = None
    ) -> AsyncIterator[Line]:
        """What Lago has of this sink's metrics. Raises LagoApiError."""
        return stored_lines(self.api(), self._metrics, subscription, from_s, to_s)

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        """A record is delivered once all its events are, and rejected if any is; the others are sent all the same."""
        turn = _Turn(len(records))
        for place, record in enumerate(records):
            self._begin(turn, place, record)
        started_s = time.monotonic()
        # Every turn settles an event or halves the request. What is left when the time is up keeps its place.
        while turn.todo and time.monotonic() - started_s < self.timeout_s:
            batch = turn.take(self._at_once)
            answer = await self._post(batch)
            if answer.pause_s is not None:
                for event in turn.todo:
                    turn.verdicts[event.place] = Verdict("again", answer.reason)
                return Delivery(tuple(turn.verdicts), answer.pause_s, answer.alarm or turn.alarm, answer.suspect)
            settled = answer.verdicts
            if answer.split:
                if len(batch) > 1:
                    self._at_once = len(batch) // 2
                    continue
                settled = {0: Verdict("rejected", answer.split)}
            elif len(batch) >= self._at_once:
                self._at_once = min(MAX_EVENTS, self._at_once * 2)
            turn.settle(batch, settled)
        if turn.todo and all(verdict is KEPT for verdict in turn.verdicts):  # only refusals of a slow receiver
            return Delivery((Verdict("again", "time was up"),) * len(records), BACK_OFF, turn.alarm)
        return Delivery(tuple(turn.verdicts), alarm=turn.alarm)

    def _begin(self, turn: _Turn, place: int, record: UsageRecord) -> None:
        if self._only_tenants is not None and record.tenant not in self._only_tenants:
            turn.verdicts[place] = DELIVERED
            return
        try:
            events = self._events_of(record)
        except UnbillableError as error:
            turn.verdicts[place] = Verdict("rejected", str(error))
            if isinstance(error, MissingSubscriptionError):
                turn.alarm = NO_SUBSCRIPTION
            return
        turn.open[place] = len(events)
        turn.todo += [_Event(place, *event) for event in events]
        if not events:
            turn.verdicts[place] = DELIVERED

    async def _post(self, batch: list[_Event]) -> Answer:
        body = b'{"events":[' + b",".join([event.body for event in batch]) + b"]}"
        try:
            reply = await self._connection.request("POST", "/events/batch", content=body, headers=_JSON)
        except FAILURES as error:
            return no_answer(error)
        return read_answer(reply.status, reply.headers, reply.body, events=len(batch), now_s=self._clock())

    async def close(self) -> None:
        await self._connection.close()


class _Turn:
    """One `send`: the events still to be settled and what is known of each record."""

    def __init__(self, records: int) -> None:
        self.verdicts = [KEPT] * records
        self.open = [0] * records
        """How many events of each record are not settled."""
        self.todo: list[_Event] = []
        self.alarm = ""
        self._refused: dict[int, Verdict] = {}

    def take(self, most: int) -> list[_Event]:
        """The next request's events. No request has one transaction id twice: Lago would roll it back."""
        batch: dict[str, _Event] = {}
        for event in self.todo:
            batch.setdefault(event.transaction_id, event)
            if len(batch) == most:
                break
        return list(batch.values())

    def settle(self, batch: list[_Event], verdicts: Mapping[int, Verdict]) -> None:
        done = set()
        for index, verdict in verdicts.items():
            event = batch[index]
            done.add(id(event))
            if verdict.result == "rejected":
                self._refused.setdefault(event.place, verdict)
            self.open[event.place] -= 1
            if not self.open[event.place]:
                self.verdicts[event.place] = self._refused.get(event.place, DELIVERED)
        self.todo = [event for event in self.todo if id(event) not in done]


def _shape(
    events: str, code: str, token_codes: Mapping[str, str] | None, properties: Mapping[str, str] | None
) -> tuple[dict[str, str], EventsOf]:
    """The metrics, each with the property it sums, and the maker of events. Raises SinkError."""
    if events == "coins":
        _check_code(code)
        extra = Properties(properties, reserved=COIN_PROPERTIES) if properties else None
        return {code: COINS_PROPERTY}, coin_events(code, extra)
    if events != "tokens":
        raise SinkError(f'events {shown(events)}: a LagoSink sends "coins" or "tokens"')
    codes = TOKEN_CODES if token_codes is None else dict(token_codes)
    unknown = sorted(set(codes) - set(TOKEN_CODES))
    if unknown or not codes or len(set(codes.values())) < len(codes):
        raise SinkError(f"token_codes: a code of its own for some of {', '.join(TOKEN_CODES)}; not {unknown}")
    for each in codes.values():
        _check_code(each)
    extra = Properties(properties, reserved=TOKEN_PROPERTIES) if properties else None
    return dict.fromkeys(codes.values(), TOKENS_PROPERTY), token_events(codes, extra)


def _check_code(code: str) -> None:
    if not code.strip() or len(code) > MAX_CODE_CHARS or "\0" in code:
        raise SinkError(f"code {shown(code)}: a billable metric's code has 1 to {MAX_CODE_CHARS} characters, no NUL")
