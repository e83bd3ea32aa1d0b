"""The example as a user meets it: under uvicorn, with the `askii` command and the official SDK."""

from __future__ import annotations

import openai
import pytest

from ..conftest import ADMIN_TOKEN, Running

QUESTION = "What is a token?"


def test_a_question_is_answered_and_charged_to_the_callers_tenant(running: Running, secret: str) -> None:
    with running.client(secret) as client:
        before = client.get("/stats").json()
        answer = client.post("/chat", json={"text": QUESTION}).raise_for_status().json()
        after = client.get("/stats").json()
    assert answer["model"] == "gpt-4o"
    assert "Simulated answer" in answer["text"]
    assert answer["call_id"]
    assert after["tenant_id"] == "acme"
    assert after["total_tokens_by_model"]["gpt-4o"] > before["total_tokens_by_model"].get("gpt-4o", 0)
    assert after["daily_cost_usd"] > before["daily_cost_usd"]
    assert after["remaining_budget_usd"] == pytest.approx(5 - after["daily_cost_usd"])


def test_the_official_sdk_works_through_the_pass_through(running: Running, secret: str) -> None:
    with running.openai(secret) as sdk:
        answer = sdk.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=[{"role": "user", "content": QUESTION}], max_tokens=20
        )
        stream = sdk.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": QUESTION}], max_tokens=20, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert answer.headers["x-askii-model"] == "gpt-4o"
    assert float(answer.headers["x-askii-cost-coins"]) > 0
    assert "Simulated answer" in text


def test_a_tenant_short_of_money_gets_a_cheaper_model_and_without_any_a_402(running: Running) -> None:
    secret = running.askii("keys", "add", "globex")["secret"]
    running.askii("budget", "set", "tenant=globex", "--usd", "0.001")
    with running.client(secret) as client, running.openai(secret) as sdk:
        assert client.post("/chat", json={"text": QUESTION}).raise_for_status().json()["model"] == "gpt-4o-mini"
        running.askii("budget", "set", "tenant=globex", "--usd", "0")
        refused = client.post("/chat", json={"text": QUESTION})
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
        with pytest.raises(openai.APIStatusError) as error:
            sdk.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": QUESTION}])
        assert (error.value.status_code, error.value.code) == (402, "budget_exceeded")


def test_a_key_made_through_the_api_calls_and_sees_what_it_has_spent(running: Running) -> None:
    with running.client(ADMIN_TOKEN) as admin:
        assert admin.get("/askii/").headers["location"] == "/askii/sign-in"
        made = admin.post("/askii/api/keys", json={"tenant": "hooli", "id": "hooli-1"}).raise_for_status().json()
        budget = {"max_budget": 0.5, "period": "monthly"}
        admin.put("/askii/api/billing/budget/hooli-1", json=budget).raise_for_status()
    with running.client(made["secret"]) as client:
        client.post("/chat", json={"text": QUESTION}).raise_for_status()
        shown = client.get("/askii/api/keys/hooli-1").raise_for_status().json()
        stats = client.get("/askii/api/v1/usage/stats").raise_for_status().json()
        assert client.get("/askii/api/keys/another").status_code == 404
        assert client.post("/askii/api/keys", json={"tenant": "hooli"}).status_code == 404
    assert 0 < shown["spent"] < 0.5
    assert (stats["tenant_id"], stats["current_usage"]["requests_by_model"]) == ("hooli", {"gpt-4o": 1})


def test_without_a_key_nothing_is_answered(running: Running) -> None:
    with running.client(None) as client:
        for path, body in (("/chat", {"text": QUESTION}), ("/v1/chat/completions", {"model": "m", "messages": []})):
            assert client.post(path, json=body).status_code == 401
        assert client.get("/stats").status_code == 401
    with running.client("sk-askii-made-up") as client:
        assert client.get("/stats").status_code == 401
