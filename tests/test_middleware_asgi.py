"""The middleware between servers and applications of every habit: what passes, what is held back, and how long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from askii_middleware import AskiiMiddleware

from .support.asgi import (
    CHAT,
    DONE,
    JSON,
    SSE,
    Client,
    Scripted,
    ask,
    chat_answer,
    chat_chunk,
    chat_usage,
    http_scope,
    piece,
    plain,
    read_all,
    start,
    stream,
)
from .support.ledgers import Ledger, ledger

STREAM = {**CHAT, "stream": True}
ASKING = {**STREAM, "stream_options": {"include_usage": True}}


@pytest.fixture
async def book() -> AsyncIterator[Ledger]:
    async with ledger() as open_ledger:
        yield open_ledger


# What the application gets --------------------------------------------------------------------------------------------


async def test_the_application_reads_the_body_in_one_go_and_then_the_servers_own_messages(book: Ledger) -> None:
    raw = json.dumps(CHAT).encode()
    seen: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        seen.append(await receive())
        for message in plain(chat_answer()):
            await send(message)
        seen.append(await receive())

    await ask(book.around(app), [raw[:5], b"", raw[5:], b""])
    assert seen == [{"type": "http.request", "body": raw, "more_body": False}, {"type": "http.disconnect"}]


async def test_a_request_message_without_more_body_is_the_last(book: Ledger) -> None:
    app = Scripted(plain(chat_answer()))
    client = Client()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(CHAT).encode()}

    client.receive = receive  # type: ignore[method-assign]
    got = await ask(book.around(app), client=client)
    assert (got.status, app.sent_json) == (200, CHAT)


async def test_a_request_message_without_a_body_is_an_empty_one(book: Ledger) -> None:
    client = Client()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    client.receive = receive  # type: ignore[method-assign]
    assert (await ask(book.around(Scripted([])), client=client)).status == 400


async def test_an_application_that_never_reads_is_charged_what_it_answers(book: Ledger) -> None:
    got = await ask(book.around(Scripted(plain(chat_answer()), reads=False)))
    assert got.json == chat_answer()
    assert (await book.record()).cost_nano_usd == 60_000


async def test_a_listener_beside_the_answer_sees_the_disconnect_and_changes_nothing(book: Ledger) -> None:
    """Starlette's streaming answer listens for a disconnect while it sends."""
    heard: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)

        async def listen() -> None:
            heard.append((await receive())["type"])

        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            for message in stream(chat_chunk("a"), chat_usage(), DONE):
                await asyncio.sleep(0)
                await send(message)

    got = await ask(book.around(app), ASKING)
    assert heard == ["http.disconnect"]
    assert got.complete
    record = await book.record()
    assert (record.cost_nano_usd, record.outcome, record.estimated) == (60_000, "completed", False)


async def test_extensions_that_hide_the_answers_bytes_are_off_and_all_others_on(book: Ledger) -> None:
    app = Scripted(plain(chat_answer()))
    extensions: dict[str, dict[str, Any]] = {
        name: {}
        for name in (
            *("http.response.pathsend", "http.response.zerocopysend", "http.response.push"),
            *("http.response.trailers", "http.response.early_hint", "http.response.debug", "tls"),
        )
    }
    await ask(book.around(app), extensions=extensions)
    kept = {"http.response.push", "http.response.trailers", "http.response.early_hint", "http.response.debug", "tls"}
    assert set(app.scopes[0]["extensions"]) == kept
    assert len(extensions) == 7
    await ask(book.around(app), path="/files", extensions=extensions)
    assert app.scopes[1]["extensions"] == extensions


async def test_the_servers_scope_is_not_changed(book: Ledger) -> None:
    scope = http_scope()
    del scope["state"]
    before = {**scope, "headers": list(scope["headers"])}
    app = Scripted(stream(chat_usage(), DONE))
    await ask(book.around(app), STREAM, scope=scope)
    assert scope == before
    assert app.scopes[0]["state"]["askii_model"] == "big"


