"""A sink of one's own: usage as Stripe Billing meter events.

Facts (Stripe's API reference, read 2026-11): `POST /v1/billing/meter_events`, form-encoded, one event each. `timestamp`
lies within the past 35 calendar days and at most 5 minutes ahead. `identifier` is unique within a rolling period of at
least 24 hours, and one that was used is refused with 400. `payload[value]` is a whole number.

A tenant's subscription is its Stripe customer id, such as `cus_NciAYcXfLnqBoz`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime

import httpx

from askii_middleware.records import UsageRecord, unique_id
from askii_middleware.sinks.base import BACK_OFF, DELIVERED, KEPT, Delivery, Verdict

DAY_S = 86_400.0
MAX_AHEAD_S = 300.0
HOLD_S = 60.0


class StripeSink:
    name = "stripe"
    max_batch = 20  # one request each: the whole batch has to fit into the 22 s that one send may take
    number_format = "string"
    max_age_s = 35 * DAY_S
    remembers_s = DAY_S

    def __init__(
        self, url: str, api_key: str, *, event_name: str = "askii_coins", clock: Callable[[], float] = time.time
    ) -> None:
        self._url = f"{url.rstrip('/')}/v1/billing/meter_events"
        # No idempotency key: Stripe would repeat the answer to it, also a 500. The identifier does what is needed.
        self._headers = {"authorization": f"Bearer {api_key}"}
        self._event_name = event_name
        self._clock = clock
        self._client: httpx.AsyncClient | None = None

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        verdicts = [KEPT] * len(records)
        for place, record in enumerate(records):
            at_s = datetime.fromisoformat(record.timestamp).timestamp()
            if (early_s := at_s - self._clock() - MAX_AHEAD_S) > 0:
                verdicts[place] = Verdict("again", "more than 5 minutes ahead of the clock", early_s)
            elif not record.subscription:
                verdicts[place] = Verdict("rejected", "no customer to bill")
            elif record.askii_coins:
                status, said = await self._post(record, int(at_s))
                if 200 <= status < 300 or "already exists with identifier" in said or "duplicate_meter_event" in said:
                    verdicts[place] = DELIVERED
                elif status == 400:
                    verdicts[place] = Verdict("rejected", f"HTTP 400: {said}")
                else:
                    verdicts[place] = Verdict("again", f"HTTP {status}")
                    alarm = "" if status in (409, 429) or status >= 500 else f"HTTP {status}: check key and URL"
                    return Delivery(tuple(verdicts), HOLD_S if alarm else BACK_OFF, alarm, suspect=status >= 500)
            else:
                verdicts[place] = DELIVERED  # there is nothing to bill
        return Delivery(tuple(verdicts))

    async def _post(self, record: UsageRecord, at_s: int) -> tuple[int, str]:
        """May raise: then the whole batch comes again, and Stripe knows what it has by the identifiers."""
        form = {
            "event_name": self._event_name,
            "identifier": unique_id(record),
            "timestamp": str(at_s),
            "payload[stripe_customer_id]": record.subscription,
            "payload[value]": str(record.askii_coins),
        }
        if self._client is None:
            self._client = httpx.AsyncClient(headers=self._headers, timeout=10.0)
        answer = await self._client.post(self._url, data=form)
        return answer.status_code, answer.text[:300]

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
