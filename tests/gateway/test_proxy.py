"""What a request and its answer look like on the other side, over real sockets."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import httpx
import pytest

from askii_middleware.demo.provider import provider_app
from askii_middleware.gateway import Proxy, Upstream

from .serving import Recorder, answering, connect, exchange, http_client, proxied, raw_upstream, serving

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
async def test_every_method_arrives_with_path_query_and_body(method: str) -> None:
    upstream = Recorder(status=207, headers=((b"x-reply", b"1"),), body=b"answer")
    async with serving(upstream) as up, proxied(f"{up}/v1") as (url, _), http_client() as client:
        target = httpx.URL(url).copy_with(raw_path=b"/v1/files/a%2Fb%20c?q=%7e+&q=2")
        answer = await client.request(method, target, content=b"body")
    assert (answer.status_code, answer.content, answer.headers["x-reply"]) == (207, b"answer", "1")
    scope = upstream.scopes[-1]
    assert (scope["method"], scope["raw_path"], scope["query_string"]) == (
        method,
        b"/v1/files/a%2Fb%20c",
        b"q=%7e+&q=2",
    )
    assert upstream.bodies == [b"body"]
    assert dict(upstream.headers)[b"content-length"] == b"4"


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
async def test_methods_that_would_give_the_key_back_or_open_a_tunnel_are_refused(method: str) -> None:
    upstream = Recorder()
    async with serving(upstream) as up, proxied(up) as (url, _):
        answer = await exchange(url, f"{method} /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert upstream.scopes == []


async def test_only_headers_meant_for_the_upstream_reach_it_and_its_own_key_is_the_only_credential() -> None:
    upstream = Recorder()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway.example\r\nAuthorization: Bearer sk-askii-1\r\n"
        b"X-Api-Key: sk-askii-1\r\nApi-Key: foreign\r\nX-Goog-Api-Key: foreign\r\nX-Forwarded-For: 10.1.2.3\r\n"
        b"Connection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nAccept-Encoding: gzip, br\r\nX-Kept: a, b\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    async with serving(upstream) as up, proxied(f"{up}/v1") as (url, _):
        await exchange(url, request)
    assert sorted(upstream.headers) == [
        (b"accept-encoding", b"identity"),
        (b"authorization", b"Bearer sk-up"),
        (b"content-length", b"2"),
        (b"host", up.removeprefix("http://").encode()),
        (b"x-forwarded-for", b"10.1.2.3"),
        (b"x-kept", b"a, b"),
    ]


async def test_an_upstream_without_a_key_gets_the_clients_but_never_ours() -> None:
    upstream = Recorder()
    async with (
        serving(upstream) as up,
        proxied(up, api_key=None) as (url, _),
        http_client(headers={"accept-encoding": "br"}) as client,
    ):
        await client.get(f"{url}/v1/models", headers={"authorization": "Bearer sk-client", "x-api-key": "sk-askii-1"})
        sent = dict(upstream.headers)
    assert sent[b"authorization"] == b"Bearer sk-client"
    assert b"x-api-key" not in sent
    assert not any(b"sk-askii-" in value for value in sent.values())


@pytest.mark.parametrize("api_key", ["sk-up", None])
async def test_a_key_of_ours_in_the_query_stays_here(api_key: str | None) -> None:
    upstream = Recorder()
    async with serving(upstream) as up, proxied(up, api_key=api_key) as (url, _), http_client() as client:
        for query in ("alt=sse&key=sk-askii-1&q=a%2Fb", "key=AIza&q=a%2Fb", "monkey=1&k=%7E"):
            await client.get(f"{url}/v1/models?{query}")
    sent = [scope["query_string"] for scope in upstream.scopes]
    assert sent == [b"alt=sse&q=a%2Fb", b"key=AIza&q=a%2Fb", b"monkey=1&k=%7E"]


async def test_the_client_gets_the_answers_headers_but_not_those_of_the_other_connection() -> None:
    raw = (
        b"HTTP/1.1 200 Fine\r\nContent-Type: text/plain\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: theirs\r\n"
        b"Connection: keep-alive, X-Internal\r\nX-Internal: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n"
        b"Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"
    )
    async with raw_upstream(answering(raw)) as up, proxied(up) as (url, _):
        answer = await exchange(url, b"GET /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"content-type: text/plain",
        b"set-cookie: a=1",
        b"set-cookie: b=2",
        b"server: theirs",
        b"connection: close",
        b"transfer-encoding: chunked",
    ]
    assert body == b"5\r\nhello\r\n0\r\n\r\n"


async def test_cookies_of_one_client_are_not_sent_for_another() -> None:
    upstream = Recorder(headers=((b"set-cookie", b"session=1; Path=/"),))
    async with serving(upstream) as up, proxied(up) as (url, _):
        for _ in range(2):
            async with http_client() as client:
                assert (await client.get(f"{url}/v1/x")).cookies["session"] == "1"
    assert all(b"cookie" not in dict(scope["headers"]) for scope in upstream.scopes)


async def test_redirects_are_the_clients_business() -> None:
    upstream = Recorder(status=307, headers=((b"location", b"/elsewhere"),))
    async with serving(upstream) as up, proxied(up) as (url, _), http_client() as client:
        answer = await client.post(f"{url}/v1/x", content=b"x")
    assert (answer.status_code, answer.headers["location"], len(upstream.scopes)) == (307, "/elsewhere", 1)


async def test_encoded_bytes_pass_undecoded() -> None:
    body = b"\x1f\x8b not really gzip"
    upstream = Recorder(headers=((b"content-encoding", b"gzip"),), body=body)
    async with serving(upstream) as up, proxied(up) as (url, _), http_client() as http:
        answer = await http.send(http.build_request("GET", f"{url}/v1/x"), stream=True)
        received = b"".join([part async for part in answer.aiter_raw()])
    assert received == body
    assert answer.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("request_line", "status", "headers", "kept"),
    [
        (b"HEAD", b"200 OK", b"Content-Length: 11\r\n", b"content-length: 11"),
        (b"GET", b"204 No Content", b"", None),
        (b"GET", b"304 Not Modified", b"Content-Length: 11\r\nETag: x\r\n", b"etag: x"),
        (b"POST", b"204 No Content", b"", None),
    ],
)
async def test_answers_without_a_body_have_none(
    request_line: bytes, status: bytes, headers: bytes, kept: bytes | None
) -> None:
    raw = b"HTTP/1.1 " + status + b"\r\n" + headers + b"\r\n"
    async with raw_upstream(answering(raw)) as up, proxied(up) as (url, proxy):
        request = request_line + b" /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        head, end, body = (await exchange(url, request)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status[:3])
        assert (end, body) == (b"\r\n\r\n", b"")
        assert kept is None or kept in head
        assert proxy.busy == 0


async def test_interim_answers_are_swallowed() -> None:
    raw = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with raw_upstream(answering(raw)) as up, proxied(up) as (url, _), http_client() as client:
        answer = await client.get(f"{url}/v1/x")
    assert (answer.status_code, answer.content) == (200, b"ok")
    assert "link" not in answer.headers


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", b"SSH-2.0\r\n\r\n"]
)
async def test_an_upstream_that_does_not_speak_http_is_unreachable(raw: bytes) -> None:
    async with raw_upstream(answering(raw)) as up, proxied(up) as (url, _), http_client() as client:
        answer = await client.get(f"{url}/v1/x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("sent_in", [1, 7, 1 << 20])
async def test_a_streamed_answer_is_the_same_bytes_as_without_the_gateway(sent_in: int) -> None:
    body = json.dumps({**CHAT, "stream": True, "stream_options": {"include_usage": True}}).encode()

    async def split() -> object:
        for start in range(0, len(body), sent_in):
            yield body[start : start + sent_in]

    headers = {"authorization": "Bearer sk-up"}
    async with (
        serving(provider_app(api_key="sk-up")) as up,
        proxied(f"{up}/v1") as (url, _),
        http_client(headers=headers) as client,
    ):
        direct = await client.post(f"{up}/v1/chat/completions", content=body)
        through = await client.post(f"{url}/v1/chat/completions", content=split())  # type: ignore[arg-type]
    assert direct.status_code == 200
    assert through.content == direct.content
    assert through.headers == direct.headers
    assert b'"usage":{' in through.content


async def test_each_chunk_goes_on_before_the_next_one_exists() -> None:
    steps = [asyncio.Event() for _ in range(3)]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for number, step in enumerate(steps):
            await step.wait()
            writer.write(b"2\r\n%d\n\r\n" % number)
        writer.write(b"0\r\n\r\n")

    async with raw_upstream(handler) as up, proxied(up) as (url, _), http_client() as http:
        answer = await http.send(http.build_request("GET", f"{url}/v1/x"), stream=True)
        lines = answer.aiter_lines()
        for number, step in enumerate(steps):
            step.set()
            assert await anext(lines) == str(number)
        await answer.aclose()


async def test_a_body_sent_in_parts_keeps_its_framing() -> None:
    upstream = Recorder()
    head = b"POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    async with serving(upstream) as up, proxied(up) as (url, _):
        reader, writer = await connect(url)
        writer.write(head + b"content-length: 6\r\n\r\nabc")
        await asyncio.sleep(0.02)
        writer.write(b"def")
        assert (await reader.read()).endswith(b"ok")
        writer.close()
        reader, writer = await connect(url)
        writer.write(head + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.sleep(0.02)
        writer.write(b"3\r\ndef\r\n0\r\n\r\n")
        assert (await reader.read()).endswith(b"ok")
        writer.close()
    assert upstream.bodies == [b"abcdef", b"abcdef"]
    framing = [
        [pair for pair in scope["headers"] if pair[0] in {b"content-length", b"transfer-encoding"}]
        for scope in upstream.scopes
    ]
    assert framing == [[(b"content-length", b"6")], [(b"transfer-encoding", b"chunked")]]


async def test_the_model_decides_the_upstream_wherever_it_is_named() -> None:
    ones, others = Recorder(body=b"one"), Recorder(body=b"other")
    async with serving(ones) as one, serving(others) as other:
        proxy = Proxy(
            [
                Upstream(name="one", url=f"{one}/v1", models=("gpt-*",), api_key="k1"),
                Upstream(name="other", url=f"{other}/v1", models=("claude-*",), api_key="k2", provider="anthropic"),
            ]
        )
        admitted: list[str | None] = [None]

        async def admit(scope: object, receive: object, send: object) -> None:
            if scope["type"] == "http" and admitted[0]:  # type: ignore[index]
                scope.setdefault("state", {})["askii_model"] = admitted[0]  # type: ignore[attr-defined]
            await proxy(scope, receive, send)  # type: ignore[arg-type]

        async with serving(admit) as url, http_client() as client:
            chat = f"{url}/v1/chat/completions"

            async def slowly() -> object:
                for part in (b'{"messages":[],', b'"model":"claude-x"}'):
                    yield part
                    await asyncio.sleep(0.02)

            assert (await client.post(chat, json={"model": "gpt-4o"})).text == "one"
            assert (await client.post(chat, json={"model": "claude-x"})).text == "other"
            assert (await client.post(chat, content=slowly())).text == "other"  # type: ignore[arg-type]
            assert others.bodies[-1] == b'{"messages":[],"model":"claude-x"}'
            assert dict(others.headers)[b"x-api-key"] == b"k2"
            admitted[0] = "claude-haiku"
            assert (await client.post(chat, json={"model": "gpt-4o"})).text == "other"
            admitted[0] = "llama"
            unknown = await client.post(chat, json={"model": "gpt-4o"})
            admitted[0] = None
            unnamed = [
                await client.get(f"{url}/v1/models"),
                await client.post(chat, json={"model": 7}),
                await client.post(chat, content=b"not json"),
                await client.post(chat, content=b'{"model":"gpt-4o"}', headers={"content-type": "text/plain"}),
            ]
    assert unknown.status_code == 404
    assert unknown.json() == {
        "error": {
            "message": "no upstream serves the model 'llama'",
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
        }
    }
    assert {answer.status_code for answer in unnamed} == {404}
    assert unnamed[0].json()["error"]["message"] == "no upstream serves requests without a model"


async def test_a_body_that_decides_the_upstream_is_read_only_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("askii_middleware.gateway._MAX_ROUTED_BODY_BYTES", 200_000)
    upstream = Recorder()
    async with serving(upstream) as up:
        proxy = Proxy([Upstream(name="up", url=up, models=("gpt-*",))])
        async with serving(proxy) as url, http_client() as client:
            answer = await client.post(f"{url}/v1/x", json={"model": "gpt-4o", "x": "y" * 300_000})
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
            answer = await client.post(f"{url}/v1/x", json={"model": "gpt-4o", "x": "y" * 100_000})
            assert answer.status_code == 200


async def test_paths_that_climb_are_refused_before_they_leave() -> None:
    upstream = Recorder()
    async with serving(upstream) as up, proxied(f"{up}/v1") as (url, _):
        answer = await exchange(url, b"GET /v1/%2e%2e/admin HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert upstream.scopes == []


async def test_mounted_below_a_prefix_the_upstream_does_not_see_it() -> None:
    upstream = Recorder()
    async with serving(upstream) as up:
        proxy = Proxy([Upstream(name="up", url=f"{up}/v1")])
        async with serving(proxy, root_path="/llm") as url, http_client() as client:
            await client.get(f"{url}/v1/models")
    assert upstream.scopes[-1]["raw_path"] == b"/v1/models"


async def test_two_hundred_calls_at_once_each_get_their_own_answer() -> None:
    async with (
        serving(provider_app(delay_s=0.05)) as up,
        proxied(f"{up}/v1") as (url, proxy),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
    ):

        async def call(base: str, number: int) -> bytes:
            body = {**CHAT, "user": str(number), "stream": number % 2 == 0}
            async with client.post(f"{base}/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
                return await answer.read()

        through = await asyncio.gather(*(call(url, number) for number in range(200)))
        direct = await asyncio.gather(*(call(up, number) for number in range(200)))
        assert proxy.busy == 0
    assert through == direct
    assert len(set(through)) == 200
