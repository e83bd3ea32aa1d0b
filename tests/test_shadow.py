"""Shadow mode: nothing is refused and nothing is changed, whatever a call asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from askii_middleware.calls import CallSpec
from askii_middleware.errors import UnknownModelError
from askii_middleware.identity import Identity
from askii_middleware.pricing import ModelPrice
from askii_middleware.providers.base import BatchItems

from .support.service import PRICES, amounts, both_stores, opened

ACME = Identity(tenant="acme")
ENDLESS = {"own": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)}
"""Of this model no maximum is known."""


def chat(model: str = "own", **options: Any) -> CallSpec:
    return CallSpec(model=model, api="openai.chat", family="openai.chat", provider="openai", **options)


@both_stores
async def test_a_hold_beyond_all_counters_is_not_held_and_not_refused(kind: str, tmp_path: Path) -> None:
    dear = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10_000, allow_high=True)
    async with opened(kind, tmp_path, prices={"dear": dear}, enforcement="shadow") as tracker:
        async with tracker.track_tokens("acme", "dear", expected_input_tokens=10, max_output_tokens=0) as usage:
            usage["input_tokens"] = 1
        async with tracker.track_tokens("acme", "dear", expected_input_tokens=10, max_output_tokens=10**9) as usage:
            assert await amounts(tracker) == (1_000, 0)
            usage["input_tokens"] = 2
        assert await amounts(tracker) == (3_000, 0)


@pytest.mark.parametrize(
    "spec",
    [
        chat("big", output_tokens=5, other_models=("nobody-knows",)),
        chat("big", kind="batch", items=(BatchItems("nobody-knows", 5, 5, 0),)),
    ],
    ids=["another model", "an item"],
)
async def test_a_model_without_a_price_is_let_through_wherever_the_request_names_it(
    spec: CallSpec, tmp_path: Path
) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(UnknownModelError):
            await tracker.admit(ACME, spec)
    async with opened("memory", tmp_path, enforcement="shadow") as tracker:
        assert (await tracker.admit(ACME, spec)).held_nano_usd == 1


@pytest.mark.parametrize(("mode", "written"), [("enforce", 16_384), ("shadow", None), ("off", None)])
async def test_a_limit_is_written_into_a_request_only_where_budgets_are_enforced(
    mode: str, written: int | None, tmp_path: Path
) -> None:
    async with opened("memory", tmp_path, prices={**PRICES, **ENDLESS}, enforcement=mode) as tracker:
        assert (await tracker.admit(ACME, chat())).write_output_limit == written
