"""Where a model's name stands in a path, how it is read there, and how it is changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.paths import PathTemplate, Target

CONVERSE = PathTemplate("/model/{model}/converse")
GENERATE = PathTemplate("/{model}:generateContent")
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0"
SENT_ARN = ARN.replace(":", "%3A").replace("/", "%2F")


def both(path: str, sent: str) -> Target:
    return Target(path, sent.encode())


def test_a_name_is_read_unescaped_from_the_path_as_it_was_sent() -> None:
    target = both(f"/aws/model/{ARN}/converse", f"/aws/model/{SENT_ARN}/converse")
    assert CONVERSE.matches(target.path)
    assert CONVERSE.name(target) == ARN


def test_a_name_with_slashes_is_read_from_a_decoded_path_alone() -> None:
    assert CONVERSE.name(Target(f"/model/{ARN}/converse", None)) == ARN


def test_a_name_of_several_sent_segments_is_none() -> None:
    assert CONVERSE.name(both(f"/model/{ARN}/converse", f"/model/{ARN}/converse")) is None


def test_a_new_name_is_written_into_both_forms() -> None:
    target = both("/model/a:0/converse", "/model/a%3A0/converse")
    assert CONVERSE.renamed(target, "b/c:1") == Target("/model/b/c:1/converse", b"/model/b%2Fc%3A1/converse")
    assert CONVERSE.renamed(Target("/model/a:0/converse", None), "b:1").path == "/model/b:1/converse"


def test_a_verb_behind_a_colon_ends_a_name() -> None:
    target = both("/v1beta/models/gemini-2.5-flash:generateContent", "/v1beta/models/gemini-2.5-flash:generateContent")
    assert GENERATE.name(target) == "gemini-2.5-flash"
    assert GENERATE.renamed(target, "gemini-2.5-pro").path == "/v1beta/models/gemini-2.5-pro:generateContent"
    assert not GENERATE.matches("/v1beta/models/gemini-2.5-flash:countTokens")


def test_an_escaped_letter_of_the_ending_hides_the_name_but_not_the_path() -> None:
    target = both("/model/a/converse", "/model/a/%63onverse")
    assert CONVERSE.matches(target.path)
    assert CONVERSE.name(target) is None
    with pytest.raises(ValueError, match="has no name"):
        CONVERSE.renamed(target, "b")


def test_an_empty_name_does_not_match() -> None:
    assert not CONVERSE.matches("/model//converse".replace("//", "/"))
    assert not GENERATE.matches("/:generateContent")


def test_a_template_has_one_name_at_most() -> None:
    with pytest.raises(ValueError, match="one name at most"):
        PathTemplate("/{model}/x/{id}")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1), st.booleans())
def test_a_written_name_is_read_back(name: str, raw: bool) -> None:
    old = both("/v1/model/x/converse", "/v1/model/x/converse") if raw else Target("/v1/model/x/converse", None)
    assert CONVERSE.name(CONVERSE.renamed(old, name)) == name
