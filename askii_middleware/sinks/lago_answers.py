"""What Lago's answers mean. Pure: a status, headers and a body in, a judgement out.

Facts: lago-api's `ApiErrors` and `Events::CreateBatchService` (2026-08). A batch that fails validation is rolled
back whole; `error_details` is then keyed by the event's index as a string, and a value is an object of codes by field
or a bare string. Where the whole request is at fault, the key is a field's name, such as `events`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec

from .base import BACK_OFF, DELIVERED, Verdict

HOLD_S = 60.0
"""How often to look whether a refused key or a wrong URL has been put right."""
MAX_WAIT_S = 300.0
"""The longest wait a receiver can ask for."""
_EPOCH_S = 1e8
"""A reset above this is a moment, not a span: some proxies send Unix time."""
_MAX_REASON_CHARS = 300


class Answer(NamedTuple):
    """Exactly one of the three is set, except that verdicts of some events leave the others to be sent again."""

    verdicts: dict[int, Verdict] = {}  # noqa: RUF012 - a NamedTuple's default, never written to
    """By the event's index in the request."""
    split: str = ""
    """Why the request is unacceptable as a whole: send fewer at a time. Of a lone event it is the verdict."""
    pause_s: float | None = None
    """Stop sending, as in `Delivery`; `reason`, `alarm` and `suspect` go with it."""
    reason: str = ""
    alarm: str = ""
    suspect: bool = False


def read_answer(status: int, headers: Mapping[str, str], body: bytes, *, events: int, now_s: float) -> Answer:
    """Judge the answer to a batch of `events` events. `headers` must be case-insensitive or in lower case."""
    said = f"HTTP {status}"
    if 200 <= status < 300:
        if headers.get("content-type", "").startswith("text/html"):
            return _hold(f"{said} with a web page: this URL is not Lago's API; it ends in /api/v1")
        return Answer(dict.fromkeys(range(events), DELIVERED))
    if status == 422:
        return _read_422(body, events)
    if status in (400, 413):
        return Answer(split=f"{said}: {_excerpt(body)}")
    if status == 429:
        return Answer(pause_s=asked_wait_s(headers, now_s), reason=said)
    if status in (408, 425):
        return Answer(pause_s=BACK_OFF, reason=said)
    if status == 503:
        return Answer(pause_s=asked_wait_s(headers, now_s), reason=said)
    if status >= 500:
        return Answer(pause_s=BACK_OFF, reason=f"{said}: {_excerpt(body)}", suspect=True)
    fixes = {401: "check the API key", 403: "the API key may not send events", 404: "check the URL"}
    return _hold(f"{said}: {fixes.get(status, 'check the URL and what stands between')}")


def _hold(alarm: str) -> Answer:
    return Answer(pause_s=HOLD_S, reason=alarm, alarm=alarm)


def _read_422(body: bytes, events: int) -> Answer:
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        answer = None
    details = answer.get("error_details") if isinstance(answer, dict) else None
    verdicts = {}
    for key, detail in details.items() if isinstance(details, dict) else ():
        if key.isascii() and key.isdigit() and (index := int(key)) < events:
            verdicts[index] = DELIVERED if _is_known(detail) else Verdict("rejected", f"HTTP 422: {_text(detail)}")
    return Answer(verdicts) if verdicts else Answer(split=f"HTTP 422: {_excerpt(body)}")


def _is_known(detail: Any) -> bool:
    """Whether the event was there before: an earlier try arrived, and its answer was lost."""
    codes = detail.get("transaction_id") if isinstance(detail, dict) else None
    return isinstance(codes, list) and "value_already_exist" in codes


def asked_wait_s(headers: Mapping[str, str], now_s: float) -> float:
    """How long a receiver asks to wait, at most 300 s; `BACK_OFF` where it does not say.

    Lago sends `X-RateLimit-Reset` in seconds; proxies send `Retry-After` in seconds or as an HTTP date.
    """
    for name in ("x-ratelimit-reset", "retry-after"):
        text = headers.get(name)
        if text is None:
            continue
        try:
            wait_s = float(text)
            if wait_s > _EPOCH_S:
                wait_s -= now_s
        except ValueError:
            try:
                moment = parsedate_to_datetime(text)
            except ValueError:
                continue
            wait_s = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now_s
        if math.isfinite(wait_s) and wait_s > 0:
            return min(wait_s, MAX_WAIT_S)
    return BACK_OFF


def _excerpt(body: bytes) -> str:
    return body[:_MAX_REASON_CHARS].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _text(detail: Any) -> str:
    text = detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()
    return text[:_MAX_REASON_CHARS]
