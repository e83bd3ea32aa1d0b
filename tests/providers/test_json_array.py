"""Arrays are split into their elements, however the bytes arrive and whatever stands in their strings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.json_array import ArrayFramer

from .support import cut, cut_at

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
AWKWARD = [1, "a,]", {"k": [1, {"z": '}\\"'}]}, [], None, [[",", 1], 2], "é\u2028", "\\", '"', {"}": "{["}]


def push(data: list[bytes], limit: int = 1_000_000) -> tuple[list[bytes], ArrayFramer]:
    framer = ArrayFramer(limit)
    return [element for chunk in data for element in framer.push(chunk)], framer


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("indent", [None, 1])
def test_elements_come_whole_at_any_split(size: int, indent: int | None) -> None:
    data = b" \r\n" + json.dumps(AWKWARD, indent=indent, ensure_ascii=False).encode() + b"\n"
    elements, framer = push(list(cut(data, size)))
    assert [json.loads(element) for element in elements] == AWKWARD
    assert framer.closed


@given(st.lists(VALUES, max_size=6), st.lists(st.integers(0, 10_000), max_size=8), st.booleans())
def test_any_array_at_any_split_gives_its_elements(values: list[Any], places: list[int], ascii_only: bool) -> None:
    data = json.dumps(values, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    elements, framer = push(cut_at(data, places))
    assert framer.closed
    assert elements == push([data])[0]
    assert [json.loads(element.decode(errors="surrogatepass")) for element in elements] == values


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_are_survived_and_read_the_same_at_any_split(data: bytes, places: list[int]) -> None:
    assert push(cut_at(b"[" + data, places))[0] == push([b"[" + data])[0]


def test_an_element_that_is_too_long_is_left_out_and_the_next_one_is_read() -> None:
    data = json.dumps(["x" * 50, 1, {"a": "y" * 50}, "z"]).encode()
    for size in (1, 7, 1000):
        elements, framer = push(list(cut(data, size)), limit=20)
        assert elements[-1] == b'"z"'
        assert b"1" in elements
        assert all(len(element) < 60 for element in elements)
        assert framer.closed


def test_memory_stays_bounded_inside_an_element_without_end() -> None:
    framer = ArrayFramer(max_element_bytes=1000)
    framer.push(b'[{"a": "')
    for _ in range(100):
        assert framer.push(b"x" * 500) == []
        assert len(framer._held) <= 1000


def test_what_follows_the_array_is_nothing() -> None:
    assert push([b"[1] , 2]", b'"x"]'])[0] == [b"1"]


def test_an_unfinished_element_is_none() -> None:
    elements, framer = push([b'[{"a": 1}, {"b": '])
    assert elements == [b'{"a": 1}']
    assert not framer.closed
