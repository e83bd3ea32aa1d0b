"""Whatever an SDK hands back can be recorded."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from anthropic.types import Message, RawMessageDeltaEvent, RawMessageStartEvent
from anthropic.types.beta import BetaMessage
from anthropic.types.messages import MessageBatchIndividualResponse
from openai.types import Completion, CompletionUsage, CreateEmbeddingResponse, ImagesResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.realtime import ResponseDoneEvent
from openai.types.responses import Response, ResponseCompletedEvent, ResponseUsage

from askii_middleware.providers import APIS, find_apis
from askii_middleware.providers.response import read_response, record_into
from askii_middleware.usage import Report, TokenUsage

from .support import NO_CORPUS, USAGE, chat_chunk, entries, event, recorded

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "priority",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "grüß"}}],
    "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 6}},
}
READ = Report(
    usage=TokenUsage(input=4, cache_read=6, output=4),
    model="gpt-4o-2024-08-06",
    service_tier="priority",
    provider_request_id="chatcmpl-1",
    finished=True,
    visible_bytes=0,
    visible_deltas=0,
)
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 3,
        "output_tokens": 33,
        "cache_read_input_tokens": 1111,
        "cache_creation_input_tokens": 418,
        "cache_creation": {"ephemeral_5m_input_tokens": 18, "ephemeral_1h_input_tokens": 400},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        "service_tier": "standard",
    },
}
MESSAGE_USAGE = TokenUsage(input=3, cache_read=1111, cache_write=18, cache_write_1h=400, output=33, web_search=2)


@pytest.mark.parametrize(
    "response",
    [
        CHAT,
        json.dumps(CHAT),
        json.dumps(CHAT).encode(),
        bytearray(json.dumps(CHAT).encode()),
        memoryview(json.dumps(CHAT).encode()),
        ChatCompletion.model_validate(CHAT),
        event(CHAT),
        event(CHAT).decode() + "data: [DONE]\n\n",
    ],
    ids=lambda r: type(r).__name__,
)
def test_a_chat_answer_reads_the_same_in_every_form(response: object) -> None:
    assert read_response(response) == READ


def test_a_completion_and_embeddings_of_the_sdk_are_read() -> None:
    completion = Completion.model_validate(
        {**CHAT, "object": "text_completion", "choices": [{"index": 0, "text": "abc", "finish_reason": "stop"}]}
    )
    assert read_response(completion).visible_bytes == 0  # it says what it used: nothing needs counting
    assert read_response(completion).visible_bytes == 0  # it says what it used: nothing needs counting
    embedding = {"object": "embedding", "index": 0, "embedding": [0.5] * 8}
    body = {"object": "list", "model": "m", "data": [embedding], "usage": {"prompt_tokens": 9, "total_tokens": 9}}
    assert read_response(CreateEmbeddingResponse.model_validate(body)) == Report(
        usage=TokenUsage(input=9), model="m", finished=True
    )


def test_chunks_of_a_chat_merge_into_one_report_and_the_last_usage_wins() -> None:
    report = Report()
    for chunk in (
        chat_chunk("Hé"),
        chat_chunk("llo", usage={**USAGE, "completion_tokens": 1}),
        chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        chat_chunk(choices=[], usage=USAGE),
    ):
        record_into(report, ChatCompletionChunk.model_validate(chunk))
    assert report == Report(
        usage=TokenUsage(input=10, output=4),
        model="gpt-4o-2024-08-06",
        service_tier="default",
        provider_request_id="chatcmpl-1",
        finished=True,
        visible_bytes=6,
        visible_deltas=2,
    )


def test_an_anthropic_message_of_the_sdk_is_read() -> None:
    for response in (MESSAGE, Message.model_validate(MESSAGE), BetaMessage.model_validate(MESSAGE)):
        assert read_response(response) == Report(
            usage=MESSAGE_USAGE,
            model="claude-sonnet-4-5",
            service_tier="standard",
            provider_request_id="msg_1",
            finished=True,
            visible_bytes=5,
            visible_deltas=1,
        )


def test_anthropic_events_lay_their_counts_over_the_earlier_ones() -> None:
    report = Report()
    start = {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}
    record_into(report, RawMessageStartEvent.model_validate(start))
    assert report.usage == MESSAGE_USAGE
    assert not report.finished
    delta = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 40, "input_tokens": 2, "cache_read_input_tokens": None},
    }
    record_into(report, RawMessageDeltaEvent.model_validate(delta))
    assert report.usage == TokenUsage(
        input=2, cache_read=1111, cache_write=18, cache_write_1h=400, output=40, web_search=2
    )
    assert report.finished


def test_a_message_event_may_lower_a_count() -> None:
    report = Report(usage=TokenUsage(input=9, output=50, reasoning=3))
    record_into(
        report,
        {
            "type": "message_delta",
            "delta": {},
            "usage": {"output_tokens": 20, "output_tokens_details": {"thinking_tokens": 1}},
        },
    )
    assert report.usage == TokenUsage(input=9, output=19, reasoning=1)


def test_compactions_and_advisers_are_billed_beside_the_totals() -> None:
    entry = {"input_tokens": 7, "output_tokens": 2, "cache_read_input_tokens": 1, "cache_creation_input_tokens": 0}
    iterations = [
        {**entry, "type": "message"},
        {**entry, "type": "compaction"},
        {**entry, "type": "advisor_message", "model": "claude-opus-4-8"},
    ]
    report = read_response({**MESSAGE, "usage": {**MESSAGE["usage"], "iterations": iterations}})  # type: ignore[dict-item]
    assert report.usage == MESSAGE_USAGE
    extra = TokenUsage(input=7, cache_read=1, output=2)
    assert report.other_usage == (("claude-sonnet-4-5", extra), ("claude-opus-4-8", extra))


def response_body(**changes: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "gpt-5",
        "output": [
            {
                "id": "m",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "ab", "annotations": []}],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [{"type": "image_generation", "model": "gpt-image-1.5"}],
        "service_tier": "flex",
        "usage": {
            "input_tokens": 53,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 5},
            "output_tokens": 469,
            "output_tokens_details": {"reasoning_tokens": 448},
            "total_tokens": 522,
        },
    } | changes


RESPONSE_USAGE = TokenUsage(input=45, cache_read=3, cache_write=5, output=21, reasoning=448)


def test_a_response_of_the_sdk_is_read() -> None:
    read = Report(
        usage=RESPONSE_USAGE,
        model="gpt-5",
        service_tier="flex",
        provider_request_id="resp_1",
        finished=True,
        visible_bytes=2,
        visible_deltas=1,
    )
    assert read_response(Response.model_validate(response_body())) == read
    completed = {"type": "response.completed", "sequence_number": 9, "response": response_body()}
    read.visible_bytes = read.visible_deltas = 0  # in a stream the text has passed before
    assert read_response(ResponseCompletedEvent.model_validate(completed)) == read


def test_hosted_tools_are_counted_beside_the_model() -> None:
    image = {
        "input_tokens": 20,
        "input_tokens_details": {"image_tokens": 15, "text_tokens": 5},
        "output_tokens": 300,
        "output_tokens_details": {"image_tokens": 290, "text_tokens": 10},
        "total_tokens": 320,
    }
    report = read_response(response_body(tool_usage={"web_search": {"num_requests": 3}, "image_gen": image}))
    assert report.usage is not None
    assert report.usage.web_search == 3
    assert report.other_usage == (("gpt-image-1.5", TokenUsage(input=5, input_image=15, output=10, output_image=290)),)


@pytest.mark.parametrize(
    ("status", "finished", "failed", "deferred"),
    [
        ("completed", True, False, False),
        ("incomplete", True, False, False),
        ("failed", True, True, False),
        ("cancelled", True, True, False),
        ("queued", False, False, True),
        ("in_progress", False, False, True),
    ],
)
def test_a_response_says_by_its_status_whether_it_goes_on(
    status: str, finished: bool, failed: bool, deferred: bool
) -> None:
    report = read_response(response_body(status=status, usage=None))
    assert (report.usage, report.finished, report.failed, report.deferred) == (None, finished, failed, deferred)


def test_only_a_background_stream_is_deferred_while_it_runs() -> None:
    for background in (True, False):
        report = Report()
        running = response_body(status="in_progress", usage=None, background=background)
        record_into(report, {"type": "response.created", "response": running})
        assert report.deferred == background
        record_into(report, {"type": "response.completed", "response": response_body(background=background)})
        assert not report.deferred
        assert report.finished


def test_usage_alone_is_read_by_its_members() -> None:
    assert read_response(CompletionUsage.model_validate(USAGE)).usage == TokenUsage(input=10, output=4)
    usage = response_body()["usage"]
    assert read_response(ResponseUsage.model_validate(usage)).usage == RESPONSE_USAGE
    assert read_response(MESSAGE["usage"]).usage == MESSAGE_USAGE
    assert read_response({"model": "m", "usage": USAGE}) == Report(usage=TokenUsage(input=10, output=4), model="m")


def test_what_carries_no_usage_leaves_the_report_as_it_is() -> None:
    for said in (
        {},
        {"type": "text", "text": "a", "snapshot": "ab"},
        "data: [DONE]\n\n",
        ": comment\n\ndata: {}\n\n",
        {"usage": None},
    ):
        assert read_response(said) == Report()
    assert read_response({"error": {"message": "no"}}) == Report(failed=True)


@pytest.mark.parametrize("wrong", [None, 5, SimpleNamespace(usage=1), object(), iter([]), ["a"]])
def test_what_is_no_response_is_named_in_the_error(wrong: object) -> None:
    with pytest.raises(TypeError, match=f"cannot read usage from {type(wrong).__qualname__}: pass the response itself"):
        read_response(wrong)


@pytest.mark.parametrize("wrong", ["hello", b"[1]", b"", "<html>"])
def test_text_that_is_no_answer_is_an_error(wrong: object) -> None:
    with pytest.raises(ValueError, match="neither a JSON object nor a server-sent event"):
        read_response(wrong)


NOT_BY_ITSELF = {
    # Its counts stand in the headers, which boto3 hands on beside the answer.
    "bedrock/invoke_cohere_headers_only.json",
}
TOLD_APART = [e for e in entries() if not e["file"].endswith(".bin") and e["file"] not in NOT_BY_ITSELF]


@pytest.mark.skipif(not TOLD_APART, reason=NO_CORPUS)
@pytest.mark.parametrize("entry", TOLD_APART, ids=lambda e: e["file"])
def test_a_recorded_answer_is_told_apart_by_its_shape(entry: dict[str, Any]) -> None:
    expected = {
        name: value
        for name, value in entry["expected"].items()
        if name in ("input_tokens", "output_tokens") and value is not None
    }
    report = read_response(recorded(entry))
    usage = report.usage
    if usage is None and report.generated_tokens is not None:
        assert {"output_tokens": report.generated_tokens} == expected
        return
    assert {name: getattr(usage, name) for name in expected} == expected
    billed_otherwise = usage is not None and usage.request + usage.page + usage.second + usage.character > 0
    assert (usage is None) == (not expected) or billed_otherwise


def test_google_s_answers_are_read_in_either_spelling_and_from_its_sdk() -> None:
    types = pytest.importorskip("google.genai.types")
    wire = {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": 12,
            "candidatesTokenCount": 3,
            "thoughtsTokenCount": 5,
            "totalTokenCount": 20,
            "cachedContentTokenCount": 4,
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r",
    }
    answer = types.GenerateContentResponse.model_validate(wire)
    used = TokenUsage(input=8, cache_read=4, output=3, reasoning=5)
    for form in (wire, json.dumps(wire), answer, answer.model_dump(), answer.model_dump(mode="json")):
        report = read_response(form)
        assert (report.usage, report.model) == (used, "gemini-2.5-flash")
    for bare in (answer.usage_metadata, wire["usageMetadata"]):
        assert read_response(bare).usage == used


def test_coheres_objects_are_read() -> None:
    construct = pytest.importorskip("cohere.core.unchecked_base_model").construct_type
    types, v2_types = pytest.importorskip("cohere.types"), pytest.importorskip("cohere.v2.types")
    billed = {"billed_units": {"input_tokens": 8, "output_tokens": 3}, "tokens": {"input_tokens": 503}}
    used = TokenUsage(input=8, output=3)
    message = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    v2 = {"id": "c", "message": message, "finish_reason": "COMPLETE", "usage": billed}
    v1 = {"text": "x", "generation_id": "g", "finish_reason": "COMPLETE", "meta": billed}
    ranked = {"id": "r", "results": [], "meta": {"billed_units": {"search_units": 2}}}
    for kind, body, usage in (
        (v2_types.V2ChatResponse, v2, used),
        (types.NonStreamedChatResponse, v1, used),
        (types.Usage, billed, used),
        (v2_types.V2RerankResponse, ranked, TokenUsage(request=2)),
    ):
        assert read_response(construct(type_=kind, object_=body)).usage == usage
    events = {
        v2_types.V2ChatStreamResponse: [
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "ab"}}}},
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": billed}},
        ],
        types.StreamedChatResponse: [
            {"event_type": "text-generation", "text": "ab"},
            {"event_type": "stream-end", "finish_reason": "COMPLETE", "response": v1},
        ],
    }
    for kind, stream in events.items():
        report = Report()
        for one in stream:
            record_into(report, construct(type_=kind, object_=one))
        assert (report.usage, report.finished, report.visible_bytes) == (used, True, 2)


def test_ollamas_objects_are_read() -> None:
    ollama = pytest.importorskip("ollama")
    done = {"model": "llama3", "done": True, "done_reason": "stop", "prompt_eval_count": 4, "eval_count": 2}
    chat = ollama.ChatResponse(message={"role": "assistant", "content": "x"}, **done)
    assert read_response(chat).usage == TokenUsage(input=4, output=2)
    generated = ollama.GenerateResponse(response="x", **{**done, "prompt_eval_count": None})
    report = read_response(generated)
    assert (report.usage, report.generated_tokens, report.model, report.finished) == (None, 2, "llama3", True)
    embedded = ollama.EmbedResponse(model="m", embeddings=[[0.5]], prompt_eval_count=4)
    assert read_response(embedded).usage == TokenUsage(input=4)
    piece = ollama.ChatResponse(model="llama3", done=False, message={"role": "assistant", "content": "ab"})
    assert read_response(piece) == Report(model="llama3", visible_bytes=2, visible_deltas=1)


def test_mistrals_objects_are_read_and_its_wrapped_events_unwrapped() -> None:
    models = pytest.importorskip("mistralai.client.models")
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "delta": {"content": "ab"}, "finish_reason": "stop"}
    chunk = {"id": "1", "model": "mistral-small", "choices": [choice], "usage": usage}
    report = read_response(models.CompletionEvent.model_validate({"data": chunk}))
    assert (report.usage, report.model, report.visible_bytes) == (
        TokenUsage(input=3, output=2),
        "mistral-small",
        2,
    )
    done = {"type": "conversation.response.done", "usage": usage}
    event_of_sdk = models.ConversationEvents.model_validate({"event": done["type"], "data": done})
    assert read_response(event_of_sdk).usage == TokenUsage(input=3, output=2)
    pages = {"pages": [], "model": "mistral-ocr", "usage_info": {"pages_processed": 3}}
    assert read_response(models.OCRResponse.model_validate(pages)).usage == TokenUsage(page=3)


def test_groqs_chunks_are_read() -> None:
    groq = pytest.importorskip("groq.types.chat")
    chunk = chat_chunk("", x_groq={"id": "req_1", "usage": USAGE})
    assert read_response(groq.ChatCompletionChunk.model_validate(chunk)).usage == TokenUsage(input=10, output=4)


def test_boto3s_dictionaries_are_read_with_their_headers() -> None:
    usage = {"inputTokens": 7, "outputTokens": 2, "totalTokens": 9}
    answer = {
        "ResponseMetadata": {"RequestId": "r", "HTTPStatusCode": 200, "HTTPHeaders": {"content-type": "x"}},
        "output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}},
        "stopReason": "end_turn",
        "usage": usage,
    }
    for form in (answer, {"metadata": {"usage": usage}}, usage):
        assert read_response(form).usage == TokenUsage(input=7, output=2)
    counted = {"x-amzn-bedrock-input-token-count": "7", "x-amzn-bedrock-output-token-count": "2"}
    invoked = {"ResponseMetadata": {"HTTPHeaders": counted}, "contentType": "application/json", "body": object()}
    assert read_response(invoked).usage == TokenUsage(input=7, output=2)


def test_lines_of_json_are_read_like_events() -> None:
    text = (
        '{"model":"m","message":{"content":"ab"},"done":false}\n{"model":"m","done":true,"message":{},"eval_count":2}\n'
    )
    report = read_response(text)
    assert (report.generated_tokens, report.finished, report.visible_bytes) == (2, True, 2)


def test_a_reported_cost_is_recorded() -> None:
    assert read_response({**CHAT, "usage": {**USAGE, "cost": 0.25}}).cost_nano_usd == 250_000_000
    assert read_response({**USAGE, "cost_in_usd_ticks": 10**10}).cost_nano_usd == 10**9


def test_the_image_tools_model_is_read_from_plain_answers_of_any_size() -> None:
    api = find_apis("/v1/responses")[0]
    tool_usage = {"image_gen": {"input_tokens": 5, "output_tokens": 10, "total_tokens": 15}}
    tools = [{"type": "image_generation", "model": "gpt-image-1-mini"}]
    for filler in ("", "x" * 400_000):
        body = json.dumps(response_body(tool_usage=tool_usage, tools=tools, instructions=filler)).encode()
        reader = api.body_reader()
        reader.feed(body)
        reader.finish()
        for report in (api.read_body(body), reader.report):
            assert report.other_usage == (("gpt-image-1-mini", TokenUsage(input=5, output_image=10)),)


def test_a_tier_that_an_sdk_made_an_enumeration_of_is_read() -> None:
    types = pytest.importorskip("google.genai.types")
    counts = {"promptTokenCount": 5, "totalTokenCount": 5, "trafficType": "ON_DEMAND_PRIORITY"}
    answer = types.GenerateContentResponse.model_validate({"candidates": [], "usageMetadata": counts})
    assert read_response(answer).service_tier == "priority"


def test_embeddings_of_vertex_count_each_for_itself_in_googles_sdk() -> None:
    types = pytest.importorskip("google.genai.types")
    entries = [{"values": [0.5], "statistics": {"tokenCount": count}} for count in (7, 3)]
    answer = types.EmbedContentResponse.model_validate({"embeddings": entries})
    for form in (answer, answer.model_dump()):
        assert read_response(form).usage == TokenUsage(input=10)


IMAGE_USAGE = {
    "input_tokens": 5,
    "output_tokens": 100,
    "total_tokens": 105,
    "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
}


def test_images_of_the_sdk_are_image_output_even_where_nothing_but_counts_is_told() -> None:
    answer = {"created": 1, "data": [{"b64_json": "AA"}], "usage": IMAGE_USAGE}
    assert read_response(ImagesResponse.model_validate(answer)).usage == TokenUsage(input=5, output_image=100)


def test_what_a_transcription_heard_is_audio_though_it_names_no_language() -> None:
    usage = {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3264, "completion_tokens": 635}
    answer: dict[str, Any] = {
        "model": "voxtral-mini-2507",
        "text": "hello",
        "language": None,
        "segments": [],
        "usage": usage,
    }
    heard = TokenUsage(input=4, input_audio=2625, output=635, second=203)
    assert read_response(answer).usage == heard
    models = pytest.importorskip("mistralai.client.models")
    assert read_response(models.TranscriptionResponse.model_validate(answer)).usage == heard


def test_a_ranking_that_is_billed_by_tokens_is_input() -> None:
    answer = {"id": "r", "model": "m", "usage": {"total_tokens": 26}, "results": [{"index": 0, "relevance_score": 0.5}]}
    assert [api.name for api in APIS if api.recognises(answer)] == ["cohere.rerank"]
    assert read_response(answer).usage == TokenUsage(input=26)


REALTIME_USAGE = {
    "total_tokens": 300,
    "input_tokens": 200,
    "output_tokens": 100,
    "input_token_details": {
        "text_tokens": 50,
        "audio_tokens": 150,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 64},
    },
    "output_token_details": {"text_tokens": 20, "audio_tokens": 80},
}
REALTIME_USED = TokenUsage(input=50, input_audio=86, cache_read_audio=64, output=20, output_audio=80)


@pytest.mark.parametrize("status", ["completed", "cancelled", "incomplete", "failed"])
def test_a_response_of_a_realtime_session_keeps_its_audio(status: str) -> None:
    response = {"id": "resp_1", "object": "realtime.response", "status": status, "output": [], "usage": REALTIME_USAGE}
    done = {"type": "response.done", "event_id": "event_1", "response": response}
    for form in (done, json.dumps(done), ResponseDoneEvent.model_validate(done)):
        report = read_response(form)
        assert (report.usage, report.provider_request_id) == (REALTIME_USED, "resp_1")
        assert (report.finished, report.failed) == (True, status == "failed")
    beside = {"type": "response.done", "response": {"id": "resp_1", "status": status}, "usage": REALTIME_USAGE}
    assert read_response(beside).usage == REALTIME_USED


def test_a_response_that_ends_by_the_same_name_elsewhere_is_no_realtime_one() -> None:
    report = read_response({"type": "response.done", "response": response_body()})
    assert report.usage == read_response(response_body()).usage


@pytest.mark.parametrize(
    ("usage", "model", "used"),
    [
        ({"type": "duration", "seconds": 2.5}, "whisper-1", TokenUsage(second=3)),
        (
            {
                "type": "tokens",
                "total_tokens": 30,
                "input_tokens": 20,
                "input_token_details": {"text_tokens": 2, "audio_tokens": 18},
                "output_tokens": 10,
            },
            "gpt-4o-transcribe",
            TokenUsage(input=2, input_audio=18, output=10),
        ),
    ],
)
def test_what_a_session_heard_is_another_models(usage: dict[str, Any], model: str, used: TokenUsage) -> None:
    kind = "conversation.item.input_audio_transcription.completed"
    report = read_response({"type": kind, "item_id": "item_1", "transcript": "hello", "usage": usage})
    assert (report.usage, report.model, report.provider_request_id) == (used, model, "item_1")


def test_messages_of_a_live_session_are_read_turn_by_turn() -> None:
    types = pytest.importorskip("google.genai.types")
    counts = {
        "promptTokenCount": 5,
        "responseTokenCount": 3,
        "totalTokenCount": 8,
        "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 3}],
    }
    wire = {"serverContent": {"turnComplete": True}, "usageMetadata": counts}
    message = types.LiveServerMessage.model_validate(wire)
    for form in (wire, message, message.model_dump()):
        report = read_response(form)
        assert (report.usage, report.finished) == (TokenUsage(input=5, output_audio=3), True)
    speaking = {"serverContent": {"modelTurn": {"parts": [{"text": "hi"}]}}}
    assert read_response(speaking) == Report()


def test_a_line_of_a_batchs_results_is_read_like_its_answer_at_the_tier_of_batches() -> None:
    message = {"custom_id": "a", "result": {"type": "succeeded", "message": MESSAGE}}
    for form in (message, MessageBatchIndividualResponse.model_validate(message)):
        report = read_response(form)
        assert (report.usage, report.service_tier, report.provider_request_id) == (MESSAGE_USAGE, "batch", "msg_1")
    line = {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": CHAT}, "error": None}
    report = read_response(json.dumps(line))
    assert (report.usage, report.service_tier, report.provider_request_id) == (READ.usage, "batch", "chatcmpl-1")
    expired = {"custom_id": "a", "result": {"type": "expired"}}
    assert read_response(expired) == Report()
