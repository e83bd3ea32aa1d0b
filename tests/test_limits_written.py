"""A hold is cut to a limit that fits only where that limit reaches the provider."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from askii_middleware.budgets import Budget
from askii_middleware.calls import CallSpec
from askii_middleware.errors import BudgetExceededError
from askii_middleware.identity import Identity
from askii_middleware.providers import APIS
from askii_middleware.providers.base import Api, Rewrite

from .support.service import opened

TURNS = [{"role": "user", "content": "hi"}]
PARTS = [{"role": "user", "content": [{"text": "hi"}]}]
BODIES = [
    {"model": "m", "messages": TURNS},
    {"model": "m", "prompt": "x"},
    {"model": "m", "prompt": "x", "suffix": "y"},
    {"model": "m", "input": "x"},
    {"model": "m", "inputs": "x"},
    {"model": "m", "message": "hi"},
    {"agent": "a", "input": "x"},
    {"agent_id": "a", "messages": TURNS},
    {"agent_id": "a", "inputs": "x"},
    {"messages": PARTS},
    {"messages": PARTS, "schemaVersion": "messages-v1"},
    {"messages": TURNS, "anthropic_version": "bedrock-2023-05-31"},
    {"contents": [{"parts": [{"text": "x"}]}]},
    {"inputText": "x"},
    {"prompt": "x"},
]


@pytest.mark.parametrize("api", [api for api in APIS if api.kind == "text"], ids=lambda api: str(api.name))
def test_a_request_that_takes_a_limit_has_it_written(api: Api) -> None:
    read = 0
    for body in BODIES:
        raw = json.dumps(body).encode()
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        if not api.owns(fields):
            continue
        request = api.parse(fields, len(raw))
        if request.output_limit is not None:
            continue
        read += 1
        written = api.rewrite(request, Rewrite(output_limit=300))
        again = api.parse(msgspec.json.decode(written, type=dict[str, msgspec.Raw]), len(written))
        assert (again.output_limit == 300) == api.takes_limit(request), body
    assert read


async def test_a_call_that_takes_no_limit_is_held_for_whole_or_not_at_all(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd="0.001")]) as tracker:
        for takes_limit in (False, True):
            spec = CallSpec(model="big", api="openai.chat", family="openai.chat", takes_limit=takes_limit)
            if not takes_limit:
                with pytest.raises(BudgetExceededError):
                    await tracker.admit(Identity(tenant="acme"), spec)
            else:
                assert (await tracker.admit(Identity(tenant="acme"), spec)).write_output_limit == 500
