"""Chunks that differ in their piece of text only are read without decoding them: with the same result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.base import StreamReader

from .support import api, chat_chunk, event

ODD = (
    "choices",
    "delta",
    "content",
    "gpt-4o-2024-08-06",
    "chatcmpl-1",
    "text_delta",
    "0",
    "",
    " ",
    "\u00e9",
    '"',
    "\\",
)
PIECES = st.lists(
    st.one_of(st.sampled_from(ODD), st.text(max_size=6), st.sampled_from(["a", "b", "ab", "the"])), max_size=30
)
FORMS = ("openai.chat", "anthropic.messages")


def chunk(form: str, piece: str, **more: Any) -> bytes:
    if form == "openai.chat":
        return event({**chat_chunk(piece), **more})
    delta = {"type": "text_delta", "text": piece}
    return event({"type": "content_block_delta", "index": 0, "delta": delta, **more}, name="content_block_delta")


def read(form: str, chunks: list[bytes]) -> StreamReader:
    reader = api(form).stream_reader(hide_usage=False)
    for one in chunks:
        assert reader.feed(one) is one
    return reader


@pytest.mark.parametrize("form", FORMS)
@given(pieces=PIECES, padding=st.booleans())
def test_what_is_counted_is_what_decoding_every_chunk_counts(form: str, pieces: list[str], padding: bool) -> None:
    chunks = [
        chunk(form, piece, **({"obfuscation": "x" * (n % 7)} if padding else {})) for n, piece in enumerate(pieces)
    ]
    reader = read(form, chunks)
    assert reader.report.visible_bytes == sum(len(piece.encode()) for piece in pieces)
    assert reader.report.visible_deltas == sum(bool(piece) for piece in pieces)
    slowly = api(form).stream_reader(hide_usage=False)
    for byte in b"".join(chunks):
        slowly.feed(bytes([byte]))
    assert slowly.report == reader.report


@pytest.mark.parametrize("form", FORMS)
def test_the_third_chunk_is_known_by_the_second(form: str) -> None:
    reader: Any = read(form, [chunk(form, "one"), chunk(form, "two")])
    assert reader._like_the_last(chunk(form, "three"))
    for odd in ('a"b', "a\\b", "a\nb", "\u00e9", ""):
        assert not reader._like_the_last(chunk(form, odd))
    assert not reader._like_the_last(chunk(form, "x") + chunk(form, "y"))
    assert not reader._like_the_last(chunk(form, "x", more=1))


def test_a_raw_control_character_is_not_taken_for_text() -> None:
    plain = chunk("openai.chat", "two")
    reader: Any = read("openai.chat", [chunk("openai.chat", "one"), plain])
    assert not reader._like_the_last(plain.replace(b"two", b"t\nwo"))
    assert not reader._like_the_last(plain.replace(b"two", b"t\x7fo"))


def test_a_finish_reason_is_never_overlooked() -> None:
    first, last = chat_chunk("a"), chat_chunk("b")
    last["choices"][0]["finish_reason"] = "length"
    reader = read("openai.chat", [event(first), event(first), event(first), event(last)])
    reader.finish()
    assert reader.report.finished


def test_learning_ends_where_no_chunk_is_like_the_last() -> None:
    padded = [chunk("openai.chat", "a", obfuscation=str(n)) for n in range(50)]
    reader: Any = read("openai.chat", padded)
    assert reader._lessons == 0
    assert json.loads(padded[0][6:])["choices"]
