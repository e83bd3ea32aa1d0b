"""Identity sources over ASGI scopes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request
from starlette.datastructures import State

from askii_middleware.errors import ConfigurationError, MissingExtraError
from askii_middleware.identify import (
    AMBIGUOUS,
    MALFORMED,
    MISSING,
    Identifier,
    IdentityFailure,
    late_tenant,
    presented_secret,
)
from askii_middleware.identity import Identity
from askii_middleware.keys import KeyDirectory, hash_secret
from askii_middleware.settings import Settings
from askii_middleware.stores.base import KeyRow

GOOD, SECOND, GONE, OLD, BAD = (f"sk-askii-{name}" for name in ("good", "second", "gone", "old", "bad"))
ROWS = (
    KeyRow(id="k1", sha256=hash_secret(GOOD), tenant="acme", team="research", tags=("batch",), models=("gpt-4o",)),
    KeyRow(id="k2", sha256=hash_secret(SECOND), tenant="globex"),
    KeyRow(id="k3", sha256=hash_secret(GONE), tenant="acme", revoked=True),
    KeyRow(id="k4", sha256=hash_secret(OLD), tenant="acme", expires_at_s=500.0),
)
ACME = Identity(tenant="acme", key="k1", team="research", tags=("batch",), models=("gpt-4o",), source="key")
Header = tuple[bytes, bytes]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("ASKII_")]:
        monkeypatch.delenv(name)


def keys() -> KeyDirectory:
    return KeyDirectory(ROWS, clock=lambda: 1000.0)


def scope(*headers: Header, client: object = ("203.0.113.9", 50000), **more: Any) -> dict[str, Any]:
    """A request as uvicorn hands it over."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": client,
        "scheme": "http",
        "root_path": "",
        "headers": [(b"host", b"localhost:8000"), (b"content-type", b"application/json"), *headers],
        "state": {},
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        **more,
    }


def bearer(token: str) -> Header:
    return (b"authorization", b"Bearer " + token.encode())


async def failure(identifier: Identifier, request: Mapping[str, Any]) -> IdentityFailure:
    found = await identifier.identify(request)
    assert isinstance(found, IdentityFailure)
    return found


# Keys ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        bearer(GOOD),
        (b"authorization", b"bearer " + GOOD.encode()),
        (b"authorization", b"BEARER  " + GOOD.encode() + b" "),
        (b"Authorization", b"Bearer\t" + GOOD.encode()),
        (b"x-api-key", GOOD.encode()),
        (b"X-Api-Key", GOOD.encode()),
        (b"api-key", b" " + GOOD.encode()),
        (b"x-goog-api-key", GOOD.encode()),
    ],
)
async def test_a_key_is_read_from_every_carrier_in_any_case(header: Header) -> None:
    assert await Identifier(keys=keys()).identify(scope(header)) == ACME


async def test_the_same_key_in_two_carriers_is_one_key() -> None:
    assert await Identifier(keys=keys()).identify(scope(bearer(GOOD), (b"x-api-key", GOOD.encode()))) == ACME


async def test_several_different_keys_of_ours_are_refused() -> None:
    request = scope(bearer(GOOD), (b"x-api-key", SECOND.encode()))
    assert await failure(Identifier(keys=keys(), default_tenant="d"), request) == AMBIGUOUS
    assert await failure(Identifier(keys=keys()), scope(bearer(GOOD), bearer(SECOND))) == AMBIGUOUS


async def test_a_key_of_ours_beside_a_foreign_one_counts() -> None:
    assert await Identifier(keys=keys()).identify(scope(bearer("sk-proj-1"), (b"x-api-key", GOOD.encode()))) == ACME


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", GOOD.encode()),
        (b"authorization", b"Token " + GOOD.encode()),
        (b"authorization", b"Bearer " + GOOD.encode() + b" trailing"),
        (b"authorization", b"Bearer other, Bearer " + GOOD.encode()),
        (b"x-api-key", b"Bearer " + GOOD.encode()),
    ],
)
async def test_a_key_of_ours_in_the_wrong_form_is_refused_rather_than_overlooked(header: Header) -> None:
    assert await failure(Identifier(keys=keys(), default_tenant="d"), scope(header)) == MALFORMED


@pytest.mark.parametrize(
    "header",
    [
        bearer("sk-proj-1234"),
        bearer("xsk-askii-good"),
        (b"authorization", b"Basic " + base64.b64encode(b"user:sk-askii-good")),
        (b"authorization", b""),
        (b"authorization", b"Bearer"),
        (b"x-forwarded-key", GOOD.encode()),
        (b"cookie", b"key=" + GOOD.encode()),
        (b"x-api-key", b"\xff\xfe"),
    ],
)
async def test_foreign_credentials_and_other_headers_are_not_found(header: Header) -> None:
    assert presented_secret(scope(header)["headers"]) is None
    assert await failure(Identifier(keys=keys()), scope(header)) == MISSING
    assert await Identifier(keys=keys(), default_tenant="d").identify(scope(header)) == Identity(
        tenant="d", source="default"
    )


