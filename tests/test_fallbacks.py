"""Which models may stand in for others, and what is refused at start."""

from __future__ import annotations

from typing import Any

import pytest

from askii_middleware.errors import ConfigurationError
from askii_middleware.fallbacks import MAX_CACHED, Fallbacks
from askii_middleware.pricing import ModelPrice, PriceBook

FREE = ModelPrice(input_usd_per_mtok=0, output_usd_per_mtok=0)


def fallbacks(table: dict[str, Any], **book: Any) -> Fallbacks:
    return Fallbacks(table, PriceBook(prices={"local-llama": FREE}, **book))


def test_a_models_own_chain_comes_in_its_order() -> None:
    found = fallbacks({"gpt-4o": ["gpt-4o-mini", "local-llama"], "*": ["gpt-4.1-nano"]})
    assert found.of("gpt-4o") == ("gpt-4o-mini", "local-llama")
    assert found.of("openai/GPT-4o") == ("gpt-4o-mini", "local-llama")
    assert found.of("gpt-4.1") == ("gpt-4.1-nano",)


def test_a_dated_name_uses_its_familys_chain_unless_it_has_its_own() -> None:
    found = fallbacks({"gpt-4o": ["gpt-4o-mini"], "gpt-4o-2024-05-13": ["local-llama"]})
    assert found.of("gpt-4o-2024-11-20") == ("gpt-4o-mini",)
    assert found.of("gpt-4o-2024-05-13") == ("local-llama",)


def test_aliases_have_the_chain_of_what_they_stand_for() -> None:
    assert fallbacks({"gpt-4o": ["local-llama"]}, aliases={"prod-chat": "gpt-4o"}).of("prod-chat") == ("local-llama",)


def test_the_star_covers_text_only_and_never_leads_to_the_model_itself() -> None:
    found = fallbacks({"*": ["gpt-4o-mini", "local-llama"]})
    assert found.of("text-embedding-3-small", "embedding") == ()
    assert found.of("gpt-4o-mini") == ("local-llama",)
    explicit = fallbacks({"text-embedding-3-large": ["text-embedding-3-small"], "*": ["gpt-4o-mini"]})
    assert explicit.of("text-embedding-3-large", "embedding") == ("text-embedding-3-small",)


def test_an_empty_chain_exempts_a_model_from_the_star() -> None:
    found = fallbacks({"*": ["gpt-4o-mini"], "gpt-4o": []})
    assert found.of("gpt-4o") == ()
    assert not fallbacks({"gpt-4o": []})
    assert found


def test_the_default_can_be_changed_at_run_time() -> None:
    found = fallbacks({})
    assert found.default is None
    assert found.of("gpt-4o") == ()
    found.default = "local-llama"
    assert (found.default, found.of("gpt-4o")) == ("local-llama", ("local-llama",))
    found.default = None
    assert (found.default, found.of("gpt-4o")) == (None, ())


def test_names_from_clients_are_remembered_up_to_a_bound() -> None:
    found = fallbacks({"*": ["local-llama"]})
    for number in range(MAX_CACHED + 10):
        assert found.of(f"model-{number}") == ("local-llama",)
    assert len(found._cache) <= MAX_CACHED


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"gpt-4o": ["gpt-4o"]}, "leads back"),
        ({"gpt-4o": ["openai/GPT-4O"]}, "leads back"),
        ({"gpt-4o": ["gpt-4o-mini"], "gpt-4o-mini": ["gpt-4o"]}, "leads back"),
        ({"gpt-4o": ["gpt-4.1"], "gpt-4.1": ["local-llama"], "local-llama": ["gpt-4o"]}, "leads back"),
        ({"gpt-4o": ["nobody-knows"]}, r"'nobody-knows' \(for 'gpt-4o'\) has no price; add \[pricing"),
        ({"*": ["nobody-knows"]}, "has no price"),
    ],
)
def test_what_cannot_work_is_refused_by_name(table: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fallbacks(table).check()


def test_a_model_that_nothing_serves_is_refused() -> None:
    found = fallbacks({"gpt-4o": ["gpt-4o-mini", "local-llama"]})
    found.check(is_served=lambda _model: True)
    with pytest.raises(ConfigurationError, match="nothing serves 'local-llama'"):
        found.check(is_served=lambda model: model.startswith("gpt"))


def test_unpriced_fallbacks_pass_where_unpriced_models_may_run() -> None:
    fallbacks({"gpt-4o": ["nobody-knows"]}).check(unpriced_allowed=True)


def test_a_chain_through_several_models_without_a_cycle_passes() -> None:
    fallbacks({"gpt-4o": ["gpt-4.1", "gpt-4o-mini"], "gpt-4.1": ["gpt-4o-mini"], "*": ["local-llama"]}).check()


@pytest.mark.parametrize("chain", ["gpt-4o-mini", [1], [""], [None]])
def test_a_chain_is_a_list_of_names(chain: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs a list of models"):
        fallbacks({"gpt-4o": chain})


def test_two_spellings_of_one_model_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="given twice"):
        fallbacks({"gpt-4o": ["gpt-4o-mini"], "openai/gpt-4o": ["local-llama"]})
