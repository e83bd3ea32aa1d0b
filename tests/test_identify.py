"""Identity from keys of ours, from the state, by default, and too late."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from starlette.datastructures import State

from askii_middleware.errors import ConfigurationError
from askii_middleware.identify import (
    AMBIGUOUS,
    MALFORMED,
    MISSING,
    Identifier,
    late_tenant,
    presented_secret,
)
from askii_middleware.identity import Identity
from askii_middleware.keys import KeyDirectory, hash_secret
from askii_middleware.settings import Settings
from askii_middleware.stores.base import KeyRow

from .asgi_scopes import ACME, BAD, BY_HEADER, GONE, GOOD, OLD, SECOND, TENANT, Header, bearer, failure, keys, scope


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("ASKII_")]:
        monkeypatch.delenv(name)


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