@pytest.mark.parametrize("state", [None, object()])
async def test_a_state_of_another_make_is_left_alone(book: Ledger, state: object) -> None:
    app = Scripted(plain(chat_answer()))
    got = await ask(book.around(app), state=state)
    assert got.status == 200
    if state is not None:
        assert app.scopes[0]["state"] is state


async def test_headers_in_capitals_are_read_and_replaced(book: Ledger) -> None:
    app = Scripted(stream(chat_usage(), DONE))
    scope = http_scope()
    raw = json.dumps(STREAM).encode()
    scope["headers"] = [(b"Content-Length", str(len(raw)).encode()), (b"Accept-Encoding", b"br"), (b"X-Mine", b"1")]
    await ask(book.around(app), raw, scope=scope)
    sent = app.bodies[0] or b""
    assert app.scopes[0]["headers"] == [
        (b"X-Mine", b"1"),
        (b"content-length", str(len(sent)).encode()),
        (b"accept-encoding", b"identity"),
    ]


async def test_a_scope_without_headers_is_served(book: Ledger) -> None:
    scope = http_scope()
    del scope["headers"]
    assert (await ask(book.around(Scripted(plain(chat_answer()))), scope=scope)).status == 200


# What the client gets -------------------------------------------------------------------------------------------------


async def test_a_start_without_headers_gets_ours(book: Ledger) -> None:
    got = await ask(book.around(Scripted([{"type": "http.response.start", "status": 200}, piece(b"x", more=False)])))
    assert set(got.headers) == {
        *("x-askii-call-id", "x-askii-model"),
        *("x-askii-budget-limit-coins", "x-askii-budget-remaining-coins", "x-askii-budget-reset"),
    }


async def test_headers_of_ours_that_come_from_further_on_are_replaced(book: Ledger) -> None:
    theirs = ((b"x-askii-call-id", b"theirs"), (b"X-Askii-Cost-Coins", b"1"), (b"x-other", b"kept"))
    got = await ask(book.around(Scripted(plain(chat_answer(), *theirs))))
    assert got.headers["x-askii-call-id"] != "theirs"
    assert got.headers["x-askii-cost-coins"] == "60"
    assert got.headers["x-other"] == "kept"


async def test_a_plain_answer_in_pieces_waits_and_comes_whole_with_its_cost(book: Ledger) -> None:
    raw = json.dumps(chat_answer()).encode()
    client = Client([json.dumps(CHAT).encode()])

    async def nothing_yet(*_: Any) -> None:
        assert client.messages == []

    script = [start(JSON), nothing_yet, piece(b""), *[piece(raw[i : i + 1]) for i in range(len(raw))], nothing_yet]
    got = await ask(book.around(Scripted([*script, piece(b"", more=False)])), client=client)
    assert got.body == raw
    assert len(got.messages) == 2
    assert got.headers["x-askii-cost-coins"] == "60"


