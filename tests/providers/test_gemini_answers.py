"""What Gemini's answers and streams report, in every form they come in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.base import StreamReader
from askii_middleware.providers.gemini_common import gemini_usage
from askii_middleware.providers.response import record_into
from askii_middleware.usage import Report, TokenUsage

from .gemini_support import GENERATE, HELLO, STREAM, absorbed, metadata, parsed, read
from .support import CORPUS, NO_CORPUS, cut, cut_at, event, feed

API = parsed(GENERATE, HELLO)[0]
STREAM_API = parsed(STREAM, HELLO)[0]


def chunk(text: str = "", *, finish: str | None = None, **members: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "r1"} | members


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"promptTokenCount": 8, "totalTokenCount": 8}, TokenUsage(input=8)),
        ({"promptTokenCount": 8, "totalTokenCount": 30}, TokenUsage(input=8, output=22)),
        ({"candidatesTokenCount": 4, "totalTokenCount": 14}, TokenUsage(input=10, output=4)),
        ({"totalTokenCount": 14}, TokenUsage(output=14)),
        (metadata(thoughtsTokenCount=5, totalTokenCount=19), TokenUsage(input=10, output=4, reasoning=5)),
        (metadata(toolUsePromptTokenCount=3, totalTokenCount=17), TokenUsage(input=13, output=4)),
        (metadata(cachedContentTokenCount=6), TokenUsage(input=4, cache_read=6, output=4)),
        (metadata(cachedContentTokenCount=60), TokenUsage(cache_read=10, output=4, anomalous=True)),
        (metadata(thoughtsTokenCount=-1), TokenUsage(input=10, output=4, anomalous=True)),
        (metadata(promptTokenCount="x"), TokenUsage(input=10, output=4)),
        # Live: its own name for the candidates, and thoughts beside the total.
        (
            {"promptTokenCount": 9, "responseTokenCount": 6, "totalTokenCount": 15, "thoughtsTokenCount": 4},
            TokenUsage(input=9, output=6, reasoning=4),
        ),
    ],
)
def test_counts_come_in_disjoint_buckets(counts: dict[str, Any], usage: TokenUsage) -> None:
    assert gemini_usage(counts) == usage


def kinds(**tokens: int) -> list[dict[str, Any]]:
    return [{"modality": modality.upper(), "tokenCount": count} for modality, count in tokens.items()]


def test_media_have_their_own_buckets_and_video_and_documents_are_input() -> None:
    counts = metadata(
        promptTokenCount=1_000,
        cachedContentTokenCount=300,
        toolUsePromptTokenCount=50,
        totalTokenCount=1_150,
        candidatesTokenCount=100,
        promptTokensDetails=kinds(text=100, audio=200, image=300, video=250, document=150),
        toolUsePromptTokensDetails=kinds(image=50),
        cacheTokensDetails=kinds(audio=120, image=80, video=100),
        candidatesTokensDetails=kinds(text=40, audio=25, image=35),
    )
    assert gemini_usage(counts) == TokenUsage(
        input=1_050 - 300 - 80 - 270,
        cache_read=100,
        input_audio=80,
        cache_read_audio=120,
        input_image=270,
        cache_read_image=80,
        output=40,
        output_audio=25,
        output_image=35,
    )


def test_cached_media_that_are_not_told_by_kind_are_what_the_rest_has_no_room_for() -> None:
    counts = metadata(promptTokenCount=1_000, cachedContentTokenCount=900, promptTokensDetails=kinds(audio=1_000))
    assert gemini_usage(counts) == TokenUsage(input_audio=100, cache_read_audio=900, output=4)


@pytest.mark.parametrize("counts", [None, 5, [], {}, {"promptTokenCount": "x"}, {"thoughtsTokenCount": 3}], ids=repr)
def test_what_counts_nothing_is_no_usage(counts: object) -> None:
    assert gemini_usage(counts) is None


@pytest.mark.parametrize(
    ("counts", "tier"),
    [
        ({"serviceTier": "PRIORITY"}, "priority"),
        ({"trafficType": "ON_DEMAND"}, "standard"),
        ({"trafficType": "ON_DEMAND_FLEX"}, "flex"),
        ({"trafficType": "ON_DEMAND_PRIORITY"}, "priority"),
        ({"trafficType": "PROVISIONED_THROUGHPUT"}, "provisioned_throughput"),
        ({"trafficType": "NEW_KIND"}, None),
        ({}, None),
    ],
)
def test_the_served_tier_is_read_from_either_platform(counts: dict[str, Any], tier: str | None) -> None:
    assert read(API, chunk(finish="STOP", usageMetadata=metadata(**counts))).service_tier == tier


@pytest.mark.parametrize(
    ("model", "queries", "billed"),
    [
        ("gemini-3-flash-preview", ["a", "b", "a", "", " "], 2),
        ("gemini-3.5-flash", ["a", "b"], 2),
        ("gemini-2.5-flash", ["a", "b"], 1),
        ("gemini-2.0-flash", [], 0),
        ("gemini-2.5-pro", [""], 0),
        ("gemini-3-pro", "a", 0),
    ],
)
def test_searches_are_billed_by_query_or_by_prompt_as_the_model_has_it(
    model: str, queries: object, billed: int
) -> None:
    answer = chunk("x", finish="STOP")
    answer["candidates"][0]["groundingMetadata"] = {"webSearchQueries": queries}
    answer |= {"usageMetadata": metadata(), "modelVersion": model}
    for found in (read(API, answer), absorbed(API, answer)):
        assert found.usage == TokenUsage(input=10, output=4, web_search=billed)


def test_searches_stay_counted_when_a_later_chunk_reports_usage_again() -> None:
    searching = chunk("x", modelVersion="gemini-3-pro", usageMetadata=metadata())
    searching["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b"]}
    last = chunk("y", finish="STOP", modelVersion="gemini-3-pro", usageMetadata=metadata(candidatesTokenCount=9))
    assert absorbed(STREAM_API, searching, last).usage == TokenUsage(input=10, output=9, web_search=2)


def test_a_large_answer_tells_its_searches_too() -> None:
    answer = chunk("x" * 200_000, finish="STOP", modelVersion="gemini-3-pro", usageMetadata=metadata())
    answer["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b"]}
    assert read(API, answer).usage == TokenUsage(input=10, output=4, web_search=2)


CHUNKS = [
    chunk("Héllo", usageMetadata=metadata(candidatesTokenCount=400)),
    {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}]}}]},
    chunk(" wörld", finish="STOP", usageMetadata=metadata(thoughtsTokenCount=7, totalTokenCount=21)),
]
EXPECTED = Report(
    usage=TokenUsage(input=10, output=4, reasoning=7),
    model="gemini-2.5-flash",
    provider_request_id="r1",
    finished=True,
    visible_bytes=6 + 8 + 7,
    visible_deltas=3,
    frame_tokens=32,
)
FORMS = {
    "events": b"".join(event(each, end=b"\r\n") for each in CHUNKS),
    "events of LF": b"".join(event(each) for each in CHUNKS),
    "array": b"["
    + b"\n,\r\n".join(json.dumps(each, indent=2, ensure_ascii=False).encode() for each in CHUNKS)
    + b"\n]",
    "array behind space": b" \n" + json.dumps(CHUNKS).encode() + b"\n",
}


def stream(chunks: list[bytes]) -> StreamReader:
    reader = STREAM_API.stream_reader(hide_usage=False)
    for each in chunks:
        assert reader.feed(each) is each
    assert reader.finish() == b""
    return reader


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_a_stream_says_the_same_in_each_form_and_at_any_split(form: str, size: int) -> None:
    assert stream(list(cut(FORMS[form], size))).report == EXPECTED


@given(st.sampled_from(sorted(FORMS)), st.lists(st.integers(0, 5_000), max_size=8))
def test_a_stream_cut_anywhere_says_the_same(form: str, places: list[int]) -> None:
    assert stream(cut_at(FORMS[form], places)).report == EXPECTED


def test_a_stream_that_is_one_object_is_read_as_one() -> None:
    body = json.dumps({**chunk("x", finish="STOP"), "usageMetadata": metadata()}).encode()
    for size in (1, 7, 1000):
        report = stream(list(cut(body, size))).report
        assert report.usage == TokenUsage(input=10, output=4)
        assert report.finished


def test_a_stream_without_bytes_says_nothing() -> None:
    assert stream([b"", b" \r\n"]).report == Report()


def test_a_stream_is_finished_when_its_last_candidate_is() -> None:
    reader = STREAM_API.stream_reader(hide_usage=False)
    reader.feed(event(chunk("a", finish="STOP", usageMetadata=metadata()), end=b"\r\n"))
    assert reader.report.finished
    reader.feed(event(chunk("b"), end=b"\r\n"))
    assert not reader.report.finished


def test_an_array_that_broke_off_is_not_finished() -> None:
    report = stream([json.dumps(CHUNKS[:1]).encode()[:-1]]).report
    assert not report.finished


def test_a_blocked_prompt_is_a_finished_answer_that_costs_its_prompt() -> None:
    answer = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 5}}
    report = stream([event(answer, end=b"\r\n")]).report
    assert (report.usage, report.finished, report.failed) == (TokenUsage(input=5), True, False)


@pytest.mark.parametrize("body", [b'data: {"error":{"code":503}}\r\n\r\n', b'[{"error":{"code":503}}]'])
def test_an_error_in_a_stream_is_a_failure(body: bytes) -> None:
    assert stream([body]).report.failed


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_a_stream_of_any_bytes_is_survived(data: bytes, places: list[int]) -> None:
    for head in (b"", b"[", b"{", b"data: "):
        assert stream(cut_at(head + data, places)).report == stream([head + data]).report


ODD = st.sampled_from([None, True, -1, 10**30, 1.5, float("nan"), "", "\ud800", [], [None], {}, {"a": 1}])


@given(st.data())
def test_a_member_of_another_type_is_survived(data: st.DataObject) -> None:
    answer = json.loads(
        json.dumps(chunk("x", finish="STOP", usageMetadata=metadata(promptTokensDetails=kinds(audio=2))))
    )
    answer["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a"]}
    answer["candidates"][0]["content"]["parts"].append({"functionCall": {"name": "f", "args": {"a": 1}}})
    holder: Any = answer
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not (isinstance(holder[key], dict | list) and holder[key]) or data.draw(st.booleans()):
            break
        holder = holder[key]
    holder[key] = data.draw(ODD)
    body = json.dumps(answer).encode()
    for report in (API.read_body(body), stream([b"[" + body + b"]"]).report):
        if report.usage is not None:
            assert all(getattr(report.usage, name) >= 0 for name in report.usage.__struct_fields__)


def test_a_recorded_response_is_recognised_and_live_and_embeddings_are_not() -> None:
    assert API.recognises(chunk("x"))
    assert API.recognises({"usageMetadata": metadata()})
    assert not API.recognises({"usageMetadata": metadata(), "serverContent": {}})
    assert not API.recognises({"usageMetadata": metadata(), "embeddings": []})
    report = Report()
    for each in CHUNKS:
        record_into(report, each)
    assert report == EXPECTED


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
def test_the_recorded_streams_say_the_same_as_arrays() -> None:
    for name in ("gemini/stream_basic_crlf.sse", "gemini/stream_file_search_not_monotone.sse", "vertex/stream.sse"):
        body = (CORPUS / name).read_bytes()
        events = [part.removeprefix(b"data: ") for part in body.split(b"\r\n\r\n") if part]
        as_array = b"[" + b",\r\n".join(events) + b"\r\n]"
        reader = STREAM_API.stream_reader(hide_usage=False)
        feed(reader, [body])
        for size in (1, 64, len(as_array)):
            assert stream(list(cut(as_array, size))).report == reader.report
