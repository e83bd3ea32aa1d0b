"""A tenant short of money is served by a cheaper model, and nothing else of its request changes."""

from __future__ import annotations

import msgspec

from .calls import MESSAGES
from .clients import http_client, sdks
from .conftest import Front
from .gateways import cost_nano_usd, secret_of

ODD = (
    '{"seed": 12345678901234567890123, "model" : "gpt-4o","temperature":1.10e-1,  "messages":[ {"role":"user",'
    '"content":"caf\\u00e9 \\ud83d\\ude00 \\/ \\"model\\": \\"gpt-4o\\""} ], "metadata":{"model":"gpt-4o"},'
    '"logit_bias": {} , "max_tokens":300, "x-unknown":[1.0,2,null] }'
)
"""Valid JSON that any careless round trip through Python would change."""

values = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def test_the_upstream_gets_the_fallback_model_and_every_other_value_byte_for_byte(front: Front) -> None:
    headers = {"authorization": f"Bearer {secret_of('thrifty')}", "content-type": "application/json"}
    async with http_client() as client:
        answer = await client.post(f"{front.url}/v1/chat/completions", content=ODD, headers=headers)
    assert answer.status_code == 200
    sent = {name: bytes(raw) for name, raw in values(ODD.encode()).items()}
    reached = front.provider.seen[-1]
    got = {name: bytes(raw) for name, raw in values(reached.body).items()}
    assert got.pop("model") == b'"small"'
    assert sent.pop("model") == b'"gpt-4o"'
    assert list(got.items()) == list(sent.items())
    assert int(reached.headers[b"content-length"]) == len(reached.body)


async def test_answer_headers_and_record_tell_that_another_model_was_served(front: Front) -> None:
    async with sdks(front.url, secret_of("thrifty")) as sdk:
        answer = await sdk.openai.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=300)
        stream = await sdk.openai.chat.completions.create(
            model="gpt-4o", messages=MESSAGES, max_tokens=300, stream=True
        )
        models = {chunk.model async for chunk in stream}
    assert answer.model == "small"
    assert models == {"small"}
    assert answer.usage is not None
    for head in sdk.wire.answers:
        assert head.headers["x-askii-model"] == "small"
        assert head.headers["x-askii-requested-model"] == "gpt-4o"
        assert head.headers["x-askii-fallback-reason"] == "budget"
    record = await front.books.record(sdk.wire.answers[0].headers["x-askii-call-id"])
    assert (record.requested_model, record.served_model, record.fallback_reason) == ("gpt-4o", "small", "budget")
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert record.cost_nano_usd == cost_nano_usd("small", *usage)


async def test_the_gateway_replaces_the_clients_key_by_the_upstreams(front: Front) -> None:
    async with sdks(front.url, secret_of("acme")) as sdk:
        await sdk.openai.chat.completions.create(model="o4-mini", messages=MESSAGES)
    headers = front.provider.seen[-1].headers
    assert secret_of("acme").encode() not in b"".join(headers.values())
    if front.kind == "askii serve":
        assert headers[b"authorization"] == b"Bearer key-of-simulated"
