"""What every wire format promises of every answer, recorded or damaged: no error, no negative count, the bytes as they
came, and the same report however they were split.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import APIS, find_apis, find_sights
from askii_middleware.providers.base import Api, StreamReader
from askii_middleware.usage import Report
from tests.support.mutations import mutate
from tests.support.recordings import Recording, recordings

from .support import NO_CORPUS, cut, cut_at

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


@given(st.sampled_from(OWN), SPLITS)
def test_any_split_of_a_recorded_answer_says_the_same(own: tuple[Recording, Api], split: int | list[int]) -> None:
    recording, api = own
    for make in readers(api, recording):
        assert read(make(), parts(recording.text, split)) == read(make(), [recording.text])


@given(st.sampled_from(OWN), SPLITS, RANDOMS)
def test_any_split_of_a_damaged_answer_says_the_same(
    own: tuple[Recording, Api], split: int | list[int], rng: Random
) -> None:
    recording, api = own
    damaged = mutate(rng, recording.text)
    for make in readers(api, recording):
        assert read(make(), parts(damaged, split)) == read(make(), [damaged])


@given(st.sampled_from(OWN), RANDOMS)
def test_a_damaged_body_is_read_as_a_whole_without_an_error(own: tuple[Recording, Api], rng: Random) -> None:
    recording, api = own
    check(api.read_body(mutate(rng, recording.text)))


@given(st.sampled_from(APIS), st.sampled_from(RECORDINGS), SPLITS, RANDOMS, st.booleans())
def test_an_answer_of_any_other_api_is_survived(
    api: Api, recording: Recording, split: int | list[int], rng: Random, damage: bool
) -> None:
    text = mutate(rng, recording.text) if damage else recording.text
    check(api.read_body(text))
    for number, make in enumerate(all_readers(api)):
        read(make(), parts(text, split), untouched=number < 2)


def test_every_api_has_a_recorded_answer_of_its_own_or_is_known_to_have_none() -> None:
    recorded = {api.name for _, api in OWN}
    assert {api.name for api in APIS} - recorded <= UNRECORDED


UNRECORDED = {"openai.responses.compact"}
"""APIs whose answers nobody has recorded for us; their own tests play the documented ones."""
