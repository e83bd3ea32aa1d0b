"""Who may ask what: every operation for every kind of caller, from the table itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import Identity
from askii_middleware.api import access as access_module
from askii_middleware.api.access import Access, Admin, KeyHolder, Member
from askii_middleware.api.operation import Operation
from askii_middleware.api.table import OPERATIONS
from askii_middleware.errors import ConfigurationError
from askii_middleware.keys import KeyDirectory, hash_secret
from askii_middleware.stores.base import KeyRow

from ..support.service import Clock
from .support import ADMIN, ADMIN_HEADERS, Bench, bench

UNAUTHORIZED = {
    "error": {
        "code": "unauthorized",
        "message": "send the admin token or an API key, as in 'Authorization: Bearer …'",
        "fields": [],
    }
}
NOT_FOUND = {"error": {"code": "not_found", "message": "not found", "fields": []}}
QUERIES: dict[str, dict[str, str]] = {
    "get_usage_stats": {"tenant": "acme"},
    "get_budget_status": {"scope": "tenant=acme"},
    "remove_budget": {"scope": "tenant=acme"},
    "remove_price": {"model": "mine"},
    "explain": {"model": "big", "tenant": "acme"},
}
BODIES: dict[str, Any] = {
    "put_key_budget": {"key_id": "k1", "max_budget": 1},
    "put_budget": {"scope": "tenant=acme", "limit_usd": 2},
    "put_pricing": {"mine": {"input_usd_per_mtok": 1}},
    "create_key": {"tenant": "acme"},
    "rotate_key": {"overlap_s": 60},
    "suspend_tenant": {"reason": "late"},
    "retry_dead_letters": {},
}
IDS = {"{key_id}": "k1", "{tenant}": "acme", "{sink}": "memory"}
OWN_KEY = {
    *("get_usage_stats", "get_spend", "get_key_usage", "get_key_budget", "get_key", "get_report", "list_alerts"),
    "explain",
}
"""What a key may ask about itself."""
ABOUT_NOTHING = {"get_usage_stats", "get_report", "list_alerts", "explain"}
"""Without an id in the path: another key gets its own."""
FOR_USER = {
    *("get_spend", "get_key_usage", "get_key_budget", "put_key_budget", "list_keys", "create_key", "rotate_key"),
    *("get_key", "revoke_key", "get_report"),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


async def asked(bench: Bench, operation: Operation[Any, Any], headers: dict[str, str], **query: str) -> Any:
    path = operation.path
    for part, value in IDS.items():
        path = path.replace(part, value)
    return await bench.ask(
        operation.method,
        path,
        headers=headers,
        params=QUERIES.get(operation.name, {}) | query,
        json=BODIES.get(operation.name),
    )


async def furnished(bench: Bench) -> None:
    await bench.key("k1", user="ann")
    await bench.key("k2", "globex", user="bob")
    await bench.tracker.budget_enforcer.set_daily_budget("acme", 1)
    await bench.tracker.price_desk.load({"mine": {"input_usd_per_mtok": 2}})
    await bench.tracker.store.register_sinks(["memory"])


@each_operation
async def test_strangers_and_wrong_tokens_get_401_everywhere(operation: Any, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await furnished(b)
        for headers in (
            {},
            {"authorization": f"Bearer {ADMIN[:-1]}x"},
            {"authorization": f"Bearer {ADMIN}x"},
            {"authorization": f"Basic {ADMIN}"},
            {"authorization": "Bearer sk-askii-unknown"},
            {"x-user-id": "ann"},
            {"authorization": f"Bearer {ADMIN}", "x-api-key": b.secrets["k1"]},
        ):
            answer = await asked(b, operation, headers)
            assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)
            assert answer.headers["www-authenticate"] == "Bearer"


@each_operation
async def test_a_key_may_look_at_itself_and_do_nothing_else(operation: Any, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await furnished(b)
        answer = await asked(b, operation, b.bearer("k1"))
        if operation.name in OWN_KEY:
            assert answer.status_code == 200, answer.text
        else:
            assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


@each_operation
async def test_a_key_of_another_tenant_finds_nothing(operation: Any, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await furnished(b)
        about = {"scope": "key=k1"} if operation.name == "get_report" else {}
        about |= {"tenant": "acme"} if operation.name == "list_alerts" else {}
        answer = await asked(b, operation, b.bearer("k2"), **about)
        if operation.name == "list_alerts":
            assert answer.json() == {"alerts": []}
        else:
            assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


@each_operation
async def test_the_admin_may_ask_everything(operation: Any, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await furnished(b)
        answer = await asked(b, operation, ADMIN_HEADERS)
        assert answer.status_code == operation.status, answer.text


@each_operation
async def test_an_admin_for_a_user_sees_that_users_keys_only(operation: Any, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await furnished(b)
        own = await asked(b, operation, {**ADMIN_HEADERS, "x-user-id": "ann"})
        if operation.name in FOR_USER:
            assert own.status_code == operation.status, own.text
        else:
            assert (own.status_code, own.json()) == (404, NOT_FOUND)
        for other in ("bob", "", " ", "\t", "a" * 257):
            answer = await asked(b, operation, {**ADMIN_HEADERS, "x-user-id": other})
            if operation.name == "list_keys":
                listed = [key["id"] for key in answer.json()["keys"]]
                assert listed == (["k2"] if other == "bob" else [])
            elif operation.name == "get_report":
                assert answer.json()["total"]["requests"] == 0
            elif operation.name != "create_key":
                assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


@each_operation
async def test_a_revoked_or_expired_key_is_a_wrong_one(operation: Any, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await furnished(b)
        await b.key("k3", expires_at_s=b.clock() + 10)
        assert (await b.ask("DELETE", "/api/keys/k1")).json() == {"id": "k1", "revoked": True}
        b.clock.advance(10)
        for key in ("k1", "k3"):
            answer = await asked(b, operation, b.bearer(key))
            assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)


async def test_a_user_header_counts_only_with_the_admin_token(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await furnished(b)
        spoofed = await b.ask("GET", "/api/keys/k2", headers={**b.bearer("k1"), "x-user-id": "bob"})
        assert (spoofed.status_code, spoofed.json()) == (404, NOT_FOUND)
        own = await b.ask("GET", "/api/keys/k1", headers={**b.bearer("k1"), "x-user-id": "bob"})
        assert own.status_code == 200


async def test_a_key_made_for_a_user_is_that_users(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        headers = {**ADMIN_HEADERS, "x-user-id": "ann"}
        made = await b.ask("POST", "/api/keys", headers=headers, json={"tenant": "acme"})
        assert made.json()["user"] == "ann"
        other = await b.ask("POST", "/api/keys", headers=headers, json={"tenant": "acme", "user": "bob"})
        assert (other.status_code, other.json()) == (404, NOT_FOUND)


async def test_what_is_no_path_of_the_api_is_as_what_one_may_not_see(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await furnished(b)
        for path in ("/api/nothing", "/api", "/api/", "/", "/api/keys/k2", "/api/billing/spend/k2", "/api/keys/none"):
            answer = await b.ask("GET", path, headers=b.bearer("k1"))
            assert (answer.status_code, answer.json()) == (404, NOT_FOUND), path
            assert (await b.ask("GET", path, headers={})).status_code == 401


# Access by itself ----------------------------------------------------------------------------------------------------


def holder(**fields: Any) -> tuple[KeyRow, str]:
    secret = "sk-askii-of-a-test"
    return KeyRow(**{"id": "k", "sha256": hash_secret(secret), "tenant": "acme", **fields}), secret


async def test_callers_are_told_apart_by_what_they_show() -> None:
    row, secret = holder()
    access = Access(ADMIN, KeyDirectory([row]), clock=Clock())
    admin = (b"authorization", f"Bearer {ADMIN}".encode())
    assert await access.principal([admin]) == Admin(None)
    assert await access.principal([(b"X-Api-Key", ADMIN.encode())]) == Admin(None)
    assert await access.principal([admin, (b"X-User-ID", b"ann")]) == Admin("ann")
    assert await access.principal([(b"authorization", f"bearer  {secret}".encode())]) == KeyHolder(row)
    assert await access.principal([(b"x-api-key", secret.encode())]) == KeyHolder(row)
    assert await access.principal([admin, (b"x-api-key", secret.encode())]) is None
    assert await access.principal([(b"authorization", b"Bearer \xff\xfe")]) is None
    assert await access.principal([(b"authorization", b"Bearer " + b"x" * 100_000)]) is None
    assert access.is_admin_token(ADMIN)
    assert not access.is_admin_token(ADMIN + "\ud800")


async def test_the_admin_token_is_kept_as_a_digest_and_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def watched(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(access_module, "compare_digest", watched)
    access = Access(ADMIN, KeyDirectory(), clock=Clock())
    assert ADMIN not in repr(vars(access))
    guess = b"Bearer " + ADMIN.encode()[:-1] + b"?"
    assert await access.principal([(b"authorization", guess)]) is None
    assert [(len(left), len(right)) for left, right in compared] == [(32, 32)]


@pytest.mark.parametrize(
    "token", ["", "fifteen-letters", "x" * 1025, "with a space inside", "with-ümlauts-inside", "nul\0" * 8]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token: str) -> None:
    with pytest.raises(ConfigurationError, match=r"api\.admin_token"):
        Access(token, KeyDirectory())


async def test_the_application_may_name_the_tenant_of_callers_without_our_credentials() -> None:
    row, secret = holder(revoked=True)
    seen: list[Any] = []

    def state(scope: Any) -> str | None:
        seen.append(scope)
        tenant: str | None = scope["state"].get("tenant_id")
        return tenant

    access = Access(None, KeyDirectory([row]), identify=state, clock=Clock())
    scope = {"state": {"tenant_id": "acme"}}
    assert await access.principal([], scope) == Member("acme")
    assert await access.principal([(b"authorization", b"Bearer of-the-application")], scope) == Member("acme")
    assert await access.principal([], {"state": {}}) is None
    seen.clear()
    assert await access.principal([(b"x-api-key", secret.encode())], scope) is None
    assert seen == []


async def test_a_tenant_the_application_names_may_read_its_stats_only(tmp_path: Path) -> None:
    async with bench(tmp_path, identify=lambda _scope: "acme") as b:
        await furnished(b)
        for operation in OPERATIONS:
            answer = await asked(b, operation, {})
            assert answer.status_code == (200 if operation.name == "get_usage_stats" else 404)
        assert (await b.ask("GET", "/api/v1/usage/stats?tenant=globex", headers={})).status_code == 404


async def test_denied_requests_are_logged_once_a_minute_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    access = Access(ADMIN, KeyDirectory(), clock=clock)
    with caplog.at_level(logging.WARNING, logger="askii_middleware"):
        for _ in range(5):
            await access.principal([(b"authorization", b"Bearer a-guess-of-a-secret")])
        clock.advance(60)
        await access.principal([])
    lines = [vars(record) for record in caplog.records]
    assert [(line["askii_event"], line["askii_count"]) for line in lines] == [("api_denied", 1), ("api_denied", 5)]
    assert "a-guess-of-a-secret" not in caplog.text


def test_identities_bounds_are_those_of_users() -> None:
    assert Identity(tenant="-", user="a" * 256).user == "a" * 256
