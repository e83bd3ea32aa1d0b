"""Images: what a call may cost at most, and what it reports, in bodies and in events of any size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.pricing import ModelPrice, Price
from askii_middleware.providers import find_apis
from askii_middleware.providers.base import CallRequest, InvalidRequestError, Rewrite
from askii_middleware.providers.large_events import LargeEventReader
from askii_middleware.providers.openai_images import ImagesApi, image_tokens
from askii_middleware.providers.sse import SseReader
from askii_middleware.usage import Report, TokenUsage

from .support import CORPUS, NO_CORPUS, cut, cut_at, event, feed, raw_fields

API = ImagesApi()
USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
    "output_tokens": 4160,
    "total_tokens": 4210,
}
SEEN = TokenUsage(input=10, input_image=40, output_image=4160)


def parse(body: dict[str, Any]) -> CallRequest:
    return API.parse(raw_fields(body), len(json.dumps(body)))


@pytest.mark.parametrize("path", ["/v1/images/generations", "/openai/v1/images/edits", "/images/variations"])
def test_image_paths_are_metered_where_a_body_asks_for_images(path: str) -> None:
    assert find_apis(path) == (API,) or [api.name for api in find_apis(path)] == ["openai.images"]
    assert API.owns(raw_fields({"prompt": "x"}))
    assert API.owns(raw_fields({"image": {"file_bytes": 1}}))
    assert not API.owns(raw_fields({"query": "x"}))


def test_the_recorded_answer_yields_its_image_tokens_at_any_split() -> None:
    file = CORPUS / "openai_images" / "generation_gpt_image_1.json"
    if not file.exists():
        pytest.skip(NO_CORPUS)
    body = file.read_bytes()
    for size in (1, 7, 64, 1000, len(body)):
        reader = API.body_reader()
        feed(reader, cut(body, size))
        assert reader.report.usage == TokenUsage(input=10, output_image=4160)
        assert reader.report.finished
    assert API.read_body(body).usage == TokenUsage(input=10, output_image=4160)


@pytest.mark.parametrize(
    ("size", "quality", "tokens"),
    [
        # The tables of gpt-image-1 and the calculator of gpt-image-2, whichever is larger.
        ("1024x1024", "high", 7024),
        ("1536x1024", "high", 6240),
        ("1024x1024", "medium", 7024),
        ("1024x1024", "low", 781),
        ("256x256", "low", 529),
        ("3840x2160", "high", 13_342),
        ("2160x3840", "high", 13_342),
        ("2880x2880", "high", 23_719),
        ("auto", "auto", 13_102),
        (None, None, 13_102),
        ("1024x1024", "hd", 7024),
        ("1024x1024", "xhigh", 14_097),
        ("1024x1024", "max", 28_096),
        ("1024x1024", "unheard of", 28_096),
    ],
)
def test_an_image_is_bounded_by_size_and_quality(size: str | None, quality: str | None, tokens: int) -> None:
    assert image_tokens(size, quality) == tokens


@given(st.text(max_size=20) | st.sampled_from(["x", "0x0", "1x", "9999999x9", "-1x5", "٣x٣"]), st.text(max_size=9))
def test_an_odd_size_is_bounded_too(size: str, quality: str) -> None:
    assert image_tokens(size, "low") >= 408
    assert image_tokens(size, quality) <= image_tokens("3840x3840", "max")


def test_each_image_is_billed_with_its_prompt() -> None:
    request = parse({"model": "gpt-image-2", "prompt": "otter", "n": 3, "size": "1024x1024", "quality": "high"})
    one = parse({"model": "gpt-image-2", "prompt": "otter", "n": 1, "size": "1024x1024", "quality": "high"})
    assert (request.output_limit, request.choices) == (7024, 3)
    assert request.input_bound == 3 * one.input_bound
    assert len('"otter"') < one.input_bound < 400
    assert request.units == TokenUsage(request=3)
    assert request.media
    assert request.billed_by_request is None


def test_what_a_picture_takes_besides_counts() -> None:
    still = parse({"prompt": "x", "size": "1024x1024", "quality": "low"})
    partial = parse({"prompt": "x", "size": "1024x1024", "quality": "low", "partial_images": 3, "stream": True})
    moving = parse({"prompt": "x", "size": "1024x1024", "quality": "low", "output_format": "gif"})
    assert still.output_limit == 781
    assert partial.output_limit == 781 + 300
    assert partial.stream
    assert moving.output_limit == 9 * 781


def test_an_image_without_tokens_costs_its_price_times_their_number() -> None:
    request = parse({"model": "dall-e-3", "prompt": "x", "n": 2})
    assert request.billed_by_request == TokenUsage(request=2)
    price = Price("dall-e-3", ModelPrice(request_usd="0.04"))
    assert price.charge(request.billed_by_request).nano_usd == 80_000_000
    assert API.read_body(b'{"created": 1, "data": [{"url": "http://x"}]}').usage is None


def test_input_images_count_by_their_number_not_by_their_bytes() -> None:
    forms = parse({"prompt": "x", "image": {"file_bytes": 9_000_000, "files": 4}, "mask": {"file_bytes": 100}})
    url = "data:image/png;base64," + "A" * 100_000
    listed = parse({"prompt": "x", "images": [{"image_url": url}, {"file_id": "f"}]})
    assert 50_000 < forms.input_bound < 51_000
    assert 20_000 < listed.input_bound < 21_000
    assert not listed.remote_input


@pytest.mark.parametrize("body", [{"svg": {"model": "gpt-6-sol"}}, {"svg[model]": "gpt-6-sol"}])
def test_the_author_of_an_svg_is_a_further_model(body: dict[str, Any]) -> None:
    assert parse({"prompt": "x", "output_format": "svg", **body}).other_models == ("gpt-6-sol",)


def test_the_tokens_of_an_svg_are_its_authors() -> None:
    svg = {"model": "gpt-6-sol", "input_tokens": 5, "output_tokens": 9, "reasoning_tokens": 4, "total_tokens": 14}
    report = API.read_body(json.dumps({"created": 1, "data": [], "usage": USAGE, "svg_usage": svg}).encode())
    assert report.usage == SEEN
    assert report.other_usage == (("gpt-6-sol", TokenUsage(input=5, output=5, reasoning=4)),)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 0), ("n", "2"), ("n", 101), ("n", True), ("partial_images", -1), ("frame_count", 1.5), ("stream", "yes")],
)
def test_a_member_that_bounds_the_call_must_be_of_its_type(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        parse({"prompt": "x", name: value})


def test_text_output_is_told_apart_from_images() -> None:
    details = {"image_tokens": 100, "text_tokens": 20}
    answer = {
        "created": 1,
        "usage": {**USAGE, "output_tokens": 120, "total_tokens": 170, "output_tokens_details": details},
    }
    report = API.read_body(json.dumps(answer).encode())
    assert report.usage == TokenUsage(input=10, input_image=40, output=20, output_image=100)


def stream(image_bytes: int, end: bytes = b"\n") -> bytes:
    partial = {"type": "image_generation.partial_image", "b64_json": "A" * image_bytes, "partial_image_index": 0}
    whole = {"type": "image_generation.completed", "b64_json": "B" * image_bytes, "usage": USAGE}
    return event(partial, name="image_generation.partial_image", end=end) + event(
        whole, name="image_generation.completed", end=end
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_of_images_larger_than_any_buffer_yields_its_usage_at_any_split(end: bytes) -> None:
    for size, splits in ((200, (1, 7, 64, 1000)), (3_000_000, (65_536, 8_000_000))):
        body = stream(size, end)
        for split in splits:
            reader = API.stream_reader(hide_usage=False)
            for chunk in cut(body, split):
                assert reader.feed(chunk) is chunk
            assert reader.finish() == b""
            assert reader.report.usage == SEEN
            assert reader.report.finished


def test_a_stream_of_edits_reads_alike_and_each_image_counts() -> None:
    done = event({"type": "image_edit.completed", "usage": USAGE})
    reader = API.stream_reader(hide_usage=True)
    feed(reader, [done + done])
    assert reader.report.usage == TokenUsage(input=20, input_image=80, output_image=8320)


def test_a_stream_that_breaks_off_tells_nothing() -> None:
    reader = API.stream_reader(hide_usage=False)
    feed(reader, [stream(100)[:-120]])
    assert (reader.report.usage, reader.report.finished) == (None, False)


def test_an_error_event_fails_the_stream() -> None:
    reader = API.stream_reader(hide_usage=False)
    feed(reader, [event({"type": "error", "error": {"code": "moderation_blocked"}}, name="error")])
    assert reader.report.failed


def test_only_the_model_changes_in_a_body() -> None:
    body = b'{"model":"gpt-image-2","prompt":"\\u00e9","n":1.0e0,"size":"1024x1024"}'
    request = CallRequest(model="gpt-image-2", fields=raw_fields(body))
    out = API.rewrite(request, Rewrite(model="gpt-image-1-mini", output_limit=5))
    assert out == body.replace(b"gpt-image-2", b"gpt-image-1-mini")


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ({"created": 1, "data": [{}]}, True),
        ({"created": 1, "quality": "high", "usage": USAGE}, True),
        ({"type": "image_edit.completed"}, True),
        ({"type": "response.image_generation_call.completed"}, False),
        ({"created": 1, "choices": [], "data": []}, False),
        ({"object": "list", "data": [], "created": 1}, False),
    ],
)
def test_answers_are_known_by_their_members(answer: dict[str, Any], known: bool) -> None:
    assert API.recognises(answer) is known


LINES = st.lists(
    st.sampled_from(
        [
            *(b"data: {", b'data: {"a":1', b'data:{"a":2}', b',"b":[1,{"a":3}]', b'data: ,"b":"x\\"y"}', b"data: }"),
            *(b"event: a", b":", b"", b"", b"dat", b"data", b"\xef\xbb\xbfdata: {}", b"id: 1"),
        ]
    ),
    max_size=12,
)


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 300), max_size=5))
def test_large_events_are_framed_like_all_others(lines: list[bytes], end: bytes, places: list[int]) -> None:
    body = b"".join(line + end for line in lines)

    def events(reader: LargeEventReader | SseReader, found: list[Any], chunks: list[bytes]) -> list[Any]:
        feed(reader, chunks)
        return found

    whole: list[Any] = []
    strict = events(SseReader(lambda _, answer: whole.append(dict(answer))), whole, [body])
    reports = []
    for chunks in ([body], cut_at(body, places), list(cut(body, 1))):
        found: list[Any] = []

        def keep(_: Report, answer: Any, found: list[Any] = found) -> None:
            found.append(answer)

        reports.append(events(LargeEventReader(keep, frozenset("ab")), found, chunks))
    assert reports[0] == reports[1] == reports[2]
    # The scanner does not validate: it may see members in what is no JSON, but misses none in what is.
    wanted = [kept for answer in strict if (kept := {k: v for k, v in answer.items() if k in "ab"})]
    left = iter(reports[0])
    assert all(any(answer == kept for answer in left) for kept in wanted)
