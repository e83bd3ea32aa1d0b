"""The variables of the guides: `BILLING_…`, and rates by environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from askii_middleware.assembly import tracker_from_settings
from askii_middleware.channels import EmailChannel
from askii_middleware.compat import cost_tracker, get_askii_coin_exchange_rate
from askii_middleware.compat.configuration import guide_settings
from askii_middleware.default_tracker import get_cost_tracker
from askii_middleware.errors import ConfigurationError
from askii_middleware.settings import load_settings


@pytest.mark.parametrize("said", ["false", "False", "0", "no", " off "])
def test_billing_switched_off_refuses_nobody_and_records_all(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_ENABLED", said)
    cost_tracker.set_budget("k", 0.001)
    assert cost_tracker.tracker.modes.of("acme") == "off"
    assert cost_tracker.record_usage("k", "gpt-4", input_tokens=1000).cost_nano_usd == 30_000_000
    assert cost_tracker.get_spend("k").total_cost == 0.03
    assert (cost_tracker.check_budget("k", 5), cost_tracker.get_budget_status("k").can_make_request) == (True, True)


@pytest.mark.parametrize("said", ["true", "TRUE", "1", "yes", "on", ""])
def test_billing_switched_on_leaves_enforcement_as_it_is(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_ENABLED", said)
    assert guide_settings().enforcement == "enforce"
    Path("askii.toml").write_text('enforcement = "shadow"\n')
    assert guide_settings().enforcement == "shadow"


@pytest.mark.parametrize("ours", ["ASKII_ENFORCEMENT", "askii_enforcement"])
def test_our_own_variable_comes_before_and_the_file_after(ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_ENABLED", "false")
    Path("askii.toml").write_text('enforcement = "enforce"\n')
    assert guide_settings().enforcement == "off"
    monkeypatch.setenv(ours, "shadow")
    assert guide_settings().enforcement == "shadow"


def test_what_another_program_says_of_its_billing_switches_no_middleware_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_ENABLED", "false")
    monkeypatch.setenv("BILLING_DEFAULT_CURRENCY", "EUR")
    assert load_settings().enforcement == "enforce"
    assert get_cost_tracker().modes.of("acme") == "enforce"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"BILLING_ENABLED": "maybe"}, "BILLING_ENABLED: 'maybe' is neither true nor false"),
        ({"BILLING_DEFAULT_CURRENCY": "EUR"}, "BILLING_DEFAULT_CURRENCY: 'EUR' cannot be"),
    ],
)
def test_a_wrong_variable_is_named(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        guide_settings()


def test_usd_is_the_only_currency_and_may_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_DEFAULT_CURRENCY", "usd")
    assert guide_settings() == load_settings()


def test_alerts_go_out_by_the_mail_server_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FROM_EMAIL", "billing@example.com"), ("SMTP_HOST", "smtp.example.com"), ("SMTP_PORT", "25")):
        monkeypatch.setenv(f"BILLING_ALERT_{name}", value)
    Path("askii.toml").write_text('store = "memory://"\n[alerts]\nlog = false\nemail_to = ["ops@example.com"]\n')
    (channel,) = tracker_from_settings(load_settings()).alert_channels
    assert isinstance(channel, EmailChannel)


@pytest.mark.parametrize(("text", "rate"), [("1000", 1000), ("1e5", 100_000), ("wrong", 1_000_000)])
def test_the_rate_is_read_at_each_use(text: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    cost_tracker.record_usage("k", "gpt-4", input_tokens=1000)
    monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", text)
    assert get_askii_coin_exchange_rate() == rate
    assert cost_tracker.get_spend("k").total_cost_coins == 0.03 * rate
