"""Clients cannot tell that anything stands between them and their provider, and the ledger knows every token."""

from __future__ import annotations

from decimal import Decimal

import pytest

from .calls import ASKING, CASES, MESSAGES, Case, chat, chat_stream, embeddings, message
from .clients import http_client, sdks
from .conftest import BUDGETS, Front
from .gateways import cost_nano_usd, secret_of

pytestmark = pytest.mark.usefixtures("tinyllm")


def name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", CASES, ids=name)
async def test_an_sdk_gets_what_the_provider_says_and_the_ledger_what_it_counts(front: Front, case: Case) -> None:
    async with sdks(front.upstreams[case.upstream], "none") as direct:
        expected = await case.run(direct)
        usage = (await ASKING[case.name](direct)).usage if not case.asked else expected.usage
    async with sdks(front.url, secret_of("acme")) as through:
        assert await case.run(through) == expected
    assert usage is not None
    assert usage[0] > 0
    record = await front.books.record(through.wire.call_id)
    assert (record.usage.input_tokens, record.usage.output_tokens) == usage
    assert record.cost_nano_usd == cost_nano_usd(case.model, *usage)
    assert (record.api, record.stream, record.tenant, record.key) == (case.api, case.stream, "acme", "key-acme")
    assert (record.requested_model, record.served_model) == (case.model, case.model)
    assert (record.outcome, record.estimated, record.anomalous, record.late) == ("completed", False, False, False)
    assert record.status == 200
    await front.books.check()
    await front.books.settle_down()


@pytest.mark.parametrize("case", [c for c in CASES if c.run in (chat, chat_stream, embeddings, message)], ids=name)
async def test_the_headers_tell_call_model_budget_and_where_it_is_known_the_cost(front: Front, case: Case) -> None:
    limit = Decimal(BUDGETS["acme"]) * 10**9
    await front.books.settle_down()
    spent = sum(r.cost_nano_usd for r in (await front.books.records()).values() if r.tenant == "acme")
    async with sdks(front.url, secret_of("acme")) as through:
        await case.run(through)
    headers = through.wire.headers
    record = await front.books.record(headers["x-askii-call-id"])
    assert headers["x-askii-model"] == case.model
    assert Decimal(headers["x-askii-budget-limit-coins"]) * 1000 == limit
    assert Decimal(headers["x-askii-budget-remaining-coins"]) * 1000 == limit - spent
    assert headers["x-askii-budget-reset"].endswith("T00:00:00Z")
    assert "x-askii-fallback-reason" not in headers
    if case.stream:
        assert "x-askii-cost-coins" not in headers
    else:
        assert Decimal(headers["x-askii-cost-coins"]) * 1000 == record.cost_nano_usd


@pytest.mark.parametrize("model", ["tiny", "o4-mini"])
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}])
async def test_a_stream_shows_no_usage_to_a_client_that_did_not_ask(
    front: Front, model: str, options: dict[str, object]
) -> None:
    request = {"model": model, "messages": MESSAGES, "max_completion_tokens": 200, "stream": True, **options}
    async with http_client() as client:
        answer = await client.post(
            f"{front.url}/v1/chat/completions",
            json=request,
            headers={"authorization": f"Bearer {secret_of('acme')}"},
        )
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "usage" not in answer.text
    record = await front.books.record(answer.headers["x-askii-call-id"])
    assert record.usage.output_tokens > 0
    assert record.estimated is False
