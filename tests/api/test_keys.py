"""Keys: made, listed, shown with their spend, rotated, revoked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from askii_middleware.api import keys as keys_module

from ..support.service import both_stores
from .support import ADMIN_HEADERS, bench

DAY_S = 86_400


@both_stores
async def test_a_secret_is_shown_once_and_opens_the_key(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        body = {"tenant": "acme", "id": "k1", "name": "Reports", "user": "ann", "team": "core", "tags": ["x"]}
        made = await b.ask("POST", "/api/keys", json={**body, "models": ["big"], "expires_at": "2026-02-01T00:00:00Z"})
        assert made.status_code == 201
        told = made.json()
        secret = told.pop("secret")
        assert secret.startswith("sk-askii-")
        assert told == {
            **body,
            "models": ["big"],
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-02-01T00:00:00Z",
            "revoked": False,
            "former_until": None,
            "source": "store",
        }
        own = await b.ask("GET", "/api/keys/k1", headers={"x-api-key": secret})
        assert own.json() == {**told, "spent": 0.0, "spent_usd": "0", "spent_coins": "0", "spent_period": "daily"}
        for path in ("/api/keys", "/api/keys/k1"):
            assert secret not in (await b.ask("GET", path)).text
            assert "sha256" not in (await b.ask("GET", path)).text


async def test_an_id_that_is_taken_is_a_conflict(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        answer = await b.ask("POST", "/api/keys", json={"tenant": "globex", "id": "k1"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a" * 257}, "tenant"),
        ({"tenant": "a\0"}, "tenant"),
        ({"tenant": 5}, "tenant"),
        ({"tenant": "a", "id": "../x"}, "id"),
        ({"tenant": "a", "id": ".."}, "id"),
        ({"tenant": "a", "id": "k\n"}, "id"),
        ({"tenant": "a", "id": "k" * 257}, "id"),
        ({"tenant": "a", "secret": "sk-askii-mine"}, "secret"),
        ({"tenant": "a", "tags": ["t"] * 17}, "tags"),
        ({"tenant": "a", "expires_at": "2027-01-01T00:00:00"}, "expires_at"),
        ({"tenant": "a", "expires_at": "2025-01-01T00:00:00Z"}, "body"),
        ({"tenant": "a", "name": "a\nb"}, "body"),
    ],
)
async def test_what_is_no_key_is_refused_by_field(body: dict[str, Any], field: str, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        answer = await b.ask("POST", "/api/keys", json=body)
        assert answer.status_code == 422
        assert [wrong["name"] for wrong in answer.json()["error"]["fields"]] == [field]
        assert "sk-askii-mine" not in answer.text


@both_stores
async def test_keys_come_in_pages_by_id(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "BATCH", 2)
    async with bench(tmp_path, kind) as b:
        for n in range(7):
            await b.key(f"k{n}", "acme" if n % 2 else "globex", user="ann" if n in (1, 2, 6) else None)

        async def listed(query: str, **headers: str) -> tuple[list[str], str | None]:
            found = await b.get(f"/api/keys?{query}", headers={**ADMIN_HEADERS, **headers})
            return [key["id"] for key in found["keys"]], found["next"]

        assert await listed("limit=3") == (["k0", "k1", "k2"], "k2")
        assert await listed("limit=3&after=k2") == (["k3", "k4", "k5"], "k5")
        assert await listed("limit=3&after=k5") == (["k6"], None)
        assert await listed("tenant=acme") == (["k1", "k3", "k5"], None)
        assert await listed("limit=2", **{"x-user-id": "ann"}) == (["k1", "k2"], "k2")
        assert await listed("limit=2&after=k2", **{"x-user-id": "ann"}) == (["k6"], None)
        monkeypatch.setattr(keys_module, "SCANNED", 4)
        assert await listed("limit=3", **{"x-user-id": "ann"}) == (["k1", "k2"], "k2")


@both_stores
async def test_the_next_page_of_a_user_is_never_named_by_somebody_elses_key(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "BATCH", 2)
    monkeypatch.setattr(keys_module, "SCANNED", 2)
    async with bench(tmp_path, kind) as b:
        for n in range(16):
            await b.key(f"k{n:02}", user="ann" if n in (5, 6, 12) else "bob")
        headers = {**ADMIN_HEADERS, "x-user-id": "ann"}
        after, pages = "", []
        while after is not None:
            found = await b.get(f"/api/keys?limit=2&after={after}", headers=headers)
            after = found["next"]
            pages.append(([key["id"] for key in found["keys"]], after))
        assert pages == [(["k05"], "k05"), (["k06"], "k06"), (["k12"], "k12"), ([], None)]
        assert await b.get("/api/keys?after=k12", headers=headers) == {"keys": [], "next": None}


@both_stores
async def test_a_rotated_key_keeps_its_spend_and_both_secrets_open_it_for_a_while(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        await b.key("k1")
        await b.use(key="k1", tokens=1500)
        rotated = (await b.ask("POST", "/api/keys/k1/rotate", json={"overlap_s": 60})).json()
        assert rotated["former_until"] == "2026-01-01T00:01:00Z"
        old, new = b.bearer("k1"), {"authorization": f"Bearer {rotated['secret']}"}
        for headers in (old, new):
            assert (await b.get("/api/keys/k1", headers=headers))["spent_usd"] == "0.0015"
        b.clock.advance(60)
        assert (await b.ask("GET", "/api/keys/k1", headers=old)).status_code == 401
        assert (await b.ask("GET", "/api/keys/k1", headers=new)).status_code == 200


async def test_a_rotation_without_a_body_overlaps_for_a_day(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        rotated = (await b.ask("POST", "/api/keys/k1/rotate")).json()
        assert rotated["former_until"] == "2026-01-02T00:00:00Z"


async def test_a_revoked_key_is_listed_and_opens_nothing_and_cannot_be_rotated(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        assert (await b.ask("GET", "/api/keys/k1", headers=b.bearer("k1"))).status_code == 200
        assert (await b.ask("DELETE", "/api/keys/k1")).json() == {"id": "k1", "revoked": True}
        assert (await b.ask("GET", "/api/keys/k1", headers=b.bearer("k1"))).status_code == 401
        assert (await b.get("/api/keys/k1"))["revoked"] is True
        assert (await b.ask("POST", "/api/keys/k1/rotate")).status_code == 409
        assert (await b.ask("DELETE", "/api/keys/none")).status_code == 404


async def test_text_that_cannot_be_kept_is_told_of_under_its_own_name(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        answer = await b.ask("POST", "/api/keys", json={"tenant": "acme", "team": "a\0b"})
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == "team: must be text of at most 256 characters without NUL"


async def test_an_id_or_period_that_is_none_is_told_what_it_may_be_in_words(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        answer = await b.ask("POST", "/api/keys", json={"tenant": "acme", "id": "a b"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            422,
            "id: expected 1 to 256 of the letters A to Z and a to z, digits and _ . : @ + -, the first of them no dot",
        )
        answer = await b.ask("GET", "/api/billing/budget/k1?period=hourly")
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            422,
            "period: expected daily, weekly, monthly, yearly, total, or a length as in 30m, 12h or 7d",
        )
        shapes = (await b.get("/openapi.json"))["components"]["schemas"]["NewKeyBody"]["properties"]["id"]["anyOf"]
        assert shapes[0]["pattern"].startswith("^[A-Za-z0-9")
