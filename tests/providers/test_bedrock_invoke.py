"""Bedrock's InvokeModel: every maker's body and answer, and the ones that nobody knows."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from askii_middleware.providers import choose_api, find_apis
from askii_middleware.providers.base import Api, CallRequest, InvalidRequestError, Rewrite
from askii_middleware.providers.bedrock_media import IMAGE_TOKENS
from askii_middleware.providers.eventstream import encode_frame
from askii_middleware.usage import Report, TokenUsage

from .support import CORPUS, NO_CORPUS, cut, feed, raw_fields

METRICS = "amazon-bedrock-invocationMetrics"
TEXT = [{"role": "user", "content": "hi"}]
BLOCKS = [{"role": "user", "content": [{"text": "hi"}]}]

CLAUDE: dict[str, Any] = {"anthropic_version": "bedrock-2023-05-31", "messages": TEXT, "max_tokens": 5}
CLAUDE_2: dict[str, Any] = {"prompt": "\n\nHuman: hi", "max_tokens_to_sample": 5}
TITAN: dict[str, Any] = {"inputText": "hi", "textGenerationConfig": {"maxTokenCount": 5}}
NOVA: dict[str, Any] = {"messages": BLOCKS, "inferenceConfig": {"max_new_tokens": 5}}
LLAMA: dict[str, Any] = {"prompt": "hi", "max_gen_len": 5}
MISTRAL: dict[str, Any] = {"prompt": "<s>hi", "max_tokens": 5}
CHAT: dict[str, Any] = {"messages": TEXT, "max_tokens": 5}
COMMAND: dict[str, Any] = {"message": "hi", "max_tokens": 5}
JURASSIC: dict[str, Any] = {"prompt": "hi", "maxTokens": 5, "numResults": 3}
LIMITED = [CLAUDE, CLAUDE_2, TITAN, NOVA, LLAMA, MISTRAL, CHAT, COMMAND, JURASSIC]


def api(body: dict[str, Any], path: str = "invoke") -> Api:
    found = choose_api(find_apis(f"/model/m/{path}"), raw_fields(body))
    assert found is not None
    return found


def parse(body: dict[str, Any], path: str = "invoke") -> CallRequest:
    return api(body, path).parse(raw_fields(body), len(json.dumps(body)))


def chunk(inner: Any) -> bytes:
    data = b64encode(json.dumps(inner).encode()).decode()
    payload = json.dumps({"bytes": data, "p": "abc"}).encode()
    return encode_frame({":event-type": "chunk", ":message-type": "event"}, payload)


def streamed(*inner: Any) -> Report:
    reader = api(CHAT, "invoke-with-response-stream").stream_reader(hide_usage=False)
    text = b"".join(chunk(one) for one in inner)
    assert feed(reader, cut(text, 7)) == text
    return reader.report


# Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", LIMITED)
@pytest.mark.parametrize("path", ["invoke", "invoke-with-response-stream"])
def test_every_form_s_limit_is_read(body: dict[str, Any], path: str) -> None:
    request = parse(body, path)
    assert request.output_limit == 5
    assert request.choices == body.get("numResults", 1)
    assert request.input_bound >= len(json.dumps(body))
    assert request.stream == (path != "invoke")
    assert (api(body, path).kind, request.model) == ("text", None)


@pytest.mark.parametrize("body", LIMITED)
def test_a_limit_that_is_set_is_replaced_where_it_stands(body: dict[str, Any]) -> None:
    compact = json.dumps(body, separators=(",", ":")).encode()
    request = api(body).parse(raw_fields(compact), len(compact))
    changed = api(body).rewrite(request, Rewrite(output_limit=3))
    assert changed == compact.replace(b":5}", b":3}").replace(b":5,", b":3,")


@pytest.mark.parametrize("body", LIMITED)
def test_a_changed_model_leaves_the_body_alone(body: dict[str, Any]) -> None:
    assert json.loads(api(body).rewrite(parse(body), Rewrite(model="x"))) == body


@pytest.mark.parametrize(
    ("body", "model", "added"),
    [
        ({"anthropic_version": "v", "messages": TEXT}, None, {"max_tokens": 3}),
        ({"inputText": "hi"}, None, {"textGenerationConfig": {"maxTokenCount": 3}}),
        ({"messages": BLOCKS}, None, {"inferenceConfig": {"maxTokens": 3}}),
        ({"messages": BLOCKS, "inferenceConfig": {}}, None, {"inferenceConfig": {"maxTokens": 3}}),
        ({"messages": TEXT}, None, {"max_tokens": 3}),
        ({"messages": TEXT}, "openai.gpt-oss-20b-1:0", {"max_completion_tokens": 3}),
        ({"message": "hi"}, None, {"max_tokens": 3}),
        ({"prompt": "hi"}, None, {}),
        ({"custom": "hi"}, None, {}),
    ],
)
def test_a_limit_that_is_not_set_is_written_where_all_models_of_the_form_have_it(
    body: dict[str, Any], model: str | None, added: dict[str, Any]
) -> None:
    assert parse(body).output_limit is None
    assert json.loads(api(body).rewrite(parse(body), Rewrite(model=model, output_limit=3))) == body | added


@pytest.mark.parametrize(
    ("body", "fits", "not_"),
    [
        (CLAUDE, "us.anthropic.claude-haiku-4-5-20251001-v1:0", "amazon.nova-lite-v1:0"),
        (TITAN, "amazon.titan-text-lite-v1", "amazon.titan-embed-text-v2:0"),
        (NOVA, "us.amazon.nova-micro-v1:0", "amazon.titan-text-lite-v1"),
        (LLAMA, "meta.llama3-1-8b-instruct-v1:0", "mistral.mistral-7b-instruct-v0:2"),
        (MISTRAL, "mistral.mistral-7b-instruct-v0:2", "meta.llama3-1-8b-instruct-v1:0"),
        (COMMAND, "cohere.command-r-v1:0", "cohere.command-text-v14"),
        (CHAT, "openai.gpt-oss-20b-1:0", "anthropic.claude-3-5-haiku-20241022-v1:0"),
    ],
)
def test_a_call_stays_with_models_that_take_its_form(body: dict[str, Any], fits: str, not_: str) -> None:
    request = parse(body)
    assert api(body).accepts(request, fits)
    assert not api(body).accepts(request, not_)
    assert not api(body).accepts(request, "arn:aws:bedrock:us-east-1:1:provisioned-model/x")


def test_an_unknown_form_is_metered_by_its_bytes() -> None:
    request = parse({"something": "x" * 1000})
    assert request.input_bound > 1000
    assert request.output_limit is None
    assert not api({}).accepts(request, "meta.llama3-1-8b-instruct-v1:0")


def test_images_and_remote_parts_are_bound() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "A" * 50_000}}
    claude = parse(CLAUDE | {"messages": [{"role": "user", "content": [image]}]})
    assert claude.media
    assert claude.input_bound < 10_000
    llama = parse(LLAMA | {"images": ["A" * 50_000, "A" * 50_000]})
    assert IMAGE_TOKENS * 2 <= llama.input_bound < IMAGE_TOKENS * 2 + 1000
    nova = parse({"messages": [{"content": [{"video": {"source": {"s3Location": {"uri": "s3://b"}}}}]}]})
    assert nova.remote_input
    assert parse({"singleEmbeddingParams": {"video": {"source": {"s3Location": {}}}}}).remote_input
    assert not parse(CLAUDE | {"messages": [{"role": "user", "content": "what is s3:// ?"}]}).remote_input


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"inputText": "hi", "dimensions": 256}, "embedding"),
        ({"inputImage": "AAAA"}, "embedding"),
        ({"texts": ["a"], "input_type": "search_document"}, "embedding"),
        ({"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": {}}, "embedding"),
        ({"query": "q", "documents": ["d"] * 101, "top_n": 3, "api_version": 2}, "rerank"),
        ({"taskType": "TEXT_IMAGE", "imageGenerationConfig": {"numberOfImages": 3}}, "image"),
        ({"inputText": "hi"}, "text"),
    ],
)
def test_the_body_says_what_kind_of_call_it_is(body: dict[str, Any], kind: str) -> None:
    found = api(body)
    request = parse(body)
    assert found.kind == kind
    assert find_apis("/model/m/invoke").index(found) < 4
    assert request.output_limit == (None if kind == "text" else 0)
    if kind != "text":
        assert not found.accepts(request, "amazon.titan-embed-text-v2:0")
        assert json.loads(found.rewrite(request, Rewrite(model="x", output_limit=1))) == body
    per_call = {"rerank": 2, "image": 3}.get(kind, 0)
    assert request.units == TokenUsage(request=per_call)
    assert request.billed_by_request == (TokenUsage(request=per_call) if per_call else None)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (CLAUDE | {"max_tokens": "5"}, "max_tokens"),
        (TITAN | {"textGenerationConfig": 5}, "textGenerationConfig"),
        (TITAN | {"textGenerationConfig": {"maxTokenCount": 1.5}}, "maxTokenCount"),
        (NOVA | {"inferenceConfig": {"max_new_tokens": -1}}, "max_new_tokens"),
        (LLAMA | {"max_gen_len": True}, "max_gen_len"),
        ({"prompt": "x", "num_generations": 0}, "num_generations"),
    ],
)
def test_a_limit_of_the_wrong_type_is_named(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        parse(body)


# Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"inputTextTokenCount": 5, "results": [{"tokenCount": 3}, {"tokenCount": 4}]}, TokenUsage(input=5, output=7)),
        ({"embedding": [0.1], "inputTextTokenCount": 5}, TokenUsage(input=5)),
        ({"generation": "x", "prompt_token_count": 5, "generation_token_count": 2}, TokenUsage(input=5, output=2)),
        (
            {
                "output": {"message": {"content": [{"text": "x"}]}},
                "stopReason": "end_turn",
                "usage": {
                    "inputTokens": 5,
                    "outputTokens": 2,
                    "cacheReadInputTokenCount": 4,
                    "cacheWriteInputTokenCount": 3,
                },
            },
            TokenUsage(input=5, cache_read=4, cache_write=3, output=2),
        ),
        (
            {
                "choices": [{"message": {"content": "x"}}],
                "model": "m",
                "usage": {"prompt_tokens": 5, "completion_tokens": 2},
            },
            TokenUsage(input=5, output=2),
        ),
        (
            {"type": "message", "model": "claude-3-5-haiku-20241022", "usage": {"input_tokens": 5, "output_tokens": 2}},
            TokenUsage(input=5, output=2),
        ),
        ({"outputs": [{"text": "hello"}]}, None),
        ({"text": "hello", "finish_reason": "COMPLETE"}, None),
    ],
)
def test_every_maker_s_counts_are_read_and_no_model_s_name(answer: dict[str, Any], usage: TokenUsage | None) -> None:
    data = json.dumps(answer).encode()
    whole = api(CHAT).read_body(data)
    assert whole.usage == usage
    assert whole.model is None
    assert whole.finished
    assert usage is not None or whole.visible_bytes == 5
    for size in (1, 7, 1000):
        reader = api(CHAT).body_reader()
        assert feed(reader, cut(data, size)) == data
        assert reader.report.usage == usage


def test_bedrock_s_own_counts_end_a_stream_and_keep_what_only_the_model_says() -> None:
    start = {
        "type": "message_start",
        "message": {
            "id": "msg_bdrk_1",
            "model": "claude-haiku-4-5-20251001",
            "usage": {
                "input_tokens": 4,
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_1h_input_tokens": 9},
                "output_tokens": 1,
            },
        },
    }
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 6}}
    delta["usage"]["output_tokens_details"] = {"thinking_tokens": 2}  # type: ignore[index]
    counts = {
        "inputTokenCount": 4,
        "outputTokenCount": 6,
        "cacheWriteInputTokenCount": 9,
        "cacheReadInputTokenCount": 0,
    }
    piece = {"type": "content_block_delta", "delta": {"text": "hello"}}
    report = streamed(start, piece, delta, {"type": "message_stop", METRICS: counts})
    assert report.usage == TokenUsage(input=4, cache_write_1h=9, output=4, reasoning=2)
    assert (report.model, report.provider_request_id) == (None, "msg_bdrk_1")
    assert (report.finished, report.visible_bytes) == (True, 5)


@pytest.mark.parametrize(
    "pieces",
    [
        [{"outputText": "hello", "inputTextTokenCount": 3, "totalOutputTextTokenCount": 2}],
        [{"generation": "hel", "prompt_token_count": 3, "generation_token_count": 1}, {"generation": "lo"}],
        [{"contentBlockDelta": {"delta": {"text": "hello"}}}, {"messageStop": {}}, {"metadata": {"usage": {}}}],
        [{"choices": [{"delta": {"content": "hello"}}]}],
        [{"outputs": [{"text": "hello"}]}],
        [{"event_type": "text-generation", "text": "hello"}],
    ],
)
def test_the_stream_of_every_maker_is_counted_as_it_passes_and_measured_at_its_end(
    pieces: list[dict[str, Any]],
) -> None:
    assert streamed(*pieces).visible_bytes == 5
    pieces[-1][METRICS] = {"inputTokenCount": 3, "outputTokenCount": 2}
    report = streamed(*pieces)
    assert report.usage == TokenUsage(input=3, output=2)
    assert report.finished


def test_llama_s_running_counts_replace_each_other() -> None:
    report = streamed(
        {"generation": "a", "prompt_token_count": 3, "generation_token_count": 1},
        {"generation": "b", "prompt_token_count": None, "generation_token_count": 2},
    )
    assert report.usage == TokenUsage(input=3, output=2)


@pytest.mark.parametrize("inner", ["%%%", 5, None, "", b64encode(b"[1]").decode(), b64encode(b"\xff").decode()])
def test_a_chunk_that_is_none_is_survived(inner: Any) -> None:
    report = Report()
    api(CHAT).absorb(report, {"chunk": {"bytes": inner}})
    api(CHAT).absorb(report, {"chunk": inner})
    assert report == Report()


@pytest.mark.parametrize("odd", [None, -1, 1.5, "x", [], {}, 10**30, True])
def test_odd_counts_never_become_negative(odd: Any) -> None:
    answers: list[dict[str, Any]] = [
        {"inputTextTokenCount": odd, "results": [{"tokenCount": odd}, odd]},
        {"prompt_token_count": odd, "generation_token_count": odd},
        {METRICS: {"inputTokenCount": 5, "outputTokenCount": odd, "cacheReadInputTokenCount": odd}},
        {METRICS: {"inputTokenCount": odd}},
        {"usage": {"inputTokens": 5, "outputTokens": odd, "cacheDetails": [odd, {"ttl": "1h", "inputTokens": odd}]}},
        {"completions": [{"data": odd}], "results": odd, "usage": odd},
    ]
    for answer in answers:
        report = Report()
        api(CHAT).absorb(report, answer)
        if report.usage is not None:
            assert all(getattr(report.usage, name) >= 0 for name in report.usage.__struct_fields__)


def test_what_boto3_hands_out_is_recognised() -> None:
    report = Report()
    event = {"chunk": {"bytes": json.dumps({"outputText": "x", METRICS: {"inputTokenCount": 3}}).encode()}}
    assert [a.name for a in find_apis("/model/m/invoke") if a.recognises(event)] == ["bedrock.invoke"]
    api(CHAT).absorb(report, event)
    assert report.usage == TokenUsage(input=3)


@pytest.mark.parametrize("answer", [{"message": "no"}, {"internalServerException": {"message": "no"}}])
def test_an_error_is_a_failure(answer: dict[str, Any]) -> None:
    assert api(CHAT).read_body(json.dumps(answer).encode()).failed


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
@pytest.mark.parametrize("size", [1, 7, 64, 1000, 100_000])
@pytest.mark.parametrize(
    ("name", "usage", "visible"),
    [
        ("invoke_stream_claude.bin", TokenUsage(input=16, output=21), (81, 18)),
        ("invoke_stream_titan.bin", TokenUsage(input=5, output=10), (42, 1)),
    ],
)
def test_recorded_streams_come_to_what_the_manifest_says(
    name: str, usage: TokenUsage, visible: tuple[int, int], size: int
) -> None:
    body = (CORPUS / "bedrock" / name).read_bytes()
    reader = api(CHAT, "invoke-with-response-stream").stream_reader(hide_usage=False)
    assert feed(reader, cut(body, size)) == body
    assert reader.report.usage == usage
    assert (reader.report.visible_bytes, reader.report.visible_deltas) == visible
    assert reader.report.finished
