"""Settings from every layer, and what a start says of them."""

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


# The default tenant --------------------------------------------------------------------------------------------------


def test_the_default_tenant_may_stand_in_the_identity_table_but_not_say_two_things(env: SetEnv, tmp_path: Path) -> None:
    (tmp_path / "askii.toml").write_text('[identity]\ndefault_tenant = "acme"\nsources = ["state"]\n')
    settings = load_settings()
    assert (settings.default_tenant, settings.identity.sources) == ("acme", ("state",))
    env(ASKII_DEFAULT_TENANT="acme")
    assert load_settings().default_tenant == "acme"
    env(ASKII_DEFAULT_TENANT="globex")
    assert refused() == "default_tenant and identity.default_tenant differ: give one of them"


# What a start says ---------------------------------------------------------------------------------------------------


def test_a_start_says_config_store_sinks_and_how_many_budgets_and_keys(env: SetEnv, tmp_path: Path) -> None:
    env(OPENAI_API_KEY="x", LAGO_API_KEY="x")
    (tmp_path / "askii.toml").write_text(CONTRACT)
    settings = load_settings()
    assert describe(settings).partition(": ")[2] == (
        "config askii.toml, store sqlite:///askii.db, enforcement enforce, identity key, sinks lago, log, "
        "budgets 1, keys 1"
    )
    assert describe(settings, budgets=3, keys=7).endswith("budgets 3, keys 7")
    bare = describe(Settings(store="memory://", config=tmp_path / "askii.toml", sinks={"lago": {"code": "x"}}))
    assert "store memory://" in bare
    assert "\n" not in bare


def test_a_start_without_file_sinks_or_text_sources_says_so(tmp_path: Path) -> None:
    line = describe(load_settings(identity={"sources": [print, "state"]}))
    assert "config none, " in line
    assert "identity callable, state, sinks none, budgets 0, keys 0" in line


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
