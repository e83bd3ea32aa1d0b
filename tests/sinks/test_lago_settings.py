"""`[sinks.lago]`: from the table to the sinks."""

from __future__ import annotations

from typing import Any

import pytest

from askii_middleware.assembly import sinks_from_settings
from askii_middleware.errors import ConfigurationError
from askii_middleware.settings import Settings
from askii_middleware.sinks.lago import LagoSink

TABLE = {"url": "https://lago.example.com/api/v1", "api_key": "k"}


def built(**table: Any) -> list[LagoSink]:
    sinks = sinks_from_settings(Settings(store="memory://", sinks={"lago": {**TABLE, **table}}))
    assert all(isinstance(sink, LagoSink) for sink in sinks)
    return [sink for sink in sinks if isinstance(sink, LagoSink)]


def test_http_beyond_this_machine_is_the_operators_word() -> None:
    url = "http://lago.example.com/api/v1"
    assert [sink.url for sink in built(url=url, allow_http=True)] == [url]
    assert [sink.url for sink in built(url="http://127.0.0.1:3000/api/v1")] == ["http://127.0.0.1:3000/api/v1"]


def test_coins_are_the_default() -> None:
    (sink,) = built()
    assert (sink.name, sink.events, sink._metrics) == ("lago", "coins", {"askii_coins": "askii_coins"})


def test_each_shape_of_events_has_a_sink_and_a_name_of_its_own() -> None:
    coins, tokens = built(events=["coins", "tokens", "coins"], code="coins_used", token_codes={"input": "prompts"})
    assert (coins.name, coins._metrics) == ("lago", {"coins_used": "askii_coins"})
    assert (tokens.name, tokens._metrics) == ("lago-tokens", {"prompts": "value"})
    assert [sink.name for sink in built(events=["tokens"])] == ["lago-tokens"]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"events": []}, "sinks.lago.events: must not be empty"),
        ({"events": ["both"]}, "sinks.lago.events[0]: Input should be 'coins' or 'tokens', not 'both'"),
        ({"properties": {"team": "{tem}"}}, "sinks.lago: properties: team names 'tem'; known are"),
        ({"events": ["tokens"], "token_codes": {"inputs": "x"}}, "sinks.lago: token_codes: a code of its own"),
        ({"only_tenants": "acme"}, "sinks.lago.only_tenants: "),
        ({"only_tenants": []}, "sinks.lago.only_tenants: must not be empty"),
        ({"token_codes": {"input": "prompts"}}, 'sinks.lago: token_codes does nothing: add "tokens" to events'),
        ({"events": ["tokens"], "code": "coins"}, 'sinks.lago: code does nothing without "coins" in events'),
        ({"timeout_s": 12}, "sinks.lago.timeout_s: Input should be less than or equal to 11, not '12'"),
        ({"url": "http://lago.example.com/api/v1"}, "sinks.lago: the Lago URL must be https, or set allow_http"),
    ],
)
def test_a_table_that_cannot_be_names_what_is_wrong(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        built(**table)
    assert says in str(caught.value)