PROBLEMS = [
    (GONE, "revoked"),
    (OLD, "expired"),
    (BAD, "unknown"),
    ("sk-askii-", "unknown"),
    ("sk-askii-\xe9", "unknown"),
    (GOOD + "x" * 70_000, "unknown"),
]


@pytest.mark.parametrize(("secret", "kind"), PROBLEMS, ids=[kind + str(len(secret)) for secret, kind in PROBLEMS])
async def test_a_key_that_fails_ends_the_search_whatever_other_sources_say(secret: str, kind: str) -> None:
    identifier = Identifier(
        ["state", "header:x-tenant-id", lambda _: "callable", "key"],
        keys=keys(),
        trusted_proxies=["203.0.113.0/24"],
        default_tenant="default",
    )
    others = {"state": {"tenant_id": "state"}}
    request = scope((b"x-tenant-id", b"header"), (b"x-api-key", secret.encode("latin-1")), **others)
    found = await failure(identifier, request)
    assert (found.kind, found.status) == (kind, 401)
    assert secret not in found.message


async def test_a_good_key_waits_for_its_turn_among_the_sources() -> None:
    request = scope(bearer(GOOD), state={"tenant_id": "by-state"})
    by_state = Identity(tenant="by-state", source="state")
    assert await Identifier(["state", "key"], keys=keys()).identify(request) == by_state
    assert await Identifier(["key", "state"], keys=keys()).identify(request) == ACME
    assert await Identifier(["key", "state"], keys=keys()).identify(scope(state={"tenant_id": "by-state"})) == by_state


async def test_where_keys_are_no_source_nobody_judges_them() -> None:
    assert await Identifier(["state"], keys=keys()).identify(scope(bearer(BAD), state={"tenant_id": "t"})) == Identity(
        tenant="t", source="state"
    )


async def test_nothing_found_is_a_failure_that_says_what_to_send_or_the_default_tenant() -> None:
    found = await failure(Identifier(keys=keys()), scope())
    assert (found.kind, found.status) == ("missing", 401)
    assert "Authorization: Bearer sk-askii-" in found.message
    assert await Identifier(keys=keys(), default_tenant="acme").identify(scope()) == Identity(
        tenant="acme", source="default"
    )


async def test_a_stored_key_with_unusable_values_fails_clearly() -> None:
    row = KeyRow(id="k", sha256=hash_secret(GOOD), tenant="t" * 300)
    found = await failure(Identifier(keys=KeyDirectory([row])), scope(bearer(GOOD)))
    assert found.kind == "invalid"
    assert "256 characters" in found.message


# State ---------------------------------------------------------------------------------------------------------------


class Bare:
    tenant_id = "acme"


@pytest.mark.parametrize("state", [{"tenant_id": "acme"}, State({"tenant_id": "acme"}), Bare()])
async def test_the_tenant_comes_from_a_state_of_any_make(state: object) -> None:
    assert await Identifier(["state"]).identify(scope(state=state)) == Identity(tenant="acme", source="state")


async def test_state_may_also_name_user_team_end_user_and_tags() -> None:
    state = {"tenant_id": "acme", "user_id": 42, "team_id": UUID(int=7), "end_user_id": "eve", "tags": ["a", "b"]}
    assert await Identifier(["state"]).identify(scope(state=state)) == Identity(
        tenant="acme",
        user="42",
        team="00000000-0000-0000-0000-000000000007",
        end_user="eve",
        tags=("a", "b"),
        source="state",
    )


async def test_the_attribute_can_have_another_name() -> None:
    identifier = Identifier(["state"], state_attribute="org")
    assert await identifier.identify(scope(state={"org": 0})) == Identity(tenant="0", source="state")
    assert await failure(identifier, scope(state={"tenant_id": "acme"})) == MISSING


@pytest.mark.parametrize("state", [{}, State(), {"tenant_id": None}, {"tenant_id": ""}, None, object()])
async def test_an_empty_state_is_not_found(state: object) -> None:
    assert await failure(Identifier(["state"]), scope(state=state)) == MISSING


