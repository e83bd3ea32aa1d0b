"""What an alert says, in words and as JSON."""

from __future__ import annotations

import json

import pytest

from askii_middleware.budgets import FOREVER_S
from askii_middleware.channels import AlertChannel, CallbackChannel, EmailChannel, LogChannel, WebhookChannel
from askii_middleware.standing import share_used, standing

from .support import notice


def test_a_notice_is_json_with_exact_amounts_in_both_currencies() -> None:
    assert json.loads(notice(7).json()) == {
        "id": "00000000000000000000000000000007",
        "timestamp": "2026-01-01T01:00:00Z",
        "scope": "tenant=acme",
        "tenant": "acme",
        "period": "daily",
        "share": 0.9,
        "status": "warning",
        "utilisation": 0.91,
        "limit_usd": "10",
        "spent_usd": "9.1",
        "limit_coins": "10000000",
        "spent_coins": "9100000",
        "resets_at": "2026-01-02T00:00:00Z",
    }


def test_a_notice_is_one_line_of_text() -> None:
    assert notice().text == (
        "warning: tenant=acme has spent 90 % of its daily budget: 9.1 of 10 USD (9100000 of 10000000 Askii Coins); "
        "it resets at 2026-01-02T00:00:00Z"
    )


def test_a_budget_for_ever_never_resets() -> None:
    total = notice(period="total", resets_at_s=FOREVER_S)
    assert (total.resets_at, "resets" in total.text) == (None, False)


@pytest.mark.parametrize(
    ("scope", "tenant"),
    [
        ("tenant=acme", "acme"),
        ("tenant=a%2Cb%3D%20%2A", "a,b= *"),
        ("tenant=%2A", "*"),
        ("tenant=%C3%A9,model=gpt-4o", "é"),
        ("tenant=*", None),
        ("team=tenant", None),
        ("global", None),
    ],
)
def test_a_notice_names_the_tenant_that_its_scope_names(scope: str, tenant: str | None) -> None:
    assert notice(scope=scope).tenant == tenant


@pytest.mark.parametrize(
    ("share_ppm", "word"),
    [
        (1, "ok"),
        (799_999, "ok"),
        (800_000, "caution"),
        (899_999, "caution"),
        (900_000, "warning"),
        (1_000_000, "exceeded"),
    ],
)
def test_the_word_of_an_alert_is_that_of_the_share_crossed(share_ppm: int, word: str) -> None:
    assert notice(share_ppm=share_ppm, spent_nano_usd=20_000_000_000).status == word


@pytest.mark.parametrize(
    ("used", "limit", "word", "share"),
    [
        (0, None, "ok", 0.0),
        (10**15, None, "ok", 0.0),
        (0, 0, "exceeded", 1.0),
        (79, 100, "ok", 0.79),
        (8 * 10**14 - 1, 10**15, "ok", pytest.approx(0.8)),
        (8 * 10**14, 10**15, "caution", 0.8),
        (90, 100, "warning", 0.9),
        (99, 100, "warning", 0.99),
        (100, 100, "exceeded", 1.0),
        (250, 100, "exceeded", 2.5),
    ],
)
def test_a_share_of_a_limit_has_a_word(used: int, limit: int | None, word: str, share: float) -> None:
    assert (standing(used, limit), share_used(used, limit)) == (word, share)


def test_every_channel_is_one() -> None:
    assert isinstance(LogChannel(), AlertChannel)
    assert isinstance(CallbackChannel(print), AlertChannel)
    assert isinstance(WebhookChannel("http://127.0.0.1:1/"), AlertChannel)
    assert isinstance(EmailChannel(["a@example.com"], host="127.0.0.1", from_="b@example.com"), AlertChannel)
