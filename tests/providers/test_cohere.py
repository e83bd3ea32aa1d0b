"""Cohere's APIs: billed units and not tokens, both kinds of streams, and rerankers of its form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import APIS, choose_api, find_apis
from askii_middleware.providers.base import CallRequest, InvalidRequestError, Refusal, Rewrite
from askii_middleware.providers.cohere_common import cohere_usage
from askii_middleware.usage import Report, TokenUsage

from .support import CORPUS, NO_CORPUS, cut, cut_at, event, feed, raw_fields

BILLED = {"billed_units": {"input_tokens": 8, "output_tokens": 3}, "tokens": {"input_tokens": 503, "output_tokens": 11}}
V2_STREAM: list[dict[str, Any]] = [
    {"type": "message-start", "id": "c-1", "delta": {"message": {"role": "assistant", "content": [], "tool_plan": ""}}},
    {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
    {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "first"}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Grüß"}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"thinking": "hm"}}}},
    {"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": {"function": {"arguments": "{}"}}}}},
    {"type": "content-end", "index": 0},
    {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": {**BILLED, "cached_tokens": 448}}},
]
V1_STREAM: list[dict[str, Any]] = [
    {"is_finished": False, "event_type": "stream-start", "generation_id": "g-1"},
    {"is_finished": False, "event_type": "text-generation", "text": "Ahoi"},
    {
        "is_finished": True,
        "event_type": "stream-end",
        "finish_reason": "COMPLETE",
        "response": {"response_id": "r-1", "text": "Ahoi", "generation_id": "g-1", "meta": BILLED},
    },
]


def parsed(path: str, body: dict[str, Any]) -> CallRequest:
    return find_apis(path)[0].parse(raw_fields(body), len(json.dumps(body)))


def v2_bytes(events: list[dict[str, Any]], end: bytes = b"\n") -> bytes:
    return b"".join(event(one, name=str(one["type"]), end=end) for one in events)


def v1_bytes(events: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)


def streamed(path: str, stream: bytes, size: int = 1 << 20) -> Report:
    reader = find_apis(path)[0].stream_reader(hide_usage=True)
    for chunk in cut(stream, size):
        assert reader.feed(chunk) is chunk
    assert reader.finish() == b""
    return reader.report


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v2/chat", {"messages": []}, "cohere.chat"),
        ("/cohere/v2/chat", {"messages": []}, "cohere.chat"),
        ("/v1/chat", {"message": "hi"}, "cohere.chat_v1"),
        ("/v1/chat", {"message": {"text": "hi"}}, None),
        ("/v1/chat", {"messages": []}, None),
        ("/chat", {"message": "hi"}, None),  # an application's own
        ("/v1/generate", {"model": "command", "prompt": "x"}, "cohere.generate"),
        ("/v1/generate", {"prompt": "x"}, None),
        ("/v2/embed", {"texts": ["a"]}, "cohere.embed"),
        ("/v1/embed", {"images": ["data:"]}, "cohere.embed"),
        ("/v2/embed", {"text": "a"}, None),
        ("/v2/rerank", {"query": "q", "documents": []}, "cohere.rerank"),
        ("/rerank", {"query": "q", "documents": []}, "cohere.rerank"),
        ("/rerank", {"query": "q", "texts": []}, None),
    ],
)
def test_a_request_is_known_by_its_path_and_its_members(path: str, body: dict[str, Any], name: str | None) -> None:
    found = choose_api(find_apis(path), raw_fields(body))
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("path", "body"), [("/v2/chat", {"messages": [{"role": "user", "content": "x"}]}), ("/v1/chat", {"message": "x"})]
)
def test_a_chat_is_bounded_by_its_text_and_its_limit(path: str, body: dict[str, Any]) -> None:
    request = parsed(path, {**body, "model": "command-a", "stream": True, "max_tokens": 50})
    assert (request.model, request.stream, request.output_limit, request.choices) == ("command-a", True, 50, 1)
    assert request.input_bound >= len(json.dumps(body))
    assert not request.remote_input
    assert not request.media


def test_what_a_connector_or_a_kept_conversation_adds_is_not_in_the_request() -> None:
    assert parsed("/v1/chat", {"message": "x", "connectors": [{"id": "web-search"}]}).remote_input
    assert parsed("/v1/chat", {"message": "x", "conversation_id": "c"}).remote_input
    assert not parsed("/v1/chat", {"message": "x", "connectors": None}).remote_input


def test_documents_are_text_and_images_are_not() -> None:
    tool = {"role": "tool", "content": [{"type": "document", "document": {"data": "x" * 1000}}]}
    assert not parsed("/v2/chat", {"messages": [tool]}).remote_input
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 900_000}}
    request = parsed("/v2/chat", {"messages": [{"role": "user", "content": [image]}]})
    assert request.media
    assert request.input_bound < 100_000


def test_generate_multiplies_its_answers() -> None:
    request = parsed("/v1/generate", {"model": "command", "prompt": "x", "num_generations": 3, "max_tokens": 7})
    assert (request.choices, request.output_limit) == (3, 7)
    assert find_apis("/v1/generate")[0].default_output_limit == 20


@pytest.mark.parametrize(
    ("path", "body", "member"),
    [
        ("/v2/chat", {"messages": [], "max_tokens": "5"}, "max_tokens"),
        ("/v2/chat", {"messages": [], "stream": 1}, "stream"),
        ("/v1/generate", {"model": "m", "prompt": "x", "num_generations": 0}, "num_generations"),
        ("/rerank", {"query": "q", "documents": "many"}, "documents"),
        ("/rerank", {"query": "q", "documents": None}, "documents"),
    ],
)
def test_a_member_that_would_make_the_bound_wrong_is_refused_by_name(
    path: str, body: dict[str, Any], member: str
) -> None:
    with pytest.raises(InvalidRequestError, match=member):
        parsed(path, body)


def test_images_to_embed_are_counted_and_not_read_as_text() -> None:
    data = "data:image/png;base64," + "A" * 900_000
    for body in (
        {"model": "embed-v4.0", "images": [data]},
        {"model": "embed-v4.0", "inputs": [{"content": [{"type": "image_url", "image_url": {"url": data}}]}]},
    ):
        request = parsed("/v2/embed", body)
        assert request.units == TokenUsage(request=1)
        assert request.media
        assert 4_096 <= request.input_bound < 6_000
    assert parsed("/v2/embed", {"model": "m", "texts": ["a"], "inputs": [3], "images": 3}).input_bound > 0


@pytest.mark.parametrize(("documents", "units"), [(0, 1), (1, 1), (100, 1), (101, 2), (1000, 10)])
def test_a_rerank_is_a_search_unit_for_each_hundred_documents(documents: int, units: int) -> None:
    request = parsed("/v2/rerank", {"model": "rerank-v3.5", "query": "q", "documents": ["d"] * documents})
    assert request.billed_by_request == TokenUsage(request=units)
    assert request.units.request >= units - (documents == 0)
    assert request.output_limit == 0


def test_a_reranks_bound_has_the_query_once_for_each_document_and_long_documents_as_several() -> None:
    request = parsed("/v2/rerank", {"model": "m", "query": "q" * 100, "documents": ["d" * 1000] * 50})
    assert request.input_bound >= 50 * (100 + 1000)
    assert request.units == TokenUsage(request=3)


def test_a_rewrite_changes_model_and_limit_and_no_other_byte() -> None:
    body = b'{"model": "a","messages":[ {"role":"user","content":"\\u00fc"} ],"p":0.750,"max_tokens":9}'
    api = find_apis("/v2/chat")[0]
    request = api.parse(raw_fields(body), len(body))
    assert api.rewrite(request, Rewrite(model="b", output_limit=5)) == (
        b'{"model":"b","messages":[ {"role":"user","content":"\\u00fc"} ],"p":0.750,"max_tokens":5}'
    )
    rerank = find_apis("/v2/rerank")[0]
    fields = raw_fields({"model": "a", "query": "q", "documents": []})
    assert json.loads(rerank.rewrite(rerank.parse(fields, 9), Rewrite(model="b", output_limit=5))) == {
        "model": "b",
        "query": "q",
        "documents": [],
    }


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (BILLED | {"cached_tokens": 448}, TokenUsage(input=8, output=3)),
        ({"billed_units": {"input_tokens": 8.0, "output_tokens": 3.0}}, TokenUsage(input=8, output=3)),
        ({"billed_units": {"search_units": 2}}, TokenUsage(request=2)),
        ({"billed_units": {"input_tokens": 4, "search_units": 1}}, TokenUsage(input=4, request=1)),
        ({"billed_units": {"images": 1}}, TokenUsage(request=1)),
        ({"billed_units": {"image_tokens": 900, "text_tokens": 5}}, TokenUsage(input=5, input_image=900)),
        ({"billed_units": {"input_tokens": 905, "image_tokens": 900}}, TokenUsage(input=5, input_image=900)),
        ({"billed_units": {"pages": 3}}, TokenUsage(page=3)),
        ({"billed_units": {"total_tokens": 26}}, TokenUsage(input=26)),
        (
            {"tokens": {"input_tokens": 503, "output_tokens": 11}, "cached_tokens": 448},
            TokenUsage(input=55, cache_read=448, output=11),
        ),
        ({"billed_units": {}, "tokens": {"input_tokens": 5}}, TokenUsage(input=5)),
        ({"billed_units": {"output_tokens": 3}}, None),
        ({"billed_units": None, "tokens": 3}, None),
        ({}, None),
    ],
)
def test_what_is_billed_is_read_and_the_tokens_only_where_nothing_is(
    reported: dict[str, Any], expected: TokenUsage | None
) -> None:
    assert cohere_usage(reported) == expected


@given(
    st.dictionaries(
        st.sampled_from(["input_tokens", "output_tokens", "search_units", "images", "image_tokens", "pages"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    )
)
def test_no_billed_units_raise_or_count_below_zero(billed: dict[str, Any]) -> None:
    found = cohere_usage({"billed_units": billed, "tokens": billed})
    assert found is None or all(getattr(found, name) >= 0 for name in found.__struct_fields__)


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_stream_of_version_2_ends_with_its_usage(size: int, end: bytes) -> None:
    assert streamed("/v2/chat", v2_bytes(V2_STREAM, end), size) == Report(
        usage=TokenUsage(input=8, output=3),
        provider_request_id="c-1",
        finished=True,
        visible_bytes=5 + 6 + 2 + 2,
        visible_deltas=4,
    )


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("lines", [True, False])
def test_a_stream_of_version_1_comes_in_lines_or_in_events(size: int, lines: bool) -> None:
    stream = v1_bytes(V1_STREAM) if lines else b"".join(event(one) for one in V1_STREAM)
    assert streamed("/v1/chat", stream, size) == Report(
        usage=TokenUsage(input=8, output=3),
        provider_request_id="g-1",
        finished=True,
        visible_bytes=4,
        visible_deltas=1,
    )


def test_a_stream_that_breaks_off_has_no_usage_and_no_end() -> None:
    report = streamed("/v2/chat", v2_bytes(V2_STREAM[:-1]))
    assert (report.usage, report.finished, report.visible_bytes) == (None, False, 15)


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("/v2/chat", v2_bytes([{"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "boom"}}])),
        ("/v1/chat", v1_bytes([{"is_finished": True, "event_type": "stream-error", "finish_reason": "ERROR"}])),
        ("/v1/chat", v1_bytes([{"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR"}])),
    ],
)
def test_an_error_in_a_stream_is_a_failure(path: str, stream: bytes) -> None:
    assert streamed(path, stream).failed


def test_whole_answers_say_what_they_used() -> None:
    v2 = {"id": "c", "message": {"role": "assistant", "content": [{"type": "text", "text": "abc"}]}, "usage": BILLED}
    read = find_apis("/v2/chat")[0].read_body(json.dumps({**v2, "finish_reason": "COMPLETE"}).encode())
    assert read == Report(usage=TokenUsage(input=8, output=3), provider_request_id="c", finished=True)
    silent = find_apis("/v2/chat")[0].read_body(json.dumps({**v2, "usage": {}, "finish_reason": "COMPLETE"}).encode())
    assert (silent.usage, silent.visible_bytes, silent.finished) == (None, 3, True)
    v1 = {"text": "abc", "generation_id": "g", "finish_reason": "COMPLETE", "meta": BILLED}
    assert find_apis("/v1/chat")[0].read_body(json.dumps(v1).encode()).usage == TokenUsage(input=8, output=3)
    generated = {"id": "g", "generations": [{"text": "abc"}], "meta": BILLED}
    assert find_apis("/v1/generate")[0].read_body(json.dumps(generated).encode()).usage == TokenUsage(input=8, output=3)
    embedded = {"id": "e", "embeddings": {"float": [[0.5]]}, "meta": {"billed_units": {"input_tokens": 3}}}
    assert find_apis("/v2/embed")[0].read_body(json.dumps(embedded).encode()).usage == TokenUsage(input=3)


@pytest.mark.parametrize(
    ("answer", "usage", "model"),
    [
        ({"id": "r", "results": [], "meta": {"billed_units": {"search_units": 1}}}, TokenUsage(request=1), None),
        ({"object": "list", "data": [], "model": "rerank-2", "usage": {"total_tokens": 26}}, 26, "rerank-2"),
        ({"model": "jina", "results": [], "usage": {"prompt_tokens": 9, "total_tokens": 9}}, 9, "jina"),
        ({"results": [], "meta": {"billed_units": {"total_tokens": 26}}}, 26, None),
        ({"results": []}, None, None),
    ],
)
def test_rerankers_of_every_maker_say_what_they_used(
    answer: dict[str, Any], usage: TokenUsage | int | None, model: str | None
) -> None:
    report = find_apis("/v1/rerank")[0].read_body(json.dumps(answer).encode())
    assert report.usage == (TokenUsage(input=usage) if isinstance(usage, int) else usage)
    assert report.model == model
    assert not report.failed


@pytest.mark.parametrize("path", ["/v2/chat", "/v1/chat", "/v1/generate", "/v2/embed", "/v2/rerank"])
def test_an_error_is_one_whose_message_is_text(path: str) -> None:
    report = find_apis(path)[0].read_body(b'{"id": "x", "message": "invalid api token"}')
    assert (report.usage, report.failed) == (None, True)


@pytest.mark.parametrize("path", ["/v2/chat", "/v1/chat", "/v2/embed", "/v2/rerank"])
def test_a_refusal_has_coheres_envelope(path: str) -> None:
    refusal = Refusal(status=402, code="budget_exceeded", message="spent", reason="spent", call_id="call-1")
    body, headers = find_apis(path)[0].refusal(refusal)
    assert json.loads(body) == {"message": "spent", "id": "call-1", "code": "budget_exceeded", "reason": "spent"}
    assert headers == [(b"x-should-retry", b"false")]
    assert streamed(path, find_apis(path)[0].stream_error(refusal)).failed


@given(st.lists(st.integers(0, 10_000), max_size=30), st.booleans())
def test_any_split_of_a_stream_says_the_same(places: list[int], old: bool) -> None:
    stream = v1_bytes(V1_STREAM) if old else v2_bytes(V2_STREAM)
    api = find_apis("/v1/chat" if old else "/v2/chat")[0]
    whole, split = api.stream_reader(hide_usage=False), api.stream_reader(hide_usage=False)
    assert feed(whole, [stream]) == feed(split, cut_at(stream, places)) == stream
    assert whole.report == split.report


@pytest.mark.parametrize(
    "answer",
    [
        *V2_STREAM,
        *V1_STREAM,
        {"id": "c", "message": {"role": "assistant"}, "finish_reason": "COMPLETE", "usage": BILLED},
        {"text": "abc", "generation_id": "g", "finish_reason": "COMPLETE", "meta": BILLED},
        {"id": "g", "generations": [], "meta": BILLED},
        {"id": "e", "embeddings": {}, "meta": BILLED},
        {"id": "r", "results": [], "meta": BILLED},
    ],
)
def test_each_answer_is_recognised_by_one_api_of_cohere(answer: dict[str, Any]) -> None:
    names = [api.name for api in APIS if api.recognises(answer)]
    assert len(names) == 1
    assert names[0].startswith("cohere.")


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
def test_a_recorded_stream_says_what_was_billed(size: int) -> None:
    report = streamed("/v1/chat", (CORPUS / "cohere/v1_chat_stream_json.ndjson").read_bytes(), size)
    assert report.usage == TokenUsage(input=7, output=115)
    assert (report.finished, report.visible_bytes, report.visible_deltas) == (True, 414, 107)


def test_texts_to_classify_are_billed_one_by_one() -> None:
    body = {"model": "ft-1", "inputs": ["a", "b"], "examples": [{"text": "x", "label": "y"}]}
    api = choose_api(find_apis("/v1/classify"), raw_fields(body))
    assert api is not None
    assert (api.name, api.kind) == ("cohere.classify", "moderation")
    request = parsed("/v1/classify", body)
    assert (request.model, request.output_limit) == ("ft-1", 0)
    assert request.units == request.billed_by_request == TokenUsage(request=2)
    assert request.input_bound >= len(json.dumps(body))
    assert choose_api(find_apis("/v1/classify"), raw_fields({"model": "m", "inputs": "a"})) is None
    answer = {
        "id": "c",
        "classifications": [{"input": "a", "prediction": "y"}],
        "meta": {"billed_units": {"classifications": 2}},
    }
    assert [each.name for each in APIS if each.recognises(answer)] == ["cohere.classify"]
    report = api.read_body(json.dumps(answer).encode())
    assert (report.usage, report.finished) == (TokenUsage(request=2), True)
