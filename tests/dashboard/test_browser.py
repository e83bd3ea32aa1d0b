"""The dashboard of a running gateway in a real browser, as people use it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from askii_middleware import Budget, CostTracker
from askii_middleware.demo.provider import provider_app
from askii_middleware.identity import Identity
from askii_middleware.serving import gateway
from askii_middleware.settings import Settings

from ..gateway.serving import http_client, serving
from .seeded import BUDGETS, seed
from .site import PRICES, TOKEN, Clock, Picky

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = "ASKII_TEST_SCREENSHOTS"
"""Set, the pictures of docs/dashboard.md are taken anew."""
DOCS = Path(__file__).parents[2] / "docs" / "images"
MAX_PICTURE_BYTES = 150_000
PAGES = {
    "overview": "/",
    "tenants": "/tenants",
    "tenant": "/tenant?name=acme",
    "budgets": "/budgets",
    "budget": "/budgets/edit?scope=tenant%3Dglobex&period=daily",
    "keys": "/keys",
    "key": "/keys/new",
    "prices": "/prices",
    "price": "/prices/edit?model=house-llama",
    "dead-letters": "/dead-letters",
}
HOSTILE = (
    """"><img src=x onerror=window.hacked=1>""",
    """' hx-get='/askii/sign-out' hx-trigger='load' hx-on:htmx:load='window.hacked=1'""",
    "</title><script>window.hacked=1</script>{{7*7}}",
)
"""The first is short enough to be shown as a whole everywhere."""
DESKTOP, PHONE = (1280, 860), (390, 844)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
"""A browser of its own that asks nothing of anybody but the page's server."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium, as Debian's package of this name has it"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        await opened.close()


class Gateway(NamedTuple):
    """A gateway in front of a simulated provider."""

    url: str
    tracker: CostTracker
    clock: Clock
    client: httpx.AsyncClient

    async def call(self, secret: str, model: str = "big") -> httpx.Response:
        """A chat with a key's secret."""
        body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 20}
        headers = {"Authorization": f"Bearer {secret}"}
        return await self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)


@asynccontextmanager
async def running(*budgets: Budget, refused: str = "nobody") -> AsyncIterator[Gateway]:
    clock = Clock()
    tracker = CostTracker(
        store="memory://", clock=clock, prices=PRICES, budgets=budgets, sinks=[Picky(refused)], unknown_price="allow"
    )
    async with serving(provider_app(api_key="sk-up")) as upstream:
        settings = Settings(
            store="memory://",
            upstreams={"simulated": {"url": f"{upstream}/v1", "api_key": "sk-up"}},
            api={"admin_token": TOKEN},
        )
        async with tracker, serving(gateway(settings, tracker)) as url, http_client() as client:
            yield Gateway(url, tracker, clock, client)


@asynccontextmanager
async def visiting(
    browser: Browser, site: Gateway, size: tuple[int, int] = DESKTOP, **options: Any
) -> AsyncIterator[Page]:
    """Somebody signed in. Whatever the browser complains about fails the test."""
    complaints: list[str] = []
    context = await browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    try:
        page = await context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((site.url, "data:")) else complaints.append(r.url))
        await page.goto(f"{site.url}/askii")
        await page.get_by_label("Admin token").fill(TOKEN)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        yield page
        # A form with something wrong in it is answered with 422, which browsers mention.
        assert [each for each in complaints if "status of 422" not in each] == []
    finally:
        await context.close()


async def new_key(page: Page, tenant: str, key_id: str) -> str:
    """Make a key as a person does; its secret."""
    await page.get_by_role("link", name="Keys", exact=True).click()
    await page.get_by_role("link", name="Create key").click()
    await page.get_by_label("Tenant").fill(tenant)
    await page.get_by_label("Id", exact=True).fill(key_id)
    await page.get_by_role("button", name="Create key").click()
    return await page.get_by_label("Secret").input_value()


async def test_a_budget_that_is_edited_refuses_the_next_call_and_allows_it_again(browser: Browser) -> None:
    async with running() as site, visiting(browser, site) as page:
        secret = await new_key(page, "acme", "k1")
        assert (await site.call(secret)).status_code == 200

        await page.get_by_role("link", name="Budgets").click()
        await page.get_by_role("link", name="Add budget", exact=True).click()
        await page.get_by_label("Scope").fill("tenant=acme")
        await page.get_by_label("Limit").fill("0.00000001")
        await page.get_by_role("button", name="Save budget").click()
        await expect(page.get_by_role("status")).to_contain_text("The budget is set")
        refused = await site.call(secret)
        assert refused.status_code == 402
        assert refused.json()["error"]["code"] == "budget_exceeded"

        await page.get_by_role("link", name="Overview").click()
        await expect(page.locator(".tile", has_text="Refused").locator(".big")).to_have_text("1")

        await page.get_by_role("link", name="Budgets").click()
        await page.get_by_role("link", name="Edit the daily budget of tenant=acme").click()
        await page.get_by_label("Limit").fill("5")
        await page.get_by_role("button", name="Save budget").click()
        await expect(page.get_by_role("status")).to_contain_text("The budget is set")
        assert (await site.call(secret)).status_code == 200


