"""Point 29: token metrics, beside lago-agent-sdk, which reads the same answers and sends the same figures."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lago_agent_sdk import DEFAULT_METRIC_CODES, CanonicalUsage, LagoConfig, LagoSDK
from lago_agent_sdk.adapters.anthropic_native import extract_anthropic_native
from lago_agent_sdk.adapters.bedrock_converse import extract_bedrock_converse
from lago_agent_sdk.adapters.gemini_native import extract_gemini_native
from lago_agent_sdk.adapters.mistral_native import extract_mistral_native
from lago_agent_sdk.adapters.openai_native import extract_openai_native

from askii_middleware.demo.lago import Fault
from askii_middleware.providers.base import Api
from askii_middleware.records import Charge, UsageCounts, UsageRecord
from askii_middleware.sinks.base import DELIVERED
from askii_middleware.sinks.lago import MAX_COINS, TOKEN_CODES
from askii_middleware.sinks.lago_events import token_events
from askii_middleware.sinks.lago_tokens import token_counts
from askii_middleware.stores.base import Store
from askii_middleware.usage import TokenUsage
from tests.providers.support import NO_CORPUS
from tests.providers.test_any_split import apis_of, read, readers
from tests.support.recordings import Recording, recordings

from .lago_spec import NO_SPEC, validator
from .support import API_KEY, SPEC, FakeClock, drain, put, record, running_lago, worker_for

RECORDINGS = recordings()


def spent(usage: TokenUsage, api: str, provider: str = "openai", model: str = "gpt-4o") -> UsageRecord:
    """The record of a call that used this."""
    buckets = [name for name in usage.__struct_fields__ if name not in ("anomalous", "largest_prompt")]
    return msgspec.structs.replace(
        record(1, model=model),
        api=api,
        provider=provider,
        usage=UsageCounts(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            reasoning_tokens=usage.reasoning,
            audio_input_tokens=usage.audio_input_tokens,
            audio_output_tokens=usage.output_audio,
        ),
        charges=tuple(
            Charge(bucket=name, quantity=getattr(usage, name), nano_usd=0) for name in buckets if getattr(usage, name)
        ),
    )


# The same answers -----------------------------------------------------------------------------------------------------


def _gemini(usage: Any) -> Any:
    """As google-genai names what the wire writes in camel case."""
    if isinstance(usage, dict):
        return {re.sub("([A-Z])", lambda m: f"_{m[1].lower()}", key): _gemini(value) for key, value in usage.items()}
    return [_gemini(value) for value in usage] if isinstance(usage, list) else usage


SDK: dict[str, Callable[[Any], CanonicalUsage]] = {
    "openai": lambda usage: extract_openai_native({"usage": usage}),
    "azure": lambda usage: extract_openai_native({"usage": usage}),
    "anthropic": lambda usage: extract_anthropic_native({"usage": usage}),
    "gemini": lambda usage: extract_gemini_native({"usage_metadata": _gemini(usage)}),
    "mistral": lambda usage: extract_mistral_native({"usage": usage}),
    "bedrock": lambda usage: extract_bedrock_converse({"usage": usage}),
}
"""lago-agent-sdk's readers by the first part of our API's name."""
UNREAD = {
    "gemini.interactions": "the SDK does not know this API",
    "bedrock.invoke": "the SDK reads each model's own body, which the corpus gives no usage of",
}
DIFFERENT: dict[str, tuple[str, dict[str, int]]] = {
    "azure_ai_inference/grok_cached_gt_prompt.json": (
        "163 cached tokens of a prompt of 7 cannot be",
        {"cache_read": 7},
    ),
    "gemini/json_tool_use_prompt.json": ("the prompts of tools are billed, the SDK leaves them out", {"input": 234}),
    "gemini/stream_file_search_not_monotone.sse": ("as above", {"input": 1198}),
    "mistral/chat_audio_additive.json": (
        "the audio is a prompt; the SDK takes it for output",
        {"input": 384, "output": 248},
    ),
    "openai_audio/transcribe_tokens_json.json": ("the SDK does not read input_token_details", {"audio_input": 37}),
    "openai_audio/transcribe_stream.sse": ("as above", {"audio_input": 37}),
    "openrouter/stream_error_with_usage.sse": ("11 reasoning tokens of 10 generated cannot be", {"reasoning": 10}),
}
"""Where we say something else, why, and what."""


def _compared() -> list[tuple[Recording, Api]]:
    """Answers with one usage in them, of APIs that the SDK reads. (Anthropic's streams tell theirs in two events.)"""
    found = []
    for recording in RECORDINGS:
        usage = recording.entry["raw_usage"]
        for api in [] if recording.is_socket else apis_of(recording)[:1]:
            told_once = isinstance(usage, dict) and "message_start" not in usage
            read_by_it = api.name.partition(".")[0] in SDK and not api.name.startswith(tuple(UNREAD))
            if told_once and read_by_it:
                found.append((recording, api))
    return found


COMPARED = _compared()


@pytest.mark.skipif(not RECORDINGS, reason=NO_CORPUS)
def test_point_29_lago_agent_sdk_counts_the_same_in_recorded_answers() -> None:
    same, different = 0, {}
    for recording, api in COMPARED:
        (make,) = readers(api, recording)
        usage = read(make(), [recording.text]).usage
        if usage is None:
            continue
        ours = {name: n for name, n in token_counts(spent(usage, api.name)).items() if n}
        theirs = SDK[api.name.partition(".")[0]](recording.entry["raw_usage"]).nonzero_numeric()
        theirs.pop("tool_calls", None)
        if ours == theirs:
            same += 1
        else:
            different[recording.name] = {name: n for name, n in ours.items() if theirs.get(name) != n}
    assert different == {name: figures for name, (_, figures) in DIFFERENT.items()}
    assert same >= 35


def test_point_29_the_codes_are_those_of_lago_agent_sdk() -> None:
    theirs = dict(DEFAULT_METRIC_CODES)
    assert theirs.pop("tool_calls") == "llm_tool_calls"  # records have no tools
    assert theirs == TOKEN_CODES


@pytest.mark.parametrize(
    ("provider", "api", "usage", "as_sdk"),
    [
        (
            "openai",
            "openai.chat",
            TokenUsage(input=700, cache_read=64, input_audio=48, output=80, reasoning=10, output_audio=5),
            CanonicalUsage(input=812, output=95, cache_read=64, reasoning=10, audio_input=48, audio_output=5),
        ),
        (
            "anthropic",
            "anthropic.messages",
            TokenUsage(input=700, cache_read=64, cache_write=40, cache_write_1h=8, output=95),
            CanonicalUsage(input=700, output=95, cache_read=64, cache_write=48, cache_write_5m=40, cache_write_1h=8),
        ),
    ],
)
async def test_point_29_lago_gets_the_same_events_from_lago_agent_sdk_and_from_us(
    provider: str, api: str, usage: TokenUsage, as_sdk: CanonicalUsage
) -> None:
    as_sdk.model, as_sdk.provider = "gpt-4o", provider

    def by_sdk(url: str) -> None:
        sdk = LagoSDK(API_KEY, config=LagoConfig(api_url=url, flush_interval_seconds=0.01))
        sdk.emit(as_sdk, subscription="acme", timestamp=1_767_225_600)
        assert sdk.flush()
        sdk.shutdown()

    async with running_lago(events="tokens") as ours, running_lago() as theirs:
        await asyncio.to_thread(by_sdk, f"{theirs.url}/api/v1")
        await ours.sink.send([spent(usage, api, provider)])
        mine = [event for batch in ours.recorder.events for event in batch]
        others = [event for batch in theirs.recorder.events for event in batch]
    assert len(mine) == len(others) >= 5
    for event in others:
        del event["properties"]["api"]
    assert {event["code"]: event["properties"] for event in mine} == {e["code"]: e["properties"] for e in others}
    assert {event["external_subscription_id"] for event in mine + others} == {"acme"}


# Events and records ---------------------------------------------------------------------------------------------------


def tokens(number: int, count: int = 5) -> UsageRecord:
    """A record of five events."""
    usage = TokenUsage(input=count, cache_read=2, output=count, reasoning=1, output_audio=1)
    return msgspec.structs.replace(spent(usage, "openai.chat"), call_id=f"call-{number:05d}")


async def test_point_06_with_several_codes_the_ids_are_unique_across_codes_and_calls() -> None:
    async with running_lago(events="tokens") as lago:
        assert (await lago.sink.send([tokens(1), tokens(2)])).verdicts == (DELIVERED,) * 2
        (ids,) = lago.recorder.ids
    codes = [TOKEN_CODES[name] for name in ("input", "output", "cache_read", "reasoning", "audio_output")]
    assert ids == [f"call-0000{n}:{code}" for n in (1, 2) for code in codes]


async def test_point_02_a_batch_counts_events_not_records() -> None:
    async with running_lago(events="tokens") as lago:
        delivery = await lago.sink.send([tokens(n) for n in range(50)])
        assert delivery.verdicts == (DELIVERED,) * 50
        assert [len(batch) for batch in lago.recorder.events] == [100, 100, 50]


async def test_point_01_token_events_validate_against_the_published_spec() -> None:
    if not SPEC.exists():
        pytest.skip(NO_SPEC)
    async with running_lago(events="tokens", properties={"env": "prod", "team": "{team}"}) as lago:
        await lago.sink.send([tokens(1)])
        for body in lago.recorder.bodies:
            validator("EventBatchInput").validate(json.loads(body))


async def test_counts_of_zero_send_nothing_and_a_record_of_none_is_delivered() -> None:
    async with running_lago(events="tokens") as lago:
        nothing = spent(TokenUsage(), "openai.chat")
        assert (await lago.sink.send([nothing])).verdicts == (DELIVERED,)
        assert lago.recorder.bodies == []
        await lago.sink.send([nothing, spent(TokenUsage(input=3), "openai.chat")])
        assert lago.recorder.ids == [["call-00001:llm_input_tokens"]]


async def test_corrections_are_of_money_and_send_no_tokens() -> None:
    async with running_lago(events="tokens") as lago:
        await lago.sink.send([msgspec.structs.replace(tokens(1), kind="adjustment")])
        assert lago.recorder.bodies == []


async def test_a_record_is_delivered_only_when_all_its_events_are(store: Store, clock: FakeClock) -> None:
    async with running_lago(events="tokens") as lago:
        lago.faults.script.extend([Fault(), Fault(500)])
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(tokens(n) for n in range(30)))  # 150 events: the first 100 arrive
        clock.advance(await worker.round())
        assert await store.pending() == {"lago": 10}
        await drain(worker, clock)
        assert await store.pending() == {"lago": 0}
        assert len(lago.ledger.events) == 150
        assert await store.dead_letters("lago") == []


