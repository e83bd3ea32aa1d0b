"""What a request says about its own size, and what may be changed in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.base import InvalidRequestError, Rewrite

from .support import api, parse, raw_fields

HELLO = [{"role": "user", "content": "hi"}]
TEXT_APIS: dict[str, dict[str, Any]] = {
    "openai.chat": {"model": "gpt-4o", "messages": HELLO},
    "openai.completions": {"model": "davinci-002", "prompt": "hi"},
    "openai.responses": {"model": "gpt-5", "input": "hi"},
    "anthropic.messages": {"model": "claude-sonnet-4-5", "messages": HELLO},
}
LIMITS = {
    "openai.chat": "max_tokens",
    "openai.completions": "max_tokens",
    "openai.responses": "max_output_tokens",
    "anthropic.messages": "max_tokens",
}


@pytest.mark.parametrize("name", TEXT_APIS)
def test_a_limit_is_read_and_an_absent_or_null_one_is_unset(name: str) -> None:
    body, limit = TEXT_APIS[name], LIMITS[name]
    assert parse(name, {**body, limit: 77}).output_limit == 77
    assert parse(name, {**body, limit: None}).output_limit is None
    assert parse(name, body).output_limit is None


@pytest.mark.parametrize("name", TEXT_APIS)
@pytest.mark.parametrize(
    "value", ["lots", "5", -2, 10**30, 10**9 + 1, True, False, 5.0, 1e3, [], {}, [5], float("nan")], ids=repr
)
def test_a_limit_that_is_no_count_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{LIMITS[name]} must be an integer from"):
        parse(name, {**TEXT_APIS[name], LIMITS[name]: value})


def test_a_number_too_long_for_any_parser_is_refused_by_name() -> None:
    body = b'{"model":"m","messages":[],"max_tokens":' + b"1" * 5000 + b"}"
    with pytest.raises(InvalidRequestError, match=r"^max_tokens cannot be read"):
        parse("openai.chat", body)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("openai.responses", False), ("openai.completions", True), ("anthropic.messages", True)],
)
def test_a_limit_of_nothing_is_allowed_only_where_the_api_knows_it(name: str, allowed: bool) -> None:
    body = {**TEXT_APIS[name], LIMITS[name]: 0}
    if allowed:
        assert parse(name, body).output_limit == 0
    else:
        with pytest.raises(InvalidRequestError, match=r"from 1 to"):
            parse(name, body)


@pytest.mark.parametrize("value", [0, -1])
def test_local_servers_words_for_no_limit_are_none(value: int) -> None:
    body = TEXT_APIS["openai.chat"]
    assert parse("openai.chat", {**body, "max_tokens": value}).output_limit is None
    request = parse("openai.chat", {**body, "max_tokens": value, "model": "local"})
    written = api("openai.chat").rewrite(request, Rewrite(output_limit=100))
    assert json.loads(written)["max_tokens"] == 100


def test_models_that_may_answer_instead_are_read_from_both_gateways_members() -> None:
    body = TEXT_APIS["openai.chat"]
    assert parse("openai.chat", {**body, "models": ["openai/gpt-4o", "a/b"]}).alternatives == ("openai/gpt-4o", "a/b")
    assert parse("openai.chat", {**body, "fallbacks": ["x", {"model": "y", "messages": []}]}).alternatives == ("x", "y")
    odd: object
    for odd in ("gpt-4o", {"a": 1}, [5], [{}], ["x"] * 17):
        with pytest.raises(InvalidRequestError, match=r"^models "):
            parse("openai.chat", {**body, "models": odd})


def test_of_two_chat_limits_the_larger_one_bounds_the_answer() -> None:
    body = TEXT_APIS["openai.chat"]
    assert parse("openai.chat", {**body, "max_tokens": 5, "max_completion_tokens": 9}).output_limit == 9
    assert parse("openai.chat", {**body, "max_tokens": 9, "max_completion_tokens": 5}).output_limit == 9
    assert parse("openai.chat", {**body, "max_completion_tokens": 5}).output_limit == 5


def test_answers_are_counted_per_prompt() -> None:
    def choices(name: str, **members: Any) -> int:
        return parse(name, {**TEXT_APIS[name], **members}).choices

    assert choices("openai.chat") == 1
    assert choices("openai.chat", n=None) == 1
    assert choices("openai.chat", n=3) == 3
    assert choices("openai.completions", n=2, best_of=5) == 5
    assert choices("openai.completions", n=4) == 4
    assert choices("openai.completions", prompt=["a", "b", "c"], n=2) == 6
    assert choices("openai.completions", prompt=[1, 2, 3], n=2) == 2
    assert choices("openai.completions", prompt=[[1, 2], [3]]) == 2
    assert choices("openai.completions", prompt=[]) == 1
    assert choices("openai.completions", prompt=None) == 1


@pytest.mark.parametrize("member", ["n", "best_of"])
@pytest.mark.parametrize("value", ["two", 0, -1, 1.0, True, 10**30])
def test_a_number_of_answers_that_is_no_count_is_refused_by_name(member: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{member} must be an integer from 1"):
        parse("openai.completions", {**TEXT_APIS["openai.completions"], member: value})


@pytest.mark.parametrize("name", [*TEXT_APIS, "openai.embeddings"])
def test_the_model_is_text_of_bounded_length_or_missing(name: str) -> None:
    body = {**TEXT_APIS.get(name, {"input": "hi"})}
    assert parse(name, {**body, "model": "x" * 256}).model == "x" * 256
    assert parse(name, {**body, "model": None}).model is None
    assert parse(name, {**body, "model": ""}).model is None
    body.pop("model", None)
    assert parse(name, body).model is None
    for bad in (5, ["m"], {"name": "m"}, True, "x" * 257, "a\0b"):
        with pytest.raises(InvalidRequestError, match=r"^model must be"):
            parse(name, {**body, "model": bad})


def test_embeddings_have_no_output() -> None:
    request = parse("openai.embeddings", {"model": "m", "input": ["a", "b"], "user": "u"})
    assert (request.output_limit, request.choices, request.stream, request.end_user) == (0, 1, False, "u")
    assert api("openai.embeddings").kind == "embedding"


@pytest.mark.parametrize("name", TEXT_APIS)
def test_streaming_is_a_boolean(name: str) -> None:
    assert parse(name, {**TEXT_APIS[name], "stream": True}).stream
    assert not parse(name, {**TEXT_APIS[name], "stream": None}).stream
    bads: list[object] = ["true", 1, [], 0]
    for bad in bads:
        with pytest.raises(InvalidRequestError, match=r"^stream must be true or false"):
            parse(name, {**TEXT_APIS[name], "stream": bad})


def test_the_client_asked_for_usage_only_if_it_said_true() -> None:
    def asked(options: object) -> bool:
        return parse(
            "openai.chat", {**TEXT_APIS["openai.chat"], "stream": True, "stream_options": options}
        ).usage_requested

    assert asked({"include_usage": True})
    assert not asked({"include_usage": False})
    assert not asked({})
    assert not asked(None)
    with pytest.raises(InvalidRequestError, match=r"^stream_options must be an object"):
        asked([True])
    with pytest.raises(InvalidRequestError, match=r"^include_usage must be true or false"):
        asked({"include_usage": "yes"})


def test_usage_is_injected_only_where_it_is_welcome() -> None:
    chat = api("openai.chat")
    streamed = {**TEXT_APIS["openai.chat"], "stream": True}
    assert chat.injects_usage(parse("openai.chat", streamed), "gpt-4o")
    assert chat.injects_usage(parse("openai.chat", streamed), "mistralai/Mistral-7B-Instruct")
    assert not chat.injects_usage(parse("openai.chat", streamed), "mistral-small-latest")
    assert not chat.injects_usage(parse("openai.chat", {**streamed, "data_sources": [{}]}), "gpt-4o")
    assert not chat.injects_usage(
        parse("openai.chat", {**streamed, "stream_options": {"include_usage": True}}), "gpt-4o"
    )
    assert not chat.injects_usage(parse("openai.chat", TEXT_APIS["openai.chat"]), "gpt-4o")
    assert not api("openai.responses").injects_usage(
        parse("openai.responses", {"input": "x", "stream": True}), "gpt-4o"
    )


def test_the_end_user_comes_from_the_member_each_api_has_for_it() -> None:
    chat = TEXT_APIS["openai.chat"]
    assert parse("openai.chat", {**chat, "user": "u", "safety_identifier": "s"}).end_user == "s"
    assert parse("openai.chat", {**chat, "user": "u" * 300}).end_user == "u" * 256
    assert parse("openai.chat", {**chat, "user": "a\0b"}).end_user == "ab"
    assert parse("openai.chat", {**chat, "user": 5}).end_user is None
    claude = TEXT_APIS["anthropic.messages"]
    assert parse("anthropic.messages", {**claude, "metadata": {"user_id": "u"}}).end_user == "u"
    assert parse("anthropic.messages", {**claude, "metadata": "u"}).end_user is None


def test_further_models_of_an_anthropic_request_are_named() -> None:
    body = {
        **TEXT_APIS["anthropic.messages"],
        "fallbacks": [{"model": "claude-haiku-4-5"}, {"max_tokens": 5}],
        "tools": [
            {"name": "f", "model": "no"},
            {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8"},
        ],
    }
    assert parse("anthropic.messages", body).other_models == ("claude-haiku-4-5", "claude-opus-4-8")
    assert parse("anthropic.messages", TEXT_APIS["anthropic.messages"]).other_models == ()


# Rewriting ------------------------------------------------------------------------------------------------------------

ODD_BODY = (
    b'{ "temperature" : 1.10, "seed":12345678901234567890123, "model" : "gpt-4o", "messages":[ {"role" : "user",'
    b'"content":"\\u00e9 \xc3\xa9"} ], "model":"gpt-4o-mini", "max_tokens" : 5, "x":{"b":1,"a":[1.0,1e5]}}'
)


def rewritten(name: str, body: bytes | dict[str, Any], **change: Any) -> bytes:
    return api(name).rewrite(parse(name, body), Rewrite(**change))


def test_only_the_given_values_change_and_all_others_stay_byte_for_byte() -> None:
    assert rewritten("openai.chat", ODD_BODY, model="local-llama", output_limit=3) == (
        b'{"temperature":1.10,"seed":12345678901234567890123,"model":"local-llama","messages":[ {"role" : "user",'
        b'"content":"\\u00e9 \xc3\xa9"} ],"max_tokens":3,"x":{"b":1,"a":[1.0,1e5]}}'
    )


@pytest.mark.parametrize("name", TEXT_APIS)
def test_a_limit_is_written_under_the_name_its_api_has(name: str) -> None:
    body = TEXT_APIS[name]
    assert (
        json.loads(rewritten(name, body, output_limit=9))[LIMITS[name] if name != "openai.chat" else "max_tokens"] == 9
    )
    assert json.loads(rewritten(name, {**body, LIMITS[name]: None}, output_limit=9)) == {**body, LIMITS[name]: 9}
    assert json.loads(rewritten(name, body)) == body


@pytest.mark.parametrize(
    ("limits", "model", "change", "expected"),
    [
        ({}, "gpt-4o", {"output_limit": 9}, {"max_tokens": 9}),
        ({}, "o3-mini", {"output_limit": 9}, {"max_completion_tokens": 9}),
        ({}, "openai/gpt-5.1", {"output_limit": 9}, {"max_completion_tokens": 9}),
        ({}, "gpt-4o", {"output_limit": 9, "model": "gpt-5-nano"}, {"max_completion_tokens": 9}),
        ({"max_completion_tokens": 5}, "gpt-4o", {"output_limit": 9}, {"max_completion_tokens": 9}),
        ({"max_tokens": 5}, "gpt-4o", {"model": "o4-mini"}, {"max_completion_tokens": 5}),
        ({"max_tokens": 5}, "gpt-4o", {"model": "o4-mini", "output_limit": 9}, {"max_completion_tokens": 9}),
        ({"max_tokens": 5}, "gpt-4o", {"model": "gpt-4o-mini"}, {"max_tokens": 5}),
        ({"max_tokens": 5}, "o3", {}, {"max_tokens": 5}),
        (
            {"max_tokens": 5, "max_completion_tokens": 7},
            "gpt-4o",
            {"output_limit": 3},
            {"max_tokens": 3, "max_completion_tokens": 3},
        ),
        (
            {"max_tokens": 5, "max_completion_tokens": 7},
            "gpt-4o",
            {"model": "x"},
            {"max_tokens": 5, "max_completion_tokens": 7},
        ),
        ({"max_tokens": None}, "gpt-4o", {"output_limit": 3}, {"max_tokens": 3}),
    ],
)
def test_a_chat_limit_goes_by_the_name_that_the_client_used_or_the_model_needs(
    limits: dict[str, Any], model: str, change: dict[str, Any], expected: dict[str, Any]
) -> None:
    body = {"model": model, **limits, "messages": HELLO}
    out = json.loads(rewritten("openai.chat", body, **change))
    assert {name: out[name] for name in out if name.startswith("max_")} == expected
    assert out["messages"] == HELLO
    if limits:
        assert list(out)[1].startswith("max_")  # in its place


def test_the_model_is_swapped_in_every_api() -> None:
    for name, body in TEXT_APIS.items():
        assert json.loads(rewritten(name, body, model="other")) == {**body, "model": "other"}


def test_an_api_without_output_takes_no_limit() -> None:
    body = {"model": "m", "input": "x"}
    assert json.loads(rewritten("openai.embeddings", body, output_limit=9, model="n")) == {"model": "n", "input": "x"}
    assert json.loads(rewritten("openai.responses.compact", body, output_limit=9)) == body


def test_injecting_usage_keeps_the_other_stream_options() -> None:
    def options(body: dict[str, Any]) -> bytes:
        return bytes(
            raw_fields(rewritten("openai.chat", {**body, "stream": True, "messages": []}, inject_usage=True))[
                "stream_options"
            ]
        )

    assert options({}) == b'{"include_usage":true}'
    assert options({"stream_options": None}) == b'{"include_usage":true}'
    assert options({"stream_options": {"include_usage": False, "x": [1.0]}}) == b'{"include_usage":true,"x":[1.0]}'
    assert (
        options({"stream_options": {"include_obfuscation": False}})
        == b'{"include_obfuscation":false,"include_usage":true}'
    )


def test_a_missing_model_is_added() -> None:
    assert rewritten("openai.chat", b'{"messages":[]}', model="m") == b'{"messages":[],"model":"m"}'


def test_members_that_only_the_standard_library_can_read_or_write_survive() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "\ud800"}],
        "stream": True,
        "stream_options": {"\ud800": float("nan")},
        "\ud800": 1,
    }
    fields = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()}
    request = api("openai.chat").parse(fields, 1000)
    out = api("openai.chat").rewrite(request, Rewrite(model="n", inject_usage=True))
    read = json.loads(out)
    assert list(read) == list(body)
    assert (read["model"], read["messages"]) == ("n", body["messages"])
    assert read["stream_options"]["include_usage"] is True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=5), st.text(min_size=1, max_size=5))
def test_a_rewritten_body_differs_in_the_model_only(others: dict[str, Any], model: str) -> None:
    body = {**others, "model": "gpt-4o", "messages": HELLO}
    for clash in ("stream", "stream_options", "n", "max_completion_tokens"):
        body.pop(clash, None)
    text = json.dumps(body, indent=1).encode()
    out = raw_fields(rewritten("openai.chat", text, model=model))
    before = raw_fields(text)
    assert list(out) == list(before)
    assert {k: bytes(v) for k, v in out.items() if k != "model"} == {
        k: bytes(v) for k, v in before.items() if k != "model"
    }
    assert json.loads(bytes(out["model"])) == model


@given(
    st.sampled_from([*TEXT_APIS, "openai.embeddings"]),
    st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "input",
                "prompt",
                "tools",
                "n",
                "metadata",
                "fallbacks",
                "stream_options",
                "system",
                "model",
                "stream",
                "user",
            ]
        ),
        JSON,
        max_size=6,
    ),
)
def test_a_request_of_any_shape_is_parsed_or_refused_and_nothing_else(name: str, body: dict[str, Any]) -> None:
    fields = raw_fields(body)
    if not api(name).owns(fields):
        return
    try:
        request = api(name).parse(fields, 100)
    except InvalidRequestError:
        return
    assert request.input_bound >= 0
    assert request.choices >= 1
