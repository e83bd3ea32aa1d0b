"""`[sinks]`: several of a kind under names of their own, and what each takes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.assembly import sinks_from_settings
from askii_middleware.errors import ConfigurationError
from askii_middleware.settings import Settings, describe, load_settings
from askii_middleware.sinks import LagoSink, LogSink, WebhookSink
from askii_middleware.sinks.base import Traits, traits_of

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
HOOK: dict[str, Any] = {"kind": "webhook", "url": "https://h.example.com/events/"}


def settings(**sinks: Any) -> Settings:
    return Settings(sinks=sinks)


def refused(**sinks: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        sinks_from_settings(settings(**sinks))
    return str(caught.value)


def test_several_sinks_of_a_kind_stand_under_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METER_SECRET", SECRET)
    (tmp_path / "askii.toml").write_text(
        f"""
[sinks.log]
path = "{tmp_path}/usage.jsonl"
rotate_bytes = 1000000
keep = 3
fsync = true
[sinks.audit]
kind = "log"
path = "{tmp_path}/audit.jsonl"
[sinks.meter]
kind = "webhook"
url = "https://h.example.com/api/v1/events"
token = "om-token"
secrets = ["env:METER_SECRET"]
type = "llm.call"
source = "eu-1"
number_format = "string"
max_batch = 50
max_age_s = 86400
remembers_s = 3600
timeout_s = 5
[sinks.second]
kind = "lago"
url = "https://lago.example.com/api/v1"
api_key = "k"
events = ["coins", "tokens"]
"""
    )
    read = load_settings(tmp_path / "askii.toml")
    assert read.sinks.names == ("log", "audit", "meter", "second")
    assert read.sinks.places == {"log", "audit", "meter", "second", "second-tokens"}
    log, audit, meter, coins, tokens = sinks_from_settings(read)
    assert isinstance(log, LogSink)
    assert (log.name, log.rotate_bytes, log.keep, log.fsync) == ("log", 1_000_000, 3, True)
    assert isinstance(audit, LogSink)
    assert (audit.name, audit.path, audit.rotate_bytes, audit.fsync) == ("audit", tmp_path / "audit.jsonl", None, False)
    assert isinstance(meter, WebhookSink)
    assert (meter.name, meter.url, meter.max_batch) == ("meter", "https://h.example.com/api/v1/events", 50)
    assert traits_of(meter) == Traits("string", 86_400.0, 3600.0)
    assert [type(sink) for sink in (coins, tokens)] == [LagoSink, LagoSink]
    assert [coins.name, tokens.name] == ["second", "second-tokens"]
    for shown in (repr(read), describe(read), repr(meter)):
        assert SECRET not in shown
        assert "om-token" not in shown
    assert "sinks log, audit, meter, second" in describe(read)


def test_a_webhooks_url_stays_as_it_is_written() -> None:
    (sink,) = sinks_from_settings(settings(meter=HOOK))
    assert isinstance(sink, WebhookSink)
    assert sink.url == "https://h.example.com/events/"


def test_kind_may_be_said_where_the_name_says_it_already(tmp_path: Path) -> None:
    (sink,) = sinks_from_settings(settings(log={"kind": "log", "path": tmp_path / "u.jsonl"}))
    assert sink.name == "log"


@pytest.mark.parametrize(
    ("sinks", "says"),
    [
        ({"kafka": {}}, "sinks.kafka: unknown sink: under a name of its own it needs kind = one of lago, log, webhook"),
        ({"x": {"kind": "kafka"}}, "sinks.x: unknown sink: under a name of its own"),
        ({"x": 3}, "sinks.x: unknown sink"),
        ({"lago": HOOK}, "sinks: lago.kind: what has this name is of this kind; take another name"),
        ({"m": {**HOOK, "urls": 1}}, "sinks.m: urls: unknown setting"),
        ({"m": {"kind": "webhook"}}, "sinks.m: url: is required"),
        ({"m": {**HOOK, "secrets": ["whsec_x"]}}, "sinks.m: sink 'm': a webhook secret is whsec_"),
        ({"m": {**HOOK, "url": "http://h.example.com/x"}}, "sinks.m: the URL of sink 'm' must be https"),
        ({"m": {**HOOK, "url": "https://h/x?key=1"}}, "sinks.m: the URL of sink 'm' must be http(s)://host/path"),
        ({"m": {**HOOK, "number_format": "float"}}, "sinks.m: number_format: Input should be 'string' or 'integer'"),
        ({"m": {**HOOK, "max_age_s": 0}}, "sinks.m: max_age_s: Input should be greater than 0"),
        ({"m": {**HOOK, "timeout_s": 30}}, "sinks.m: timeout_s: Input should be less than or equal to 11"),
        ({"m": {**HOOK, "max_batch": 201}}, "sinks.m: max_batch: Input should be less than or equal to 200"),
        ({"log": {"path": "/", "keep": 0}}, "sinks.log.keep: Input should be greater than or equal to 1"),
        ({"log": {"path": "/no-such-folder/x"}}, "sinks.log: the folder of /no-such-folder/x does not exist"),
        ({"alert:x": HOOK}, "sinks.alert:x: "),
        ({"a b": HOOK}, "sinks.a b: "),
        ({"x" * 65: HOOK}, f"sinks.{'x' * 65}: "),
    ],
)
def test_a_sink_that_cannot_work_is_named_with_what_is_wrong(sinks: dict[str, Any], says: str) -> None:
    assert refused(**sinks).startswith(says)


def test_http_beyond_this_machine_is_the_operators_word() -> None:
    (sink,) = sinks_from_settings(settings(m={**HOOK, "url": "http://meter.internal/x", "allow_http": True}))
    assert isinstance(sink, WebhookSink)