async def test_a_key_works_from_its_creation_to_its_revocation(browser: Browser) -> None:
    async with running(Budget(scope="tenant=*", limit_usd=1)) as site, visiting(browser, site) as page:
        secret = await new_key(page, "acme", "web")
        assert (await site.call(secret)).status_code == 200
        await page.get_by_role("link", name="To the keys of this tenant").click()
        assert secret not in await page.content()

        await page.get_by_label("Rotate web").click()
        await page.get_by_label("The present secret ends").select_option("at once")
        await page.get_by_role("button", name="New secret").click()
        newer = await page.get_by_label("Secret").input_value()
        assert (await site.call(secret)).status_code == 401
        assert (await site.call(newer)).status_code == 200

        await page.get_by_role("link", name="To the keys of this tenant").click()
        await page.get_by_label("Revoke web").click()
        await page.get_by_role("button", name="Revoke", exact=True).click()
        await expect(page.get_by_role("status")).to_contain_text("The key is revoked")
        await expect(page.get_by_role("row", name=re.compile("web"))).to_contain_text("revoked")
        assert (await site.call(newer)).status_code == 401


async def test_spend_rises_during_traffic_without_a_reload(browser: Browser) -> None:
    async with running(Budget(scope="global", limit_usd=1)) as site, visiting(browser, site) as page:
        secret = (await site.tracker.keys.create("acme")).secret
        spend, calls = (page.locator(".tile", has_text=name).locator(".big") for name in ("Spend today", "Calls today"))
        await page.evaluate("window.unbroken = true")
        await expect(page.locator("#pulse")).to_contain_text("Live")
        seen = [await spend.inner_text()]
        for total in (1, 3):
            while len(await _records(site)) < total:
                assert (await site.call(secret)).status_code == 200
            await expect(calls).to_have_text(str(total))
            seen.append(await spend.inner_text())
        assert seen[0] == "$0.00"
        amounts = [float(text.removeprefix("$")) for text in seen]
        assert amounts == sorted(set(amounts))
        assert await page.evaluate("window.unbroken")
        await expect(page.get_by_role("link", name="acme").first).to_be_visible()


async def test_hostile_names_run_nothing_where_scripts_put_them(browser: Browser) -> None:
    async with running(Budget(scope="tenant=*", limit_usd=1)) as site, visiting(browser, site) as page:
        for name in HOSTILE:
            await site.tracker.record_usage(Identity(tenant=name, user=name), name, input_tokens=5, output_tokens=5)
        site.tracker.metrics.fell_back(*HOSTILE[:2], "budget")
        # What htmx puts into the overview, not what came with the page.
        await expect(page.get_by_role("link", name=HOSTILE[0]).first).to_be_visible()
        await page.get_by_role("link", name=HOSTILE[0]).first.click()
        await expect(page.get_by_role("heading", name=HOSTILE[0])).to_be_visible()
        await expect(page.locator("#chart canvas")).to_be_visible()
        for path in ("/", "/tenants", f"/tenant?name={quote(HOSTILE[1])}", f"/keys/new?tenant={quote(HOSTILE[1])}"):
            await page.goto(f"{site.url}/askii{path}")
            assert await page.evaluate("window.hacked") is None


async def _records(site: Gateway) -> list[Any]:
    await site.tracker.flush()
    return await site.tracker.store.records()


async def test_no_page_has_a_serious_fault_for_those_who_cannot_see_or_point(browser: Browser) -> None:
    found: list[str] = []
    async with running(*BUDGETS, refused="initech") as site:
        await seed(site.tracker, site.clock, days=1)
        async with visiting(browser, site) as page:
            await new_key(page, "acme", "fresh")
            found += await faults(page, "secret")
            for name, path in PAGES.items():
                await page.goto(f"{site.url}/askii{path}")
                for details in await page.locator("details").all():
                    await details.evaluate("element => { element.open = true }")
                found += await faults(page, name)
            await page.goto(f"{site.url}/askii/budgets/edit")
            await page.get_by_label("Scope").fill("colour=red")
            await page.get_by_role("button", name="Save budget").click()
            await expect(page.get_by_role("alert")).to_contain_text("Not saved")
            found += await faults(page, "wrong budget")
            await page.get_by_role("button", name="Sign out").click()
            await expect(page.get_by_label("Admin token")).to_be_focused()
            # Password managers keep the token under this name.
            await expect(page.locator("[autocomplete=username]")).to_have_value("admin")
            found += await faults(page, "sign-in")
    assert found == []


