"""Recorded answers of many providers give exactly the usage their manifest expects."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from askii_middleware.providers.sse import Framer
from askii_middleware.usage import Report, TokenUsage

from .support import CORPUS, NO_CORPUS, cut, entries, entry_api, feed, is_streamed, read_headers, recorded

ENTRIES = entries()
pytestmark = pytest.mark.skipif(not ENTRIES, reason=NO_CORPUS)

CLAMPED = {
    # Parts that exceed their whole, as these providers send them: 163 cached of 7, 11 reasoning of 10.
    "azure_ai_inference/grok_cached_gt_prompt.json": {"cached_input_tokens": 7},
    "openrouter/stream_error_with_usage.sse": {"reasoning_tokens": 10},
}
FAILED = {
    "openai_responses/error_insufficient_quota.json",
    "openrouter/error_429.json",
    "openrouter/stream_error_with_usage.sse",
}
NO_USAGE = {
    "gemini/embed_001_no_usage.json",
    "ollama/generate_stream_prompt_eval_count_absent.ndjson",  # counts its output only, see test_ollama.py
    *("openai_chat/stream_no_usage.sse", "openai_responses/json_background_queued_no_usage.json"),
    *("openai_responses/error_insufficient_quota.json", "openrouter/error_429.json"),
}
VISIBLE = {
    # Bytes and pieces of generated text, counted by hand-written readers of each format.
    "openai_chat/stream_no_usage.sse": (15, 5),
    "openai_chat/stream_tools_include_usage.sse": (4, 2),
    "anthropic/stream_old_delta_output_only.sse": (913, 33),
    "openai_responses/stream_reasoning_priority.sse": (15, 6),
    "perplexity/stream_usage_every_chunk.sse": (5, 5),
}


def counts(usage: TokenUsage) -> dict[str, int]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning,
        "audio_in": usage.audio_input_tokens,
        "audio_out": usage.output_audio,
    }


def expected(entry: dict[str, Any]) -> dict[str, int]:
    reported = {name: value or 0 for name, value in entry["expected"].items()}
    return reported | CLAMPED.get(entry["file"], {})


def check(entry: dict[str, Any], report: Report) -> None:
    name = entry["file"]
    assert report.finished
    assert report.failed == (name in FAILED)
    assert report.deferred == (name == "openai_responses/json_background_queued_no_usage.json")
    if name in NO_USAGE:
        assert report.usage is None
        return
    assert report.usage is not None
    assert counts(report.usage) == expected(entry)
    assert report.usage.anomalous == (name in CLAMPED)
    extra = entry["extra"]
    if "cache_write_1h" in extra:
        assert report.usage.cache_write_1h == extra["cache_write_1h"]
        assert report.usage.cache_write == extra["cache_write_5m"]
    if "web_search_requests" in extra:
        assert report.usage.web_search == extra["web_search_requests"]
    if "service_tier" in extra:
        assert report.service_tier == extra["service_tier"]
    others = extra.get("other_model_usage", [])
    assert [(model, counts(usage)) for model, usage in report.other_usage] == [
        (other["model"], {key: other[key] or 0 for key in counts(report.usage)}) for other in others
    ]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["file"])
def test_a_recorded_answer_yields_its_expected_usage_at_any_split(entry: dict[str, Any]) -> None:
    api = entry_api(entry)
    assert api is not None
    body = recorded(entry)
    streamed = is_streamed(entry)
    reports = []
    for size in (1, 7, 64, 1000, len(body)):
        reader = api.stream_reader(hide_usage=False) if streamed else api.body_reader()
        chunks = list(cut(body, size))
        for chunk in chunks:
            assert reader.feed(chunk) is chunk
        assert reader.finish() == b""
        read_headers(api, entry, reader.report)
        check(entry, reader.report)
        reports.append(reader.report)
    assert all(report == reports[0] for report in reports)
    if entry["file"] in VISIBLE:
        assert (reports[0].visible_bytes, reports[0].visible_deltas) == VISIBLE[entry["file"]]


@pytest.mark.parametrize("entry", [e for e in ENTRIES if not is_streamed(e)], ids=lambda e: e["file"])
def test_a_recorded_body_read_as_a_whole_says_the_same_as_one_that_passes(entry: dict[str, Any]) -> None:
    api = entry_api(entry)
    assert api is not None
    body = recorded(entry)
    whole = api.read_body(body)
    read_headers(api, entry, whole)
    check(entry, whole)
    reader = api.body_reader()
    feed(reader, cut(body, 4096))
    read_headers(api, entry, reader.report)
    whole.visible_bytes = whole.visible_deltas = 0  # text is counted only in answers that are collected
    assert reader.report == whole


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e["file"].endswith(".sse")], ids=lambda e: e["file"])
def test_hiding_changes_nothing_but_usage_in_a_recorded_stream(entry: dict[str, Any]) -> None:
    api = entry_api(entry)
    assert api is not None
    body = recorded(entry)
    plain = api.stream_reader(hide_usage=False)
    feed(plain, [body])
    outs = set()
    for size in (1, 7, 64, 1000, len(body)):
        reader = api.stream_reader(hide_usage=True)
        outs.add(feed(reader, cut(body, size)))
        assert reader.report == plain.report
    (out,) = outs
    if not api.can_inject_usage:
        assert out == body
        return
    sent = [data for block in Framer().push(body) if (data := block.data)]
    seen = [data for block in Framer().push(out) if (data := block.data)]
    assert all(json.loads(data).get("usage", {}) is not None for data in seen if data != b"[DONE]")
    assert len(seen) == len(sent) - sum(data != b"[DONE]" and _only_usage(json.loads(data)) for data in sent)


def _only_usage(event: dict[str, Any]) -> bool:
    return event["choices"] == [] and event.get("usage") is not None


def test_the_recorded_bodies_are_the_ones_the_manifest_describes() -> None:
    for entry in ENTRIES:
        assert hashlib.sha256((CORPUS / entry["file"]).read_bytes()).hexdigest() == entry["sha256"], entry["file"]
