"""Answers of unmetered requests that report token usage."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import bypass
from askii_middleware.bypass import Bypasses
from askii_middleware.calls import RequestContext
from askii_middleware.metrics import Metrics

from .providers.support import CORPUS, NO_CORPUS, cut, cut_at
from .support.asgi import JSON, SSE, piece, start
from .support.codings import br_bomb, zstd

USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}


class Look:
    """Sends an answer through a watch and tells what was found of it."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.bypasses = Bypasses(self.metrics)

    def found(self, path_class: str = "/v1/foo") -> int:
        return int(self.metrics.registry.get_sample_value("askii_bypasses_total", {"path_class": path_class}) or 0)

    def send(self, *messages: dict[str, Any], path_class: str = "/v1/foo", blocks: int = 0) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        context = RequestContext({}, None)
        context.blocks = blocks

        async def keep(message: Any) -> None:
            out.append(message)

        async def run() -> None:
            send = self.bypasses.watch(path_class, context, keep)
            for message in messages:
                await send(message)

        asyncio.run(run())
        assert all(one is other for one, other in zip(out, messages, strict=True))
        return out


def tells(body: bytes, *, step: int = 1 << 20, head: tuple[bytes, bytes] = JSON, more: Any = ()) -> bool:
    look = Look()
    look.send(start(head, *more), *map(piece, cut(body, step)), piece(b"", more=False))
    return look.found() == 1


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


LLM_SHAPED = {
    "OpenAI": dumped({"id": "c1", **USAGE}),
    "Anthropic": dumped({"type": "message", "usage": {"input_tokens": 3, "output_tokens": 0}}),
    "Gemini": dumped({"usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 5}}),
    "Gemini, all in capitals of nobody": dumped({"usage_metadata": {"total_token_count": 5}}),
    "Bedrock": dumped({"usage": {"inputTokens": 3, "outputTokens": 4}}),
    "Cohere": dumped({"meta": {"billed_units": {"search_units": 1}}}),
    "Cohere v2": dumped({"usage": {"billed_units": {"input_tokens": 1}, "tokens": {"input_tokens": 8}}}),
    "Ollama": dumped({"done": True, "eval_count": 12}),
    "Ollama, a prompt": dumped({"prompt_eval_count": 12}),
    "a stream": b'data: {"choices":[],"usage":null}\n\ndata: ' + dumped(USAGE) + b"\n\ndata: [DONE]\n\n",
    "lines": b'{"done":false}\n' + dumped(USAGE) + b"\n",
    "an odd lay-out": b'{"usage"\n :\t { "total_tokens" : 7 } }',
    "cut off": b'{"usage":{"total_tokens":7},"x":',
    "the last of many": b'{"usage":{}} ' * 50 + dumped(USAGE),
    "after a broken one": b'{"usage":{"total_tokens":}} ' + dumped(USAGE),
}
OTHERS = {
    "nothing": b"",
    "null": b'{"usage":null}',
    "empty": b'{"usage":{}}',
    "no tokens": dumped({"usage": {"cpu_s": 3, "bytes": 4}}),
    "text about it": dumped({"text": dumped(USAGE).decode()}),
    "zeros": dumped({"usage": {"prompt_tokens": 0}}),
    "words": dumped({"usage": {"prompt_tokens": "3", "total_tokens": True}}),
    "a list": b'{"usage":[{"total_tokens":7}]}',
    "a count of another kind": b'{"count":5,"eval_counts":7,"eval_count":0}',
    "brackets": b'{"usage":' + b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "never ending": b'{"usage":{"a":"' + b"x" * 9000,
}


@pytest.mark.parametrize("body", LLM_SHAPED.values(), ids=LLM_SHAPED)
@pytest.mark.parametrize("step", [1, 7, 64, 1 << 20])
def test_an_answer_that_reports_token_usage_is_found_however_it_is_split(body: bytes, step: int) -> None:
    assert tells(body, step=step)


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("step", [1, 64, 1 << 20])
def test_another_answer_is_not(body: bytes, step: int) -> None:
    assert not tells(body, step=step)


@pytest.mark.parametrize(
    ("kind", "looked_at"),
    [
        (b"application/json; charset=utf-8", True),
        (b"Application/Problem+JSON", True),
        (b"text/event-stream", True),
        (b"application/x-ndjson", True),
        (b"application/vnd.amazon.eventstream", True),
        (b"text/html", False),
        (b"application/octet-stream", False),
        (b"", False),
    ],
)
def test_only_types_that_may_carry_usage_are_looked_at(kind: bytes, looked_at: bool) -> None:
    assert tells(dumped(USAGE), head=(b"Content-Type", kind)) is looked_at


@pytest.mark.parametrize("status", [199, 300, 404, 500])
def test_an_answer_that_failed_is_not_looked_at(status: int) -> None:
    look = Look()
    look.send(start(JSON, status=status), piece(dumped(USAGE), more=False))
    assert look.found() == 0


@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"zstd", zstd.compress)])
def test_an_encoded_answer_is_read(encoding: bytes, pack: Any) -> None:
    assert tells(pack(dumped(USAGE)), step=5, more=[(b"content-encoding", encoding)])


