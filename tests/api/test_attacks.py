"""What attackers send: too much, too slowly, twice, in disguise."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import logging
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from askii_middleware.api import tenants
from askii_middleware.api.access import Access
from askii_middleware.api.app import api_app
from askii_middleware.api.desk import Desk
from askii_middleware.api.operation import BODY_BYTES
from askii_middleware.api.pricing import PRICING_BYTES
from askii_middleware.api.resource import Resource
from askii_middleware.api.table import OPERATIONS
from askii_middleware.budgets import scope_text
from askii_middleware.errors import StoreError

from ..support.servers import serving
from ..support.service import Clock, faulty, make_tracker
from .support import ADMIN, ADMIN_HEADERS, bench

HOSTILE = (
    *(
        "..",
        "../billing/pricing",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "%00",
        "k1%00",
        "%ff%fe",
        "%ed%a0%80",
        "%0d%0ax:y",
    ),
    *("' OR 1=1 --", "k1'; DROP TABLE keys; --", '" OR ""="', "k1 UNION SELECT sha256 FROM keys", "*", "k%", "k_"),
    *(
        "{{7*7}}",
        "${jndi:ldap://x}",
        "<script>alert(1)</script>",
        "k1/",
        "/k1",
        "k1/usage/usage",
        "%2fk1",
        "a" * 10_240,
    ),
    *("key=%2A", "\u202ek1", "%F0%9F%92%A9", ";", "k1;x=y", "k1?x", "\\..\\x"),
)
JSON_BODIES = [operation for operation in OPERATIONS if operation.body.__name__ != "NoBody"]


def path_of(operation: Any, part: str = "k1") -> str:
    path: str = operation.path
    for name in ("{key_id}", "{tenant}", "{sink}"):
        path = path.replace(name, part)
    return path


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_hostile_ids_are_ids_that_nobody_has(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        await b.key("k1", user="ann")
        for operation in OPERATIONS:
            if "{key_id}" not in operation.path and "{sink}" not in operation.path:
                continue
            for hostile in HOSTILE:
                body = {"key_id": hostile, "max_budget": 1} if operation.name == "put_key_budget" else {}
                status, _, text = await b.raw(operation.method, path_of(operation, hostile), json.dumps(body).encode())
                assert status in (404, 405, 422), (operation.name, hostile, text)
        listed = await b.get("/api/keys")
        assert [(key["id"], key["revoked"]) for key in listed["keys"]] == [("k1", False)]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_hostile_tenants_and_parameters_are_never_a_server_error(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        for operation in OPERATIONS:
            for hostile in HOSTILE:
                query = "&".join(f"{name}={hostile}" for name in operation.query.model_fields)
                target = f"{path_of(operation, hostile)}?{quote(query, safe='=&%')}"
                status, headers, text = await b.raw(operation.method, target, b"{}")
                assert status < 500, (operation.name, hostile, text)
                assert not {"set-cookie", "y"} & set(headers)


async def test_a_tenant_with_a_slash_in_its_name_can_be_addressed(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        answer = await b.ask("POST", "/api/tenants/acme%2Feu/suspend", json={})
        assert answer.json() == {"tenant": "acme/eu", "state": "suspended"}
        assert [state.tenant for state in await b.tracker.tenant_states()] == ["acme/eu"]
        await b.ask("POST", "/api/tenants/acme/suspend", json={})
        for path in ("/api/tenants/acme%2F", "/api/tenants/acme/"):
            assert (await b.raw("GET", path))[2].startswith(b'{"tenant":"acme/","state":"active"')


@pytest.mark.parametrize("operation", JSON_BODIES, ids=lambda operation: operation.name)
async def test_bodies_that_are_none_are_refused_by_name(operation: Any, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        await b.tracker.store.register_sinks(["k1"])
        path = path_of(operation)
        for content in (
            b"{",
            b"[]",
            b'"x"',
            b"1",
            b'{"limit_usd": NaN}',
            b"\xff\xfe{}",
            b'{"a": "\\ud800"}',
            b"[" * 5000,
        ):
            answer = await b.ask(
                operation.method, path, content=content, headers={**ADMIN_HEADERS, "content-type": "application/json"}
            )
            assert answer.status_code == 422, (content[:20], answer.text)
        unknown = await b.ask(operation.method, path, json={"surprise": {"surprise": 1}})
        assert unknown.status_code == 422
        assert "surprise" in unknown.text
        for content_type in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonx",
            "multipart/form-data",
        ):
            answer = await b.ask(
                operation.method, path, content=b"{}", headers={**ADMIN_HEADERS, "content-type": content_type}
            )
            assert answer.status_code == 415, content_type


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"tenant": "acme", "tenant": "globex"}', "tenant"),
        (b'{"tenant": "acme", "t\\u0065nant": "globex"}', "tenant"),
        (b'{"gpt-x": {"input_usd_per_mtok": 1, "input_usd_per_mtok": 2}}', "input_usd_per_mtok"),
        (b'{"a": [{"b": {}, "b": {}}]}', "b"),
        (b'{"a\\n": 1, "a\\n": 1}', r"'a\n'"),
    ],
)
async def test_a_name_that_a_body_has_twice_is_refused(content: bytes, name: str, tmp_path: Path) -> None:
    headers = {**ADMIN_HEADERS, "content-type": "application/json"}
    async with bench(tmp_path) as b:
        for method, path in (("POST", "/api/keys"), ("PUT", "/api/billing/pricing")):
            answer = await b.ask(method, path, content=content, headers=headers)
            assert answer.status_code == 422
            assert answer.json()["error"]["message"] == f"{name}: was given twice"
        assert await b.tracker.keys.list() == []


async def test_a_number_that_would_be_read_as_infinite_is_refused(tmp_path: Path) -> None:
    headers = {**ADMIN_HEADERS, "content-type": "application/json"}
    async with bench(tmp_path) as b:
        for content in (b'{"gpt-x": {"input_usd_per_mtok": 1e999}}', b'{"gpt-x": {"a": [-1e999]}}'):
            answer = await b.ask("PUT", "/api/billing/pricing", content=content, headers=headers)
            assert answer.status_code == 422
            assert answer.json()["error"]["message"] == "body: has a number that is too large"


async def test_unknown_and_repeated_parameters_are_named(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        for query, name in (
            ("surprise=1", "surprise"),
            ("limit=1&limit=2", "limit"),
            ("limit=x", "limit"),
            ("limit=1001", "limit"),
        ):
            answer = await b.ask("GET", f"/api/keys?{query}")
            assert (answer.status_code, answer.json()["error"]["fields"][0]["name"]) == (422, name)
        assert (await b.ask("GET", "/api/keys?" + "&".join(f"a{n}=1" for n in range(100)))).status_code == 422


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("path", "most"), [("/api/billing/budgets", BODY_BYTES), ("/api/billing/pricing", PRICING_BYTES)]
)
async def test_an_oversized_body_is_not_read_to_its_end(path: str, most: int, announced: bool) -> None:
    tracker = make_tracker("memory://")
    read, sent = 0, []
    headers = [(b"authorization", f"Bearer {ADMIN}".encode()), (b"content-type", b"application/json")]
    if announced:
        headers.append((b"content-length", str(1 << 40).encode()))

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 65_536
        return {"type": "http.request", "body": b" " * 65_536, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    await api_app(tracker, ADMIN, dashboard=False)(scope, receive, send)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert read == (0 if announced else most + 65_536)


async def test_a_slow_body_over_a_socket_ends_in_408() -> None:
    tracker = make_tracker("memory://")
    async with serving(api_app(tracker, ADMIN, dashboard=False, body_s=0.2)) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"PUT /api/billing/budgets HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN}\r\n"
            "content-type: application/json\r\ncontent-length: 100\r\n\r\n{".encode()
        )
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"


async def test_a_client_that_leaves_changes_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {ADMIN}".encode()), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/keys",
            "headers": headers,
            "query_string": b"",
            "root_path": "",
        }
        await b.app(scope, receive, send)
        assert sent == []
        assert await b.tracker.keys.list() == []


async def test_methods_that_are_none_name_those_that_are(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        for method in ("PATCH", "OPTIONS", "TRACE", "PUT"):
            answer = await b.ask(method, "/api/keys", headers={**ADMIN_HEADERS, "origin": "http://evil"})
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_head_is_get_without_a_body(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        for path in ("/api/keys", "/api/keys/k1", "/api/billing/report?format=csv", "/api/tenants/acme/export"):
            got, head = await b.ask("GET", path), await b.ask("HEAD", path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers == got.headers


async def test_every_answer_is_kept_from_caches_and_sniffers(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        for path, headers in (
            ("/api/keys", ADMIN_HEADERS),
            ("/api/keys", {}),
            ("/nope", ADMIN_HEADERS),
            ("/openapi.json", {}),
        ):
            answer = await b.ask("GET", path, headers=headers)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"


# Names that others chose ----------------------------------------------------------------------------------------------

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://evil","x")')


async def test_names_that_are_formulas_are_text_in_csv(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        for user in (*FORMULAS, 'a,b\r\nc"d'):
            await b.use(user=user, tokens=10)
        answer = await b.ask("GET", "/api/billing/report?format=csv&scope=tenant%3Dacme")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    file_name = "askii-report-tenant_acme-2026-01-01-2026-01-01.csv"
    assert answer.headers["content-disposition"] == f'attachment; filename="{file_name}"'
    rows = list(csv.reader(io.StringIO(answer.text, newline="")))
    assert rows[0] == ["part", "value", "requests", "input_tokens", "output_tokens", "cost_usd", "cost_askii_coins"]
    assert rows[1] == ["total", "total", "8", "80", "0", "0.00008", "80"]
    users = {row[1] for row in rows if row[0] == "user"}
    assert users == {*(f"'{formula}" for formula in FORMULAS), 'a,b\r\nc"d'}
    assert {len(row) for row in rows} == {7}


@pytest.mark.parametrize(
    ("tenant", "part"),
    [
        ('x"\r\nset-cookie: a=b', "x__0D_0Aset-cookie__20a_3Db"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("Z\u00fcrich", "Z_C3_BCrich"),
        ("a" * 100, "a" * 53),
    ],
)
async def test_of_names_only_what_is_safe_gets_into_a_header(tenant: str, part: str, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.use(tenant, tokens=10)
        scope, path = quote(scope_text({"tenant": tenant}), safe=""), quote(tenant, safe="")
        for target, name in (
            (f"/api/billing/report?format=csv&scope={scope}", f"askii-report-tenant_{part}-2026-01-01-2026-01-01.csv"),
            # No path leads to a name with a line break.
            (f"/api/tenants/{path}/export", None if "\n" in tenant else f"askii-tenant_{part}.jsonl"),
            (f"/api/tenants/{path}", None),
        ):
            status, headers, text = await b.raw("GET", target)
            assert "set-cookie" not in headers
            assert "\n" not in "".join(headers.values())
            if name is not None:
                assert status == 200, text
                assert headers["content-disposition"] == f'attachment; filename="{name}"'


# A ledger that is away ------------------------------------------------------------------------------------------------


async def test_a_ledger_that_is_away_is_a_503_that_says_when_to_come_back(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store = faulty("memory", tmp_path, Clock())
    tracker = make_tracker(store)
    async with bench_of(tracker) as ask:
        store.down = True
        for operation in OPERATIONS:
            query = {
                "get_usage_stats": "?tenant=acme",
                "get_budget_status": "?scope=global",
                "remove_budget": "?scope=global",
            }
            query |= {"remove_price": "?model=m", "explain": "?model=big&tenant=acme"}
            body = {"create_key": {"tenant": "acme"}, "put_key_budget": {"key_id": "k1", "max_budget": 1}}
            body |= {"put_budget": {"scope": "global"}, "put_pricing": {"m": {"input_usd_per_mtok": 1}}}
            with caplog.at_level(logging.CRITICAL):
                answer = await ask(
                    operation.method,
                    path_of(operation) + query.get(operation.name, ""),
                    body.get(operation.name, {}) if operation in JSON_BODIES else None,
                )
            if operation.name == "get_pricing" and answer.status_code == 200:
                continue
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), (operation.name, answer.text)
            assert answer.json()["error"]["code"] == "ledger_unavailable"
            assert "as the test wants" not in answer.text
        store.down = False


@pytest.mark.parametrize(
    ("operation", "credential"), [("find_key", "sk-askii-nobody"), ("keys", ADMIN)], ids=["who", "what"]
)
async def test_a_ledger_that_does_not_answer_is_given_up(
    operation: str, credential: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with bench(tmp_path) as b:

        async def hanging(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(b.tracker.store, operation, hanging)
        listing = next(each for each in OPERATIONS if each.name == "list_keys")
        desk = Desk(b.tracker, Access(ADMIN, b.tracker.keys.directory, ready=b.tracker.ready))
        transport = httpx.ASGITransport(Resource(desk, [listing], answer_s=0.02))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            headers = {"authorization": f"Bearer {credential}"}
            answer = await asyncio.wait_for(client.get("/api/keys", headers=headers), 5)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")


def bench_of(tracker: Any) -> Any:
    @asynccontextmanager
    async def opened() -> Any:
        async with tracker:
            transport = httpx.ASGITransport(api_app(tracker, ADMIN, dashboard=False), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=ADMIN_HEADERS) as client:

                async def ask(method: str, path: str, body: Any) -> httpx.Response:
                    return await client.request(method, path, json=body)

                yield ask

    return opened()


async def test_a_defect_is_a_500_that_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as b:

        async def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("a secret detail")

        monkeypatch.setattr(b.tracker.keys, "list", broken)
        answer = await b.ask("GET", "/api/keys")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if vars(record).get("askii_event") == "api_failed"]
    assert record.exc_info is not None


async def test_a_ledger_that_goes_away_in_the_middle_of_a_download_cuts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def half(_tracker: Any, _tenant: str) -> Any:
        for _ in range(3):
            yield b"x" * 70_000
        raise StoreError("gone")

    monkeypatch.setattr(tenants, "exported", half)
    async with bench(tmp_path) as b:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/api/tenants/acme/export",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"authorization", f"Bearer {ADMIN}".encode())],
        }
        with pytest.raises(StoreError, match="gone"):
            await b.app(scope, receive, send)
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert sent[-1]["more_body"] is True
