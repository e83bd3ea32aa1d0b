"""Values deep inside an object are found by their path, however the bytes arrive."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.json_paths import PathScanner

from .support import cut, cut_at

PATHS = (("a", "*", "x", "y"), ("a", "*", "x", "z"), ("b",), ("c", "y"))
DATA: dict[str, Any] = {
    "t": '"a":[{"x":{"y":0}}]',
    "a": [
        {"x": {"y": 1, "z": [1, {"k": "]"}]}},
        {"w": {"x": {"y": 0}}, "x": {"z": {"}": "{"}, "y": '"\\,]}'}},
        *(3, "s", [{"x": {"y": 0}}], {"x": [{"y": 0}]}, {"x": {"y": -1.5e3}}),
    ],
    "u": {"a": [{"x": {"y": 0}}], "b": 0},
    "b": None,
    "c": {"y": True},
}
FOUND = [
    *((PATHS[0], 1, 1), (PATHS[1], [1, {"k": "]"}], 1)),
    *((PATHS[1], {"}": "{"}, 2), (PATHS[0], '"\\,]}', 2), (PATHS[0], -1500.0, 5)),
    *((PATHS[2], None, 5), (PATHS[3], True, 5)),
]


def scan(chunks: list[bytes], **options: int) -> PathScanner:
    scanner = PathScanner(PATHS, **options)
    for chunk in chunks:
        scanner.push(chunk)
    return scanner


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_are_found_in_their_order_at_any_split(size: int, indent: int | None) -> None:
    scanner = scan(list(cut(json.dumps(DATA, indent=indent).encode(), size)))
    assert scanner.closed
    found = [(each.path, json.loads(each.value)) for each in scanner.found]
    assert found == [(path, value) for path, value, _ in FOUND]


def test_values_of_one_element_have_one_number_and_no_two_elements_the_same() -> None:
    numbers = [each.element for each in scan([json.dumps(DATA).encode()]).found]
    assert numbers[0] == numbers[1]
    assert numbers[2] == numbers[3]
    assert len({numbers[0], numbers[2], numbers[4]}) == 3


def test_values_that_are_too_long_are_left_out() -> None:
    data = json.dumps({"b": "x" * 100, "c": {"y": 1}}).encode()
    for size in (1, 13, 1000):
        assert [each.value for each in scan(list(cut(data, size)), max_value_bytes=20).found] == [b"1"]


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_survived_and_read_the_same_at_any_split(data: bytes, places: list[int]) -> None:
    data = b'{"b":' + data + b',"a":[{"x":{"y":1}}]'
    assert scan(cut_at(data, places)).found == scan([data]).found


@given(st.data())
def test_a_damaged_object_is_survived_and_read_the_same_at_any_split(data: st.DataObject) -> None:
    body = bytearray(json.dumps(DATA).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from(b'"\\{}[],: x'))
    places = data.draw(st.lists(st.integers(0, 500), max_size=5))
    assert scan(cut_at(bytes(body), places)).found == scan([bytes(body)]).found
