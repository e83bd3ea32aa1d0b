"""Bytes that Lago may have had from an earlier release: they stay as they are, or it would take a retry for new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from askii_middleware.records import decode_record
from askii_middleware.sinks.lago import LagoSink

from .support import API_KEY

URL = "https://lago.example.com/api/v1"
LINES = (Path(__file__).parent / "golden" / "lago_events.jsonl").read_text("utf-8").splitlines()
"""Records as stores have them (one without fields that came later, one with fields of tomorrow) and their events."""
PROPERTIES = {
    "env": "prod",
    "team": "{team}",
    "tags": "{tags}",
    "tier": "{service_tier}",
    "stream": "{stream}",
    "project": "{metadata.project}",
    "tiny": "{metadata.x}",
    "n": "{metadata.n}",
    "deep": "{metadata.deep}",
    "thoughts": "{usage.reasoning_tokens}",
}
SINKS: dict[str, dict[str, Any]] = {
    "coins": {},
    "with properties": {"properties": PROPERTIES},
    "tokens": {"events": "tokens"},
}


@pytest.mark.parametrize("shape", SINKS)
@pytest.mark.parametrize("number", range(len(LINES)))
def test_point_05_a_record_of_any_release_gives_the_bytes_it_always_gave(number: int, shape: str) -> None:
    line = json.loads(LINES[number])
    events = LagoSink(URL, API_KEY, **SINKS[shape])._events_of(decode_record(line["record"].encode()))
    assert [event.body.decode() for event in events] == line[shape]


def test_point_05_bytes_do_not_change_when_a_record_is_written_and_read_again() -> None:
    for text in LINES:
        record = decode_record(json.loads(text)["record"].encode())
        again = decode_record(msgspec.json.encode(record))
        for options in SINKS.values():
            sink = LagoSink(URL, API_KEY, **options)
            assert sink._events_of(again) == sink._events_of(record)