@pytest.mark.parametrize("size", [65_536, 65_537, 300_000])
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_plain_answer_waits_up_to_64_kb_and_is_charged_exactly_beyond(
    book: Ledger, size: int, pieces: int
) -> None:
    answer = chat_answer()
    answer["choices"][0]["message"]["content"] = ""
    answer["choices"][0]["message"]["content"] = "x" * (size - len(json.dumps(answer)))
    raw = json.dumps(answer).encode()
    assert len(raw) == size
    step = -(-size // pieces)
    script = [start(JSON), *[piece(raw[i : i + step]) for i in range(0, size, step)], piece(b"", more=False)]
    got = await ask(book.around(Scripted(script)))
    assert got.body == raw
    assert ("x-askii-cost-coins" in got.headers) == (size <= 65_536)
    record = await book.record()
    assert (record.cost_nano_usd, record.estimated) == (60_000, False)


async def test_a_large_plain_answer_goes_out_while_it_comes(book: Ledger) -> None:
    client = Client([json.dumps(CHAT).encode()])
    lengths: list[int] = []

    async def note(*_: Any) -> None:
        lengths.append(sum(len(m.get("body", b"")) for m in client.messages))

    chunk = b" " * 40_000
    rest = json.dumps(chat_answer()).encode()
    script = [start(JSON), piece(chunk), note, piece(chunk), note, piece(chunk), note, piece(rest, more=False)]
    await ask(book.around(Scripted(script)), client=client)
    assert lengths == [0, 80_000, 120_000]
    assert (await book.record()).cost_nano_usd == 60_000


async def test_a_stream_goes_out_piece_by_piece_and_its_messages_are_the_applications_own(book: Ledger) -> None:
    messages = stream(chat_chunk("a"), b"", chat_chunk("b"), chat_usage(), DONE)
    client = Client([json.dumps(ASKING).encode()])
    sent: list[int] = []

    async def note(*_: Any) -> None:
        sent.append(len(client.messages))

    script = [step for message in messages for step in (message, note)]
    await ask(book.around(Scripted(script)), client=client)
    assert sent == list(range(1, len(messages) + 1))
    assert all(got is given for got, given in zip(client.messages[1:-1], messages[1:-1], strict=True))


@pytest.mark.parametrize("kind", [memoryview, bytearray])
async def test_bytes_of_another_type_are_bytes(book: Ledger, kind: Any) -> None:
    raw = json.dumps(chat_answer()).encode()
    for script, body in (
        ([start(SSE), piece(kind(chat_usage())), piece(kind(DONE), more=False)], ASKING),
        ([start(JSON), piece(kind(raw[:9])), piece(kind(raw[9:]), more=False)], CHAT),
    ):
        got = await ask(book.around(Scripted(script)), body)
        assert got.error is None
    assert [record.cost_nano_usd for record in await book.records()] == [60_000, 60_000]


async def test_content_length_stays_where_the_bytes_stay_and_goes_where_usage_is_taken_out(book: Ledger) -> None:
    raw = chat_chunk("a", usage=None) + chat_usage() + DONE
    length = (b"Content-Length", str(len(raw)).encode())
    script = [start(SSE, length), piece(raw, more=False)]
    got = await ask(book.around(Scripted(script)), ASKING)
    assert got.headers["content-length"] == str(len(raw))
    assert got.body == raw
    got = await ask(book.around(Scripted(script)), STREAM)
    assert "content-length" not in got.headers
    assert got.body == chat_chunk("a") + DONE


@pytest.mark.parametrize("status", [204, 205])
async def test_an_answer_without_a_body_stays_without_one(book: Ledger, status: int) -> None:
    got = await ask(book.around(Scripted([start(status=status), piece(b"", more=False)])))
    assert (got.status, got.body, got.complete) == (status, b"", True)


async def test_informational_answers_hints_pushes_and_trailers_pass_in_their_order(book: Ledger) -> None:
    before = [
        {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]},
        {"type": "http.response.push", "path": "/a", "headers": []},
        {"type": "http.response.debug", "info": {}},
        start(status=103),
    ]
    trailers = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
    answer = plain(chat_answer())
    answer[0]["trailers"] = True
    got = await ask(book.around(Scripted([*before, *answer, trailers])))
    assert got.messages[:4] == before
    assert got.messages[4]["trailers"] is True
    assert got.messages[-1] == trailers
    assert (await book.record()).cost_nano_usd == 60_000