async def faults(page: Page, name: str) -> list[str]:
    """What axe finds serious, and where a page is wider than its window: in light and dark, at both widths."""
    axe, found = Axe(), []
    everything: Any = {"resultTypes": ["violations"]}
    colours = everything | {"runOnly": {"type": "rule", "values": ["color-contrast"]}}  # all else is as in the light
    for width, height in (DESKTOP, PHONE):
        await page.set_viewport_size({"width": width, "height": height})
        for scheme, options in (("light", everything), ("dark", colours)):
            await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            results = await axe.run(page, options=options)
            found += [
                f"{name}, {scheme}, {width}: {fault['id']}: {fault['nodes'][0]['html'][:200]}"
                for fault in results.response["violations"]
                if fault["impact"] in ("serious", "critical")
            ]
        if (wide := await page.evaluate("document.documentElement.scrollWidth")) > width:
            found.append(f"{name} is {wide} wide at {width}")
    return found


async def test_a_page_can_be_used_by_keyboard_alone(browser: Browser) -> None:
    async with running() as site, visiting(browser, site) as page:
        await page.goto(f"{site.url}/askii/budgets")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        link = page.get_by_role("link", name="Add budget", exact=True)
        await expect(link).to_be_focused()
        assert await link.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
        await page.keyboard.press("Enter")
        await page.get_by_label("Scope").focus()
        await page.keyboard.type("tenant=acme")
        await page.get_by_label("Limit").focus()
        await page.keyboard.type("2")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_contain_text("The budget is set")


async def test_tables_and_forms_work_without_scripts(browser: Browser) -> None:
    async with running(*BUDGETS) as site:
        await seed(site.tracker, site.clock, days=2)
        async with visiting(browser, site, java_script_enabled=False) as page:
            await expect(page.locator("#pulse")).to_have_text("Reload for fresh values")
            await expect(page.get_by_role("link", name="globex").first).to_be_visible()
            await page.goto(f"{site.url}/askii/tenant?name=acme")
            await page.get_by_text("The same as a table").click()
            await expect(page.get_by_role("rowheader", name="2025-12-31")).to_be_visible()
            await page.get_by_role("link", name="Add budget").click()
            await page.get_by_label("Period").fill("weekly")
            await page.get_by_label("Limit").fill("7.5")
            await page.get_by_role("button", name="Save budget").click()
            row = page.get_by_role("row", name=re.compile("weekly"))
            await expect(row).to_contain_text("$7.50")
            await row.get_by_text("Remove…").click()
            await row.get_by_role("button", name="Remove").click()
            await expect(page.get_by_role("status")).to_contain_text("removed")


async def test_pictures_of_every_page_are_taken(browser: Browser, tmp_path: Path) -> None:
    folder = DOCS if os.environ.get(SCREENSHOTS) else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    taken = []
    async with running(*BUDGETS, refused="initech") as site:
        await seed(site.tracker, site.clock)
        async with visiting(browser, site) as page:
            looks: list[tuple[str, Any, tuple[int, int]]] = [("", "light", DESKTOP)]
            for name, path in PAGES.items():
                more = [("-dark", "dark", DESKTOP), ("-phone", "light", PHONE), ("-phone-dark", "dark", PHONE)]
                for suffix, scheme, (width, height) in looks + (more if name in ("overview", "tenant") else []):
                    await page.emulate_media(color_scheme=scheme)
                    shown = 600 if name == "dead-letters" else height  # one row is like the other
                    await page.set_viewport_size({"width": width, "height": shown})
                    await page.goto(f"{site.url}/askii{path}")
                    if name == "tenant":
                        await expect(page.locator("#chart canvas")).to_be_visible()
                    taken.append(folder / f"dashboard-{name}{suffix}.png")
                    await page.screenshot(path=taken[-1], animations="disabled")
            await page.set_viewport_size({"width": 900, "height": 560})
            await page.get_by_role("button", name="Sign out").click()
            await expect(page.get_by_label("Admin token")).to_be_visible()
            taken.append(folder / "dashboard-sign-in.png")
            await page.screenshot(path=taken[-1])
    assert len(taken) == len(PAGES) + 7
    sizes = {picture.name: picture.stat().st_size for picture in taken}
    assert {name: size for name, size in sizes.items() if not 5_000 < size < MAX_PICTURE_BYTES} == {}