async def test_a_record_of_which_some_events_arrived_is_sent_again_whole_and_counts_once() -> None:
    async with running_lago(events="tokens") as lago:
        lago.faults.script.extend([Fault(413), Fault(), Fault(503)])
        records = [tokens(n) for n in range(3)]
        delivery = await lago.sink.send(records)
        assert [len(batch) for batch in lago.recorder.events] == [15, 7, 8]
        assert [verdict.result for verdict in delivery.verdicts] == ["delivered", "again", "again"]
        assert len(lago.ledger.events) == 7
        assert (await lago.sink.send(records[1:])).verdicts == (DELIVERED,) * 2
        assert len(lago.ledger.events) == 15
        bodies = {(event["transaction_id"], str(event)) for batch in lago.recorder.events for event in batch}
        assert len(bodies) == 15


async def test_a_record_whose_events_were_not_all_sent_when_the_time_was_up_keeps_its_place() -> None:
    async with running_lago(events="tokens", timeout_s=0.6) as lago:
        lago.faults.script.append(Fault(413, hang_s=0.3))
        lago.faults.delay_s = 0.2
        delivery = await lago.sink.send([tokens(n) for n in range(3)])
        assert [len(batch) for batch in lago.recorder.events] == [15, 7]
        assert [verdict.result for verdict in delivery.verdicts] == ["delivered", "kept", "kept"]


