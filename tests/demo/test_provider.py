"""The simulated provider: read by the official SDKs over real sockets, and honest about being simulated."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai.types.responses import ResponseCompletedEvent, ResponseIncompleteEvent, ResponseOutputMessage

from askii_middleware.demo.provider import provider_app
from tests.gateway.serving import connect, http_client, serving

HELLO: Any = [{"role": "user", "content": "Say something nice."}]
LONG: Any = [{"role": "user", "content": "word " * 2000}]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serving(provider_app(api_key="sk-up")) as address:
        yield address


@pytest.fixture
async def openai_sdk(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-up", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def anthropic_sdk(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-up", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(base_url=url, headers={"authorization": "Bearer sk-up"}) as client:
        yield client


async def test_chat_has_the_whole_shape_and_counts_that_add_up(openai_sdk: openai.AsyncOpenAI) -> None:
    answer = await openai_sdk.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert answer.id.startswith("chatcmpl-sim-")
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "gpt-4o", "simulated")
    choice = answer.choices[0]
    assert choice.message.content is not None
    assert choice.message.content.startswith("Simulated answer")
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == 3 + 3 + 6  # "Say something nice." and "user" are 23 bytes
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 0


async def test_a_chat_stream_carries_usage_only_when_asked(openai_sdk: openai.AsyncOpenAI) -> None:
    plain = [
        chunk async for chunk in await openai_sdk.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
    ]
    asked = [
        chunk
        async for chunk in await openai_sdk.chat.completions.create(
            model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert all("usage" not in chunk.model_fields_set and chunk.choices for chunk in plain)
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in asked[:-1])
    last = asked[-1]
    assert last.choices == []
    assert last.usage is not None
    words = [chunk.choices[0].delta.content or "" for chunk in asked[:-1]]
    assert last.usage.completion_tokens == sum(1 for word in words if word)
    assert asked[-2].choices[0].finish_reason == "stop"
    assert "".join(words).startswith("Simulated answer")


async def test_reasoning_models_bill_hidden_tokens_within_the_limit(openai_sdk: openai.AsyncOpenAI) -> None:
    answer = await openai_sdk.chat.completions.create(model="o4-mini", messages=HELLO)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    reasoning = answer.usage.completion_tokens_details.reasoning_tokens or 0
    assert reasoning in {64, 128, 192}
    assert answer.usage.completion_tokens > reasoning
    cut = await openai_sdk.chat.completions.create(model="o4-mini", messages=HELLO, max_completion_tokens=10)
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 10
    assert (cut.choices[0].finish_reason, cut.choices[0].message.content) == ("length", "")


async def test_limits_cut_every_api_and_say_so(
    openai_sdk: openai.AsyncOpenAI, anthropic_sdk: anthropic.AsyncAnthropic
) -> None:
    chat = await openai_sdk.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=4, n=3)
    assert [choice.finish_reason for choice in chat.choices] == ["length"] * 3
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 12
    completion = await openai_sdk.completions.create(model="gpt-4o", prompt="Say", max_tokens=4)
    assert (completion.choices[0].finish_reason, completion.choices[0].text) == ("length", "Simulated answer: nobody")
    response = await openai_sdk.responses.create(model="gpt-4o", input="Say", max_output_tokens=4)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 4
    message = await anthropic_sdk.messages.create(model="claude-simulated", max_tokens=4, messages=HELLO)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 4)


async def test_long_prompts_are_sometimes_cached_in_steps_of_128(openai_sdk: openai.AsyncOpenAI) -> None:
    cached = set()
    for user in range(8):
        answer = await openai_sdk.chat.completions.create(model="gpt-4o", messages=LONG, user=str(user))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.add(answer.usage.prompt_tokens_details.cached_tokens)
        assert answer.usage.prompt_tokens == 2507
    assert cached == {0, 2432}


async def test_completions_stream_as_text(openai_sdk: openai.AsyncOpenAI) -> None:
    stream = await openai_sdk.completions.create(
        model="gpt-4o", prompt="Say", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]).startswith("Simulated answer")
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_responses_come_whole_and_as_numbered_events(openai_sdk: openai.AsyncOpenAI) -> None:
    whole = await openai_sdk.responses.create(model="gpt-4o", input="Say")
    assert (whole.status, whole.metadata) == ("completed", {"simulated": "true"})
    assert whole.output_text.startswith("Simulated answer")
    events = [event async for event in await openai_sdk.responses.create(model="gpt-4o", input="Say", stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.usage is not None
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    item = last.response.output[0]
    assert isinstance(item, ResponseOutputMessage)
    assert "".join(deltas) == last.response.output_text
    assert last.response.usage.output_tokens == len(deltas)
    cut = await openai_sdk.responses.create(model="gpt-4o", input="Say", stream=True, max_output_tokens=2)
    assert isinstance([event async for event in cut][-1], ResponseIncompleteEvent)


async def test_embeddings_are_unit_vectors_the_same_in_both_formats(openai_sdk: openai.AsyncOpenAI) -> None:
    model = "text-embedding-3-small"
    numbers = await openai_sdk.embeddings.create(model=model, input=["a", "b", "a"], encoding_format="float")
    packed = await openai_sdk.embeddings.create(model=model, input=["a", "b", "a"])  # the SDK asks for base64
    vectors = [item.embedding for item in numbers.data]
    assert [len(vector) for vector in vectors] == [1536] * 3
    assert sum(x * x for x in vectors[0]) == pytest.approx(1)
    assert vectors[0] == vectors[2] != vectors[1]
    assert numbers.usage.prompt_tokens == 3
    raw = await openai_sdk.embeddings.with_raw_response.create(
        model=model, input=[[1, 2, 3]], encoding_format="base64", dimensions=8
    )
    body = json.loads(raw.http_response.content)
    assert len(struct.unpack("<8f", base64.b64decode(body["data"][0]["embedding"]))) == 8
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [item.embedding for item in packed.data] == vectors


async def test_messages_come_whole_and_as_events(anthropic_sdk: anthropic.AsyncAnthropic) -> None:
    whole = await anthropic_sdk.messages.create(model="claude-simulated", max_tokens=500, messages=HELLO)
    assert whole.id.startswith("msg_sim_")
    assert whole.content[0].type == "text"
    assert whole.content[0].text.startswith("Simulated answer")
    assert whole.stop_reason == "end_turn"
    async with anthropic_sdk.messages.stream(model="claude-simulated", max_tokens=500, messages=HELLO) as stream:
        words = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert final.usage.output_tokens == len(words)
    assert final.usage.input_tokens == whole.usage.input_tokens == 12
    assert final.stop_reason == "end_turn"


async def test_anthropics_cache_stands_outside_its_input_tokens(anthropic_sdk: anthropic.AsyncAnthropic) -> None:
    seen = set()
    for number in range(8):
        block: Any = {"type": "text", "text": f"{number:04}" * 500, "cache_control": {"type": "ephemeral"}}
        messages: Any = [{"role": "user", "content": [block]}]
        usage = (await anthropic_sdk.messages.create(model="claude-simulated", max_tokens=9, messages=messages)).usage
        written, read = usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0
        assert usage.input_tokens == 16
        assert usage.cache_creation is not None
        assert usage.cache_creation.ephemeral_5m_input_tokens == written
        assert written + read == 495
        seen.add((written > 0, read > 0))
    assert seen == {(True, False), (False, True)}


async def test_models_are_listed_in_the_shape_of_the_asking_api(
    openai_sdk: openai.AsyncOpenAI, anthropic_sdk: anthropic.AsyncAnthropic
) -> None:
    ours = [model.id async for model in openai_sdk.models.list()]
    theirs = [model async for model in anthropic_sdk.models.list()]
    assert "gpt-4o" in ours
    assert ours == [model.id for model in theirs]
    assert all("simulated" in model.display_name for model in theirs)


async def test_the_same_seed_and_bytes_give_the_same_bytes_back() -> None:
    async def ask(seed: int, body: dict[str, Any]) -> bytes:
        async with serving(provider_app(seed=seed)) as url, http_client() as client:
            return (await client.post(f"{url}/v1/chat/completions", json=body)).content

    body = {"model": "gpt-4o", "messages": HELLO}
    first = await ask(1, body)
    assert await ask(1, body) == first
    assert await ask(2, body) != first
    assert await ask(1, {**body, "user": "x"}) != first


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "gpt-4o", "messages": HELLO}),
        ("/v1/chat/completions", {"model": "gpt-4o", "messages": HELLO, "stream": True}),
        ("/v1/messages", {"model": "m", "messages": HELLO, "max_tokens": 9}),
        ("/v1/embeddings", {"model": "m", "input": "x"}),
        ("/v1/nowhere", {}),
        ("/v1/chat/completions", {"model": "error-500", "messages": HELLO}),
    ],
)
async def test_every_answer_is_labelled_as_simulated(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await http.post(path, json=body)
    assert answer.headers["x-simulated-provider"] == "true"
    assert answer.status_code in {200, 404, 500}
    assert answer.status_code == 200 or "simulated" in answer.text


async def test_an_unknown_key_is_a_401_in_the_envelope_of_the_api_called(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-other", max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert caught.value.code == "invalid_api_key"
    async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-other", max_retries=0) as other:
        with pytest.raises(anthropic.AuthenticationError):
            await other.messages.create(model="claude-simulated", max_tokens=9, messages=HELLO)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("/v1/chat/completions", b"not json", "not JSON"),
        ("/v1/chat/completions", b"[]", "JSON object"),
        ("/v1/chat/completions", b'{"messages":[]}', "model"),
        ("/v1/chat/completions", b'{"model":7,"messages":[]}', "model must be a string"),
        ("/v1/chat/completions", b'{"model":"m","messages":[],"max_tokens":"lots"}', "max_tokens"),
        ("/v1/chat/completions", b'{"model":"m","messages":[],"max_tokens":true}', "max_tokens"),
        ("/v1/chat/completions", b'{"model":"m","messages":[],"n":129}', "at most 128"),
        ("/v1/responses", b'{"model":"m","input":"x","max_output_tokens":0}', "max_output_tokens"),
        ("/v1/messages", b'{"model":"m","messages":[]}', "max_tokens"),
        ("/v1/embeddings", b'{"model":"m","input":"x","dimensions":5000}', "dimensions"),
    ],
)
async def test_what_the_real_api_refuses_is_a_400_that_says_why(
    http: httpx.AsyncClient, path: str, content: bytes, words: str
) -> None:
    answer = await http.post(path, content=content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


async def test_only_posts_are_answered_on_the_apis_routes(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/chat/completions")).status_code == 405
    assert (await http.post("/prefix/v1/chat/completions", json={"model": "m", "messages": []})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
    ],
)
async def test_the_model_no_usage_never_counts(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], stream: bool
) -> None:
    answer = await http.post(path, json={**body, "model": "no-usage", "stream": stream})
    assert answer.status_code == 200
    assert "_tokens" not in answer.text.replace("max_tokens", "")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_die_mid_stream_breaks_the_connection_after_some_bytes(url: str, stream: bool) -> None:
    body = json.dumps({"model": "die-mid-stream", "messages": HELLO, "stream": stream}).encode()
    reader, writer = await connect(url)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-up\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    answer = await asyncio.wait_for(reader.read(), 2)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"sim" in answer
    assert not answer.endswith((b"0\r\n\r\n", b"}"))


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_slow_waits_and_then_answers(stream: bool) -> None:
    async with serving(provider_app(slow_s=0.15)) as url, http_client() as client:
        began_s = asyncio.get_running_loop().time()
        body = {"model": "slow", "messages": HELLO, "stream": stream}
        answer = await client.post(f"{url}/v1/chat/completions", json=body)
        took_s = asyncio.get_running_loop().time() - began_s
    assert "Simulated" in answer.text
    assert took_s >= 0.15


async def test_the_model_slow_stops_waiting_when_its_client_leaves() -> None:
    done = asyncio.Event()
    provider = provider_app(slow_s=60)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await provider(scope, receive, send)
        done.set()

    async with serving(watched, lifespan="off") as url:
        _, writer = await connect(url)
        body = b'{"model":"slow","messages":[]}'
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await asyncio.sleep(0.05)
        assert not done.is_set()
        writer.close()
        await asyncio.wait_for(done.wait(), 1)


async def test_a_delay_holds_every_answer_back() -> None:
    async with serving(provider_app(delay_s=0.1)) as url, http_client() as client:
        began_s = asyncio.get_running_loop().time()
        await client.post(f"{url}/v1/chat/completions", json={"model": "m", "messages": [], "stream": True})
        assert asyncio.get_running_loop().time() - began_s >= 0.2