async def test_a_scope_without_state_is_not_found() -> None:
    request = scope()
    del request["state"]
    assert await failure(Identifier(["state"]), request) == MISSING


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"tenant_id": "t" * 257}, "tenant must be text of at most 256"),
        ({"tenant_id": "a\0b"}, "tenant must be text"),
        ({"tenant_id": True}, "tenant must be text"),
        ({"tenant_id": b"acme"}, "tenant must be text"),
        ({"tenant_id": ["acme"]}, "tenant must be text"),
        ({"tenant_id": "acme", "user_id": "u" * 257}, "user must be text"),
        ({"tenant_id": "acme", "tags": "batch"}, "tags must be a list"),
        ({"tenant_id": "acme", "tags": [1]}, "tags must be a list"),
        ({"tenant_id": "acme", "tags": [""]}, "tags"),
        ({"tenant_id": "acme", "tags": [str(n) for n in range(17)]}, "at most 16 tags"),
    ],
)
async def test_values_out_of_bounds_fail_clearly_and_are_not_replaced_by_the_default(
    state: dict[str, object], named: str
) -> None:
    found = await failure(Identifier(["state"], default_tenant="d"), scope(state=state))
    assert found.kind == "invalid"
    assert named in found.message


# Headers of proxies --------------------------------------------------------------------------------------------------

TENANT = (b"x-tenant-id", b"acme")
BY_HEADER = Identity(tenant="acme", source="header")


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


# Configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sources": ["key"]}, "key directory"),
        ({"sources": ["jwt"]}, "jwt"),
        ({"sources": ["cookie"]}, "cookie"),
        ({"sources": ["header:"]}, "header:"),
        ({"sources": [], "trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies"),
        ({"sources": [], "default_tenant": "t" * 257}, "default_tenant"),
        ({"sources": [], "default_tenant": ""}, "default_tenant"),
    ],
)
def test_an_unusable_configuration_is_refused_at_once(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Identifier(**options)


async def test_settings_build_the_same_sources() -> None:
    settings = Settings(
        identity={
            "sources": ["key", "state", "header:x-tenant-id"],
            "trusted_proxies": ["10.0.0.0/8"],
            "state_attribute": "org",
        },
        default_tenant="default",
        keys=[{"id": "k9", "sha256": hash_secret(GOOD), "tenant": "acme"}],
    )
    identifier = Identifier.from_settings(settings)
    assert await identifier.identify(scope(bearer(GOOD))) == Identity(tenant="acme", key="k9", source="key")
    assert await identifier.identify(scope(state={"org": "o"})) == Identity(tenant="o", source="state")
    assert await identifier.identify(scope(TENANT, client=("10.1.1.1", 1))) == BY_HEADER
    assert await identifier.identify(scope(TENANT)) == Identity(tenant="default", source="default")
    assert (await failure(identifier, scope(bearer(BAD)))).kind == "unknown"


# Late identity -------------------------------------------------------------------------------------------------------


def test_late_identity_reads_the_state_of_any_make() -> None:
    assert late_tenant({"state": {"tenant_id": "acme"}}) == "acme"
    assert late_tenant({"state": State({"org": 7})}, "org") == "7"
    empty: list[dict[str, Any]] = [
        {},
        {"state": {}},
        {"state": None},
        {"state": {"tenant_id": ""}},
        {"state": {"tenant_id": b"x"}},
        {"state": {"tenant_id": "t" * 257}},
    ]
    for nothing in empty:
        assert late_tenant(nothing) is None


async def test_a_fastapi_dependency_sets_the_tenant_only_after_the_middleware_looked() -> None:
    def authenticate(request: Request) -> None:
        request.state.tenant_id = "acme"

    app = FastAPI()

    @app.post("/v1/chat/completions", dependencies=[Depends(authenticate)])
    async def complete() -> dict[str, str]:
        return {}

    identifier, before, after = Identifier(["state"]), [], []

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        before.append(await identifier.identify(scope))
        await app(scope, receive, send)
        after.append(late_tenant(scope))

    async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://test") as client:
        assert (await client.post("/v1/chat/completions")).status_code == 200
    assert before == [MISSING]
    assert after == ["acme"]


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


# JSON Web Tokens -----------------------------------------------------------------------------------------------------

HS_SECRET = "a shared secret of at least 32 bytes"


def jwt_identifier(**table: Any) -> Identifier:
    pytest.importorskip("jwt", reason="the extra `jwt` is not installed")
    settings = Settings(
        identity={"sources": ["jwt", "state"], "jwt": {"secret": HS_SECRET, **table}}, default_tenant="d"
    )
    return Identifier.from_settings(settings, clock=lambda: 1000.0)


def token(claims: dict[str, Any], *, key: Any = HS_SECRET, algorithm: str | None = "HS256") -> Header:
    import jwt  # noqa: PLC0415 - an extra

    return bearer(jwt.encode(claims, key, algorithm=algorithm))


async def test_a_verified_token_names_tenant_and_user() -> None:
    identifier = jwt_identifier(tenant_claim="org")
    request = scope(token({"org": "acme", "sub": "u1", "exp": 1001}))
    for _ in range(2):
        assert await identifier.identify(request) == Identity(tenant="acme", user="u1", source="jwt")


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"tenant": "acme", "exp": 1000}, "expired"),
        ({"tenant": "acme", "exp": 2000, "nbf": 1001}, "not valid yet"),
        ({"tenant": "acme"}, "MissingRequiredClaim"),
        ({"sub": "u1", "exp": 2000}, "claim 'tenant'"),
        ({"tenant": "acme", "exp": float("nan")}, "no time"),
        ({"tenant": "acme", "exp": float("inf")}, "no time"),
        ({"tenant": "acme", "exp": "soon"}, "no time"),
    ],
)
async def test_a_token_of_ours_that_fails_ends_the_search(claims: dict[str, Any], named: str) -> None:
    found = await failure(jwt_identifier(), scope(token(claims), state={"tenant_id": "by-state"}))
    assert found.kind == "refused"
    assert named in found.message