async def test_one_refused_event_rejects_its_record_and_bills_the_others() -> None:
    async with running_lago(events="tokens") as lago:
        lago.faults.poison["call-00001:llm_output_tokens"] = Fault(400)
        first, second = (await lago.sink.send([tokens(1), tokens(2)])).verdicts
        assert first.result == "rejected"
        assert first.reason.startswith("HTTP 400: ")
        assert second == DELIVERED
        assert len(lago.ledger.events) == 9


@given(st.integers(0, 2**63 - 1) | st.integers(MAX_COINS - 2, MAX_COINS + 2))
@settings(max_examples=200, deadline=None)
def test_point_09_counts_of_more_than_twelve_digits_are_refused(count: int) -> None:
    events_of = token_events({"input": "tokens_in"})
    spent_record = spent(TokenUsage(input=count), "openai.chat")
    if count > MAX_COINS:
        with pytest.raises(ValueError, match="tokens for tokens_in"):
            events_of(spent_record)
    else:
        values = [json.loads(event.body)["properties"]["value"] for event in events_of(spent_record)]
        assert values == ([str(count)] if count else [])


async def test_kinds_without_a_code_are_not_sent() -> None:
    async with running_lago(events="tokens", token_codes={"output": "answers", "input": "prompts"}) as lago:
        await lago.sink.send([tokens(1)])
        assert lago.recorder.ids == [["call-00001:answers", "call-00001:prompts"]]
