"""Suspended tenants: refused everywhere within a second, and nothing that runs is touched."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from websockets.exceptions import InvalidStatus

from askii_middleware import TenantSuspendedError, tracked
from askii_middleware.calls import CallSpec
from askii_middleware.cli import main
from askii_middleware.errors import StoreError
from askii_middleware.identity import Identity
from askii_middleware.item_watch import ItemWatcher
from askii_middleware.refusals import RefusedError
from askii_middleware.settings import Settings
from askii_middleware.sockets import SocketDoor
from askii_middleware.stores import open_store
from askii_middleware.stores.base import Item
from askii_middleware.tenants import MAX_REASON_CHARS, TenantBook

from .support.asgi import CHAT, Scripted, ask, chat_answer, chat_chunk, chat_usage, plain, stream
from .support.ledgers import ledger
from .support.servers import serving
from .support.service import Clock as ServiceClock
from .support.service import both_stores, faulty, make_tracker, opened, records_of, soon, url_of
from .support.sockets import LIVE_PATH, Provider, booked, socket_to

ACME = Identity(tenant="acme")
SPEC: dict[str, Any] = {"model": "big", "input_tokens": 1, "output_tokens": 1}


# Code -----------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_suspended_tenant_is_refused_until_it_is_resumed(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        await tracker.suspend_tenant("acme", reason="chargeback")
        with pytest.raises(TenantSuspendedError, match="'acme' is suspended: chargeback") as caught:
            await tracker.admit(ACME, CallSpec(**SPEC))
        assert (caught.value.tenant, caught.value.reason) == ("acme", "chargeback")
        await tracker.admit(Identity(tenant="globex"), CallSpec(**SPEC))
        (state,) = await tracker.tenant_states()
        assert (state.tenant, state.state, state.cause, state.at) == (
            *("acme", "suspended", "operator", "2026-01-01T00:00:00.000Z"),
        )
        assert await tracker.resume_tenant("acme") is True
        assert await tracker.resume_tenant("acme") is False
        assert await tracker.tenant_states() == []
        await tracker.admit(ACME, CallSpec(**SPEC))


async def test_blocks_and_decorated_functions_raise_it_before_they_run(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        ran = []

        @tracked(model="big", tenant_id="acme", tracker=tracker)
        async def answer() -> None:
            ran.append(1)

        await tracker.suspend_tenant("acme")
        with pytest.raises(TenantSuspendedError):
            async with tracker.track_tokens("acme", "big", expected_input_tokens=1):
                ran.append(2)
        with pytest.raises(TenantSuspendedError):
            await answer()
        assert ran == []
        assert (await tracker.store.totals()).held_nano_usd == 0


async def test_usage_that_happened_is_charged_all_the_same(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.suspend_tenant("acme")
        record = await tracker.record_usage("acme", "big", input_tokens=7)
        assert record.cost_nano_usd == 7_000


async def test_a_call_that_runs_goes_on_and_is_charged(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            await tracker.suspend_tenant("acme")
            usage["input_tokens"] = 3
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == 3_000


async def test_shadow_lets_it_through_and_says_so(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, enforcement="shadow") as tracker:
        await tracker.suspend_tenant("acme")
        async with tracker.track_tokens("acme", "big", expected_input_tokens=10) as usage:
            usage["input_tokens"] = 3
        (record,) = await records_of(tracker)
        assert record.shadow == "denied:suspended:tenant"


async def test_where_nothing_is_enforced_nobody_is_refused(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, enforcement="off") as tracker:
        await tracker.suspend_tenant("acme")
        await tracker.admit(ACME, CallSpec(**SPEC))


async def test_an_explanation_tells_that_the_tenant_is_suspended(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.suspend_tenant("acme", reason="chargeback")
        told = await tracker.explain("acme", "big")
        assert (told.verdict, told.called, told.winner) == ("refused", None, None)
        assert told.hold_usd == 0
        assert "chargeback" in told.why


@pytest.mark.parametrize("tenant", ["", "x" * 257, "a\0b"])
async def test_what_is_no_tenant_cannot_be_suspended(tenant: str, tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ValueError, match="tenant"):
            await tracker.suspend_tenant(tenant)
        assert await tracker.tenant_states() == []


async def test_a_reason_is_bounded_and_can_be_changed(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.suspend_tenant("acme", reason="a\0\ud800" + "x" * 10_000)
        (state,) = await tracker.tenant_states()
        assert state.reason.startswith("a?x")
        assert len(state.reason) == MAX_REASON_CHARS
        await tracker.suspend_tenant("acme", reason="paid, but late")
        (state,) = await tracker.tenant_states()
        assert state.reason == "paid, but late"


async def test_one_cause_does_not_lift_another(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        book = tracker.tenants
        for cause in ("wallet", "subscription", "operator"):
            await book.suspend("acme", cause=cause, reason=cause)
        assert str(book.find("acme")).startswith("the tenant 'acme' is suspended: operator")
        assert await book.resume("acme", cause="wallet") is True
        assert await book.resume("acme", cause="subscription") is True
        assert book.find("acme") is not None
        assert await book.suspend("acme", cause="wallet", reason="first") is True
        assert await book.suspend("acme", cause="wallet", reason="second") is False
        assert [state.reason for state in await book.states("wallet")] == ["first"]
        assert await tracker.resume_tenant("acme") is True
        assert book.find("acme") is None


# Other processes, and stores that are away ----------------------------------------------------------------------------


async def test_another_process_learns_of_it_at_its_next_look(tmp_path: Path) -> None:
    url = url_of("sqlite", tmp_path)
    async with make_tracker(url) as here, make_tracker(url) as there:
        assert there.watcher.every_s <= 1
        await here.suspend_tenant("acme")
        await there.watcher.look()
        with pytest.raises(TenantSuspendedError):
            await there.admit(ACME, CallSpec(**SPEC))
        await here.resume_tenant("acme")
        await there.watcher.look()
        await there.admit(ACME, CallSpec(**SPEC))


async def test_it_looks_by_itself(tmp_path: Path) -> None:
    url = url_of("sqlite", tmp_path)
    there = make_tracker(url)
    there.watcher.every_s = 0.01
    async with make_tracker(url) as here, there:
        await here.suspend_tenant("acme")
        await soon(lambda: there.tenants.find("acme"))


async def test_a_process_that_starts_knows_before_its_first_call(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as tracker:
        await tracker.suspend_tenant("acme")
    later = make_tracker(url_of("sqlite", tmp_path))
    later.watcher.every_s = 3600
    async with later:
        with pytest.raises(TenantSuspendedError):
            await later.admit(ACME, CallSpec(**SPEC))


@pytest.mark.parametrize("first", ["admit", "block", "function"])
async def test_the_very_first_call_of_a_process_that_nobody_started_is_refused(first: str, tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as tracker:
        await tracker.suspend_tenant("acme")
    fresh = make_tracker(url_of("sqlite", tmp_path))

    @tracked(model="big", tenant_id="acme", tracker=fresh)
    async def answer() -> None:
        raise AssertionError("it ran")

    async def block() -> None:
        async with fresh.track_tokens("acme", "big", expected_input_tokens=1):
            raise AssertionError("it ran")

    calls = {"admit": lambda: fresh.admit(ACME, CallSpec(**SPEC)), "block": block, "function": answer}
    with pytest.raises(TenantSuspendedError):
        await calls[first]()
    await fresh.stop()


async def test_the_first_calls_of_a_process_are_refused_all_together(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as tracker:
        await tracker.suspend_tenant("acme")
    fresh = make_tracker(url_of("sqlite", tmp_path))
    calls = [fresh.admit(ACME, CallSpec(**SPEC)) for _ in range(5)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in found] == [TenantSuspendedError] * 5
    await fresh.stop()


async def test_no_deployment_is_offered_to_a_suspended_tenant(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.suspend_tenant("acme", reason="chargeback")
        allowed, reasons = await tracker.filter_deployments("acme", ["big", {"model": "small", "deployment": "eu"}])
        assert allowed == []
        assert set(reasons) == {"big", "eu"}
        assert "'acme' is suspended: chargeback" in reasons["eu"]
        assert (await tracker.filter_deployments("globex", ["big"]))[0] == ["big"]
    async with opened("memory", tmp_path, enforcement="shadow") as tracker:
        await tracker.suspend_tenant("acme")
        assert (await tracker.filter_deployments("acme", ["big"]))[0] == ["big"]


async def test_while_the_store_is_away_the_last_copy_stays_in_force(tmp_path: Path) -> None:
    clock = ServiceClock()
    store = faulty("memory", tmp_path, clock)
    tracker = make_tracker(store, clock=clock, on_store_error="allow")
    tracker.watcher.every_s = 0.005
    async with tracker:
        await tracker.suspend_tenant("acme")
        store.down = True
        asked = store.calls.count("item_versions")
        await soon(lambda: store.calls.count("item_versions") > asked + 2)
        with pytest.raises(TenantSuspendedError):
            await tracker.admit(ACME, CallSpec(**SPEC))
        with pytest.raises(StoreError):
            await tracker.resume_tenant("acme")
        store.down = False
        assert await tracker.resume_tenant("acme") is True


async def test_the_copy_is_bounded_and_says_when_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("askii_middleware.tenants.MAX_COPIED", 2)
    async with opened("memory", tmp_path) as tracker:
        for name in "abc":
            await tracker.suspend_tenant(name)
        assert [tracker.tenants.find(name) is not None for name in "abc"] == [True, True, False]
    assert "3 tenants are suspended (operator); only 2 of them are refused" in caplog.text


async def test_a_suspension_that_cannot_be_read_stands_and_another_state_does_not(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.store.put_item("tenant", "acme", b"{torn")
        await tracker.store.put_item("tenant", "globex", b'{"state":"active","more":1}')
        await tracker.watcher.look()
        assert tracker.tenants.find("acme") is not None
        assert tracker.tenants.find("globex") is None


async def test_only_what_has_changed_is_read_again(tmp_path: Path) -> None:
    clock = ServiceClock()
    store = faulty("memory", tmp_path, clock)
    await store.open()
    watcher = ItemWatcher(store)
    taken: list[Any] = []
    watcher.watch("price", taken.append)
    await watcher.look()
    assert taken == []
    await store.put_item("price", "big", b"1")
    await store.put_item("other", "x", b"1")
    await watcher.look()
    await watcher.look()
    assert taken == [[Item("big", b"1")]]
    assert store.calls.count("items") == 1
    await store.put_item("price", "big", None)
    await watcher.look()
    assert taken[-1] == []
    await store.close()


async def test_one_value_that_nobody_can_use_does_not_end_the_watching(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(url_of("sqlite", tmp_path))
    await store.open()
    watcher = ItemWatcher(store, every_s=0.005)
    taken: list[Any] = []

    def take(items: Any) -> None:
        taken.append(items)
        if len(taken) == 1:
            raise RuntimeError("unusable")

    watcher.watch("price", take)
    await store.put_item("price", "big", b"1")
    task = asyncio.create_task(watcher.run())
    await soon(lambda: len(taken) == 2)  # tried again, because it was not taken
    task.cancel()
    await asyncio.wait([task])
    await store.close()
    assert "unusable" in caplog.text


def test_looking_a_tenant_up_costs_less_than_a_microsecond() -> None:
    store: Any = None
    book = TenantBook(store, ItemWatcher(store), clock=time.time)
    book._take("operator", [Item(f"tenant-{n}", b'{"state":"suspended"}') for n in range(50_000)])
    best = min(_seconds(lambda: book.find("acme"), 20_000) for _ in range(5))
    assert best < 1e-6


def _seconds(work: Any, times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


# Requests -------------------------------------------------------------------------------------------------------------

PATHS = {
    "openai": ("/v1/chat/completions", CHAT),
    "responses": ("/v1/responses", {"model": "big", "input": "hi", "max_output_tokens": 20}),
    "anthropic": ("/v1/messages", CHAT),
}


@pytest.mark.parametrize("kind", PATHS)
async def test_requests_are_refused_with_403_in_the_envelope_of_their_api(kind: str) -> None:
    async with ledger() as book:
        await book.tracker.suspend_tenant("acme", reason="internal: suspected fraud")
        app = Scripted(plain(chat_answer()))
        path, body = PATHS[kind]
        got = await ask(book.around(app), body, path=path)
        assert got.status == 403
        assert got.json["error"]["code"] == "tenant_suspended"
        assert b"fraud" not in got.body
        assert got.headers["x-should-retry"] == "false"
        assert app.scopes == []
        assert book.metric("askii_refusals_total", scope_kind="tenant", reason="suspended") == 1
        assert await book.nothing_happened()


async def test_a_stream_that_runs_goes_on_to_its_end() -> None:
    async with ledger() as book:

        async def suspends(*_: Any) -> None:
            await book.tracker.suspend_tenant("acme")

        parts = stream(chat_chunk("Hello"), chat_chunk(" there"), chat_chunk(reason="stop"), chat_usage(10, 5))
        app = book.around(Scripted([parts[0], parts[1], suspends, *parts[2:]]))
        got = await ask(app, {**CHAT, "stream": True})
        assert b" there" in got.body
        assert (await book.record()).cost_nano_usd == 60_000
        assert (await ask(app)).status == 403


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/summaries"])
async def test_a_block_that_the_application_does_not_handle_becomes_the_same_refusal(path: str) -> None:
    async with ledger() as book:
        await book.tracker.suspend_tenant("globex")

        async def app(_scope: Any, _receive: Any, _send: Any) -> None:
            async with book.tracker.track_tokens("globex", "big", expected_input_tokens=1):
                raise AssertionError("it ran")

        got = await ask(book.around(app), path=path)
        assert (got.status, got.json["error"]["code"]) == (403, "tenant_suspended")
        assert await book.nothing_happened()


@pytest.mark.parametrize("path", ["/v1/realtime?model=big", "/v1/responses", LIVE_PATH])
async def test_sockets_are_refused_before_they_open(path: str) -> None:
    provider = Provider()
    async with booked() as book, serving(book.around(provider)) as url:
        await book.tracker.suspend_tenant("acme")
        with pytest.raises(InvalidStatus) as caught:
            async with socket_to(url, path):
                pass
        assert caught.value.response.status_code == 403
        assert b"suspended" in (caught.value.response.body or b"")
        assert provider.scopes == []


async def test_a_socket_that_is_the_first_to_ask_the_ledger_is_refused(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as tracker:
        await tracker.suspend_tenant("acme")
    fresh = make_tracker(url_of("sqlite", tmp_path))
    door = SocketDoor(fresh, None, None, Settings())  # type: ignore[arg-type]
    with pytest.raises(RefusedError) as caught:
        await door._check(ACME, "call")
    assert caught.value.refusal.code == "tenant_suspended"
    await fresh.stop()


async def test_the_official_client_raises_its_own_error_after_one_request() -> None:
    seen: list[Any] = []
    async with ledger() as book:
        await book.tracker.suspend_tenant("acme")
        inner = book.around(Scripted(plain(chat_answer())))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])
            await inner(scope, receive, send)

        async with serving(app, lifespan="off") as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await client.chat.completions.create(model="big", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.status_code == 403
        assert caught.value.code == "tenant_suspended"
        assert seen == ["http"]


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "askii.toml"
    path.write_text(f'store = "sqlite:///{tmp_path / "askii.db"}"\n')
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    assert main(["tenant", *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_the_command_suspends_shows_and_resumes(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    active = {"tenant": "acme", "state": "active", "by": None, "at": None, "reason": None}
    assert run(capsys, "show", "acme", "--config", config) == [active]
    (row,) = run(capsys, "suspend", "acme", "--reason", "chargeback", "--config", config)
    assert (row["state"], row["by"], row["reason"]) == ("suspended", "operator", "chargeback")
    assert run(capsys, "show", "--config", config) == [row]
    assert run(capsys, "resume", "acme", "--config", config) == [active]
    assert run(capsys, "show", "--config", config) == []
    run(capsys, "resume", "acme", "--config", config, status=1)


def test_the_command_refuses_what_is_no_tenant_and_a_ledger_it_cannot_reach(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tenant", "suspend", "x" * 257, "--config", config]) == 1
    assert "tenant suspend: tenant must be text" in capsys.readouterr().err
    memory = tmp_path / "memory.toml"
    memory.write_text('store = "memory://"\n')
    assert main(["tenant", "show", "--config", str(memory)]) == 1
    assert "memory:// lives inside one running process" in capsys.readouterr().err
