"""What every wire format promises of every answer, recorded or damaged: no error, no negative count, the bytes as they
came, and the same report however they were split.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.providers import APIS, find_apis, find_sights
from askii_middleware.providers.base import Api, StreamReader
from askii_middleware.providers.fields import decode_object
from askii_middleware.providers.response import record_into
from askii_middleware.providers.sse import Framer
from askii_middleware.usage import Report
from tests.support.mutations import mutate
from tests.support.recordings import Recording, recordings

from .support import NO_CORPUS, cut, cut_at, event

RECORDINGS = [r for r in recordings() if not r.is_socket]
pytestmark = pytest.mark.skipif(not RECORDINGS, reason=NO_CORPUS)


def apis_of(recording: Recording) -> list[Api]:
    if recording.entry["method"] == "GET":
        return [api for api, _ in find_sights(recording.path)]
    return list(find_apis(recording.path))


OWN = [(r, api) for r in RECORDINGS for api in apis_of(r)]
RANDOMS = st.randoms(use_true_random=False)
"""Sources of chance that hypothesis can turn back."""
SPLITS = st.sampled_from([1, 2, 3, 7, 64, 1000]) | st.lists(st.integers(0, 1 << 20), max_size=40)
"""The size of all pieces, or the places of the cuts."""


def readers(api: Api, recording: Recording) -> list[Any]:
    """Makers of the readers that may meet an answer of this kind."""
    kind = recording.entry["response_headers"].get("content-type", "application/json").encode()
    if kind.startswith(api.stream_types):
        return [lambda: api.stream_reader(hide_usage=False)]
    return [api.body_reader]


def parts(text: bytes, split: int | list[int]) -> Iterable[bytes]:
    return cut(text, split) if isinstance(split, int) else cut_at(text, split)


def all_readers(api: Api) -> list[Any]:
    return [api.body_reader, lambda: api.stream_reader(hide_usage=False), lambda: api.stream_reader(hide_usage=True)]


def read(reader: StreamReader, chunks: Iterable[bytes], *, untouched: bool = True) -> Report:
    for chunk in chunks:
        out = reader.feed(chunk)
        assert not untouched or out is chunk
    rest = reader.finish()
    assert not untouched or rest == b""
    check(reader.report)
    return reader.report


def answers(recording: Recording) -> list[dict[str, Any]]:
    """The decoded answer, or a stream's events, as an SDK hands them out."""
    texts: list[bytes | None] = [recording.text]
    if recording.name.endswith(".sse"):
        framer = Framer()
        texts = [block.data for block in framer.push(recording.text) + framer.finish()]
    elif recording.name.endswith(".ndjson"):
        texts = [*recording.text.splitlines()]
    return [found for text in texts if text and (found := decode_object(text)) is not None]


def check(report: Report) -> None:
    """Nothing in a report that money could not be counted with."""
    for usage in (report.usage, *(extra for _, extra in report.other_usage)):
        if usage is not None:
            assert all(getattr(usage, name) >= 0 for name in usage.__struct_fields__), usage
            assert all(type(getattr(usage, name)) in (int, bool) for name in usage.__struct_fields__), usage
    assert report.cost_nano_usd is None or (type(report.cost_nano_usd) is int and report.cost_nano_usd >= 0)
    assert report.visible_bytes >= 0
    assert report.visible_deltas >= 0
    for name in (report.model, report.service_tier, report.provider_request_id):
        assert name is None or (type(name) is str and 0 < len(name) <= 300 and name.encode())
    assert all(type(model) is str and model for model, _ in report.other_usage)


@settings(max_examples=300)
@given(st.sampled_from(OWN), SPLITS)
def test_any_split_of_a_recorded_answer_says_the_same(own: tuple[Recording, Api], split: int | list[int]) -> None:
    recording, api = own
    for make in readers(api, recording):
        assert read(make(), parts(recording.text, split)) == read(make(), [recording.text])


