"""Which external subscription pays for a call: resolved as it settles, kept in its record, with its own carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from askii_middleware.currency import RATE_VARIABLE
from askii_middleware.errors import ConfigurationError
from askii_middleware.identity import Identity
from askii_middleware.settings import Settings
from askii_middleware.settings_billing import BillingSettings
from askii_middleware.tracker import CostTracker

from .support.service import both_stores, opened, records_of

WHO = Identity(tenant="acme", key="k1", user="u1", team="t1", end_user="e1")


@pytest.mark.parametrize(
    ("billing", "who", "expected"),
    [
        ({}, WHO, "acme"),
        ({"subscription": "tenant"}, WHO, "acme"),
        ({"subscription": "key"}, WHO, "k1"),
        ({"subscription": "user"}, WHO, "u1"),
        ({"subscription": "team"}, WHO, "t1"),
        ({"subscription": "end_user"}, WHO, "e1"),
        ({"subscription": "team"}, Identity(tenant="acme"), "acme"),
        ({"subscription": "team", "otherwise": "none"}, Identity(tenant="acme"), ""),
        ({"subscriptions": {"acme": "sub-1"}}, WHO, "sub-1"),
        ({"subscriptions": {"other": "sub-1"}}, WHO, "acme"),
        ({"subscriptions": {"other": "sub-1"}, "otherwise": "none"}, WHO, ""),
    ],
)
async def test_the_subscription_is_the_one_the_settings_name(
    billing: dict[str, Any], who: Identity, expected: str, tmp_path: Path
) -> None:
    rule = BillingSettings(**billing).rule
    async with opened("memory", tmp_path, subscription_of=rule) as tracker:
        await tracker.record_usage(who, "big", input_tokens=10)
        await tracker.adjust(who, "0.001", reason="fee")
        assert [record.subscription for record in await records_of(tracker)] == [expected] * 2


async def test_the_file_says_which_subscription_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "askii.toml"
    path.write_text('store = "memory://"\n[billing]\notherwise = "none"\n[billing.subscriptions]\nacme = "sub-1"\n')
    tracker = CostTracker.from_settings(Settings(config=path))
    assert (tracker.subscription(WHO), tracker.subscription(Identity(tenant="other"))) == ("sub-1", "")


@pytest.mark.parametrize(
    ("billing", "message"),
    [
        ({"subscription": "tag"}, "billing.subscription: Input should be"),
        ({"otherwise": "reject"}, "billing.otherwise: Input should be"),
        ({"otherwise": "none"}, 'otherwise = "none" does nothing'),
        ({"subscription": "key", "subscriptions": {"acme": "s"}}, "the table subscriptions is by tenant"),
        ({"subscriptions": {"acme": ""}}, "billing.subscriptions.acme: must not be empty"),
        ({"subscriptions": {"acme": "a\0b"}}, "NUL characters are not allowed"),
        ({"subscriptions": {"acme": "x" * 257}}, "at most 256 characters"),
        ({"subscriptons": {}}, "unknown setting"),
    ],
)
def test_settings_that_name_none_are_refused(billing: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        Settings(billing=billing)
    assert message in str(told.value)


@both_stores
async def test_a_subscriptions_carry_is_its_own_and_shared_by_all_who_bill_to_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "1000")  # 400 tokens are 0.4 coin
    rule = {"acme": "one", "other": "one", "third": "three"}
    async with opened(kind, tmp_path, subscription_of=rule) as tracker:
        bills = [
            (await tracker.record_usage(tenant, "big", input_tokens=400)).askii_coins
            for tenant in ("acme", "third", "other", "third", "acme", "third")
        ]
        assert bills == [0, 0, 0, 0, 1, 1]
        await tracker.adjust("other", "-0.001", reason="r")
        after = [
            (await tracker.record_usage(tenant, "big", input_tokens=900)).askii_coins for tenant in ("acme", "third")
        ]
        assert after == [0, 1]


async def test_what_was_resolved_stays_with_the_call_and_its_corrections(tmp_path: Path) -> None:
    table = {"acme": "old"}
    async with opened("memory", tmp_path, subscription_of=table) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=100, call_id="c1")
        table["acme"] = "new"
        await tracker.adjust("acme", "-0.00005", reason="r", ref="c1")
        await tracker.adjust("acme", "-0.00005", reason="r")
        assert [record.subscription for record in await records_of(tracker)] == ["old", "old", "new"]


@pytest.mark.parametrize("wrong", ["a\0b", "x" * 257, "\ud800", b"sub", 7, ["sub"]])
async def test_what_names_no_subscription_costs_no_charge(
    wrong: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened("memory", tmp_path, subscription_of=lambda _who: wrong) as tracker:
        record = await tracker.record_usage("acme", "big", input_tokens=100)
        assert (record.subscription, record.cost_nano_usd) == ("", 100_000)
        assert "subscription_of takes a name" in caplog.text
