"""Top-level members of a JSON object, found without parsing it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.jsonscan import TopLevelScanner, without_members

from .support import cut, cut_at

WANTED = frozenset(("usage", "model", "id"))


def scan(chunks: list[bytes], **options: Any) -> dict[str, bytes]:
    scanner = TopLevelScanner(WANTED, **options)
    for chunk in chunks:
        scanner.push(chunk)
    return {member.key: member.value for member in scanner.members}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(['"', "\\", '\\"', "usage", "}{]["]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "model", "x", '"', "\\"]), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(["usage", "model", "id", "x", "usage2", '\\"', "é"]), VALUES, max_size=6)


@given(OBJECTS, st.booleans(), st.booleans(), st.lists(st.integers(0, 2000), max_size=8))
def test_the_scanner_finds_what_a_parser_finds_at_any_split(
    value: dict[str, Any], spaced: bool, escaped: bool, places: list[int]
) -> None:
    text = json.dumps(value, indent=1 if spaced else None, ensure_ascii=escaped).encode()
    found = scan(cut_at(text, places))
    assert {key: json.loads(raw) for key, raw in found.items()} == {k: v for k, v in value.items() if k in WANTED}
    assert list(found) == [key for key in value if key in WANTED]


@given(OBJECTS, st.booleans())
def test_the_span_of_a_member_is_exact(value: dict[str, Any], spaced: bool) -> None:
    text = json.dumps(value, indent=1 if spaced else None).encode()
    scanner = TopLevelScanner(WANTED)
    scanner.push(text)
    for member in scanner.members:
        assert json.loads(b"{" + text[member.start : member.end] + b"}") == {member.key: value[member.key]}
        assert text[: member.end].endswith(member.value)


@given(OBJECTS, st.booleans())
def test_a_removed_member_leaves_an_object_of_all_others(value: dict[str, Any], spaced: bool) -> None:
    text = json.dumps(value, indent=1 if spaced else None).encode()
    assert json.loads(without_members(text, "usage")) == {k: v for k, v in value.items() if k != "usage"}
    if "usage" not in value:
        assert without_members(text, "usage") == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"a": 1, "usage": null, "b": 2}', '{"a": 1, "b": 2}'),
        ('{ "usage" : {"x": [1, {}]} , "b":2 }', '{ "b":2 }'),
        ('{"a":1,"usage":"}" }', '{"a":1 }'),
        ('{"usage":null}', "{}"),
        ('{"usage":1,"usage":2,"a":3}', '{"a":3}'),
        ('{"a":{"usage":1},"usage":12345678901234567890123}', '{"a":{"usage":1}}'),
        ('{"\\u0075sage":1,"a":2}', '{"a":2}'),
    ],
)
def test_a_member_goes_with_one_comma_and_nothing_else(before: str, after: str) -> None:
    assert without_members(before.encode(), "usage") == after.encode()


def test_values_in_arrays_and_deeper_objects_are_no_members() -> None:
    assert scan([b'[{"usage":1}]']) == {}
    assert scan([b'["usage",":",1]']) == {}
    assert scan([b'{"x":["usage"],"y":"usage","z":{"usage":1}}']) == {}


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_value_that_is_too_long_is_left_out_and_the_rest_is_found(size: int) -> None:
    long = [b'"' + b"x" * 99 + b'"', b"[" + b"1," * 50 + b"{}]", b'{"a":"' + b'\\"' * 50 + b'"}', b"1" * 99]
    for value in long:
        text = b'{"id":' + value + b',"model":"m"}'
        assert scan(list(cut(text, size)), max_value_bytes=50) == {"model": b'"m"'}


def test_the_end_of_the_object_is_noticed() -> None:
    scanner = TopLevelScanner(WANTED)
    for part, closed in ((b'{"a":"}"', False), (b',"b":[{}', False), (b"]", False), (b"}", True)):
        scanner.push(part)
        assert scanner.closed == closed


@given(st.binary(max_size=80), st.lists(st.integers(0, 80), max_size=4))
def test_nothing_in_malformed_bytes_raises(data: bytes, places: list[int]) -> None:
    scan(cut_at(data, places))
    without_members(data, "usage")


@given(st.binary(max_size=40) | st.text('{}[]":,\\a ', max_size=60).map(str.encode), st.lists(st.integers(0, 60)))
def test_what_is_no_object_is_scanned_alike_at_any_split(text: bytes, places: list[int]) -> None:
    scanners = TopLevelScanner(WANTED, 5), TopLevelScanner(WANTED, 5)
    for scanner, chunks in zip(scanners, ([text], cut_at(text, places)), strict=True):
        for chunk in chunks:
            scanner.push(chunk)
    one, other = scanners
    assert (one.members, one.closed) == (other.members, other.closed)


def test_what_stands_behind_the_object_is_not_its_own() -> None:
    assert scan([b'{"id":"a"}{"id":"b","usage":{}}']) == scan([b'{"id":"a"}', b'{"id":"b"}']) == {"id": b'"a"'}