def test_of_a_bomb_little_is_unpacked_and_of_an_unknown_encoding_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not tells(br_bomb(), more=[(b"content-encoding", b"br")])
    assert not tells(dumped(USAGE), more=[(b"content-encoding", b"nonsense")])
    assert caplog.records == []


def test_each_bypass_is_counted_and_each_class_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    look = Look()
    for _ in range(3):
        look.send(start(SSE), piece(dumped(USAGE)), piece(dumped(USAGE)), piece(b"", more=False))
    look.send(start(SSE), piece(dumped(USAGE), more=False), path_class="/v2/bar/{id}")
    assert (look.found(), look.found("/v2/bar/{id}")) == (3, 1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.records[0].getMessage().startswith("POST /v1/foo is not metered, but its answer reports token usage")
    for advice in ("routes.include", "report it", "track_tokens", 'unmetered = "deny"', "routes.exempt"):
        assert advice in caplog.records[0].getMessage()


def test_the_log_is_bounded(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bypass, "MAX_TOLD", 2)
    look = Look()
    for number in range(5):
        look.send(start(JSON), piece(dumped(USAGE), more=False), path_class=f"/{number}")
    assert len(caplog.records) == 2
    assert look.found("/4") == 1


def test_a_call_that_a_block_accounts_for_is_no_bypass(caplog: pytest.LogCaptureFixture) -> None:
    look = Look()
    look.send(start(JSON), piece(dumped(USAGE), more=False), blocks=1)
    assert look.found() == 0
    assert caplog.records == []


def test_little_is_kept_however_long_the_answer() -> None:
    context, sent = RequestContext({}, None), []

    async def keep(message: Any) -> None:
        sent.append(len(message["body"]))

    for text in (b"x" * 100_000, b'{"usage":{"a":"' + b"y" * 100_000):
        watch = bypass._Watch(Bypasses(Metrics()), "/", context, keep)
        watch._looks = True
        for data in cut(text, 1000):
            asyncio.run(watch.send(piece(data)))
            assert len(watch._carry) <= bypass.MAX_OBJECT_BYTES + 2 * bypass._OVERLAP_BYTES


WITHOUT_PLAIN_USAGE = {
    # In base64, in headers, as a bare count, or nowhere.
    *("bedrock/invoke_stream_claude.bin", "bedrock/invoke_stream_titan.bin", "bedrock/invoke_cohere_headers_only.json"),
    *("bedrock/invoke_titan_embed.json", "gemini/embed_001_no_usage.json", "openai_chat/stream_no_usage.sse"),
    *("openai_responses/json_background_queued_no_usage.json", "openai_responses/input_tokens_count.json"),
}


@pytest.mark.skipif(not (CORPUS / "manifest.json").exists(), reason=NO_CORPUS)
def test_every_recorded_answer_with_usage_in_plain_text_would_be_found() -> None:
    missed = []
    for entry in json.loads((CORPUS / "manifest.json").read_text())["entries"]:
        body = (CORPUS / entry["file"]).read_bytes()
        if entry["http_status"] == 101 or entry["http_status"] >= 300:
            continue
        kind = entry["response_headers"].get("content-type", "application/json").encode()
        more = [(b"content-encoding", entry["content_encoding"].encode())] if entry["content_encoding"] else []
        if not tells(body, step=1000, head=(b"content-type", kind), more=more):
            missed.append(entry["file"])
    assert set(missed) <= WITHOUT_PLAIN_USAGE


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b'"usage":{', b'"a_tokens":1', b"}", b"{"]), max_size=12))
def test_nothing_raises_and_nothing_is_changed(chunks: list[bytes]) -> None:
    Look().send(start(JSON), *map(piece, chunks))


@given(st.sampled_from(sorted(LLM_SHAPED)), st.lists(st.integers(0, 5000), max_size=6))
def test_any_split_is_found(name: str, places: list[int]) -> None:
    look = Look()
    look.send(start(JSON), *map(piece, cut_at(LLM_SHAPED[name], places)))
    assert look.found() == 1
