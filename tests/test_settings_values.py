"""What settings refuse, and the secrets they never show."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.budgets import Budget
from askii_middleware.errors import ConfigurationError
from askii_middleware.keys import hash_secret
from askii_middleware.settings import (
    describe,
    load_settings,
    shown_url,
)
from askii_middleware.stores.base import KeyRow

DIGEST = hash_secret("sk-askii-example")
SECRET = "s3cr3t-s3cr3t-s3cr3t-s3cr3t-s3cr3t"
SetEnv = Callable[..., None]


@pytest.fixture(autouse=True)
def _empty_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("ASKII_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> SetEnv:
    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(**settings)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    return str(raised.value)


# Unknown names and bad values ----------------------------------------------------------------------------------------


def test_an_unknown_key_is_named_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "askii.toml").write_text(
        'enforcment = "off"\n[identity]\nsource = ["key"]\n[[budgets]]\nscope = "global"\nlimit = 3\n'
        f'[[keys]]\nid = "k"\nsha256 = "{DIGEST}"\ntenant = "a"\nsecret = "x"\n[sinks.kafka]\nurl = "x"\n'
        '[upstreams.a]\nurl = "http://x"\nkey = "x"\n[routes]\ninclud = []\n'
    )
    assert sorted(refused().splitlines()) == [
        "budgets[0]: limit: unknown setting",
        "enforcment: unknown setting; did you mean enforcement?",
        "identity.source: unknown setting",
        "keys[0]: secret: unknown setting",
        "routes.includ: unknown setting",
        "sinks.kafka: unknown sink: under a name of its own it needs kind = one of lago, log, webhook",
        "upstreams.a.key: unknown setting",
    ]
    assert refused(config=None, nonsense=1).count("nonsense: unknown setting") == 1


def test_an_unknown_variable_is_named_and_known_exceptions_are_not(env: SetEnv) -> None:
    env(ASKII_COIN_EXCHANGE_RATE="1000", ASKII_TEST_ANYTHING="1", ASKIINESS="1")
    load_settings()
    env(ASKII_BUDGET="[]", ASKII_IDENTITY__SOURCES="[]")
    assert refused().splitlines() == [
        "ASKII_BUDGET: unknown variable; did you mean ASKII_BUDGETS?",
        "ASKII_IDENTITY__SOURCES: unknown variable; did you mean ASKII_IDENTITY?",
    ]


def test_a_variable_that_a_setting_points_at_may_begin_as_ours_do(env: SetEnv, tmp_path: Path) -> None:
    env(ASKII_ADMIN_TOKEN="0123456789abcdef", ASKII_HOOK="s3cret", ASKII_LEDGER_URL="memory://")
    path = tmp_path / "pointing.toml"
    path.write_text(
        'store = "env:ASKII_LEDGER_URL"\n[api]\nadmin_token = "env:ASKII_ADMIN_TOKEN"\n'
        '[sinks.webhook]\nurl = "http://127.0.0.1:9/"\nsecrets = ["env:ASKII_HOOK"]\n'
    )
    token = load_settings(path).api.admin_token
    assert token is not None
    assert token.get_secret_value() == "0123456789abcdef"
    path.write_text("")
    named = [line.partition(":")[0] for line in refused(config=path).splitlines()]
    assert named == ["ASKII_ADMIN_TOKEN", "ASKII_HOOK", "ASKII_LEDGER_URL"]


def test_the_variables_kubernetes_sets_for_a_service_of_our_name_are_none_of_ours(env: SetEnv) -> None:
    for service in ("ASKII", "ASKII_GATEWAY"):
        env(
            **{
                f"{service}_SERVICE_HOST": "10.0.0.1",
                f"{service}_SERVICE_PORT": "8000",
                f"{service}_SERVICE_PORT_HTTP": "8000",
                f"{service}_PORT": "tcp://10.0.0.1:8000",
                f"{service}_PORT_8000_TCP": "tcp://10.0.0.1:8000",
                f"{service}_PORT_8000_TCP_ADDR": "10.0.0.1",
            }
        )
    load_settings()
    env(ASKII_METRIC_PORT="9100")
    assert refused() == "ASKII_METRIC_PORT: unknown variable; did you mean ASKII_METRICS_PORT?"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enforcement": "hard"}, "enforcement: Input should be 'enforce', 'shadow' or 'off', not 'hard'"),
        ({"hold_ttl_s": 0}, "hold_ttl_s: Input should be greater than 0, not '0'"),
        ({"hold_ttl_s": True}, "hold_ttl_s: expected a number, not true or false"),
        ({"max_call_s": float("inf")}, "max_call_s: Input should be a finite number, not 'inf'"),
        ({"max_series": 0}, "max_series: Input should be greater than or equal to 1, not '0'"),
        ({"downgrade_at": 1.5}, "downgrade_at: Input should be less than or equal to 1, not '1.5'"),
        ({"budget_exceeded_status": 200}, "budget_exceeded_status: Input should be greater than or equal to 400"),
        ({"metrics_port": 70_000}, "metrics_port: Input should be less than or equal to 65535, not '70000'"),
        ({"metrics_path": "metrics"}, "metrics_path: String should match pattern '^/'"),
        ({"store": "askii.db"}, "store: expected a URL that begins with one of memory://, sqlite://"),
        ({"store": "mysql://host/db"}, "store: expected a URL"),
        ({"default_tenant": ""}, "default_tenant: must not be empty"),
        ({"default_tenant": "a\0b"}, "default_tenant: NUL characters are not allowed"),
        ({"default_tenant": "t" * 257}, "default_tenant: String should have at most 256 characters"),
        ({"fallbacks": {"a": "b"}}, "fallbacks.a: expected a list"),
        ({"fallbacks": []}, "fallbacks: expected a table"),
        ({"pricing": {"m": 3}}, "pricing.m: expected a table"),
        ({"inject_usage": 1}, "inject_usage: expected true, false, or a table of models"),
        ({"inject_usage": {"gpt-4o": "maybe"}}, "inject_usage: expected true, false, or a table of models"),
        ({"unknown_price": "default"}, 'unknown_price = "default" needs default_price'),
        ({"identity": {"sources": ["cookie"]}}, "identity.sources[0]: 'cookie' is none of"),
        ({"identity": {"sources": ["header:"]}}, "identity.sources[0]: 'header:' is none of"),
        ({"identity": {"sources": ["header:x y"]}}, "identity.sources[0]: 'header:x y' is none of"),
        ({"identity": {"trusted_proxies": ["10.0.0.1/8"]}}, "identity.trusted_proxies[0]: expected a network"),
        ({"identity": {"trusted_proxies": ["proxy"]}}, "identity.trusted_proxies[0]: expected a network"),
        ({"identity": {"sources": ["jwt"]}}, 'identity: the source "jwt" and the table identity.jwt come together'),
        ({"identity": {"jwt": {"secret": SECRET}}}, 'identity: the source "jwt" and the table identity.jwt'),
        ({"identity": {"sources": ["jwt"], "jwt": {}}}, "identity.jwt: give either secret (HS256) or public_key"),
        ({"identity": {"sources": ["jwt"], "jwt": {"secret": "short"}}}, "identity.jwt: secret: HS256 needs at least"),
        ({"budgets": [{"scope": "tenant="}]}, "budgets[0]: scope 'tenant=': expected 'global' or"),
        ({"budgets": [{"limit_usd": 1}]}, "budgets[0]: scope: is required"),
        ({"budgets": [{"scope": "global", "limit_usd": "x"}]}, "budgets[0]: limit_usd: Input should be a valid dec"),
        ({"budgets": [{"scope": "global", "limit_usd": -1}]}, "budgets[0]: budget global: limit_usd: '-1' is not"),
        ({"budgets": [{"scope": "global", "limit_usd": True}]}, "budgets[0]: limit_usd: expected a number, not true"),
        ({"budgets": [{"scope": "global", "period": "hourly"}]}, "budgets[0]: budget global: period 'hourly'"),
        ({"budgets": [{"scope": "global", "zone": "Mars"}]}, "budgets[0]: time zone 'Mars' is unknown"),
        ({"budgets": [{"scope": "global", "alert_at": [2]}]}, "budgets[0]: budget global: alert_at"),
        ({"budgets": ["tenant=*"]}, "budgets[0]: expected a table"),
        ({"budgets": [{"scope": "global"}, {"scope": "global"}]}, "budgets global|daily is given twice"),
        ({"keys": [{"id": "k", "sha256": DIGEST}]}, "keys[0]: tenant: is required"),
        (
            {"keys": [{"id": "k", "sha256": DIGEST, "tenant": "a", "tags": [str(n) for n in range(17)]}]},
            "keys[0]: at most 16 tags",
        ),
        (
            {"keys": [{"id": "k", "sha256": DIGEST, "tenant": "a", "expires_at": "2026-01-01T00:00:00"}]},
            "keys[0]: expires_at: Input should have timezone info",
        ),
        (
            {"keys": [{"id": i, "sha256": DIGEST, "tenant": "a"} for i in "ab"]},
            f"keys: the sha256 of {DIGEST} is given twice",
        ),
        (
            {"keys": [{"id": "k", "sha256": hash_secret(i), "tenant": "a"} for i in "ab"]},
            "keys: the id k is given twice",
        ),
        ({"upstreams": {"a": {"url": "ftp://x"}}}, "upstreams.a.url: expected http://host"),
        ({"upstreams": {"a": {"url": "http://"}}}, "upstreams.a.url: expected http://host"),
        ({"upstreams": {"a": {"url": "http://h:99999"}}}, "upstreams.a.url: expected http://host"),
        ({"upstreams": {"a": {}}}, "upstreams.a.url: is required"),
        ({"sinks": {"lago": {"url": "https://x"}}}, "sinks.lago.api_key: is required"),
    ],
)
def test_a_bad_value_is_refused_and_named(settings: dict[str, Any], message: str) -> None:
    text = refused(**settings)
    assert text.startswith(message)
    assert "\n" not in text


def test_every_problem_gets_a_line_of_its_own() -> None:
    lines = refused(max_series=0, enforcement="hard", nonsense=1).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["enforcement", "max_series", "nonsense"]


@pytest.mark.parametrize("text", ["[{", "", "tenant=*"])
def test_a_table_in_the_environment_that_is_not_json_names_the_variable(env: SetEnv, text: str) -> None:
    env(ASKII_BUDGETS=text)
    assert refused().startswith("ASKII_BUDGETS: expected JSON")


def test_a_bad_scalar_in_the_environment_is_named_by_its_setting(env: SetEnv) -> None:
    env(ASKII_METRICS_PORT="http", ASKII_EXPOSE_AMOUNTS="perhaps")
    assert sorted(line.partition(":")[0] for line in refused().splitlines()) == ["expose_amounts", "metrics_port"]


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("False", False), ('{"gpt-4o": false}', {"gpt-4o": False})]
)
def test_usage_injection_is_a_switch_or_a_table(env: SetEnv, text: str, value: object) -> None:
    env(ASKII_INJECT_USAGE=text)
    assert load_settings().inject_usage == value


def test_settings_do_not_change_after_the_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().store = "memory://"


def test_an_invalid_exchange_rate_fails_only_a_strict_start(env: SetEnv) -> None:
    env(ASKII_COIN_EXCHANGE_RATE="zero")
    load_settings()
    assert "ASKII_COIN_EXCHANGE_RATE='zero'" in refused(strict_exchange_rate=True)
    env(ASKII_COIN_EXCHANGE_RATE="1e6")
    assert load_settings(strict_exchange_rate=True).strict_exchange_rate


def test_values_of_the_core_pass_as_they_are() -> None:
    budget, row = Budget(scope="global", limit_coins=5), KeyRow(id="k", sha256=DIGEST, tenant="a")

    def whoever(_: object) -> str:
        return "acme"

    network = ip_network("10.0.0.0/8")
    identity = {"sources": [whoever, "key"], "trusted_proxies": [network]}
    settings = load_settings(budgets=[budget], keys=(row,), identity=identity)
    assert settings.identity.trusted_proxies == (network,)
    assert settings.budgets == (budget,)
    assert settings.keys == (row,)
    assert settings.identity.sources == (whoever, "key")


# Secrets -------------------------------------------------------------------------------------------------------------


def test_a_secret_comes_as_it_is_from_a_variable_or_from_a_file(env: SetEnv, tmp_path: Path) -> None:
    env(TOKEN="from-env")
    (tmp_path / "token").write_text("from-file\n")
    for written, value in (("plain", "plain"), ("env:TOKEN", "from-env"), (f"file:{tmp_path}/token", "from-file")):
        token = load_settings(metrics_token=written).metrics_token
        assert token is not None
        assert token.get_secret_value() == value
    env(URL="redis://:pw@host/0")
    assert load_settings(store="env:URL").store == "redis://:pw@host/0"


def test_a_secret_that_cannot_be_found_names_the_setting(env: SetEnv, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "empty").write_text("\n")
    env(EMPTY="")
    assert refused(metrics_token="env:NOWHERE") == "metrics_token: the environment variable 'NOWHERE' is not set"
    assert refused(metrics_token="file:/no/where").startswith("metrics_token: cannot read '/no/where'")
    assert refused(metrics_token=f"file:{tmp_path}/binary").endswith("is not UTF-8 text")
    for empty in ("", "env:EMPTY", f"file:{tmp_path}/empty"):
        assert refused(metrics_token=empty) == "metrics_token: must not be empty"
    assert refused(metrics_token=" \t") == "metrics_token: must not be blank"
    assert refused(store="env:NOWHERE").startswith("store: the environment variable")
    lago = {"lago": {"url": "https://x", "api_key": "env:NOWHERE"}}
    assert refused(sinks=lago).startswith("sinks.lago.api_key: the environment variable")


def test_secrets_are_never_shown() -> None:
    settings = load_settings(
        store=f"redis://user:{SECRET}@host:6379/0?password={SECRET}",
        metrics_token=SECRET,
        identity={"sources": ["jwt"], "jwt": {"secret": SECRET}},
        upstreams={"a": {"url": "https://x/v1", "api_key": SECRET}},
        sinks={"lago": {"url": "https://x/api/v1", "api_key": SECRET}},
    )
    for shown in (repr(settings), str(settings), describe(settings), repr(settings.sinks), repr(settings.upstreams)):
        assert SECRET not in shown
    assert "redis://host:6379/0" in describe(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"store": SECRET},
        {"metrics_token": [SECRET]},
        {"metric_token": SECRET},
        {"keys": SECRET},
        {"keys": [SECRET]},
        {"keys": [{"id": "k", "sha256": SECRET, "tenant": "a"}]},
        {"keys": [{"id": "k", "sha256": DIGEST, "tenant": "a", "secret": SECRET}]},
        {"upstreams": SECRET},
        {"upstreams": {"a": SECRET}},
        {"upstreams": {"a": {"url": f"https://user:{SECRET}@host"}}},
        {"upstreams": {"a": {"url": f"https://host?key={SECRET}"}}},
        {"upstreams": {"a": {"url": SECRET, "api_key": SECRET}}},
        {"upstreams": {"a": {"url": "https://x", "apikey": SECRET}}},
        {"sinks": {"lago": {"url": SECRET, "api_key": SECRET}}},
        {"sinks": {"lago": SECRET}},
        {"identity": {"sources": ["jwt"], "jwt": {"secret": SECRET, "public_key": SECRET}}},
        {"identity": {"jwt": SECRET}},
        {"budgets": SECRET},
        {"fallbacks": SECRET},
    ],
)
def test_secrets_are_not_shown_in_errors_either(settings: dict[str, Any]) -> None:
    assert SECRET not in refused(**settings)


@pytest.mark.parametrize("name", ["STORE", "KEYS", "UPSTREAMS", "SINKS", "IDENTITY"])
def test_secrets_in_broken_variables_are_not_shown(env: SetEnv, name: str) -> None:
    env(**{f"ASKII_{name}": '{"api_key": "' + SECRET})
    assert SECRET not in refused()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("sqlite:///askii.db", "sqlite:///askii.db"),
        ("sqlite:///data/a@b.db?x=1", "sqlite:///data/a@b.db"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:p@ss@host/0", "redis://host/0"),
        ("postgresql://u:p@h1,h2/db?sslmode=require", "postgresql://h1,h2/db"),
        ("redis://:pa?ss@host/0", "redis://…"),
        ("postgresql://host/db?password=p@ss", "postgresql://…"),
    ],
)
def test_a_stores_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert shown_url(url) == shown