async def test_audience_and_issuer_are_checked_where_configured() -> None:
    identifier = jwt_identifier(audience="askii", issuer="https://issuer.example")
    good = {"tenant": "acme", "exp": 2000, "aud": "askii", "iss": "https://issuer.example"}
    assert await identifier.identify(scope(token(good))) == Identity(tenant="acme", source="jwt")
    for wrong in ({"aud": "other"}, {"iss": "https://evil.example"}):
        assert (await failure(identifier, scope(token({**good, **wrong})))).kind == "refused"


async def test_leeway_moves_both_ends() -> None:
    identifier = jwt_identifier(leeway_s=5)
    for claims in ({"tenant": "acme", "exp": 996}, {"tenant": "acme", "exp": 2000, "nbf": 1005}):
        assert await identifier.identify(scope(token(claims))) == Identity(tenant="acme", source="jwt")
    assert (await failure(identifier, scope(token({"tenant": "acme", "exp": 995})))).kind == "refused"


async def test_a_token_somebody_else_signed_is_not_found() -> None:
    claims = {"tenant": "evil", "exp": 2000}
    default = Identity(tenant="d", source="default")
    identifier = jwt_identifier()
    other = token(claims, key="another secret of at least 32 bytes!")
    unsigned = token(claims, key=None, algorithm="none")
    tampered = (other[0], other[1][:-4] + b"AAAA")
    for header in (other, unsigned, tampered, bearer("a.b.c"), bearer("sk-proj-1"), bearer("x" * 20_000)):
        assert await identifier.identify(scope(header)) == default


async def test_a_public_key_does_not_verify_tokens_signed_with_it_as_a_secret() -> None:
    pytest.importorskip("jwt", reason="the extra `jwt` is not installed")
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415 - an extra

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    settings = Settings(identity={"sources": ["jwt"], "jwt": {"public_key": pem.decode()}})
    identifier = Identifier.from_settings(settings, clock=lambda: 1000.0)
    claims = {"tenant": "acme", "exp": 2000}
    assert await identifier.identify(scope(token(claims, key=private, algorithm="RS256"))) == Identity(
        tenant="acme", source="jwt"
    )
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    import hmac  # noqa: PLC0415 - only for the forgery

    mac = base64.urlsafe_b64encode(hmac.digest(pem, head + b"." + body, "sha256")).rstrip(b"=")
    forged = (b"authorization", b"Bearer " + head + b"." + body + b"." + mac)
    assert await failure(identifier, scope(forged)) == MISSING


async def test_two_different_tokens_are_refused_and_verified_ones_are_forgotten_in_turn() -> None:
    identifier = jwt_identifier()
    one, two = (token({"tenant": name, "exp": 2000}) for name in ("one", "two"))
    assert (await failure(identifier, scope(one, two))).kind == "ambiguous"
    assert await identifier.identify(scope(one, one)) == Identity(tenant="one", source="jwt")

    from askii_middleware.jwt_tokens import JwtVerifier  # noqa: PLC0415 - an extra

    verifier = JwtVerifier(HS_SECRET, algorithm="HS256", clock=lambda: 1000.0, max_entries=3)
    for n in range(9):
        assert verifier.verify(token({"tenant": str(n), "exp": 2000})[1].removeprefix(b"Bearer ")) == {
            "tenant": str(n),
            "user": None,
        }
    assert len(verifier._verified) == 3


def test_a_key_that_is_none_is_a_configuration_error() -> None:
    pytest.importorskip("jwt", reason="the extra `jwt` is not installed")
    from askii_middleware.jwt_tokens import JwtVerifier  # noqa: PLC0415 - an extra

    with pytest.raises(ConfigurationError, match="RS256") as raised:
        JwtVerifier("not a PEM at all", algorithm="RS256")
    assert "PEM" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="none"):
        JwtVerifier(HS_SECRET, algorithm="none")


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    settings = Settings(identity={"sources": ["jwt"], "jwt": {"secret": HS_SECRET}})
    with pytest.raises(MissingExtraError, match=r"askii-middleware\[jwt\]"):
        Identifier.from_settings(settings)
