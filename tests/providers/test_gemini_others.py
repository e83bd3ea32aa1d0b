"""Gemini's embeddings, Vertex's predictions, Interactions and batches."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import find_sights
from askii_middleware.providers.base import Api, BatchItems, InvalidRequestError, Rewrite
from askii_middleware.providers.gemini_batches import GeminiBatchesApi
from askii_middleware.providers.gemini_interactions import InteractionsApi
from askii_middleware.usage import Report, TokenUsage

from .gemini_support import HELLO, SPENT, absorbed, metadata, parsed, read
from .support import CORPUS, NO_CORPUS, cut, event, feed

MODELS = "/v1beta/models"
PREDICT = "/v1/projects/p/locations/l/publishers/google/models/m:predict"
BATCH = f"{MODELS}/gemini-2.5-flash:batchGenerateContent"
INTERACTIONS = "/v1beta/interactions"


def text(value: str) -> dict[str, Any]:
    return {"parts": [{"text": value}]}


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("embedContent", {"content": text("x" * 400), "model": "models/a"}),
        ("batchEmbedContents", {"requests": [{"model": "models/a", "content": text("x" * 400)}]}),
    ],
)
def test_an_embedding_request_has_no_output_and_names_its_model_twice(verb: str, body: dict[str, Any]) -> None:
    api, request = parsed(f"{MODELS}/a:{verb}", body)
    assert (api.kind, request.output_limit, request.model) == ("embedding", 0, None)
    assert request.input_bound >= len(json.dumps(body))
    changed = api.rewrite(request, Rewrite(model="b"))
    assert json.loads(changed) == json.loads(json.dumps(body).replace("models/a", "models/b"))
    assert json.loads(api.rewrite(request, Rewrite())) == body


def test_an_image_to_be_embedded_counts_by_its_size() -> None:
    image = {"parts": [{"inlineData": {"mimeType": "image/png", "data": "A" * 90_000}}]}
    for verb, body in (
        ("embedContent", {"content": image}),
        ("batchEmbedContents", {"requests": [{"content": image}]}),
    ):
        _, request = parsed(f"{MODELS}/gemini-embedding-2:{verb}", body)
        assert request.media
        assert request.input_bound < 10_000


def test_embeddings_tell_their_usage_or_nothing() -> None:
    api, _ = parsed(f"{MODELS}/a:embedContent", {"content": text("x")})
    values = [0.123456] * 9_000
    answer = {"embedding": {"values": values}, "usageMetadata": {"promptTokenCount": 7, "totalTokenCount": 7}}
    assert read(api, answer).usage == TokenUsage(input=7)
    assert read(api, {"embedding": {"values": values}, "usageMetadata": {"totalTokenCount": 7}}).usage == TokenUsage(
        input=7
    )
    silent = read(api, {"embeddings": [{"values": values}]})
    assert silent.usage is None
    assert silent.finished


def test_vertex_embeddings_add_up_their_instances() -> None:
    api, request = parsed(PREDICT, {"instances": [{"content": "a"}, {"content": "b"}]})
    assert (api.name, api.kind, request.output_limit) == ("vertex.embeddings", "embedding", 0)
    predictions: list[Any] = [
        {"embeddings": {"values": [0.5] * 3_000, "statistics": {"truncated": False, "token_count": count}}}
        for count in (4, 6.0, 11)
    ]
    assert read(api, {"predictions": predictions}).usage == TokenUsage(input=21)
    predictions[0]["embeddings"]["statistics"]["token_count"] = "many"
    assert read(api, {"predictions": predictions}).usage == TokenUsage(input=17, anomalous=True)
    assert read(api, {"predictions": [{"textEmbedding": [0.1]}]}).usage is None


@pytest.mark.parametrize(("parameters", "images"), [({"sampleCount": 2}, 2), ({}, 4), (None, 4)])
def test_imagen_is_billed_for_each_image_it_made(parameters: object, images: int) -> None:
    api, request = parsed(PREDICT, {"instances": [{"prompt": "a cat"}], "parameters": parameters})
    assert (api.name, api.kind, request.output_limit) == ("vertex.images", "image", 0)
    assert request.billed_by_request == request.units == TokenUsage(request=images)
    made = {"mimeType": "image/png", "bytesBase64Encoded": "A" * 100_000}
    assert read(api, {"predictions": [made, made, {"raiFilteredReason": "x"}]}).usage == TokenUsage(request=2)
    assert read(api, {"predictions": [{"raiFilteredReason": "x"}]}).usage == TokenUsage()
    assert read(api, {}).usage is None


def test_an_image_count_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match=r"^sampleCount must be an integer"):
        parsed(PREDICT, {"instances": [{"prompt": "x"}], "parameters": {"sampleCount": "2"}})


def interaction(**members: Any) -> dict[str, Any]:
    return {"model": "gemini-3-flash-preview", "input": "hi"} | members


def test_an_interaction_is_read_and_changed_where_its_limit_stands() -> None:
    body = interaction(generation_config={"temperature": 1, "max_output_tokens": 50}, stream=True, service_tier="flex")
    api, request = parsed(INTERACTIONS, body)
    assert (request.model, request.output_limit, request.stream) == ("gemini-3-flash-preview", 50, True)
    assert (request.service_tier, request.background, request.remote_input) == ("flex", False, False)
    changed = json.loads(api.rewrite(request, Rewrite(model="gemini-2.5-flash", output_limit=7)))
    expected = {**body, "model": "gemini-2.5-flash"}
    expected["generation_config"] = {"temperature": 1, "max_output_tokens": 7}
    assert changed == expected


def test_an_agent_keeps_its_name_and_has_no_limit() -> None:
    body = {"agent": "deep-research", "input": "hi", "background": True}
    api, request = parsed(INTERACTIONS, body)
    assert (request.model, request.background, request.remote_input) == ("deep-research", True, True)
    assert not api.accepts(request, "gemini-2.5-flash")
    assert json.loads(api.rewrite(request, Rewrite(model="x", output_limit=7))) == body


@pytest.mark.parametrize(
    ("members", "remote"),
    [
        ({"previous_interaction_id": "i1"}, True),
        ({"tools": [{"type": "google_search"}]}, True),
        ({"tools": [{"type": "function", "name": "f"}]}, False),
        ({"input": [{"type": "image", "uri": "https://example.test/i.png"}]}, True),
        ({"input": [{"type": "video", "data": "AAAA"}]}, True),
        ({"input": [{"type": "image", "data": "A" * 90_000, "mime_type": "image/png"}]}, False),
        ({"input": [{"type": "user_input", "content": [{"type": "image", "data": "A" * 90_000}]}]}, False),
        ({"input": [{"type": "function_result", "result": [{"type": "audio", "data": "A" * 90_000}]}]}, False),
    ],
)
def test_an_interactions_input_is_bounded(members: dict[str, Any], *, remote: bool) -> None:
    _, request = parsed(INTERACTIONS, interaction(**members))
    assert request.remote_input == remote
    assert request.input_bound < 10_000


USED = {"total_input_tokens": 10, "total_output_tokens": 4, "total_thought_tokens": 3, "total_tool_use_tokens": 2}


def test_interactions_usage_comes_in_buckets() -> None:
    usage = USED | {
        "total_tokens": 20,
        "total_cached_tokens": 6,
        "input_tokens_by_modality": [{"modality": "image", "tokens": 5}],
        "cached_tokens_by_modality": [{"modality": "image", "tokens": 1}],
        "output_tokens_by_modality": [{"modality": "audio", "tokens": 2}],
        "grounding_tool_count": [{"type": "google_search", "count": 3}, {"type": "google_maps", "count": 9}],
    }
    api, _ = parsed(INTERACTIONS, interaction())
    found = read(api, {"id": "i1", "status": "completed", "model": "gemini-3-pro", "usage": usage})
    assert found.usage == TokenUsage(
        input=2, cache_read=5, cache_read_image=1, input_image=4, output=3, reasoning=3, output_audio=2, web_search=3
    )
    assert (found.provider_request_id, found.finished, found.deferred) == ("i1", True, False)


def test_only_google_searches_of_an_interaction_are_searches() -> None:
    steps = [
        {"type": "google_search_call", "arguments": {"queries": ["a", "b"]}},
        {"type": "google_maps_call", "arguments": {"queries": ["c"]}},
        {"arguments": {"queries": ["d"]}, "type": "google_search_call"},
    ]
    api, _ = parsed(INTERACTIONS, interaction())
    answer = {"status": "completed", "model": "gemini-3-pro", "usage": USED, "steps": steps}
    found = read(api, answer)
    assert found.usage is not None
    assert found.usage.web_search == 3


@pytest.mark.parametrize("status", ["in_progress", "queued"])
def test_a_background_interaction_goes_on_elsewhere(status: str) -> None:
    api, _ = parsed(INTERACTIONS, interaction(background=True))
    report = read(api, {"id": "v1_abc", "status": status, "object": "interaction"})
    assert (report.deferred, report.provider_request_id, report.usage) == (True, "v1_abc", None)
    assert (api, "v1_abc") in [(found, operation) for found, operation in find_sights(f"{INTERACTIONS}/v1_abc")]


def test_a_failed_interaction_is_over() -> None:
    report = read(InteractionsApi(), {"id": "i", "status": "failed", "object": "interaction"})
    assert (report.failed, report.deferred, report.finished) == (True, False, True)


@pytest.mark.parametrize(
    ("names", "last"),
    [
        (("interaction.created", "step.delta", "interaction.completed"), {"usage": USED}),
        (("interaction.start", "content.delta", "interaction.complete"), {"usage": USED}),
    ],
)
def test_a_streamed_interaction_reports_its_last_usage(names: tuple[str, str, str], last: dict[str, Any]) -> None:
    start, delta, end = names
    body = b"".join(
        event(each, name=str(each["event_type"]))
        for each in (
            {"event_type": start, "interaction": {"id": "i1", "status": "in_progress", "model": "gemini-3-pro"}},
            {"event_type": delta, "index": 0, "delta": {"type": "text", "text": "Héllo"}},
            {
                "event_type": delta,
                "delta": {"type": "text", "text": "!"},
                "metadata": {"total_usage": {"total_tokens": 1}},
            },
            {"event_type": "interaction.status_update", "status": "in_progress"},
            {"event_type": end, "interaction": {"id": "i1", "status": "completed", **last}},
        )
    )
    for size in (1, 7, 64, 1000):
        reader = InteractionsApi().stream_reader(hide_usage=False)
        assert feed(reader, cut(body, size)) == body
        assert reader.report == Report(
            usage=TokenUsage(input=12, output=4, reasoning=3),
            model="gemini-3-pro",
            provider_request_id="i1",
            finished=True,
            visible_bytes=7,
            visible_deltas=2,
        )


def test_an_interactions_refusal_has_a_word_for_its_code() -> None:
    body, headers = InteractionsApi().refusal(SPENT)
    assert json.loads(body)["error"]["code"] == "budget_exceeded"
    assert (b"x-should-retry", b"false") in headers
    data = InteractionsApi().stream_error(SPENT).removeprefix(b"event: error\ndata: ")
    assert json.loads(data)["event_type"] == "error"


def batch(*requests: dict[str, Any], **members: Any) -> dict[str, Any]:
    items = [{"request": request, "metadata": {"key": str(at)}} for at, request in enumerate(requests)]
    return {"batch": {"displayName": "b", "inputConfig": {"requests": {"requests": items}}, **members}}


def test_a_batch_is_bounded_by_its_items() -> None:
    one = {**HELLO, "generationConfig": {"maxOutputTokens": 50, "candidateCount": 2}}
    api, request = parsed(BATCH, batch(one, HELLO, HELLO, model="models/gemini-2.5-flash"))
    assert (api.kind, request.background, request.output_limit, request.remote_input) == ("batch", True, 0, False)
    (items,) = request.items
    assert items == BatchItems("gemini-2.5-flash", request.input_bound, 100, 2)
    assert request.input_bound >= 3 * len(json.dumps(HELLO["contents"]))
    snake = {"batch": {"input_config": {"requests": {"requests": [{"request": HELLO}]}}}}
    assert parsed(BATCH, snake)[1].items[0].unlimited == 1


def test_a_batch_of_embeddings_generates_nothing() -> None:
    _, request = parsed(f"{MODELS}/gemini-embedding-001:asyncBatchEmbedContent", batch({"content": text("x" * 300)}))
    (items,) = request.items
    assert (items.output_tokens, items.unlimited) == (0, 0)
    assert items.input_tokens > 300


def test_a_batch_of_a_file_is_elsewhere() -> None:
    _, request = parsed(BATCH, {"batch": {"inputConfig": {"fileName": "files/1"}}})
    assert request.items == ()
    assert request.remote_input


def test_a_batch_whose_items_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match=r"^batch.inputConfig.requests.requests cannot be read"):
        parsed(BATCH, {"batch": {"inputConfig": {"requests": {"requests": [5]}}}})


def test_a_batch_that_names_its_model_is_renamed_and_others_stay_as_they_are() -> None:
    api, request = parsed(BATCH, batch(HELLO, model="models/gemini-2.5-flash"))
    assert json.loads(api.rewrite(request, Rewrite(model="x"))) == batch(HELLO, model="models/x")
    api, request = parsed(BATCH, batch(HELLO))
    assert json.loads(api.rewrite(request, Rewrite(model="x", output_limit=5))) == batch(HELLO)


def operation(state: str, **members: Any) -> dict[str, Any]:
    return {"name": "batches/xyz", "metadata": {"model": "models/gemini-2.5-flash", "state": state}} | members


def done(*answers: dict[str, Any], name: str = "inlinedResponses") -> dict[str, Any]:
    output = {name: {"inlinedResponses": [{"response": answer} for answer in answers]}}
    finished = operation("BATCH_STATE_SUCCEEDED", done=True, response=output)
    finished["metadata"]["output"] = output
    return finished


def state(answer: dict[str, Any]) -> tuple[bool, bool, TokenUsage | None]:
    api: Api = GeminiBatchesApi()
    report = read(api, answer)
    whole = absorbed(api, answer)
    assert (report.usage, report.deferred, report.failed) == (whole.usage, whole.deferred, whole.failed)
    assert report.provider_request_id == whole.provider_request_id == "xyz"
    assert report.model == "gemini-2.5-flash"
    return report.deferred, report.failed, report.usage


def test_a_batch_goes_on_until_it_is_done_and_counts_each_item_once() -> None:
    assert state(operation("BATCH_STATE_PENDING")) == (True, False, None)
    assert state(operation("BATCH_STATE_RUNNING", done=False)) == (True, False, None)
    answers: list[Any] = [{"usageMetadata": metadata()}, {"usageMetadata": metadata()}, {"error": {}}]
    assert state(done(*answers)) == (False, False, TokenUsage(input=20, output=8, largest_prompt=10))
    finished = done(*answers)
    del finished["response"]
    assert state(finished) == (False, False, TokenUsage(input=20, output=8, largest_prompt=10))


def test_a_batch_of_embeddings_counts_tokens() -> None:
    finished = done({"embedding": {"values": [0.1]}, "tokenCount": "x"}, name="inlinedEmbedContentResponses")
    assert state(finished) == (True, False, None)
    answers: list[Any] = [{"embedding": {"values": [0.1] * 9_999}, "tokenCount": 5}] * 3
    assert state(done(*answers, name="inlinedEmbedContentResponses")) == (
        False,
        False,
        TokenUsage(input=15, largest_prompt=5),
    )


def test_a_batch_that_failed_is_over_and_one_whose_results_are_in_a_file_is_not() -> None:
    assert state(operation("BATCH_STATE_FAILED", done=True, error={"code": 3})) == (False, True, None)
    assert state(operation("BATCH_STATE_CANCELLED")) == (False, True, None)
    filed = operation("BATCH_STATE_SUCCEEDED", done=True, response={"responsesFile": "files/1"})
    assert state(filed) == (True, False, None)


def test_both_kinds_of_batches_share_a_path_and_each_knows_its_own() -> None:
    found = [api for api, operation in find_sights("/v1beta/batches/xyz") if operation == "xyz"]
    assert "gemini.batches" in [api.name for api in found]
    ours = operation("BATCH_STATE_RUNNING")
    assert [api.name for api in found if api.recognises(ours)] == ["gemini.batches"]
    theirs = {"id": "batch_1", "object": "batch", "status": "completed", "usage": {"input_tokens": 5}}
    report = read(GeminiBatchesApi(), theirs)
    assert (report.usage, report.provider_request_id, report.deferred) == (None, None, False)


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
def test_the_recorded_batch_counts_its_two_items() -> None:
    body = (CORPUS / "gemini/batch_inlined_done.json").read_bytes()
    expected = TokenUsage(input=26, output=2, reasoning=96, largest_prompt=13)
    assert absorbed(GeminiBatchesApi(), json.loads(body)).usage == expected
    for size in (1, 7, 64, 1000, len(body)):
        reader = GeminiBatchesApi().body_reader()
        assert feed(reader, cut(body, size)) == body
        report = reader.report
        assert (report.usage, report.service_tier, report.finished) == (expected, "batch", True)
        assert (report.model, report.provider_request_id) == (
            "gemini-2.5-flash",
            "31u18uq6dr4ods3957z38i1mbfa581k01xcq",
        )


@given(st.data())
def test_a_damaged_answer_is_survived(data: st.DataObject) -> None:
    answers = [
        done({"usageMetadata": metadata()}),
        {"status": "completed", "usage": USED, "steps": [{"arguments": {}}]},
    ]
    body = bytearray(json.dumps(data.draw(st.sampled_from(answers))).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for path, sent in ((BATCH, batch()), (INTERACTIONS, interaction()), (PREDICT, {"instances": [{"prompt": ""}]})):
        usage = parsed(path, sent)[0].read_body(bytes(body)).usage
        assert usage is None or all(getattr(usage, name) >= 0 for name in usage.__struct_fields__)


def test_embeddings_have_their_details_under_a_name_of_their_own() -> None:
    counts = {"promptTokenCount": 9, "promptTokenDetails": [{"modality": "AUDIO", "tokenCount": 6}]}
    api, _ = parsed(f"{MODELS}/a:embedContent", {"content": text("x")})
    report = read(api, {"embedding": {"values": [0.5]}, "usageMetadata": counts})
    assert report.usage == TokenUsage(input=3, input_audio=6)
