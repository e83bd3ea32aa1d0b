"""Speech and transcriptions: characters, tokens or seconds, told by the request, the answer or its size."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.forms import read_form
from askii_middleware.providers import APIS, choose_api, find_apis
from askii_middleware.providers.base import CallRequest, InvalidRequestError, Rewrite
from askii_middleware.providers.openai_audio import SpeechApi, TranscriptionsApi, transcription_usage
from askii_middleware.usage import TokenUsage

from .support import CORPUS, NO_CORPUS, cut, event, feed, raw_fields

SPEECH = SpeechApi()
HEARING = TranscriptionsApi()
TOKENS = {
    "type": "tokens",
    "total_tokens": 181,
    "input_tokens": 37,
    "input_token_details": {"text_tokens": 3, "audio_tokens": 34},
    "output_tokens": 144,
}
HEARD = TokenUsage(input=3, input_audio=34, output=144)


def speak(**body: Any) -> CallRequest:
    return SPEECH.parse(raw_fields(body), len(json.dumps(body)))


def hear(**body: Any) -> CallRequest:
    return HEARING.parse(raw_fields(body), 10**9)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/audio/speech", "openai.speech"),
        ("/openai/v1/audio/transcriptions", "openai.transcriptions"),
        ("/audio/translations/", "openai.transcriptions"),
    ],
)
def test_audio_paths_are_known(path: str, name: str) -> None:
    assert [api.name for api in find_apis(path)] == [name]


@pytest.mark.parametrize(
    ("file", "usage"),
    [
        ("transcribe_tokens_json.json", TokenUsage(input_audio=37, output=144)),
        ("transcribe_stream.sse", TokenUsage(input_audio=37, output=12)),
    ],
)
def test_recorded_transcriptions_yield_their_tokens_at_any_split(file: str, usage: TokenUsage) -> None:
    path = CORPUS / "openai_audio" / file
    if not path.exists():
        pytest.skip(NO_CORPUS)
    body = path.read_bytes()
    for size in (1, 7, 64, 1000, len(body)):
        reader = HEARING.stream_reader(hide_usage=False) if file.endswith("sse") else HEARING.body_reader()
        assert feed(reader, cut(body, size)) == body
        assert reader.report.usage == usage
        assert reader.report.finished
        assert not reader.report.usage.second


def test_speech_by_characters_is_billed_by_the_request() -> None:
    request = speak(model="tts-1", input="Grüße 😀", voice="alloy")
    assert request.billed_by_request == request.units == TokenUsage(character=7)
    assert request.output_limit is not None
    assert not request.stream


def test_speech_by_tokens_is_bounded_and_not_billed_by_the_request() -> None:
    request = speak(model="openai/gpt-4o-mini-tts", input="x" * 100, voice="coral", instructions="slowly")
    slow = speak(model="gpt-4o-mini-tts", input="x" * 100, speed=0.25)
    assert request.billed_by_request is None
    # 100 characters are 40 s at the very slowest, of 21 tokens each.
    assert request.output_limit is not None
    assert slow.output_limit is not None
    assert 40 * 21 <= request.output_limit < 1_200
    assert 160 * 21 <= slow.output_limit < 4_800


@pytest.mark.parametrize("text", [None, 5, ["a"], {}])
def test_what_is_to_be_spoken_must_be_text(text: object) -> None:
    with pytest.raises(InvalidRequestError, match="input"):
        speak(model="tts-1", input=text)


def test_a_stream_of_speech_tells_its_tokens_at_the_end() -> None:
    assert speak(model="gpt-4o-mini-tts", input="x", stream_format="sse").stream
    usage = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
    body = event({"type": "speech.audio.delta", "audio": "QUJD" * 5_000}) + event(
        {"type": "speech.audio.done", "usage": usage}
    )
    for size in (1, 7, 64, 1000, len(body)):
        reader = SPEECH.stream_reader(hide_usage=False)
        assert feed(reader, cut(body, size)) == body
        assert reader.report.usage == TokenUsage(input=14, output_audio=101)
        assert reader.report.finished
        assert reader.report.visible_tokens == 40


@pytest.mark.parametrize(
    ("head", "tokens"),
    [
        (b"RIFF\x24\x80", 21),
        (b"\x00\x00\x01\x00", 21),
        (b"ID3\x04", 126),
        (b"\xff\xfb\x94\xc4", 126),
        (b"\xff\xf1\x50\x80", 168),
        (b"OggS\x00", 336),
        (b"fLaC\x00", 51),
    ],
)
def test_plain_audio_is_measured_by_its_size(head: bytes, tokens: int) -> None:
    body = head + b"\x07" * (48_000 - len(head))
    for size in (1, 7, 64, 1000, len(body)):
        reader = SPEECH.body_reader()
        for chunk in cut(body, size):
            assert reader.feed(chunk) is chunk
        assert reader.finish() == b""
        assert reader.report.visible_tokens == tokens
        assert reader.report.usage is None
    assert SPEECH.read_body(body).visible_tokens == tokens


def test_an_error_in_json_is_read_where_audio_was_asked_for() -> None:
    body = b' {"error": {"message": "no"}}'
    assert SPEECH.read_body(body).failed
    reader = SPEECH.body_reader()
    feed(reader, cut(body, 3))
    assert reader.report.failed
    assert reader.report.finished


def test_a_file_is_bounded_by_its_size() -> None:
    request = hear(model="whisper-1", file={"file_bytes": 960_000}, prompt="names", response_format="srt")
    assert request.units == request.billed_by_request == TokenUsage(second=961)
    assert 961 * 13 < request.input_bound < 961 * 13 + 1_000
    assert request.output_limit == 2_000 + 961 * 16
    assert not request.remote_input
    # A minute at 128 kbit/s: some 600 tokens.
    assert 600 < request.input_estimate < 900


def test_a_model_billed_by_tokens_is_not_billed_by_its_seconds() -> None:
    assert hear(model="gpt-4o-mini-transcribe", file={"file_bytes": 10}, stream=True).billed_by_request is None
    assert hear(model="gpt-transcribe", file={"file_bytes": 10}).billed_by_request == TokenUsage(second=2)


@pytest.mark.parametrize("source", [{"file_url": "https://x/a.mp3"}, {"file_id": "f"}, {"url": "https://x"}])
def test_a_file_elsewhere_is_remote(source: dict[str, Any]) -> None:
    assert HEARING.owns(raw_fields(source))
    request = hear(model="voxtral-mini-latest", **source)
    assert request.remote_input
    assert request.units == TokenUsage(second=10_800)


def test_audio_in_json_is_bounded_by_its_payload() -> None:
    request = hear(model="m", input_audio={"data": "A" * 8_000, "format": "wav"})
    assert (request.units, request.remote_input) == (TokenUsage(second=9), False)


@pytest.mark.parametrize("file", [5, None, True, [], {}, {"file_bytes": -1}, {"file_bytes": "9"}])
def test_an_odd_file_counts_as_one_elsewhere(file: object) -> None:
    assert hear(model="m", file=file).remote_input


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"text": "a", "usage": TOKENS}, HEARD),
        ({"text": "a", "duration": 3.7, "usage": TOKENS}, HEARD),
        ({"text": "a", "usage": {"type": "duration", "seconds": 9}}, TokenUsage(second=9)),
        ({"text": "a", "duration": 8.47, "usage": {"type": "duration", "seconds": 9}}, TokenUsage(second=9)),
        ({"text": "a", "duration": 8.47, "language": "english", "x_groq": {"id": "req_1"}}, TokenUsage(second=9)),
        ({"text": "a", "duration": "8.47"}, TokenUsage(second=9)),
        ({"text": "a", "duration": 0.0}, TokenUsage()),
        ({"text": "a"}, None),
        ({"text": "a", "duration": "long"}, None),
        ({"text": "a", "duration": float("inf")}, None),
        ({"text": "a", "duration": -1.0}, None),
        ({"text": "a", "duration": 10**12}, None),
        ({"text": "a", "duration": True}, None),
        # Mistral's: the audio's tokens stand beside the prompt's, and its seconds are what is billed.
        (
            {
                "model": "voxtral-mini-2602",
                "text": "a",
                "usage": {
                    "prompt_audio_seconds": 203,
                    "prompt_tokens": 4,
                    "total_tokens": 3264,
                    "completion_tokens": 635,
                },
            },
            TokenUsage(input=4, input_audio=2625, output=635, second=203),
        ),
        (
            # Heard before: what the text cannot be of the cached tokens is audio.
            {
                "text": "a",
                "usage": {
                    "prompt_audio_seconds": 5,
                    "prompt_tokens": 5,
                    "total_tokens": 404,
                    "completion_tokens": 24,
                    "prompt_tokens_details": {"cached_tokens": 368},
                },
            },
            TokenUsage(cache_read=5, input_audio=12, cache_read_audio=363, output=24, second=5),
        ),
    ],
)
def test_answers_tell_tokens_or_seconds(answer: dict[str, Any], usage: TokenUsage | None) -> None:
    assert transcription_usage(answer) == usage
    body = json.dumps(answer).encode()
    assert HEARING.read_body(body).usage == usage
    for size in (1, 7, 64):
        reader = HEARING.body_reader()
        feed(reader, cut(body, size))
        assert reader.report.usage == usage


def test_groqs_own_id_names_the_request() -> None:
    assert HEARING.read_body(b'{"text": "a", "x_groq": {"id": "req_1"}}').provider_request_id == "req_1"


def test_mistrals_stream_ends_with_its_usage() -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 30, "prompt_audio_seconds": 2}
    body = event({"type": "transcription.text.delta", "text": "héllo"}, name="transcription.text.delta") + event(
        {"type": "transcription.done", "model": "voxtral-mini-2602", "text": "héllo", "usage": usage},
        name="transcription.done",
    )
    reader = HEARING.stream_reader(hide_usage=False)
    feed(reader, cut(body, 5))
    report = reader.report
    assert report.usage == TokenUsage(input=4, input_audio=20, output=6, second=2)
    assert (report.model, report.finished, report.visible_bytes) == ("voxtral-mini-2602", True, 6)


@pytest.mark.parametrize("body", [b"1\n00:00:00,000 --> 00:00:03,700\nRuby is\n", b"WEBVTT\n", b"Ruby {is\n", b""])
def test_text_and_subtitles_tell_nothing(body: bytes) -> None:
    report = HEARING.read_body(body)
    assert (report.usage, report.failed, report.finished) == (None, False, False)


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode), st.integers(1, 9))
def test_any_bytes_are_survived(body: bytes, size: int) -> None:
    for api in (SPEECH, HEARING):
        for reader in (api.body_reader(), api.stream_reader(hide_usage=False)):
            assert feed(reader, cut(body, size)) == body
        assert api.read_body(body).visible_tokens >= 0


@pytest.mark.parametrize(
    ("answer", "speech", "hearing"),
    [
        ({"type": "speech.audio.done"}, True, False),
        ({"type": "transcript.text.done"}, False, True),
        ({"text": "a", "usage": TOKENS}, False, True),
        ({"text": "a", "language": "en", "duration": 1.0}, False, True),
        ({"text": "a", "generation_id": "x"}, False, False),
        ({"type": "text", "text": "a"}, False, False),
    ],
)
def test_answers_are_known_by_their_members(answer: dict[str, Any], speech: bool, hearing: bool) -> None:
    assert (SPEECH.recognises(answer), HEARING.recognises(answer)) == (speech, hearing)


def test_only_the_model_changes_in_a_body() -> None:
    body = b'{"model":"tts-1","input":"\\u00e9","voice":"alloy","speed":1.50}'
    request = SPEECH.parse(raw_fields(body), len(body))
    assert SPEECH.rewrite(request, Rewrite(model="tts-1-hd", output_limit=9)) == body.replace(b"tts-1", b"tts-1-hd")


def test_what_the_sdks_send_is_read() -> None:
    openai = pytest.importorskip("openai")
    httpx2 = pytest.importorskip("httpx2")
    seen: list[Any] = []

    def answer(call: Any) -> Any:
        call.read()
        seen.append(call)
        return httpx2.Response(200, json={"text": "a", "created": 1, "data": []})

    with openai.OpenAI(
        base_url="http://local/v1", api_key="k", http_client=httpx2.Client(transport=httpx2.MockTransport(answer))
    ) as client:
        client.audio.transcriptions.create(
            model="gpt-4o-transcribe",
            file=("a b.mp3", b"x" * 3_000),
            chunking_strategy={"type": "server_vad", "threshold": 0.5},
            include=["logprobs"],
            response_format="json",
            temperature=0.5,
        )
        client.images.edit(
            model="gpt-image-2", image=[b"1234", b"56"], mask=b"7", prompt="é", n=2, svg={"model": "gpt-6-sol"}
        )
        client.audio.speech.create(model="tts-1", input="abc", voice="alloy")
    requests = []
    for call in seen:
        fields = raw_fields(call.content) if call.content[:1] == b"{" else read_fields(call)
        api = choose_api(find_apis(call.url.path), fields)
        assert api is not None
        requests.append((api.name, api.parse(fields, len(call.content))))
    (first, heard), (second, edited), (third, spoken) = requests
    assert (first, heard.model, heard.units) == ("openai.transcriptions", "gpt-4o-transcribe", TokenUsage(second=4))
    assert (second, edited.model, edited.choices) == ("openai.images", "gpt-image-2", 2)
    assert edited.other_models == ("gpt-6-sol",)
    assert 60_000 < edited.input_bound < 62_000
    assert (third, spoken.units) == ("openai.speech", TokenUsage(character=3))


def read_fields(call: Any) -> dict[str, msgspec.Raw]:
    return read_form(call.headers["content-type"].encode(), call.content).fields


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "speech.audio.done", "usage": {"input_tokens": 1, "output_tokens": 1}},
        {"type": "transcript.text.done", "text": "a", "usage": TOKENS},
        {"text": "a", "usage": TOKENS},
        {"task": "transcribe", "language": "en", "duration": 1.5, "text": "a"},
        {"created": 1, "data": [{"b64_json": ""}], "usage": {"input_tokens": 1, "output_tokens": 1}},
        {"type": "image_generation.completed", "b64_json": "", "created_at": 1, "usage": {}},
        {"id": "b", "object": "batch", "endpoint": "/v1/responses", "status": "completed"},
        {"id": "modr-1", "model": "omni-moderation-latest", "results": [{"flagged": False, "categories": {}}]},
    ],
    ids=lambda answer: str(answer.get("type") or answer.get("object") or sorted(answer)),
)
def test_each_of_these_answers_belongs_to_one_api(answer: dict[str, Any]) -> None:
    assert [api.name for api in APIS if api.recognises(answer)] != []
    assert sum(api.recognises(answer) for api in APIS) == 1
