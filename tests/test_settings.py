"""Settings from every layer, their checks, and what they never show."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.budgets import Budget, Scope
from askii_middleware.errors import ConfigurationError
from askii_middleware.keys import hash_secret
from askii_middleware.settings import (
    Settings,
    check_workers,
    describe,
    limits_nothing,
    load_settings,
    shown_url,
)
from askii_middleware.stores.base import KeyRow

DIGEST = hash_secret("sk-askii-example")
SECRET = "s3cr3t-s3cr3t-s3cr3t-s3cr3t-s3cr3t"
SetEnv = Callable[..., None]

CONTRACT = f"""
store = "sqlite:///askii.db"
enforcement = "enforce"
[identity]
sources = ["key"]
trusted_proxies = []
[fallbacks]
"gpt-4o" = ["gpt-4o-mini", "local-llama"]
[pricing."local-llama"]
input_usd_per_mtok = 0
output_usd_per_mtok = 0
[[budgets]]
scope = "tenant=*"
limit_usd = 10
period = "daily"
alert_at = [0.8, 0.9, 1.0]
[[keys]]
id = "key_1"
sha256 = "{DIGEST.upper()}"
tenant = "acme"
[upstreams.openai]
url = "https://api.example/v1"
api_key = "env:OPENAI_API_KEY"
models = ["gpt-*", "o*"]
[sinks.lago]
url = "https://lago.example/api/v1"
api_key = "env:LAGO_API_KEY"
[sinks.log]
path = "usage.jsonl"
"""


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


# Layers --------------------------------------------------------------------------------------------------------------


def test_without_any_layer_the_defaults_apply() -> None:
    settings = load_settings()
    assert settings.config is None
    assert settings.store == "sqlite:///askii.db"
    assert settings.enforcement == "enforce"
    assert settings.identity.sources == ("key",)
    assert settings.identity.trusted_proxies == ()
    assert settings.default_tenant is None
    assert settings.unknown_price == "reject"
    assert settings.unmetered == "allow"
    assert settings.inject_usage is True
    assert settings.on_store_error == "deny"
    assert settings.downgrade_at == 1.0
    assert settings.default_max_output_tokens == 16_384
    assert settings.remote_input_tokens is None
    assert settings.max_body_bytes == 33_554_432
    assert settings.hold_ttl_s == 60
    assert settings.max_call_s == 3600
    assert settings.budget_exceeded_status == 402
    assert settings.max_series == 1000
    assert (settings.budgets, settings.keys, settings.upstreams, settings.sinks.names) == ((), (), {}, ())


def test_the_example_of_the_contract_is_read_whole(env: SetEnv, tmp_path: Path) -> None:
    env(OPENAI_API_KEY="sk-openai", LAGO_API_KEY="lago")
    (tmp_path / "askii.toml").write_text(CONTRACT)
    settings = load_settings()
    assert settings.config == Path("askii.toml")
    assert settings.fallbacks == {"gpt-4o": ("gpt-4o-mini", "local-llama")}
    assert settings.pricing == {"local-llama": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}}
    assert settings.budgets == (
        Budget(scope=Scope(tenant="*"), limit_usd=Decimal(10), period="daily", alert_at=(0.8, 0.9, 1.0)),
    )
    assert settings.keys == (KeyRow(id="key_1", sha256=DIGEST, tenant="acme"),)
    upstream = settings.upstreams["openai"]
    assert (upstream.url, upstream.models) == ("https://api.example/v1", ("gpt-*", "o*"))
    assert upstream.api_key is not None
    assert upstream.api_key.get_secret_value() == "sk-openai"
    assert settings.sinks.names == ("lago", "log")
    assert settings.sinks.lago is not None
    assert settings.sinks.lago.url == "https://lago.example/api/v1"
    assert settings.sinks.lago.api_key.get_secret_value() == "lago"
    assert settings.sinks.log is not None
    assert settings.sinks.log.path == Path("usage.jsonl")


def test_constructor_beats_environment_beats_file_beats_default(env: SetEnv, tmp_path: Path) -> None:
    (tmp_path / "askii.toml").write_text("max_series = 3\nhold_ttl_s = 3\nmax_call_s = 3\n")
    env(ASKII_MAX_SERIES="2", ASKII_HOLD_TTL_S="2.5")
    settings = load_settings(max_series=1)
    assert (settings.max_series, settings.hold_ttl_s, settings.max_call_s, settings.max_body_bytes) == (
        1,
        2.5,
        3.0,
        32 << 20,
    )


def test_tables_merge_key_by_key_and_lists_are_replaced(env: SetEnv, tmp_path: Path) -> None:
    (tmp_path / "askii.toml").write_text(
        '[identity]\nsources = ["state"]\ntrusted_proxies = ["10.0.0.0/8"]\n[fallbacks]\na = ["b"]\n'
        '[[budgets]]\nscope = "tenant=*"\nlimit_usd = 1\n'
    )
    env(
        ASKII_IDENTITY='{"sources": ["key", "state"]}',
        ASKII_BUDGETS='[{"scope": "tenant=*", "limit_usd": 10}]',
        ASKII_FALLBACKS='{"c": ["d", "e"]}',
    )
    settings = load_settings()
    assert settings.identity.sources == ("key", "state")
    assert settings.identity.trusted_proxies == (ip_network("10.0.0.0/8"),)
    assert settings.fallbacks == {"a": ("b",), "c": ("d", "e")}
    assert [budget.limit_usd for budget in settings.budgets] == [10]


def test_a_table_in_the_environment_is_json(env: SetEnv) -> None:
    env(ASKII_KEYS=json.dumps([{"id": "k", "sha256": DIGEST, "tenant": "a", "expires_at": "2026-01-01T00:00:00Z"}]))
    assert load_settings().keys == (KeyRow(id="k", sha256=DIGEST, tenant="a", expires_at_s=1767225600.0),)


def test_a_named_file_is_read_instead_of_the_one_at_hand(env: SetEnv, tmp_path: Path) -> None:
    (tmp_path / "askii.toml").write_text("max_series = 1")
    (tmp_path / "other.toml").write_text("max_series = 2")
    (tmp_path / "third.toml").write_text("max_series = 3")
    env(ASKII_CONFIG=str(tmp_path / "other.toml"))
    assert load_settings().max_series == 2
    settings = load_settings(tmp_path / "third.toml")
    assert (settings.max_series, settings.config) == (3, tmp_path / "third.toml")


def test_a_named_file_that_is_missing_is_an_error(env: SetEnv, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.toml")
    assert "nowhere.toml" in refused(config=missing)
    env(ASKII_CONFIG=missing)
    assert refused() == f"config: the file {missing!r} does not exist"


@pytest.mark.parametrize("content", [b"max_series = ", b"\xff\xfe", b"[a\n"])
def test_a_file_that_is_not_toml_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "askii.toml").write_bytes(content)
    assert "'askii.toml' is not TOML" in refused()


def test_a_folder_in_the_files_place_is_an_error(env: SetEnv, tmp_path: Path) -> None:
    (tmp_path / "askii.toml").mkdir()
    assert "cannot read 'askii.toml'" in refused()
    env(ASKII_CONFIG="")
    assert "cannot read" in refused()


def test_a_file_cannot_name_another_file(tmp_path: Path) -> None:
    (tmp_path / "askii.toml").write_text('config = "other.toml"')
    assert "ASKII_CONFIG" in refused()


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
        "sinks.kafka: unknown setting",
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

    settings = load_settings(budgets=[budget], keys=(row,), identity={"sources": [whoever, "key"]})
    assert settings.budgets == (budget,)
    assert settings.keys == (row,)
    assert settings.identity.sources == (whoever, "key")


# The default tenant --------------------------------------------------------------------------------------------------


def test_the_default_tenant_may_stand_in_the_identity_table_but_not_say_two_things(env: SetEnv, tmp_path: Path) -> None:
    (tmp_path / "askii.toml").write_text('[identity]\ndefault_tenant = "acme"\nsources = ["state"]\n')
    settings = load_settings()
    assert (settings.default_tenant, settings.identity.sources) == ("acme", ("state",))
    env(ASKII_DEFAULT_TENANT="acme")
    assert load_settings().default_tenant == "acme"
    env(ASKII_DEFAULT_TENANT="globex")
    assert refused() == "default_tenant and identity.default_tenant differ: give one of them"


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


# What a start says ---------------------------------------------------------------------------------------------------


def test_a_start_says_config_store_sinks_and_how_many_budgets_and_keys(env: SetEnv, tmp_path: Path) -> None:
    env(OPENAI_API_KEY="x", LAGO_API_KEY="x")
    (tmp_path / "askii.toml").write_text(CONTRACT)
    settings = load_settings()
    assert describe(settings).partition(": ")[2] == (
        "config askii.toml, store sqlite:///askii.db, enforcement enforce, identity key, sinks lago, log, "
        "1 budgets, 1 keys"
    )
    assert describe(settings, budgets=3, keys=7).endswith("3 budgets, 7 keys")
    bare = describe(Settings(store="memory://", config=tmp_path / "askii.toml", sinks={"lago": {"code": "x"}}))
    assert "store memory://" in bare
    assert "\n" not in bare


def test_a_start_without_file_sinks_or_text_sources_says_so(tmp_path: Path) -> None:
    line = describe(load_settings(identity={"sources": [print, "state"]}))
    assert "config none, " in line
    assert "identity callable, state, sinks none, 0 budgets, 0 keys" in line


@pytest.mark.parametrize(
    ("settings", "nothing"),
    [
        ({}, True),
        ({"budgets": [{"scope": "tenant=*", "limit_usd": 0}]}, False),
        ({"budgets": [{"scope": "tenant=*", "limit_coins": 5}]}, False),
        ({"budgets": [{"scope": "tenant=*"}]}, True),
        ({"budgets": [{"scope": "tenant=*", "limit_usd": 1, "enabled": False}]}, True),
        ({"budgets": [{"scope": "tenant=*", "limit_usd": 1}], "enforcement": "off"}, True),
        ({"budgets": [{"scope": "tenant=*", "limit_usd": 1}], "enforcement": "shadow"}, True),
    ],
)
def test_a_start_knows_whether_anything_limits(settings: dict[str, Any], nothing: bool) -> None:
    assert limits_nothing(load_settings(**settings)) is nothing


def test_memory_is_refused_to_several_workers() -> None:
    check_workers(load_settings(store="memory://"), 1)
    check_workers(load_settings(), 8)
    with pytest.raises(ConfigurationError, match="memory:// is one process's own, and there are 2 workers"):
        check_workers(load_settings(store="memory://"), 2)
