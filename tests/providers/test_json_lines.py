"""Lines of JSON come out whole, however they were cut, and long ones never take memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.json_lines import LineFramer

from .support import cut, cut_at

LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r")), max_size=8)


def lines_of(chunks: list[bytes], limit: int = 100) -> list[bytes]:
    framer = LineFramer(limit)
    found = [line for chunk in chunks for line in framer.push(chunk)]
    return found + framer.finish()


@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.lists(st.integers(0, 200), max_size=20))
def test_any_split_gives_the_same_lines(lines: list[bytes], end: bytes, closed: bool, places: list[int]) -> None:
    text = end.join(lines) + (end if closed else b"")
    assert lines_of(cut_at(text, places)) == [line for line in lines if line]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=20), st.integers(0, 8))
def test_any_bytes_are_split_the_same_way(text: bytes, places: list[int], limit: int) -> None:
    assert lines_of(cut_at(text, places), limit) == lines_of([text], limit)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_line_that_is_too_long_is_left_out_and_counted(size: int) -> None:
    framer = LineFramer(10)
    found = [
        line for chunk in cut(b"a\n" + b"x" * 11 + b"\n" + b"y" * 10 + b"\r\nb\n", size) for line in framer.push(chunk)
    ]
    assert found == [b"a", b"y" * 10, b"b"]
    assert framer.left_out == 1


def test_a_line_that_never_ends_is_not_kept() -> None:
    framer = LineFramer(1000)
    for _ in range(1000):
        framer.push(b"x" * 1000)
        assert len(framer._line) <= 1001
    assert framer.finish() == []
    assert framer.left_out == 1
