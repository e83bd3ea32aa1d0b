"""What Lago's answers mean. Pure: a status, headers and a body in, a judgement out.

Facts: lago-api's `ApiErrors` and `Events::CreateBatchService` (2026-08). A batch that fails validation is rolled
back whole; `error_details` is then keyed by the event's index as a string, and a value is an object of codes by field
or a bare string. Where the whole request is at fault, the key is a field's name, such as `events`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from .base import BACK_OFF, DELIVERED, Verdict
from .http import Answer, asked_wait_s, excerpt, hold

_MAX_REASON_CHARS = 300
_TITLE = re.compile(rb"<title>([^<]+)", re.IGNORECASE)
_MAX_INDEX_DIGITS = 6


def read_answer(status: int, headers: Mapping[str, str], body: bytes, *, events: int, now_s: float) -> Answer:
    """Judge the answer to a batch of `events` events. `headers` must be case-insensitive or in lower case."""
    said = f"HTTP {status}"
    if (200 <= status < 300 or status in (400, 422)) and _is_web_page(headers):
        # Lago itself answers in JSON. Something before it speaks here of the way there, not of the events.
        return hold(f"{said} with a web page, not from Lago: check the URL, which ends in /api/v1: {_title(body)}")
    if 200 <= status < 300:
        return Answer(dict.fromkeys(range(events), DELIVERED))
    if status == 422:
        return _read_422(body, events)
    if status in (400, 413):
        return Answer(split=f"{said}: {excerpt(body)}")
    if status == 429:
        return Answer(pause_s=asked_wait_s(headers, now_s), reason=said)
    if status in (408, 425):
        return Answer(pause_s=BACK_OFF, reason=said)
    if status == 503:
        return Answer(pause_s=asked_wait_s(headers, now_s), reason=said)
    if status >= 500:
        return Answer(pause_s=BACK_OFF, reason=f"{said}: {excerpt(body)}", suspect=True)
    fixes = {401: "check the API key", 403: "the API key may not send events", 404: "check the URL"}
    return hold(f"{said}: {fixes.get(status, 'check the URL and what stands between')}")


def _is_web_page(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").strip().lower().startswith("text/html")


def _title(body: bytes) -> str:
    """What a web page says of itself, or its beginning."""
    found = _TITLE.search(body)
    return excerpt(found[1].strip() if found else body)


def _read_422(body: bytes, events: int) -> Answer:
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        answer = None
    details = answer.get("error_details") if isinstance(answer, dict) else None
    verdicts = {}
    for key, detail in details.items() if isinstance(details, dict) else ():
        # Not longer: `int` refuses thousands of digits.
        if len(key) <= _MAX_INDEX_DIGITS and key.isascii() and key.isdigit() and (index := int(key)) < events:
            verdicts[index] = DELIVERED if _is_known(detail) else Verdict("rejected", f"HTTP 422: {_text(detail)}")
    return Answer(verdicts) if verdicts else Answer(split=f"HTTP 422: {excerpt(body)}")


def _is_known(detail: Any) -> bool:
    """Whether the event was there before: an earlier try arrived, and its answer was lost."""
    codes = detail.get("transaction_id") if isinstance(detail, dict) else None
    return isinstance(codes, list) and "value_already_exist" in codes


def _text(detail: Any) -> str:
    text = detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()
    return text[:_MAX_REASON_CHARS].replace("\0", "\N{REPLACEMENT CHARACTER}")