@settings(max_examples=300)
@given(st.sampled_from(OWN), SPLITS, RANDOMS)
def test_any_split_of_a_damaged_answer_says_the_same(
    own: tuple[Recording, Api], split: int | list[int], rng: Random
) -> None:
    recording, api = own
    damaged = mutate(rng, recording.text)
    for make in readers(api, recording):
        assert read(make(), parts(damaged, split)) == read(make(), [damaged])


@settings(max_examples=300)
@given(st.sampled_from(OWN), RANDOMS)
def test_a_damaged_body_is_read_as_a_whole_without_an_error(own: tuple[Recording, Api], rng: Random) -> None:
    recording, api = own
    check(api.read_body(mutate(rng, recording.text)))


@settings(max_examples=300)
@given(st.sampled_from(APIS), st.sampled_from(RECORDINGS), SPLITS, RANDOMS, st.booleans())
def test_an_answer_of_any_other_api_is_survived(
    api: Api, recording: Recording, split: int | list[int], rng: Random, damage: bool
) -> None:
    text = mutate(rng, recording.text) if damage else recording.text
    check(api.read_body(text))
    for number, make in enumerate(all_readers(api)):
        read(make(), parts(text, split), untouched=number < 2)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda r: r.name)
def test_an_answer_is_recognised_by_one_api_at_most_and_tells_the_same_by_itself(recording: Recording) -> None:
    report, told = Report(), set()
    for answer in answers(recording):
        names = [api.name for api in APIS if api.recognises(answer)]
        assert len(names) <= 1, names
        told.update(names)
        record_into(report, answer)
    own = sorted(apis_of(recording), key=lambda api: api.name not in told)
    if not told or not own or recording.name in ELSEWHERE:
        return
    (make,) = readers(own[0], recording)
    assert report.usage == read(make(), [recording.text]).usage


IMAGE = "A" * 3_000_000
LARGE = {
    "/v1/responses": {
        "type": "response.completed",
        "response": {
            "status": "completed",
            "output": [{"type": "image_generation_call", "result": IMAGE}],
            "usage": {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14},
        },
    },
    "/v1beta/models/gemini-2.5-flash-image:streamGenerateContent": {
        "candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": IMAGE}}]}}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 9, "totalTokenCount": 14},
    },
    "/v1/chat/completions": {
        "choices": [{"index": 0, "delta": {"images": [{"image_url": {"url": IMAGE}}]}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14},
    },
}


@pytest.mark.parametrize("path", LARGE)
@pytest.mark.parametrize("size", [1000, 65_536, 1 << 24])
def test_usage_behind_megabytes_of_an_image_is_read_at_any_split(path: str, size: int) -> None:
    reader = find_apis(path)[0].stream_reader(hide_usage=False)
    report = read(reader, cut(event(LARGE[path]), size))
    assert report.usage is not None
    assert (report.usage.input_tokens, report.usage.output_tokens) == (5, 9)


UNRECORDED = {
    "anthropic.vertex",
    "anthropic.vertex.stream",
    "azure.images",
    "azure.speech",
    "azure.transcriptions",
    "cohere.classify",
    "cohere.embed",
    "cohere.generate",
    "gemini.stream_tuned",
    "gemini.tuned",
    "mistral.agents",
    "mistral.conversations",
    "mistral.fim",
    "mistral.ocr",
    "ollama.embed",
    "openai.moderations",
    "openai.responses.compact",
    "openai.speech",
    "vertex.embeddings",
    "vertex.images",
}
"""APIs whose answers nobody has recorded for us; their own tests play the documented ones."""


ELSEWHERE = {"bedrock/invoke_cohere_headers_only.json"}
"""Recordings whose usage stands in headers."""


def test_every_api_has_a_recorded_answer_of_its_own_or_is_known_to_have_none() -> None:
    assert {api.name for api in APIS} - {api.name for _, api in OWN} == UNRECORDED
