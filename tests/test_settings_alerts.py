"""`[alerts]` and `alert_at`: read, checked, and made into channels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.assembly import tracker_from_settings
from askii_middleware.budgets import Budget
from askii_middleware.channels import EmailChannel, LogChannel, WebhookChannel
from askii_middleware.errors import ConfigurationError
from askii_middleware.settings import limits_nothing, load_settings
from askii_middleware.settings_tables import AlertSettings
from askii_middleware.tracker import CostTracker

from .channels.test_webhook import SECRET

BILLING = {
    "BILLING_ALERT_FROM_EMAIL": "billing@example.com",
    "BILLING_ALERT_SMTP_HOST": "smtp.example.com",
    "BILLING_ALERT_SMTP_PORT": "2525",
}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("ASKII_", "BILLING_")):
            monkeypatch.delenv(name)


def billing(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    for name, value in {**BILLING, **more}.items():
        monkeypatch.setenv(name, value)


def read(text: str) -> AlertSettings:
    Path("askii.toml").write_text(f'store = "memory://"\n{text}')
    return load_settings().alerts


def made(**alerts: Any) -> CostTracker:
    return tracker_from_settings(load_settings(store="memory://", alerts=alerts))


def test_without_a_word_alerts_go_to_the_log() -> None:
    (channel,) = made().alert_channels
    assert isinstance(channel, LogChannel)
    assert made(log=False).alert_channels == ()


def test_every_channel_is_made_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    billing(monkeypatch, HOOK_SECRET=SECRET, HOOK="https://hooks.example/T1?key=2", MAIL_PASSWORD="p")
    alerts = read(
        '[alerts]\nwebhook_url = "env:HOOK"\nwebhook_secret = "env:HOOK_SECRET"\nemail_to = ["ops@example.com"]\n'
        'smtp_port = 465\nsmtp_user = "u"\nsmtp_password = "env:MAIL_PASSWORD"\n'
    )
    monkeypatch.delenv("BILLING_ALERT_SMTP_PORT")
    log, hook, mail = tracker_from_settings(load_settings()).alert_channels
    assert isinstance(log, LogChannel)
    assert isinstance(hook, WebhookChannel)
    assert isinstance(mail, EmailChannel)
    assert (hook._url, hook._key) == ("https://hooks.example/T1?key=2", bytes(range(32)))
    assert (mail._host, mail._port, str(mail._from)) == ("smtp.example.com", 465, "billing@example.com")
    assert (mail._login, [str(address) for address in mail._to]) == (("u", "p"), ["ops@example.com"])
    for secret in (SECRET, "key=2", "'p'"):
        assert secret not in repr(alerts)


def test_the_guides_variables_beat_the_file_and_our_own_beat_them(monkeypatch: pytest.MonkeyPatch) -> None:
    table = '[alerts]\nemail_from = "file@example.com"\nsmtp_host = "file.example"\nsmtp_port = 1\nlog = false\n'
    assert (read(table).email_from, read(table).smtp_port) == ("file@example.com", 1)
    billing(monkeypatch)
    found = read(table)
    assert (found.email_from, found.smtp_host, found.smtp_port, found.log) == (
        *("billing@example.com", "smtp.example.com"),
        *(2525, False),
    )
    monkeypatch.setenv("ASKII_ALERTS", json.dumps({"smtp_host": "own.example"}))
    assert (read(table).smtp_host, read(table).smtp_port) == ("own.example", 2525)
    assert load_settings(alerts={"smtp_port": 7}).alerts.smtp_port == 7
    monkeypatch.setenv("BILLING_ALERT_SMTP_HOST", "")
    monkeypatch.delenv("ASKII_ALERTS")
    assert read(table).smtp_host == "file.example"


@pytest.mark.parametrize(
    ("alerts", "message"),
    [
        ({"email_to": ["a@example.com"]}, "email_to needs email_from (or the variable BILLING_ALERT_FROM_EMAIL)"),
        ({"email_to": ["a@example.com"], "email_from": "b@example.com"}, "email_to needs smtp_host"),
        ({"webhook_secret": SECRET}, "webhook_secret needs webhook_url"),
        ({"webhook_url": "ftp://x"}, "alerts.webhook_url: expected http://"),
        ({"webhook_url": "http://user:word@host/"}, "alerts.webhook_url: credentials"),
        ({"webhook_url": "http://h/", "webhook_secret": "env:NOWHERE"}, "alerts.webhook_secret: the environment"),
        ({"webhook_url": "http://h/", "webhook_secret": "plain"}, "whsec_"),
        ({"email_to": ["nobody"], "email_from": "b@example.com", "smtp_host": "h"}, "no e-mail address"),
        ({"smtp_port": 0}, "alerts.smtp_port"),
        ({"slack": "x"}, "alerts.slack: unknown setting"),
    ],
)
def test_what_cannot_work_is_refused_by_name(alerts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as failed:
        made(**alerts)
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)
    assert "plain" not in str(failed.value)


def test_a_port_that_is_none_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    billing(monkeypatch, BILLING_ALERT_SMTP_PORT="smtp")
    with pytest.raises(ConfigurationError, match=r"alerts\.smtp_port"):
        load_settings()


def test_budgets_take_alerts_softness_and_bounds() -> None:
    Path("askii.toml").write_text(
        '[[budgets]]\nscope = "end_user=*"\nlimit_usd = 1\nalert_at = [0.8, 1.0]\nsoft = true\nmax_values = 20\n'
    )
    settings = load_settings(store="memory://")
    assert settings.budgets == (Budget(scope="end_user=*", limit_usd=1, alert_at=(0.8, 1.0), soft=True, max_values=20),)
    terms = tracker_from_settings(settings).index.declared["end_user=*|daily"].terms
    assert (terms.alert_at_ppm, terms.soft, terms.max_values) == ((800_000, 1_000_000), True, 20)
    assert limits_nothing(settings)  # a soft budget refuses nobody
