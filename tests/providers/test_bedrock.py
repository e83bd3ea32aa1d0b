"""Bedrock's Converse: what bounds a call, what its answers say, and how it is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import find_apis, find_template
from askii_middleware.providers.base import Api, CallRequest, InvalidRequestError, Refusal, Rewrite
from askii_middleware.providers.bedrock_media import IMAGE_TOKENS
from askii_middleware.providers.eventstream import FrameReader, encode_frame
from askii_middleware.providers.paths import Target
from askii_middleware.usage import Report, TokenUsage

from .support import cut, cut_at, feed, raw_fields
from .test_mutations import ODD, paths

MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
MESSAGES = [{"role": "user", "content": [{"text": "hi"}]}]
PIXELS = "iVBORw0KGgo" * 1000


def api(path: str = "converse") -> Api:
    (found,) = find_apis(f"/model/{MODEL}/{path}")
    return found


def parse(body: dict[str, Any] | bytes, path: str = "converse") -> CallRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return api(path).parse(raw_fields(data), len(data))


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def source(**of: Any) -> dict[str, Any]:
    return {"format": "png", "source": of}


def frame(kind: str, payload: Any) -> bytes:
    return encode_frame({":event-type": kind, ":message-type": "event"}, json.dumps(payload).encode())


# Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "stream"), [("converse", False), ("converse-stream", True)])
def test_the_path_says_the_model_and_whether_it_streams(path: str, stream: bool) -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-haiku-4-5-20251001-v1:0"
    for name, sent in ((MODEL, MODEL.replace(":", "%3A")), (arn, arn.replace(":", "%3A").replace("/", "%2F"))):
        (found,) = find_apis(f"/x/model/{name}/{path}")
        target = Target(f"/x/model/{name}/{path}", f"/x/model/{sent}/{path}".encode())
        assert find_template(found, target.path).name(target) == name
    request = parse({"messages": MESSAGES}, path)
    assert (request.stream, request.model, request.output_limit) == (stream, None, None)
    assert (api(path).provider, api(path).family, api(path).kind) == ("aws", "bedrock.converse", "text")


def test_counting_tokens_is_no_call() -> None:
    assert find_apis(f"/model/{MODEL}/count-tokens") == ()


def test_text_is_bound_by_its_bytes_and_estimated_at_a_quarter() -> None:
    body = {"messages": MESSAGES, "system": [{"text": "s" * 4000}]}
    request = parse(body)
    assert request.input_bound >= len(json.dumps(body))
    assert request.input_estimate == len(json.dumps(body)) // 4
    assert not request.media
    assert not request.remote_input


def test_the_limit_is_the_larger_of_the_common_and_the_model_s_own() -> None:
    assert parse({"inferenceConfig": {"maxTokens": 5}}).output_limit == 5
    both = {"inferenceConfig": {"maxTokens": 5}, "additionalModelRequestFields": {"max_gen_len": 9, "top_k": 1}}
    assert parse(both).output_limit == 9


@pytest.mark.parametrize("part", ["toolResult", "guardContent", None])
@pytest.mark.parametrize("escaped", [False, True])
def test_an_image_counts_by_its_size_wherever_it_stands(part: str | None, escaped: bool) -> None:
    block: dict[str, Any] = {"image": source(bytes=PIXELS)}
    result = {"toolResult": {"toolUseId": "t", "content": [block]}}
    inner = {"toolResult": result, "guardContent": {"guardContent": block}, None: block}
    data = json.dumps(user(inner[part])).encode()
    data = data.replace(b'"source"', b'"s\\u006furce"') if escaped else data
    request = parse(data)
    assert request.input_bound - parse(user({"text": ""})).input_bound < IMAGE_TOKENS + 200
    assert request.input_bound >= IMAGE_TOKENS
    assert request.media
    assert not request.remote_input
    assert request.input_estimate < 1100


@pytest.mark.parametrize(
    "block",
    [
        {"image": source(s3Location={"uri": "s3://b/k"})},
        {"document": {"name": "d", "source": {"s3Location": {"uri": "s3://b/k"}}}},
        {"document": {"name": "d", "format": "pdf", "source": {"bytes": PIXELS}}},
        {"document": {"name": "d", "source": {"bytes": PIXELS}}},
        {"video": {"format": "mp4", "source": {"bytes": PIXELS}}},
        {"hologram": {"source": {}}},
        {"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://b/k"}}}},
    ],
)
def test_what_is_elsewhere_or_grows_when_unpacked_is_remote(block: dict[str, Any]) -> None:
    request = parse(user(block))
    assert request.remote_input
    assert request.input_bound < IMAGE_TOKENS + 2000


@pytest.mark.parametrize(
    "block",
    [
        {"document": {"name": "d", "format": "txt", "source": {"bytes": PIXELS}}},
        {"document": {"name": "d", "source": {"text": PIXELS}}},
        {"document": {"name": "d", "source": {"content": [{"text": PIXELS}]}}},
    ],
)
def test_a_plain_document_is_text(block: dict[str, Any]) -> None:
    request = parse(user(block))
    assert not request.remote_input
    assert request.input_bound > len(PIXELS)


def test_audio_counts_by_its_length() -> None:
    request = parse(user({"audio": source(bytes="A" * 320_000)}))
    assert 10_000 < request.input_bound < 13_000
    assert request.media


def test_tools_weigh_more_than_their_text_and_amazon_s_own_are_remote() -> None:
    tool = {"toolSpec": {"name": "t", "inputSchema": {"json": {}}}}
    plain = parse({"messages": MESSAGES})
    client = parse({"messages": MESSAGES, "toolConfig": {"tools": [tool]}})
    server = parse({"messages": MESSAGES, "toolConfig": {"tools": [tool, {"systemTool": {"name": "nova_grounding"}}]}})
    assert client.input_bound > plain.input_bound + 1000
    assert not client.remote_input
    assert server.input_bound > client.input_bound + 1000
    assert server.remote_input


@pytest.mark.parametrize(
    "body",
    [
        {"promptVariables": {"a": {"text": "b"}}, "messages": MESSAGES},
        {},
        {"messages": MESSAGES, "additionalModelRequestFields": {"mcp_servers": [{"url": "https://x"}]}},
    ],
)
def test_a_stored_prompt_and_remote_servers_are_remote(body: dict[str, Any]) -> None:
    assert parse(body).remote_input


@pytest.mark.parametrize(
    ("more", "tier"),
    [
        ({"serviceTier": {"type": "flex"}}, "flex"),
        ({"performanceConfig": {"latency": "optimized"}, "serviceTier": {"type": "default"}}, "optimized"),
        ({"performanceConfig": {"latency": "standard"}}, None),
        ({"performanceConfig": 5, "serviceTier": []}, None),
    ],
)
def test_the_tier_asked_for_is_read(more: dict[str, Any], tier: str | None) -> None:
    assert parse({"messages": MESSAGES} | more).service_tier == tier


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"inferenceConfig": {"maxTokens": "5"}}, "maxTokens"),
        ({"inferenceConfig": {"maxTokens": 0}}, "maxTokens"),
        ({"inferenceConfig": 5}, "inferenceConfig"),
        ({"additionalModelRequestFields": []}, "additionalModelRequestFields"),
        ({"toolConfig": {"tools": {}}}, "toolConfig.tools"),
        ({"toolConfig": "x"}, "toolConfig"),
    ],
)
def test_a_member_of_the_wrong_type_is_named(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        parse(body)


def test_a_limit_is_written_and_every_other_byte_stays() -> None:
    body = b'{"messages":[{"role":"user","content":[{"text":"\\u00e9"}]}],"inferenceConfig":{"temperature":1.0e0}}'
    request = parse(body)
    assert api().rewrite(request, Rewrite(model="amazon.nova-lite-v1:0")) == body
    assert api().rewrite(request, Rewrite(output_limit=7)) == body.replace(b"1.0e0", b'1.0e0,"maxTokens":7')


def test_a_limit_of_the_model_s_own_is_lowered_with_the_common_one() -> None:
    request = parse({"additionalModelRequestFields": {"max_gen_len": 9, "k": 1}, "inferenceConfig": {"maxTokens": 9}})
    body = json.loads(api().rewrite(request, Rewrite(output_limit=7)))
    assert body == {"additionalModelRequestFields": {"max_gen_len": 7, "k": 1}, "inferenceConfig": {"maxTokens": 7}}


def test_one_maker_s_own_members_keep_a_call_with_its_models() -> None:
    plain = parse({"messages": MESSAGES})
    thinking = parse({"messages": MESSAGES, "additionalModelRequestFields": {"thinking": {"budget_tokens": 1024}}})
    assert api().accepts(plain, "amazon.nova-lite-v1:0")
    assert api().accepts(thinking, "anthropic.claude-3-5-haiku-20241022-v1:0")
    assert not api().accepts(thinking, "amazon.nova-lite-v1:0")


# Answers ----------------------------------------------------------------------------------------------------------

USAGE = {
    "inputTokens": 10,
    "outputTokens": 4,
    "cacheReadInputTokens": 3,
    "cacheWriteInputTokens": 9,
    "cacheDetails": [{"ttl": "5m", "inputTokens": 2}, {"ttl": "1h", "inputTokens": 7}],
    "totalTokens": 26,
}
EXPECTED = TokenUsage(input=10, cache_read=3, cache_write=2, cache_write_1h=7, output=4)
ANSWER = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}},
    "stopReason": "end_turn",
    "usage": USAGE,
    "performanceConfig": {"latency": "optimized"},
    "serviceTier": {"type": "flex"},
    "trace": {"promptRouter": {"invokedModelId": "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0"}},
}


def test_input_excludes_the_cache_and_the_cache_is_split_by_its_life() -> None:
    report = api().read_body(json.dumps(ANSWER).encode())
    assert report.usage == EXPECTED
    assert report.service_tier == "optimized"
    assert report.model == "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0"
    assert report.finished


STREAM = b"".join(
    (
        frame("messageStart", {"role": "assistant"}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hello"}}),
        frame("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"reasoningContent": {"text": "hm"}}}),
        frame("contentBlockDelta", {"contentBlockIndex": 2, "delta": {"toolUse": {"input": "{}"}}}),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame("metadata", {"usage": USAGE, "metrics": {"latencyMs": 1}, "serviceTier": {"type": "priority"}}),
    )
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_any_split_of_a_stream_says_the_same(places: list[int]) -> None:
    reader = api("converse-stream").stream_reader(hide_usage=True)
    assert feed(reader, cut_at(STREAM, places)) == STREAM
    report = reader.report
    assert report.usage == EXPECTED
    assert (report.visible_bytes, report.visible_deltas, report.service_tier) == (9, 3, "priority")
    assert report.finished
    assert not report.failed


def test_what_boto3_hands_out_is_recognised() -> None:
    report = Report()
    events: list[dict[str, Any]] = [
        {"contentBlockDelta": {"delta": {"text": "hello"}}},
        {"metadata": {"usage": USAGE}},
    ]
    for event in (*events, ANSWER):
        assert api().recognises(event)
        assert not api("converse-stream").recognises(event)
    for event in events:
        api().absorb(report, event)
    assert report.usage == EXPECTED
    assert report.visible_bytes == 5


def test_an_error_in_a_stream_or_a_body_is_a_failure() -> None:
    reader = api("converse-stream").stream_reader(hide_usage=False)
    reader.feed(STREAM[:200])
    reader.feed(api().stream_error(refusal(429)))
    assert not reader.report.failed, "the first frame was cut short: nothing can follow it"
    whole = api("converse-stream").stream_reader(hide_usage=False)
    whole.feed(frame("messageStart", {"role": "assistant"}) + api().stream_error(refusal(429)))
    assert whole.report.failed
    assert api().read_body(b'{"message":"no"}').failed


def test_headers_count_where_the_body_does_not() -> None:
    headers = {
        b"x-amzn-bedrock-input-token-count": b"5",
        b"x-amzn-bedrock-output-token-count": b"6",
        b"x-amzn-bedrock-cache-read-input-token-count": b"7",
        b"x-amzn-bedrock-cache-write-input-token-count": b"8",
        b"x-amzn-bedrock-service-tier": b"flex",
        b"x-amzn-requestid": b"r-1",
    }
    assert headers.keys() <= api().answer_headers
    report = Report()
    api().absorb_headers(report, headers)
    assert report.usage == TokenUsage(input=5, cache_read=7, cache_write=8, output=6)
    assert (report.service_tier, report.provider_request_id) == ("flex", "r-1")
    told = Report(usage=TokenUsage(input=1), provider_request_id="own")
    api().absorb_headers(told, headers)
    assert told.usage == TokenUsage(input=1)
    assert told.provider_request_id == "own"


@pytest.mark.parametrize("value", [b"", b"-5", b"1e3", b"\xff", b"9" * 40, b"99999999999", "\u0665".encode()])
def test_odd_headers_say_nothing(value: bytes) -> None:
    report = Report()
    api().absorb_headers(report, dict.fromkeys(api().answer_headers, value))
    assert report.usage is None


@given(st.data())
def test_no_damage_to_an_answer_raises_or_makes_a_count_negative(data: st.DataObject) -> None:
    answer = json.loads(json.dumps(data.draw(st.sampled_from([ANSWER, {"metadata": {"usage": USAGE}}]))))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths(answer)))
        holder: Any = answer
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = copy.deepcopy(data.draw(ODD))
    report = Report()
    api().absorb(report, answer)
    if report.usage is not None:
        assert all(getattr(report.usage, name) >= 0 for name in report.usage.__struct_fields__)


# Refusals ---------------------------------------------------------------------------------------------------------


def refusal(status: int, **more: Any) -> Refusal:
    return Refusal(status=status, code="budget_exceeded", message="spent", call_id="c-1", **more)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "ValidationException"),
        (401, "AccessDeniedException"),
        (402, "ServiceQuotaExceededException"),
        (403, "AccessDeniedException"),
        (413, "ValidationException"),
        (429, "ThrottlingException"),
        (500, "InternalServerException"),
        (503, "ServiceUnavailableException"),
    ],
)
def test_a_refusal_names_its_type_in_a_header(status: int, kind: str) -> None:
    body, headers = api().refusal(refusal(status, reason="spent"))
    assert json.loads(body) == {"message": "spent", "code": "budget_exceeded", "reason": "spent"}
    assert dict(headers)[b"x-amzn-errortype"] == kind.encode()
    assert dict(headers)[b"x-should-retry"] == b"false"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {":message-type": "exception", ":exception-type": "throttlingException"}),
        (402, {":message-type": "error", ":error-code": "ServiceQuotaExceededException", ":error-message": "spent"}),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_a_stream_ends_in_a_frame_of_its_own(status: int, headers: dict[str, str], size: int) -> None:
    reader = FrameReader()
    (last,) = [f for chunk in cut(api().stream_error(refusal(status)), size) for f in reader.push(chunk)]
    assert {name: last.headers[name] for name in headers} == headers


def test_reading_raw_members_survives_what_only_the_standard_library_reads() -> None:
    fields = {"messages": msgspec.Raw(b'[{"content":[{"text":"\\ud800"}]}]')}
    assert api().parse(fields, 40).input_bound > 0