async def test_what_an_application_sends_after_its_end_is_the_servers_to_refuse(book: Ledger) -> None:
    class StrictClient(Client):
        async def send(self, message: Any) -> None:
            if self.gone.is_set():
                raise RuntimeError(f"unexpected {message['type']}")
            await super().send(message)

    for extra in (piece(b"", more=False), piece(b"more"), start()):
        client = StrictClient([json.dumps(CHAT).encode()])
        got = await ask(book.around(Scripted([*plain(chat_answer()), extra])), client=client)
        assert isinstance(got.error, RuntimeError)
        assert got.json == chat_answer()
        client = StrictClient([json.dumps(ASKING).encode()])
        got = await ask(book.around(Scripted([*stream(chat_usage(), DONE), extra])), client=client)
        assert isinstance(got.error, RuntimeError)
    book.check_once()
    assert [record.cost_nano_usd for record in await book.records()] == [60_000] * 6


async def test_a_second_start_is_the_servers_to_refuse(book: Ledger) -> None:
    got = await ask(book.around(Scripted([start(SSE), start(JSON), piece(chat_usage(), more=False)])), ASKING)
    assert [m["type"] for m in got.messages].count("http.response.start") == 2


async def test_a_body_without_a_start_is_the_servers_to_refuse(book: Ledger) -> None:
    got = await ask(book.around(Scripted([piece(b"x", more=False)])))
    assert got.messages == [piece(b"x", more=False)]
    assert await book.nothing_happened()


async def test_a_start_without_a_body_goes_out(book: Ledger) -> None:
    got = await ask(book.around(Scripted([start(JSON)])))
    assert (got.status, got.body, got.complete) == (200, b"", False)
    assert (await book.record()).outcome == "upstream_error"


async def test_bytes_held_back_go_out_where_the_application_breaks_off(book: Ledger) -> None:
    half = b'data: {"id": "c1", "choices": [{"delta": {"content": "hel'
    for script in ([start(SSE), piece(half)], [start(SSE), piece(half), RuntimeError("no")]):
        got = await ask(book.around(Scripted(script)), STREAM)
        assert got.body == half
        assert not got.complete


# Where it stands aside ------------------------------------------------------------------------------------------------


async def test_websockets_pass_untouched(book: Ledger) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, receive, send))

    scope = {"type": "websocket", "path": "/v1/events", "headers": []}

    async def receive() -> Any: ...

    async def send(_message: Any) -> None: ...

    await book.around(app)(scope, receive, send)
    assert seen[0] is scope
    assert seen[1:] == [receive, send]


async def test_a_second_middleware_inside_passes_through(book: Ledger) -> None:
    inner = book.around(Scripted(plain(chat_answer())), identify=lambda _scope: "other")
    got = await ask(book.around(inner))
    assert got.headers["x-askii-cost-coins"] == "60"
    record = await book.record()
    assert record.tenant == "acme"


async def test_an_application_cannot_be_told_that_it_is_inside_by_a_client(book: Ledger) -> None:
    await ask(book.around(Scripted(plain(chat_answer()))), headers=[(b"askii.metered", b"true")])
    assert len(book.held) == 1


async def test_it_may_be_built_many_times_over_one_tracker(book: Ledger) -> None:
    app = Scripted(plain(chat_answer()))
    built = [book.around(app) for _ in range(26)]
    for middleware in built:
        assert (await ask(middleware)).status == 200
    assert len(await book.records()) == 26


async def test_requests_at_the_same_time_do_not_mix(book: Ledger) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads(await read_all(receive) or b"{}")
        number = int(asked["messages"][0]["content"])
        await asyncio.sleep(0)
        for message in plain(chat_answer(number, 0)):
            await asyncio.sleep(0)
            await send(message)

    middleware: AskiiMiddleware = book.around(app)
    bodies = [{**CHAT, "messages": [{"role": "user", "content": str(number)}]} for number in range(1, 41)]
    answers = await asyncio.gather(*(ask(middleware, body) for body in bodies))
    assert [answer.headers["x-askii-cost-coins"] for answer in answers] == [str(number) for number in range(1, 41)]
    assert len({answer.headers["x-askii-call-id"] for answer in answers}) == 40
    assert await book.spent() == sum(range(1, 41)) * 1000
