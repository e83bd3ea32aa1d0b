"""Identity from headers of proxies and from callables, and over real servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from askii_middleware.errors import ConfigurationError
from askii_middleware.identify import (
    MISSING,
    Identifier,
    IdentityFailure,
)
from askii_middleware.identity import Identity

from .asgi_scopes import ACME, BY_HEADER, GONE, GOOD, SECOND, TENANT, Header, bearer, failure, keys, scope

# Headers of proxies --------------------------------------------------------------------------------------------------


def proxied(*networks: str) -> Identifier:
    return Identifier(["header:X-Tenant-Id"], trusted_proxies=networks)


@pytest.mark.parametrize(
    ("network", "host"),
    [
        ("10.0.0.0/8", "10.255.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("fd00::/8", "fd12::1"),
        ("fe80::/10", "fe80::1%eth0"),
        ("::1/128", "::1"),
    ],
)
async def test_a_trusted_proxy_names_the_tenant(network: str, host: str) -> None:
    assert await proxied("192.0.2.0/24", network).identify(scope(TENANT, client=(host, 1))) == BY_HEADER


@pytest.mark.parametrize(
    "client", [("203.0.113.9", 1), ("11.0.0.1", 1), ("::1", 1), ("testclient", 1), ("", 0), ("/run/a.sock", 0), None]
)
async def test_a_forged_header_of_anybody_else_is_ignored(client: object) -> None:
    assert await failure(proxied("10.0.0.0/8"), scope(TENANT, client=client)) == MISSING


async def test_by_default_nobody_is_trusted() -> None:
    for host in ("127.0.0.1", "::1", "10.0.0.1"):
        assert await failure(proxied(), scope(TENANT, client=(host, 1))) == MISSING


async def test_a_scope_without_a_client_is_trusted_by_nobody() -> None:
    request = scope(TENANT)
    del request["client"]
    assert await failure(proxied("0.0.0.0/0", "::/0"), request) == MISSING


@pytest.mark.parametrize("second", [TENANT, (b"X-TENANT-ID", b"globex"), (b"x-tenant-id", b"")])
async def test_a_header_sent_twice_is_refused(second: Header) -> None:
    found = await failure(proxied("10.0.0.0/8"), scope(TENANT, second, client=("10.0.0.1", 1)))
    assert found.kind == "ambiguous"
    assert "X-Tenant-Id" in found.message


@pytest.mark.parametrize("name", [b"x-tenant-id", b"X-Tenant-ID", b"X-TENANT-ID"])
async def test_header_names_are_compared_without_case(name: bytes) -> None:
    assert await proxied("10.0.0.0/8").identify(scope((name, b" acme "), client=("10.0.0.1", 1))) == BY_HEADER


@pytest.mark.parametrize(
    ("value", "kind"),
    [(b"", "missing"), (b"  ", "missing"), (b"\xff", "invalid"), (b"t" * 257, "invalid"), (b"a\0b", "invalid")],
)
async def test_an_empty_header_is_not_found_and_an_unusable_one_fails(value: bytes, kind: str) -> None:
    request = scope((b"x-tenant-id", value), client=("10.0.0.1", 1))
    assert (await failure(proxied("10.0.0.0/8"), request)).kind == kind


async def test_a_header_may_hold_utf8() -> None:
    request = scope((b"x-tenant-id", "Bücher".encode()), client=("10.0.0.1", 1))
    assert await proxied("10.0.0.0/8").identify(request) == Identity(tenant="Bücher", source="header")


# Callables -----------------------------------------------------------------------------------------------------------


async def test_a_callable_gets_the_scope_and_may_answer_in_many_shapes() -> None:
    full = Identity(tenant="acme", user="u")
    for answer, expected in (
        ("acme", Identity(tenant="acme", source="callable")),
        (7, Identity(tenant="7", source="callable")),
        (full, full),
        (
            {"tenant": "acme", "user": 42, "tags": ["a"], "models": None},
            Identity(tenant="acme", user="42", tags=("a",), source="callable"),
        ),
        (None, MISSING),
        ("", MISSING),
        ({}, MISSING),
        ({"tenant": None, "user": "u"}, MISSING),
        (IdentityFailure("refused", "not today", 403), IdentityFailure("refused", "not today", 403)),
    ):
        seen: list[object] = []

        def plain(request: Mapping[str, Any], answer: object = answer, seen: list[object] = seen) -> object:
            seen.append(request["path"])
            return answer

        async def late(request: Mapping[str, Any], answer: object = answer, seen: list[object] = seen) -> object:
            await asyncio.sleep(0)
            seen.append(request["path"])
            return answer

        assert await Identifier([plain]).identify(scope()) == expected
        assert await Identifier([late]).identify(scope()) == expected
        assert seen == ["/v1/chat/completions"] * 2


async def test_sources_are_asked_in_order_until_one_finds_somebody() -> None:
    asked = []

    def source(name: str, answer: str | None) -> Callable[[Any], str | None]:
        def ask(_: Any) -> str | None:
            asked.append(name)
            return answer

        return ask

    identifier = Identifier([source("one", None), "state", source("two", "acme"), source("three", "globex")])
    assert await identifier.identify(scope()) == Identity(tenant="acme", source="callable")
    assert asked == ["one", "two"]


@pytest.mark.parametrize("answer", ["t" * 257, "a\0b", {"tenant": b"acme"}, {"tenant": "a", "tags": "x"}, True])
async def test_a_callables_unusable_values_fail_clearly(answer: object) -> None:
    assert (await failure(Identifier([lambda _: answer], default_tenant="d"), scope())).kind == "invalid"


@pytest.mark.parametrize("answer", [b"acme", object(), {"tenant_id": "acme"}, {"tenant": "acme", "role": "x"}])
async def test_a_callable_of_the_wrong_make_is_a_programming_error(answer: object) -> None:
    with pytest.raises(ConfigurationError, match="identify callable"):
        await Identifier([lambda _: answer]).identify(scope())


async def test_what_a_callable_raises_is_not_swallowed() -> None:
    def broken(_: Any) -> str:
        raise LookupError("directory down")

    with pytest.raises(LookupError, match="directory down"):
        await Identifier([broken], default_tenant="d").identify(scope())


async def test_an_identity_that_was_found_can_still_be_turned_away() -> None:
    suspended = IdentityFailure("refused", "suspended", 403)
    identifier = Identifier(
        keys=keys(), default_tenant="d", admit=lambda who: suspended if who.tenant == "acme" else None
    )
    assert await identifier.identify(scope(bearer(GOOD))) == suspended
    assert await identifier.identify(scope(bearer(SECOND))) == Identity(tenant="globex", key="k2", source="key")
    assert await identifier.identify(scope()) == Identity(tenant="d", source="default")


@pytest.mark.parametrize(
    "values",
    [
        {"tenant": ""},
        {"tenant": "t" * 257},
        {"tenant": "a", "key": "k\0"},
        {"tenant": "a", "user": 5},
        {"tenant": "a", "tags": ("",)},
        {"tenant": "a", "tags": ("t" * 257,)},
        {"tenant": "a", "tags": ("t",) * 17},
    ],
)
def test_an_identity_out_of_bounds_cannot_be_made(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tenant|key|user|tags"):
        Identity(**values)


def test_an_identity_gives_the_dimensions_budgets_are_matched_by() -> None:
    assert ACME.dimensions() == {
        "tenant": "acme",
        "key": "k1",
        "user": None,
        "team": "research",
        "end_user": None,
        "tag": ("batch",),
    }
    assert Identity(tenant="a").dimensions()["tag"] is None


# Real servers --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(identifier: Identifier, **listen: Any) -> AsyncIterator[None]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = await identifier.identify(scope)
        text = found.message if isinstance(found, IdentityFailure) else f"{found.source}:{found.tenant}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    sockets = listen.pop("sockets", None)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error", ws="none", **listen))
    task = asyncio.create_task(server.serve(sockets))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await task


Get = Callable[[Mapping[str, str]], Awaitable[str]]


async def test_over_tcp_headers_count_from_a_trusted_peer_only() -> None:
    for networks, answer in ((["127.0.0.0/8"], "header:acme"), (["10.0.0.0/8"], "default:nobody")):
        identifier = Identifier(
            ["key", "header:x-tenant-id"], keys=keys(), trusted_proxies=networks, default_tenant="nobody"
        )
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            async with serving(identifier, sockets=[listener]), httpx.AsyncClient() as client:
                assert (await client.get(url, headers={"X-Tenant-ID": "acme"})).text == answer
                assert (await client.get(url, headers={"X-API-Key": GOOD, "X-Tenant-ID": "x"})).text == "key:acme"
                revoked = await client.get(url, headers={"Authorization": f"Bearer {GONE}", "X-Tenant-ID": "x"})
                assert revoked.text == "this API key is revoked"


async def test_over_a_unix_socket_there_is_no_peer_to_trust(tmp_path: Path) -> None:
    identifier = Identifier(
        ["key", "header:x-tenant-id"], keys=keys(), trusted_proxies=["0.0.0.0/0", "::/0"], default_tenant="nobody"
    )
    path = str(tmp_path / "s")
    async with (
        serving(identifier, uds=path),
        httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path)) as client,
    ):
        assert (await client.get("http://x/", headers={"X-Tenant-ID": "acme"})).text == "default:nobody"
        assert (await client.get("http://x/", headers={"Authorization": f"Bearer {GOOD}"})).text == "key:acme"
