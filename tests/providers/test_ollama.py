"""Ollama's own API: what bounds a request, how it is rewritten, what its lines say, how it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import APIS, choose_api, find_apis
from askii_middleware.providers.base import CallRequest, InvalidRequestError, Refusal, Rewrite
from askii_middleware.providers.bounds import OPENAI_IMAGE_TOKENS
from askii_middleware.usage import NOTHING_USED, Report, TokenUsage

from .support import CORPUS, NO_CORPUS, cut, cut_at, feed, raw_fields

MESSAGES = [{"role": "user", "content": "hello"}]
CHAT = {"model": "llama3", "messages": MESSAGES}
DONE = {"model": "llama3", "done": True, "done_reason": "stop", "prompt_eval_count": 17, "eval_count": 50}


def parsed(path: str, body: dict[str, Any]) -> CallRequest:
    return find_apis(path)[0].parse(raw_fields(body), len(json.dumps(body)))


def lines(*answers: dict[str, Any], end: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(answer, ensure_ascii=False).encode() + end for answer in answers)


def chat_line(text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "llama3",
        "created_at": "x",
        "message": {"role": "assistant", "content": text, **more},
        "done": False,
    }


def streamed(path: str, stream: bytes, size: int = 1 << 20) -> Report:
    reader = find_apis(path)[0].stream_reader(hide_usage=True)
    for chunk in cut(stream, size):
        assert reader.feed(chunk) is chunk
    assert reader.finish() == b""
    return reader.report


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/api/chat", CHAT, "ollama.chat"),
        ("/ollama/api/chat", CHAT, "ollama.chat"),
        ("/api/chat", {"messages": MESSAGES}, None),  # an application's own chat
        ("/api/chat", {"model": None, "messages": MESSAGES}, None),
        ("/api/generate", {"model": "m", "prompt": ""}, "ollama.generate"),
        ("/api/generate", {"model": "m"}, None),  # only loads it
        ("/api/embed", {"model": "m", "input": "x"}, "ollama.embed"),
        ("/api/embeddings", {"model": "m", "prompt": "x"}, "ollama.embed"),
        ("/api/v1/embeddings", {"model": "m", "input": "x"}, "openai.embeddings"),
    ],
)
def test_a_request_is_known_by_its_path_and_its_members(path: str, body: dict[str, Any], name: str | None) -> None:
    found = choose_api(find_apis(path), raw_fields(body))
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("path", "more", "stream"),
    [
        ("/api/chat", {}, True),
        ("/api/chat", {"stream": None}, True),
        ("/api/chat", {"stream": True}, True),
        ("/api/chat", {"stream": False}, False),
        ("/api/generate", {"prompt": "x"}, True),
        ("/api/embed", {"input": "x"}, False),
    ],
)
def test_it_streams_unless_it_is_told_not_to(path: str, more: dict[str, Any], stream: bool) -> None:
    assert parsed(path, CHAT | more).stream is stream


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (None, None),
        ({}, None),
        ({"num_predict": None}, None),
        ({"num_predict": 128}, 128),
        ({"num_predict": 0}, None),
        ({"num_predict": -1}, None),
        ({"num_predict": -2}, None),
        ({"temperature": 0.5}, None),
    ],
)
def test_the_limit_stands_in_the_options_and_below_one_there_is_none(options: Any, limit: int | None) -> None:
    assert parsed("/api/chat", CHAT | {"options": options}).output_limit == limit


@pytest.mark.parametrize(
    ("more", "member"),
    [
        ({"options": {"num_predict": "lots"}}, "num_predict"),
        ({"options": {"num_predict": 1.5}}, "num_predict"),
        ({"options": {"num_predict": True}}, "num_predict"),
        ({"options": {"num_predict": 10**12}}, "num_predict"),
        ({"options": [1]}, "options"),
        ({"stream": "no"}, "stream"),
        ({"model": 3}, "model"),
    ],
)
def test_a_member_that_would_make_the_bound_wrong_is_refused_by_name(more: dict[str, Any], member: str) -> None:
    with pytest.raises(InvalidRequestError, match=member):
        parsed("/api/chat", CHAT | more)


def test_embeddings_generate_nothing() -> None:
    request = parsed("/api/embed", {"model": "m", "input": ["a", "b"], "options": {"num_predict": 5}})
    assert request.output_limit == 0
    assert request.input_bound >= 2


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "prompt": "what is this", "images": ["A" * 900_000, "B" * 100_000]},
        {"model": "m", "messages": [{"role": "user", "content": "x", "images": ["A" * 900_000, "B" * 100_000]}]},
    ],
)
def test_images_count_by_their_size_and_not_as_text(body: dict[str, Any]) -> None:
    request = parsed("/api/generate" if "prompt" in body else "/api/chat", body)
    assert request.media
    assert 2 * OPENAI_IMAGE_TOKENS <= request.input_bound < 2 * OPENAI_IMAGE_TOKENS + 10_000
    assert request.input_estimate < 10_000


@pytest.mark.parametrize("images", [3, "x", [3, None], {}, [[]]])
def test_odd_images_and_messages_still_bound_the_text(images: object) -> None:
    for body in ({"model": "m", "prompt": "x", "images": images}, {"model": "m", "messages": [{"images": images}, 3]}):
        request = parsed("/api/generate" if "prompt" in body else "/api/chat", body)
        assert request.input_bound >= len(json.dumps(body)) - 200
    assert parsed("/api/chat", {"model": "m", "messages": 3, "x": "images"}).input_bound > 0


def test_a_rewrite_changes_model_and_limit_and_no_other_byte() -> None:
    body = b'{"model":"llama3" , "messages":[ {"content":"\\u00fc"} ],"options":{"seed":1e2, "num_predict":9}}'
    api = find_apis("/api/chat")[0]
    request = api.parse(raw_fields(body), len(body))
    assert api.rewrite(request, Rewrite(model="other", output_limit=5)) == (
        b'{"model":"other","messages":[ {"content":"\\u00fc"} ],"options":{"seed":1e2,"num_predict":5}}'
    )
    bare = api.parse(raw_fields(CHAT), 50)
    assert json.loads(api.rewrite(bare, Rewrite(output_limit=5))) == CHAT | {"options": {"num_predict": 5}}
    embed = find_apis("/api/embed")[0]
    fields = raw_fields({"model": "m", "input": "x"})
    assert json.loads(embed.rewrite(embed.parse(fields, 9), Rewrite(model="n", output_limit=5))) == {
        "model": "n",
        "input": "x",
    }


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_stream_counts_what_passes_and_ends_with_its_counts(size: int, end: bytes) -> None:
    stream = lines(
        chat_line("Grüß"),
        chat_line(" Gott"),
        chat_line("", thinking="hm"),
        chat_line("", tool_calls=[{"function": {"name": "f", "arguments": {"a": 1}}}]),
        {**DONE, "message": {"role": "assistant", "content": ""}},
        end=end,
    )
    assert streamed("/api/chat", stream, size) == Report(
        usage=TokenUsage(input=17, output=50),
        model="llama3",
        finished=True,
        visible_bytes=6 + 5 + 2 + 7,
        visible_deltas=4,
        frame_tokens=32,
    )


@pytest.mark.parametrize("cut_off", [0, 1])
def test_the_last_line_may_lack_its_end(cut_off: int) -> None:
    stream = lines(chat_line("a"), DONE)
    assert streamed("/api/chat", stream[: len(stream) - cut_off]).usage == TokenUsage(input=17, output=50)


def test_a_missing_prompt_count_is_unknown_and_not_zero() -> None:
    done = {name: value for name, value in DONE.items() if name != "prompt_eval_count"}
    report = streamed("/api/chat", lines(chat_line("a"), done))
    assert (report.usage, report.generated_tokens, report.finished) == (None, 50, True)
    whole = find_apis("/api/chat")[0].read_body(json.dumps(done).encode())
    assert (whole.usage, whole.generated_tokens, whole.finished) == (None, 50, True)


def test_a_missing_generated_count_is_zero() -> None:
    done = {name: value for name, value in DONE.items() if name != "eval_count"}
    assert streamed("/api/chat", lines(done)).usage == TokenUsage(input=17)


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_loading_a_model_uses_nothing(reason: str) -> None:
    answer = {"model": "m", "response": "", "done": True, "done_reason": reason}
    assert streamed("/api/generate", lines(answer)).usage == NOTHING_USED


@pytest.mark.parametrize("value", [-1, 1.5, True, "17", None, [], 10**30])
def test_an_odd_count_is_no_count(value: object) -> None:
    report = streamed("/api/chat", lines({**DONE, "prompt_eval_count": value}))
    assert (report.usage, report.generated_tokens) == (None, 50)


def test_an_error_line_is_a_failure() -> None:
    report = streamed("/api/chat", lines(chat_line("a"), {"error": "out of memory"}))
    assert (report.failed, report.finished, report.visible_bytes) == (True, False, 1)


def test_embeddings_count_the_prompt_only() -> None:
    api = find_apis("/api/embed")[0]
    body = {"model": "all-minilm", "embeddings": [[0.1] * 9], "total_duration": 1, "prompt_eval_count": 8}
    assert api.read_body(json.dumps(body).encode()) == Report(
        usage=TokenUsage(input=8), model="all-minilm", finished=True
    )
    assert find_apis("/api/embeddings")[0].read_body(b'{"embedding": [0.5]}').usage is None


@pytest.mark.parametrize(
    "answer",
    [
        chat_line("a"),
        {**DONE, "message": {}},
        {**DONE, "response": ""},
        {"model": "m", "embeddings": [[0.5]], "prompt_eval_count": 8},
    ],
)
def test_each_answer_is_recognised_by_one_api_of_ollama(answer: dict[str, Any]) -> None:
    names = [api.name for api in APIS if api.recognises(answer)]
    assert len(names) == 1
    assert names[0].startswith("ollama.")


@given(st.lists(st.integers(0, 10_000), max_size=30), st.lists(st.text(max_size=5), max_size=6))
def test_any_split_of_a_stream_says_the_same(places: list[int], pieces: list[str]) -> None:
    stream = lines(*(chat_line(piece) for piece in pieces), DONE)
    api = find_apis("/api/chat")[0]
    whole, split = api.stream_reader(hide_usage=False), api.stream_reader(hide_usage=False)
    assert feed(whole, [stream]) == feed(split, cut_at(stream, places)) == stream
    assert whole.report == split.report
    assert whole.report.visible_bytes == sum(len(piece.encode()) for piece in pieces)


def test_a_refusal_is_an_error_as_the_sdk_reads_it() -> None:
    refusal = Refusal(status=402, code="budget_exceeded", message="spent", reason="spent", call_id="c")
    api = find_apis("/api/chat")[0]
    body, headers = api.refusal(refusal)
    assert json.loads(body) == {"error": "spent", "code": "budget_exceeded", "reason": "spent"}
    assert headers == [(b"x-should-retry", b"false")]
    assert api.stream_error(refusal).endswith(b"}\n")
    assert json.loads(api.stream_error(refusal))["error"] == "spent"
    assert api.read_body(body).failed


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("file", "usage", "generated", "passed"),
    [
        ("ollama/chat_stream.ndjson", TokenUsage(input=17, output=50), None, (212, 49)),
        ("ollama/generate_stream_prompt_eval_count_absent.ndjson", None, 58, (240, 57)),
    ],
)
def test_recorded_streams_say_what_they_used(
    file: str, usage: TokenUsage | None, generated: int | None, passed: tuple[int, int], size: int
) -> None:
    path = "/api/generate" if "generate" in file else "/api/chat"
    report = streamed(path, (CORPUS / file).read_bytes(), size)
    assert (report.usage, report.generated_tokens) == (usage, generated)
    assert (report.visible_bytes, report.visible_deltas) == passed
    assert (report.model, report.finished, report.failed) == ("llama3", True, False)
