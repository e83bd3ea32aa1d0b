"""Bad, odd and hostile requests: each passes as it came, is metered, or gets a clear refusal. Nothing stays held."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from askii_middleware.identity import Identity
from askii_middleware.pricing import ModelPrice

from .support.asgi import CHAT, DONE, Scripted, ask, chat_answer, chat_chunk, chat_usage, plain, stream
from .support.ledgers import PRICES, Ledger, ledger

GZIP = (b"content-encoding", b"gzip")
DEFLATE = (b"content-encoding", b"deflate")
STREAM = {**CHAT, "stream": True}


@pytest.fixture
async def book() -> AsyncIterator[Ledger]:
    async with ledger(fallbacks={"big": ["mini"]}) as open_ledger:
        yield open_ledger


def answers() -> Scripted:
    return Scripted(plain(chat_answer()))


async def refused(book: Ledger, body: Any, status: int, **request: Any) -> str:
    """The message of a refusal that held nothing and called nobody."""
    options = request.pop("options", {})
    app = answers()
    got = await ask(book.around(app, **options), body, **request)
    assert got.status == status, got.body
    assert app.scopes == []
    assert book.held == []
    error = got.json["error"]
    assert error["code"] == {400: "invalid_request", 413: "request_too_large"}[status]
    assert got.headers["x-should-retry"] == "false"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["content-length"] == str(len(got.body))
    assert got.headers["x-askii-call-id"]
    return str(error["message"])


# JSON that is none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"model":"big","messages":[]} trailing',
        b"[" * 100_000,
        b'{"model":"big","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"\x00\x01\x02",
    ],
)
async def test_a_body_that_nobody_can_read_is_400(book: Ledger, body: bytes) -> None:
    assert "not valid JSON" in await refused(book, body, 400)
    assert book.metric("askii_refusals_total", scope_kind="body", reason="unreadable") == 1


async def test_nesting_that_only_our_readers_refuse_is_400(book: Ledger) -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": deep}]}).encode()
    got = await ask(book.around(answers()), body)
    assert got.status in (200, 400)
    assert (await book.totals()).held_nano_usd == 0


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"', b'{"input": 5}', b"{}"])
async def test_json_of_another_shape_passes_untouched(book: Ledger, body: bytes) -> None:
    app = answers()
    got = await ask(book.around(app), body)
    assert (app.bodies, got.body) == ([body], json.dumps(chat_answer()).encode())
    assert got.own_headers == {}
    assert book.held == []
    assert book.metric("askii_unmetered_total", path_class="/v1/chat/completions") == 1


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(CHAT).encode("utf-8-sig"),
        json.dumps(CHAT).encode("utf-16"),
        json.dumps(CHAT).encode("utf-16-be"),
        json.dumps(CHAT).encode("utf-32"),
        json.dumps({**CHAT, "temperature": float("nan")}).encode(),
        json.dumps({**CHAT, "top_p": float("-inf")}).encode(),
        json.dumps({**CHAT, "user": "\ud800"}).encode(),
        json.dumps({**CHAT, "messages": [{"role": "user", "content": "\udfff \ud83d"}]}).encode(),
        json.dumps({**CHAT, "\ud800": 1}).encode(),
        json.dumps({**CHAT, "user": "\ud800"}, ensure_ascii=False).encode(errors="surrogatepass"),
    ],
)
async def test_what_json_loads_reads_is_metered_and_not_changed(book: Ledger, body: bytes) -> None:
    app = answers()
    got = await ask(book.around(app), body)
    assert (got.status, app.bodies) == (200, [body])
    assert (await book.record()).cost_nano_usd == 60_000


@pytest.mark.parametrize(
    "odd",
    [
        {"temperature": float("nan")},
        {"user": "\ud800"},
        {"\udfff": 1},
        {"messages": [{"role": "user", "content": "\ud83d"}]},
    ],
    ids=["NaN", "surrogate", "surrogate name", "half an emoji"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
async def test_what_json_loads_reads_is_metered_also_where_it_must_be_changed(
    book: Ledger, odd: dict[str, Any], encoding: str
) -> None:
    app = Scripted(stream(chat_chunk("a"), chat_usage(), DONE))
    asked = {**STREAM, **odd}
    got = await ask(book.around(app), json.dumps(asked).encode(encoding))
    assert got.body == chat_chunk("a") + DONE
    expected = {**asked, "stream_options": {"include_usage": True}}
    assert repr(app.sent_json) == repr(expected)
    assert app.sent_headers[b"content-length"] == str(len(app.bodies[0] or b"")).encode()
    assert (await book.record()).cost_nano_usd == 60_000


# Members of the wrong type --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["lots", -2, 10**30, True, 5.0, [], {}, 1.5, "5", float("nan")])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n"])
async def test_a_limit_of_the_wrong_type_or_size_is_400_and_named(book: Ledger, name: str, value: Any) -> None:
    assert name in await refused(book, {**CHAT, name: value}, 400)
    assert book.metric("askii_refusals_total", scope_kind="request", reason="invalid") == 1


async def test_a_key_may_not_name_a_dearer_model_as_an_alternative(book: Ledger) -> None:
    body = {**CHAT, "models": ["gpt-4o"]}
    identity = Identity(tenant="acme", models=("big",))
    got = await ask(book.around(answers(), identify=lambda _: identity), body)
    assert (got.status, book.held) == (403, [])


async def test_the_dearest_alternative_is_held_for(book: Ledger) -> None:
    held: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        held.append((await book.totals()).held_nano_usd)
        for message in plain(chat_answer()):
            await send(message)

    for more in ({}, {"models": ["mini"]}, {"models": ["mini", "gpt-4-32k"]}):
        assert (await ask(book.around(app), {**CHAT, **more})).status == 200
    assert held[0] <= held[1] < held[0] * 2 < held[2]


@pytest.mark.parametrize("value", [5, ["big"], {}, True, "x" * 257, "a\0b", "\ud800"])
async def test_a_model_of_the_wrong_type_is_400(book: Ledger, value: Any) -> None:
    assert "model" in await refused(book, {**CHAT, "model": value}, 400)


@pytest.mark.parametrize("value", ["yes", 1, [], "true"])
async def test_a_stream_switch_of_the_wrong_type_is_400(book: Ledger, value: Any) -> None:
    assert "stream" in await refused(book, {**CHAT, "stream": value}, 400)


@pytest.mark.parametrize("value", ["yes", 1, [], {"include_usage": "yes"}, {"include_usage": 1}])
async def test_stream_options_of_the_wrong_type_are_400(book: Ledger, value: Any) -> None:
    assert "must be" in await refused(book, {**STREAM, "stream_options": value}, 400)


async def test_null_is_as_good_as_nothing(book: Ledger) -> None:
    app = answers()
    got = await ask(book.around(app), {**CHAT, "n": None, "stream": None, "stream_options": None, "user": None})
    assert got.status == 200


async def test_messages_of_any_type_are_the_applications_to_judge(book: Ledger) -> None:
    for messages in ("x", 5, [1, "2", None], {"a": 1}, None):
        got = await ask(book.around(Scripted(plain({"error": {}}, status=422))), {**CHAT, "messages": messages})
        assert got.status == 422
    assert await book.nothing_happened()


async def test_of_equal_names_the_last_one_counts_and_both_stay_where_nothing_changes(book: Ledger) -> None:
    body = b'{"model":"free","max_tokens":1,"messages":[],"model":"big","max_tokens":20}'
    app = answers()
    await ask(book.around(app), body)
    assert app.bodies == [body]
    record = await book.record()
    assert record.requested_model == "big"


async def test_of_equal_names_one_is_left_where_something_changes(book: Ledger) -> None:
    body = b'{"model":"free","messages":[],"max_tokens":20,"stream":true,"model":"big"}'
    app = Scripted(stream(chat_usage(), DONE))
    await ask(book.around(app), body)
    sent = app.bodies[0] or b""
    assert sent.count(b'"model"') == 1
    assert app.sent_json["model"] == "big"


# Models ---------------------------------------------------------------------------------------------------------------


async def test_a_request_without_a_model_is_400(book: Ledger) -> None:
    for model in ({}, {"model": None}, {"model": ""}):
        body: dict[str, Any] = {"messages": [], "max_tokens": 5, **model}
        assert "no default_model" in await refused(book, body, 400)


@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": ""}])
async def test_the_default_model_is_written_into_a_request_without_one(book: Ledger, named: dict[str, Any]) -> None:
    app = answers()
    body = {"messages": [{"role": "user", "content": 'talk about "model" trains'}], "max_tokens": 5, **named}
    await ask(book.around(app, default_model="big"), body)
    assert app.sent_json == {**body, "model": "big"}
    record = await book.record()
    assert record.requested_model == "big"


async def test_an_unknown_model_is_400_and_tells_how_to_price_it(book: Ledger) -> None:
    app = answers()
    got = await ask(book.around(app), {**CHAT, "model": "nobody's\r\nmodel: x"})
    assert got.status == 400
    assert got.json["error"]["code"] == "model_not_priced"
    assert "[pricing." in got.json["error"]["message"]
    assert app.scopes == []
    assert await book.nothing_happened()


async def test_a_model_without_a_price_passes_where_that_is_allowed_and_is_flagged() -> None:
    async with ledger(unknown_price="allow") as book:
        got = await ask(book.around(Scripted(plain({**chat_answer(), "model": "odd"}))), {**CHAT, "model": "odd"})
        record = await book.record()
        assert got.status == 200
        assert (record.cost_nano_usd, record.unpriced) == (0, True)


async def test_a_fallbacks_name_is_all_that_changes_in_the_request() -> None:
    body = (
        b'{ "messages" : [ {"role":"user","content":"hi \\u00e9 \xc3\xa9"} ],"seed":12345678901234567890123, '
        b'"model":"big","temperature":1.0e0,"max_tokens":20}'
    )
    big = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=1_000_000, allow_high=True)
    async with ledger(fallbacks={"big": ["mini"]}, prices={**PRICES, "big": big}) as book:
        app = Scripted(plain({**chat_answer(), "model": "mini"}))
        got = await ask(book.around(app), body)
        sent = app.bodies[0] or b""
        for value in (b'[ {"role":"user","content":"hi \\u00e9 \xc3\xa9"} ]', b"12345678901234567890123", b"1.0e0"):
            assert value in sent
        assert app.sent_json == {**json.loads(body), "model": "mini"}
        assert list(app.sent_json) == list(json.loads(body))
        assert app.sent_headers[b"content-length"] == str(len(sent)).encode()
        assert app.scopes[0]["state"]["askii_model"] == "mini"
        assert got.own_headers["x-askii-model"] == "mini"
        assert got.own_headers["x-askii-requested-model"] == "big"
        assert got.own_headers["x-askii-fallback-reason"] == "budget"


async def test_a_limit_is_written_where_neither_the_request_nor_the_model_has_one(book: Ledger) -> None:
    app = answers()
    body = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    await ask(book.around(app), body)
    assert app.sent_json == {**body, "max_tokens": 16_384}


async def test_usage_is_asked_for_and_hidden_and_no_encoding_with_it(book: Ledger) -> None:
    app = Scripted(stream(chat_chunk("a", usage=None), chat_chunk(reason="stop", usage=None), chat_usage(), DONE))
    body = {**STREAM, "stream_options": {"include_obfuscation": False}}
    got = await ask(book.around(app), body, headers=[(b"accept-encoding", b"gzip, br")])
    assert app.sent_json["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert app.sent_headers[b"accept-encoding"] == b"identity"
    assert got.body == chat_chunk("a") + chat_chunk(reason="stop") + DONE
    assert (await book.record()).estimated is False


@pytest.mark.parametrize("inject", [False, {"big": False}, {"*": False}, {"other": True, "*": False}])
async def test_usage_is_not_asked_for_where_that_is_switched_off(book: Ledger, inject: Any) -> None:
    app = Scripted(stream(chat_chunk("a"), chat_chunk(reason="stop"), DONE))
    got = await ask(book.around(app, inject_usage=inject), STREAM)
    assert app.sent_json == STREAM
    assert got.body == chat_chunk("a") + chat_chunk(reason="stop") + DONE
    assert (await book.record()).estimated is True


async def test_a_switch_by_model_compares_canonical_names(book: Ledger) -> None:
    app = Scripted(stream(chat_chunk("a"), DONE))
    await ask(book.around(app, inject_usage={"openai/BIG": False}), STREAM)
    assert app.sent_json == STREAM


async def test_the_bodys_user_only_sets_the_end_user(book: Ledger) -> None:
    await ask(book.around(answers()), {**CHAT, "user": "eve"})
    record = await book.record()
    assert (record.tenant, record.end_user, record.user) == ("acme", "eve", None)


@pytest.mark.parametrize(
    ("user", "end_user"), [("x" * 300, "x" * 256), ("a\0b", "ab"), ("\ud800b", "?b"), ("", None), (5, None), ([], None)]
)
async def test_an_odd_user_is_made_fit_or_left_out(book: Ledger, user: Any, end_user: str | None) -> None:
    await ask(book.around(answers()), {**CHAT, "user": user})
    assert (await book.record()).end_user == end_user
