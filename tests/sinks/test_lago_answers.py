"""The judgement on Lago's answers, on its own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.sinks.base import BACK_OFF, DELIVERED, Verdict
from askii_middleware.sinks.http import Answer, asked_wait_s
from askii_middleware.sinks.lago_answers import read_answer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just(["value_already_exist"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-3, 12).map(str), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("status", "pause_s", "alarmed", "suspect"),
    [
        (301, 60.0, True, False),
        (401, 60.0, True, False),
        (403, 60.0, True, False),
        (404, 60.0, True, False),
        (405, 60.0, True, False),
        (408, BACK_OFF, False, False),
        (425, BACK_OFF, False, False),
        (429, BACK_OFF, False, False),
        (500, BACK_OFF, False, True),
        (502, BACK_OFF, False, True),
        (503, BACK_OFF, False, False),
        (504, BACK_OFF, False, True),
        (599, BACK_OFF, False, True),
    ],
)
def test_every_status_that_stops_sending_says_how_long_and_whose_fault(
    status: int, pause_s: float, alarmed: bool, suspect: bool
) -> None:
    answer = read_answer(status, {}, b"", events=3, now_s=0.0)
    assert (answer.verdicts, answer.split) == ({}, "")
    assert (answer.pause_s, bool(answer.alarm), answer.suspect) == (pause_s, alarmed, suspect)
    assert f"HTTP {status}" in answer.reason


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_success_delivers_exactly_the_events_sent(status: int) -> None:
    assert read_answer(status, {}, b"{}", events=2, now_s=0.0) == Answer({0: DELIVERED, 1: DELIVERED})


@pytest.mark.parametrize("status", [400, 413])
def test_a_request_that_is_unacceptable_as_a_whole_is_split(status: int) -> None:
    assert (
        read_answer(status, {}, b"too\0 big", events=2, now_s=0.0).split
        == f"HTTP {status}: too\N{REPLACEMENT CHARACTER} big"
    )


def test_a_422_is_read_by_index() -> None:
    details = {
        "0": {"transaction_id": ["value_already_exist"]},
        "2": {"transaction_id": ["value_already_exist"], "timestamp": ["invalid_format"]},
        "3": "expression_evaluation_failed: x",
        "4": {"transaction_id": "value_already_exist"},
        "7": {"code": ["value_is_mandatory"]},
    }
    body = msgspec.json.encode({"error_details": details})
    assert read_answer(422, {}, body, events=5, now_s=0.0).verdicts == {
        0: DELIVERED,
        2: DELIVERED,
        3: Verdict("rejected", "HTTP 422: expression_evaluation_failed: x"),
        4: Verdict("rejected", 'HTTP 422: {"transaction_id":"value_already_exist"}'),
    }


@given(status=st.integers(100, 599), body=st.binary() | JSON.map(msgspec.json.encode), events=st.integers(1, 100))
@settings(max_examples=200, deadline=None)
def test_no_answer_breaks_the_reader_or_settles_what_was_not_sent(status: int, body: bytes, events: int) -> None:
    answer = read_answer(status, {}, body, events=events, now_s=0.0)
    assert [bool(answer.verdicts), bool(answer.split), answer.pause_s is not None].count(True) == 1
    assert set(answer.verdicts) <= set(range(events))


@given(details=JSON, events=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_no_error_details_break_the_reader(details: Any, events: int) -> None:
    answer = read_answer(422, {}, msgspec.json.encode({"error_details": details}), events=events, now_s=0.0)
    assert bool(answer.verdicts) != bool(answer.split)


@given(st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-reset"]), st.text()), st.floats(0, 1e10))
@settings(max_examples=200, deadline=None)
def test_no_header_makes_the_wait_negative_or_longer_than_five_minutes(headers: dict[str, str], now_s: float) -> None:
    assert 0 <= asked_wait_s(headers, now_s) <= 300
