"""What Lago's webhooks do to tenants, and whom they mean."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from lago_python_client.models.subscription import SubscriptionResponse
from lago_python_client.models.wallet import WalletResponse
from lago_python_client.models.wallet_transaction import WalletTransactionResponse

from askii_middleware.errors import ConfigurationError
from askii_middleware.lago_effects import TYPES, read_effect
from askii_middleware.lago_memory import KIND
from askii_middleware.serving import gateway
from askii_middleware.settings import Settings
from askii_middleware.settings_billing import BillingSettings
from askii_middleware.tracker import CostTracker

from .support.asgi import ask
from .support.lago_hooks import DEPLETED, OTHER, STARTED, TERMINATED, TOPPED_UP, hooks, post, receiving, suspended
from .support.lago_payloads import HMAC_KEY, OBJECTS, ORGANIZATION, WALLET, pems, signed, signed_jwt, webhook
from .support.servers import serving
from .support.service import both_stores, make_tracker, opened, url_of

# Effects --------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_subscription_that_ends_suspends_and_one_that_starts_resumes(kind: str, tmp_path: Path) -> None:
    async with receiving(tmp_path, kind) as (tracker, app):
        assert await post(app, TERMINATED, signed(TERMINATED, unique="1")) == (200, "done")
        (state,) = await tracker.tenant_states()
        assert (state.tenant, state.cause) == ("acme", "subscription")
        assert state.reason == "Lago: the subscription acme was terminated"
        assert suspended(tracker, "acme") == [True]
        assert await post(app, STARTED, signed(STARTED, unique="2")) == (200, "done")
        assert suspended(tracker, "acme") == [False]


@pytest.mark.parametrize("top_up", ["wallet_transaction.updated", "wallet_transaction.created"])
async def test_an_empty_wallet_suspends_and_a_settled_top_up_of_it_resumes(top_up: str, tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        await post(app, DEPLETED, signed(DEPLETED, unique="1"))
        (state,) = await tracker.tenant_states()
        assert (state.tenant, state.cause, state.about) == ("acme", "wallet", WALLET)
        body = webhook(top_up)
        assert await post(app, body, signed(body, unique="2")) == (200, "done")
        assert suspended(tracker, "acme") == [False]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "pending", "settled_at": None},
        {"status": "failed"},
        {"transaction_type": "outbound"},
        {"transaction_status": "voided"},
        {"lago_wallet_id": "another-wallet"},
        {"lago_wallet_id": "another-wallet", "wallet": {"lago_id": "another-wallet", "external_customer_id": "acme"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_only_credits_that_are_there_in_that_wallet_resume(changes: dict[str, Any], tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        await post(app, DEPLETED, signed(DEPLETED, unique="1"))
        body = webhook("wallet_transaction.updated", **changes)
        assert (await post(app, body, signed(body, unique="2")))[0] == 200
        assert suspended(tracker, "acme") == [True]


async def test_credits_that_were_granted_resume_as_bought_ones_do(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        await post(app, DEPLETED, signed(DEPLETED, unique="1"))
        body = webhook("wallet_transaction.created", transaction_status="granted")
        await post(app, body, signed(body, unique="2"))
        assert suspended(tracker, "acme") == [False]


@both_stores
async def test_a_customer_with_two_empty_wallets_is_resumed_with_the_last_of_them(kind: str, tmp_path: Path) -> None:
    async with receiving(tmp_path, kind) as (tracker, app):
        for wallet in ("w1", "w2"):
            body = webhook("wallet.depleted_ongoing_balance", lago_id=wallet)
            await post(app, body, signed(body, unique=f"empty {wallet}"))
        assert [(state.tenant, state.about) for state in await tracker.tenant_states()] == [
            *(("acme", "w1"), ("acme", "w2")),
        ]
        for wallet, left in (("w1", True), ("w2", False)):
            body = webhook("wallet_transaction.updated", lago_wallet_id=wallet)
            assert await post(app, body, signed(body, unique=f"full {wallet}")) == (200, "done")
            assert suspended(tracker, "acme") == [left]


async def test_an_operator_resumes_a_tenant_whatever_number_of_wallets_suspended_it(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        for wallet in ("w1", "w2"):
            body = webhook("wallet.depleted_ongoing_balance", lago_id=wallet)
            await post(app, body, signed(body, unique=wallet))
        assert await tracker.resume_tenant("acme") is True
        assert await tracker.tenant_states() == []
        assert suspended(tracker, "acme") == [False]


async def test_a_subscription_that_starts_lifts_no_other_ones_end(tmp_path: Path) -> None:
    async with receiving(tmp_path, subscriptions={"sub_1": ["acme"], "sub_2": ["acme"]}) as (tracker, app):
        for number, (type_, id_) in enumerate([("terminated", "sub_1"), ("terminated", "sub_2"), ("started", "sub_2")]):
            body = webhook(f"subscription.{type_}", external_id=id_)
            await post(app, body, signed(body, unique=str(number)))
        assert [(state.tenant, state.about) for state in await tracker.tenant_states()] == [("acme", "sub_1")]
        assert suspended(tracker, "acme") == [True]


async def test_what_an_operator_suspended_no_webhook_resumes(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        await tracker.suspend_tenant("acme", reason="fraud")
        for number, body in enumerate([TERMINATED, STARTED, DEPLETED, TOPPED_UP]):
            await post(app, body, signed(body, unique=str(number)))
        (state,) = await tracker.tenant_states()
        assert (state.cause, state.reason) == ("operator", "fraud")


async def test_a_top_up_does_not_revive_an_ended_subscription(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        for number, body in enumerate([TERMINATED, DEPLETED, TOPPED_UP]):
            await post(app, body, signed(body, unique=str(number)))
        assert [state.cause for state in await tracker.tenant_states()] == ["subscription"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_change_of_plan_suspends_nobody_in_whatever_order_it_arrives(
    order: tuple[int, int], tmp_path: Path
) -> None:
    ended = webhook("subscription.terminated", next_plan_code="llm_usage_pro")
    begun = webhook("subscription.started", plan_code="llm_usage_pro", previous_plan_code="llm_usage")
    async with receiving(tmp_path) as (tracker, app):
        for number in order:
            body = (ended, begun)[number]
            assert (await post(app, body, signed(body, unique=str(number))))[0] == 200
        assert suspended(tracker, "acme") == [False]


async def test_an_alert_is_told_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with receiving(tmp_path) as (tracker, app):
        assert await post(app, webhook("alert.triggered")) == (200, "done")
        told = "Lago alert half (billable_metric_current_usage_units) of acme: 500123.0 has crossed 500000.0"
        assert told in caplog.text
        assert await tracker.tenant_states() == []
        labels = {"type": "alert.triggered", "result": "done"}
        assert tracker.metrics.registry.get_sample_value("askii_webhooks_total", labels) == 1


async def test_other_types_are_acknowledged_and_do_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "askii_middleware")
    async with receiving(tmp_path) as (tracker, app):
        assert await post(app, webhook("invoice.created")) == (200, "ignored")
        assert "type 'invoice.created' has no effect" in caplog.text
        assert await tracker.store.items(KIND) == []
        labels = {"type": "other", "result": "ignored"}
        assert tracker.metrics.registry.get_sample_value("askii_webhooks_total", labels) == 1


def test_every_type_that_has_an_effect_has_a_payload_here() -> None:
    assert set(OBJECTS) == TYPES
    for type_ in TYPES:
        assert read_effect(type_, json.loads(webhook(type_))) is not None


def test_the_official_clients_models_take_the_payloads_objects() -> None:
    for type_, model in (
        ("subscription.terminated", SubscriptionResponse),
        ("subscription.started", SubscriptionResponse),
        ("wallet.depleted_ongoing_balance", WalletResponse),
        ("wallet_transaction.updated", WalletTransactionResponse),
    ):
        fields = {name: value for name, value in OBJECTS[type_][1].items() if name not in ("plan", "customer")}
        assert model.parse_obj(fields) is not None


# Whom an id stands for ------------------------------------------------------------------------------------------------


async def test_a_table_of_subscriptions_is_read_backwards(tmp_path: Path) -> None:
    table = {"north": "sub_1", "south": "sub_1", "acme": "sub_2"}
    async with receiving(tmp_path, subscription_of=table) as (tracker, app):
        body = webhook("subscription.terminated", external_id="sub_1")
        await post(app, body)
        assert suspended(tracker, "north", "south", "acme", "sub_1") == [True, True, False, False]


async def test_a_callable_vouches_for_the_tenant_of_the_same_name_or_for_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(tmp_path, subscription_of=lambda who: f"sub_{who.tenant}") as (tracker, app):
        assert await post(app, TERMINATED) == (200, "done")
        assert await tracker.tenant_states() == []
        assert "subscription.terminated names nobody we know" in caplog.text
    async with opened("memory", tmp_path, subscription_of=lambda who: who.tenant) as tracker:
        assert tracker.tenants_billed_to("elsewhere") == ("elsewhere",)
        assert tracker.tenants_billed_to("x" * 257) == ()


@pytest.mark.parametrize("part", ["key", "user", "team", "end_user"])
@pytest.mark.parametrize("otherwise", ["tenant", "none"])
async def test_where_usage_is_billed_by_another_part_of_the_identity_an_id_stands_for_no_tenant(
    part: Any, otherwise: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rule = BillingSettings(subscription=part, otherwise=otherwise).rule
    async with receiving(tmp_path, subscription_of=rule) as (tracker, app):
        await post(app, TERMINATED, signed(TERMINATED, unique="1"))
        await post(app, DEPLETED, signed(DEPLETED, unique="2"))
        assert await tracker.tenant_states() == []
        assert "subscription.terminated names nobody we know" in caplog.text
        assert "wallet.depleted_ongoing_balance names nobody we know" in caplog.text


async def test_where_usage_is_billed_by_team_a_table_says_whom_to_suspend(tmp_path: Path) -> None:
    rule = BillingSettings(subscription="team").rule
    async with receiving(tmp_path, subscription_of=rule, subscriptions={"acme": ["north"]}) as (tracker, app):
        await post(app, TERMINATED)
        assert suspended(tracker, "acme", "north") == [False, True]


async def test_tables_and_callables_of_ones_own_replace_the_default(tmp_path: Path) -> None:
    options: dict[str, Any] = {"subscriptions": {"acme": ["north"]}, "customers": lambda id_: [f"{id_}-1", f"{id_}-2"]}
    async with receiving(tmp_path, **options) as (tracker, app):
        await post(app, TERMINATED, signed(TERMINATED, unique="1"))
        await post(app, DEPLETED, signed(DEPLETED, unique="2"))
        assert suspended(tracker, "acme", "north", "acme-1", "acme-2") == [False, True, True, True]


async def test_a_table_that_names_what_is_no_tenant_is_told_and_lago_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(tmp_path, subscriptions={"acme": ["x" * 257]}) as (_, app):
        assert await post(app, TERMINATED) == (503, "unavailable")
        assert "tenant must be text" in caplog.text


# Served ---------------------------------------------------------------------------------------------------------------


async def test_it_runs_alone_and_starts_its_tracker(tmp_path: Path) -> None:
    tracker = make_tracker(url_of("sqlite", tmp_path))
    async with serving(hooks(tracker), lifespan="on") as url, httpx.AsyncClient() as client:
        assert tracker.loop is not None
        answer = await client.post(url, content=TERMINATED, headers=signed(TERMINATED))
        assert (answer.status_code, answer.json()) == (200, {"result": "done"})
        assert (await client.get(url)).status_code == 405
    assert tracker.loop is None


@pytest.mark.parametrize("sign", [signed, signed_jwt])
async def test_the_gateway_takes_it_at_its_path_without_an_identity(sign: Any, tmp_path: Path) -> None:
    settings = Settings(
        upstreams={"openai": {"url": "http://127.0.0.1:9/v1", "api_key": "x"}},
        unmetered="deny",
        lago_webhooks={
            "path": "/hooks/lago",
            "hmac_key": HMAC_KEY,
            "public_key": pems()[1],
            "organization_id": ORGANIZATION,
            "customers": {"a": ["b"]},
        },
    )
    async with make_tracker(url_of("sqlite", tmp_path)) as tracker:
        async with serving(gateway(settings, tracker), lifespan="off") as url, httpx.AsyncClient() as client:
            path = f"{url}/hooks/lago"
            assert (await client.post(path, content=TERMINATED, headers=sign(TERMINATED))).json()["result"] == "done"
            assert (await client.post(path, content=OTHER, headers=sign(TERMINATED))).status_code == 401
            assert (await client.post(f"{url}/hooks/other", content=TERMINATED)).status_code == 404
        assert suspended(tracker, "acme", "globex") == [True, False]


async def test_the_gateway_reads_the_table_of_billing_backwards(tmp_path: Path) -> None:
    settings = Settings(
        store=url_of("sqlite", tmp_path),
        upstreams={"openai": {"url": "http://127.0.0.1:9/v1"}},
        billing={"subscriptions": {"north": "sub_1", "south": "sub_1"}},
        lago_webhooks={"path": "/hooks/lago", "hmac_key": HMAC_KEY},
    )
    now = datetime.now(UTC).isoformat()
    async with CostTracker.from_settings(settings) as tracker:
        app = gateway(settings, tracker)
        for number, id_ in enumerate(["sub_1", "acme", "north"]):
            body = webhook("subscription.terminated", external_id=id_, terminated_at=now)
            raw = [(name.encode(), value.encode()) for name, value in signed(body, unique=str(number)).items()]
            assert (await ask(app, body, path="/hooks/lago", headers=raw)).status == 200
        # North is billed to sub_1: whoever the subscription north is, it is not that tenant's.
        assert [state.tenant for state in await tracker.tenant_states()] == ["acme", "north", "south", "sub_1"]
        body = webhook("subscription.started", external_id="sub_1", started_at=now)
        raw = [(name.encode(), value.encode()) for name, value in signed(body, unique="9").items()]
        await ask(app, body, path="/hooks/lago", headers=raw)
        assert suspended(tracker, "acme", "north", "south", "sub_1") == [True, False, False, False]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"path": "/x"}, "give hmac_key"),
        ({"path": "/", "hmac_key": "k"}, "lago_webhooks.path"),
        ({"path": "/x", "hmac_key": "k", "issuer": "i"}, "issuer does nothing without"),
        ({"path": "/x", "url": "https://lago.example.com/api/v1"}, "url and api_key come together"),
        (
            {"path": "/x", "url": "https://l.example.com/api/v1", "api_key": "k", "public_key": "k"},
            "not both",
        ),
        ({"path": "/x", "public_key": "k"}, "need organization_id"),
        ({"path": "/x", "url": "https://l.example.com/api/v1", "api_key": "k"}, "need organization_id"),
        (
            {"path": "/x", "url": "http://l.example.com/api/v1", "api_key": "k", "organization_id": "o"},
            "must be https beyond this machine",
        ),
    ],
)
def test_settings_that_could_verify_nothing_are_refused(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Settings(lago_webhooks=table)


def test_lago_on_this_machine_may_be_asked_in_the_clear() -> None:
    table = {"path": "/x", "url": "http://127.0.0.1:3000/api/v1", "api_key": "k", "organization_id": "o"}
    assert Settings(lago_webhooks=table).lago_webhooks is not None


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions", "/hooks/v1/messages", "/v1/models", "/v1/realtime"),
        *("/V1/Chat/Completions", "/x;y", "/x?y", "/a//b"),
        *("/healthz", "/readyz", "/metrics", "/own/metrics"),
    ],
)
async def test_a_path_where_something_else_is_served_or_nothing_can_be_is_refused_at_start(path: str) -> None:
    settings = Settings(
        upstreams={"openai": {"url": "http://127.0.0.1:9/v1"}},
        metrics_path="/own/metrics",
        lago_webhooks={"path": path, "hmac_key": HMAC_KEY},
    )
    with pytest.raises(ConfigurationError, match=r"lago_webhooks\.path"):
        gateway(settings, make_tracker("memory://"))


def test_the_settings_keep_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAGO_HMAC", "s3cret-hmac")
    settings = Settings(lago_webhooks={"path": "/x", "hmac_key": "env:LAGO_HMAC"})
    assert settings.lago_webhooks is not None
    assert settings.lago_webhooks.hmac_key is not None
    assert settings.lago_webhooks.hmac_key.get_secret_value() == "s3cret-hmac"
    assert "s3cret" not in repr(settings)
