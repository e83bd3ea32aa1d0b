"""What holds for the family: the interface, building by name, lazy imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import askii_middleware.sinks as family
from askii_middleware.errors import ConfigurationError, SinkError
from askii_middleware.sinks import LagoSink, LogSink, MemorySink, Sink, WebhookSink, build_sink

from .support import record


def test_sinks_are_built_from_their_settings_by_name_or_kind(tmp_path: Path) -> None:
    lago = build_sink("lago", {"url": "https://lago.example.com/api/v1", "api_key": "k", "timeout_s": 3.0})
    assert isinstance(lago, LagoSink)
    assert (lago.name, lago.timeout_s, lago.max_batch) == ("lago", 3.0, 100)
    log = build_sink("audit", {"kind": "log", "path": str(tmp_path / "a.jsonl"), "fsync": True})
    assert isinstance(log, LogSink)
    assert (log.name, log.fsync) == ("audit", True)
    memory = build_sink("memory", {})
    assert isinstance(memory, MemorySink)
    webhook = build_sink("meter", {"kind": "webhook", "url": "https://h.example.com/events", "type": "llm.call"})
    assert isinstance(webhook, WebhookSink)
    assert webhook.name == "meter"
    assert all(isinstance(sink, Sink) for sink in (lago, log, memory, webhook))


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        ("kafka", {}, ConfigurationError, r"\[sinks.kafka\]: unknown kind 'kafka'; .* lago, log, memory, webhook"),
        ("x", {"kind": ["log"]}, ConfigurationError, r"unknown kind \['log'\]"),
        ("lago", {"url": "https://h/api/v1"}, ConfigurationError, r"\[sinks.lago\]: .*'api_key'"),
        ("lago", {"url": "https://h/v1", "api_key": "k", "uri": 1}, ConfigurationError, "unexpected .*'uri'"),
        ("lago", {"url": "h", "api_key": "k"}, SinkError, "the Lago URL must be"),
    ],
)
def test_settings_that_cannot_work_name_what_is_wrong(
    name: str, options: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        build_sink(name, options)


async def test_the_memory_sink_keeps_the_newest_and_counts_all() -> None:
    sink = MemorySink(max_records=3)
    await sink.send([record(n) for n in range(5)])
    await sink.close()
    assert [each.call_id for each in sink.records] == ["call-00002", "call-00003", "call-00004"]
    assert sink.received == 5


def test_the_family_loads_no_http_client_until_lago_is_named() -> None:
    code = "import sys, askii_middleware.sinks.base, askii_middleware.sinks.log; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_unknown_member_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'KafkaSink'"):
        _ = family.KafkaSink
