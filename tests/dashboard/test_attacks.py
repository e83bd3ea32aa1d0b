"""What strangers, other sites and hostile names can do to the dashboard: nothing."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from askii_middleware import Budget
from askii_middleware.budgets import scope_text
from askii_middleware.dashboard import Desk, routes
from askii_middleware.dashboard import visits as visiting
from askii_middleware.dashboard.sessions import Sessions
from askii_middleware.identity import Identity
from askii_middleware.model_price import ModelPrice
from askii_middleware.tracker import CostTracker

from .site import FORMS, PAGES, TOKEN, Picky, site

HOSTILE = """"><script>alert(1)</script><img src=x onerror=alert(1)>'{{7*7}}{% raw %}"""
KNOWN_TAGS = {
    *(
        "a",
        "body",
        "button",
        "code",
        "datalist",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
    ),
    *("head", "header", "html", "img", "input", "label", "li", "link", "main", "meta", "meter", "nav", "option", "p"),
    *("rect", "script", "section", "select", "span", "strong", "summary", "svg", "table", "tbody", "td", "th", "thead"),
    *("time", "title", "tr", "ul"),
}
"""What the pages are made of."""


class Read(HTMLParser):
    """Tags and attributes as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.scripts: list[str | None] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))


# Other sites ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FORMS)
async def test_a_form_without_its_sessions_token_is_refused(path: str) -> None:
    async with site(sinks=[Picky("nobody")]) as made:
        other = Sessions(TOKEN, session_s=60, clock=made.clock).begin(TOKEN)
        assert other is not None
        for csrf in ({}, {"csrf": ""}, {"csrf": other.csrf}, {"csrf": "\u00e9"}):
            fields = {"tenant": "acme", "scope": "tenant=acme", "limit": "1", "unit": "usd", "sink": "billing", **csrf}
            answer = await made.client.post(f"/askii{path}", data=fields)
            assert answer.status_code == 403
            assert "nothing was done" in answer.text
        assert await made.tracker.store.budgets() == []
        assert await made.tracker.keys.list() == []
        assert await made.tracker.tenant_states() == []
        assert (await made.get("/")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://ledger.example"}, 303),
        ({"Origin": "https://ledger.example"}, 303),  # a proxy may have taken the TLS away
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://ledger.example.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://ledger.example"}, 403),
        ({}, 303),
    ],
)
async def test_a_form_sent_by_another_site_is_refused(headers: dict[str, str], status: int) -> None:
    async with site() as made:
        fields = {"csrf": await made.csrf(), "tenant": "acme"}
        answer = await made.client.post("/askii/tenant/suspend", data=fields, headers=headers)
        assert answer.status_code == status
        assert len(await made.tracker.tenant_states()) == (status == 303)
        signed_in = await made.client.post("/askii/sign-in", data={"token": TOKEN}, headers=headers)
        assert signed_in.status_code == status


@pytest.mark.parametrize("path", FORMS)
async def test_nothing_is_changed_by_a_link(path: str) -> None:
    async with site() as made:
        answer = await made.get(f"{path}?tenant=acme&csrf={await made.csrf()}")
        assert answer.status_code in (200, 404)
        assert await made.tracker.tenant_states() == []


# Headers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, "/sign-in", "/static/x/app.css", "/static/x/none", "/tenant?name="])
async def test_every_answer_has_the_headers_that_bind_the_browser(path: str) -> None:
    async with site(signed_in=path != "/sign-in") as made:
        headers = (await made.get(path)).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "form-action 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"


async def test_no_page_needs_inline_code_or_another_host() -> None:
    async with site(sinks=[Picky("acme")]) as made:
        await made.call()
        for path in PAGES:
            read = Read((await made.get(path)).text)
            assert read.tags <= KNOWN_TAGS, path
            assert None not in read.scripts
            assert not {name for name in read.attributes if name.startswith(("on", "hx-on")) or name == "style"}
            assert all(link.startswith(("/askii/", "#main")) for link in read.links), read.links


async def test_static_files_are_kept_for_good_under_their_version_only() -> None:
    async with site(signed_in=False) as made:
        page = (await made.get("/sign-in")).text
        (style,) = re.findall(r'href="(/askii/static/[0-9a-f]{12}/app\.css)"', page)
        answer = await made.client.get(style)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"] == "text/css; charset=utf-8"
        for name in ("vendor/htmx/LICENSE", "vendor/uplot/LICENSE", "vendor/htmx/htmx.min.js", "icon.svg", "app.js"):
            assert (await made.get(f"/static/x/{name}")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../desk.py",
            "..%2fdesk.py",
            "%2e%2e/desk.py",
            "..%5cdesk.py",
            "vendor/../../desk.py",
            "/etc/passwd",
            "vendor",
        ),
        *("app.css\0.js", "vendor//htmx/htmx.min.js", "./app.css", "vendor/README.md", "", "%252e%252e/desk.py"),
    ],
)
async def test_no_path_leads_out_of_the_static_files(path: str) -> None:
    async with site() as made:
        answer = await made.raw_get(f"/askii/static/x/{path}")
        assert answer == (404, b"not found\n")


# Hostile names --------------------------------------------------------------------------------------------------------


async def test_hostile_names_are_text_on_every_page() -> None:
    async with site(sinks=[Picky(HOSTILE, HOSTILE)]) as made:
        tracker, model = made.tracker, HOSTILE.replace("{% raw %}", "")
        await tracker.price_desk.set({model: ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=1)})
        who = Identity(tenant=HOSTILE, user=HOSTILE, key=HOSTILE)
        await tracker.record_usage(who, model, input_tokens=5, output_tokens=5)
        await tracker.flush()
        await tracker.keys.create(HOSTILE, name=HOSTILE, user=HOSTILE, team=HOSTILE, tags=[HOSTILE], models=[model])
        await tracker.budget_enforcer.set_budget(Budget(scope=scope_text({"tenant": HOSTILE}), limit_usd=1))
        await tracker.suspend_tenant(HOSTILE, reason=HOSTILE)
        tracker.metrics.fell_back(HOSTILE, HOSTILE, "budget")
        name, scope = quote(HOSTILE, safe=""), quote(scope_text({"tenant": HOSTILE}), safe="")
        pages = [
            *PAGES,
            f"/tenant?name={name}&done={name}",
            f"/keys?tenant={name}&after={name}&done={name}",
            f"/keys/new?tenant={name}",
            f"/budgets?find={name}&after={name}",
            f"/budgets/edit?scope={name}",
            f"/budgets/edit?scope={scope}&period=daily",
            f"/prices?find={name}",
            f"/prices/edit?model={quote(model, safe='')}",
            f"/live?seen={name[:64]}",
            f"/dead-letters?retried={name[:20]}",
        ]
        answers = {path: await made.get(path) for path in pages}
        answers["a wrong budget"] = await made.post("/budgets", scope=HOSTILE, period=HOSTILE[:32], limit=HOSTILE)
        answers["a wrong key"] = await made.post("/keys", tenant=HOSTILE, key_id=HOSTILE, days=HOSTILE)
        answers["a new key"] = await made.post("/keys", tenant=HOSTILE, name=HOSTILE)
        answers["a wrong price"] = await made.post("/prices", model=HOSTILE, input_usd_per_mtok=HOSTILE[:64])
        for path, answer in answers.items():
            assert answer.status_code in (200, 422), path
            assert "<script>alert" not in answer.text, path
            assert "<img src=x" not in answer.text, path
            assert not re.search("('|&#39;)49", answer.text), path
            assert Read(answer.text).tags <= KNOWN_TAGS, path
            assert not {name for name in Read(answer.text).attributes if name.startswith("on")}, path
        assert "&lt;script&gt;alert(1)" in answers["/"].text
        assert "{{7*7}}" in answers[f"/tenant?name={name}&done={name}"].text


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=256)


@settings(max_examples=25)
@given(name=NAMES)
async def test_every_tenants_page_can_be_reached_whatever_its_name(name: str) -> None:
    async with site() as made:
        await made.tracker.record_usage(name, "mini", input_tokens=1, output_tokens=1)
        link = re.search(r'href="(/askii/tenant\?name=[^"]*)"', (await made.get("/tenants")).text)
        assert link is not None
        answer = await made.client.get(link[1].replace("&amp;", "&"))
        assert answer.status_code == 200
        assert "completed" in answer.text
        assert Read(answer.text).tags <= KNOWN_TAGS


@pytest.mark.parametrize(
    "name", ["..", ".", "../budgets", "a/../../keys", "//evil.example", "x" * 256, "\r\nSet-Cookie: a=b"]
)
async def test_a_tenants_name_leads_nowhere_else(name: str) -> None:
    async with site() as made:
        answer = await made.post("/tenant/suspend", tenant=name)
        location = answer.headers["location"]
        assert location.startswith("/askii/tenant?name=")
        assert "\r" not in location
        assert "\n" not in location
        assert answer.headers.get_list("set-cookie") == []
        assert [state.tenant for state in await made.tracker.tenant_states()] == [name.strip()]


async def test_a_header_cannot_be_injected_by_what_a_form_or_a_query_says() -> None:
    async with site() as made:
        evil = "x\r\nX-Evil: 1\r\n\r\n<script>"
        for answer in (
            await made.post("/keys/revoke", key_id="none", tenant=evil),
            await made.post("/budgets", scope="tenant=a\r\nX-Evil: 1", period="daily", unit="none"),
            await made.post("/prices", model=evil, input_usd_per_mtok="1"),
            await made.get(f"/keys?tenant={quote(evil)}"),
        ):
            assert "x-evil" not in answer.headers
            assert "\n" not in answer.headers.get("location", "")


# Bodies ---------------------------------------------------------------------------------------------------------------


async def test_an_oversized_form_is_refused() -> None:
    async with site() as made:
        csrf = await made.csrf()
        big = await made.client.post("/askii/keys", data={"csrf": csrf, "tenant": "x" * 70_000})
        many = await made.client.post("/askii/keys", data={"csrf": csrf, **{f"f{n}": "1" for n in range(200)}})
        long = await made.client.post("/askii/keys", data={"csrf": csrf, "tenant": "x" * 2000})
        assert (big.status_code, many.status_code, long.status_code) == (413, 400, 400)
        assert await made.tracker.keys.list() == []


async def test_a_body_without_end_is_read_no_further_than_the_bound() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1024

    async with site(signed_in=False) as made:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await made.client.post("/askii/sign-in", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert sent <= 66


async def test_a_body_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visiting, "FORM_WITHIN_S", 0.02)

    async def stalled() -> AsyncIterator[bytes]:
        yield b"token="
        await asyncio.sleep(30)

    async with site(signed_in=False) as made:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await made.client.post("/askii/sign-in", content=stalled(), headers=headers)
    assert answer.status_code == 408


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"token": "x"}', "application/json", 415),
        (b"token=x", "text/plain", 415),
        (b"token=%ff%fe", "application/x-www-form-urlencoded", 400),
        (b"token=\xff", "application/x-www-form-urlencoded", 400),
        (b"token=%00", "application/x-www-form-urlencoded", 400),
        (b"", "application/x-www-form-urlencoded", 403),
    ],
)
async def test_a_body_that_is_no_form_is_refused(body: bytes, kind: str, status: int) -> None:
    async with site(signed_in=False) as made:
        answer = await made.client.post("/askii/sign-in", content=body, headers={"Content-Type": kind})
        assert answer.status_code == status


async def test_queries_are_bounded() -> None:
    async with site() as made:
        for path in ("/tenant?name=", "/keys?tenant=", "/budgets?find=", "/prices?find=", "/live?seen="):
            assert (await made.get(path + "x" * 5000)).status_code == 400
        assert (await made.get("/keys?tenant=%00")).status_code == 400


async def test_the_secret_of_a_key_is_in_no_log_and_no_link(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with site() as made:
        answer = await made.post("/keys", tenant="acme")
        (secret,) = set(re.findall(r"sk-askii-[\w-]{43}", answer.text))
        await made.get("/keys")
    assert secret not in caplog.text
    assert all(secret not in link for link in Read(answer.text).links)


def test_all_routes_are_known_to_these_tests() -> None:
    known = {path.partition("?")[0] for path in (*PAGES, *FORMS, "/sign-in", "/static/{version}/{name:path}")}
    desk = Desk(CostTracker(store="memory://"), admin_token=TOKEN)
    assert {route.path for route in routes(desk) if isinstance(route, Route)} == known
