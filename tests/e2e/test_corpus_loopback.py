"""Every recorded answer of every provider, through the wrapped application and over a socket: its client receives the
bytes the provider sent, and the ledger has exactly the counts that the manifest expects, however the answer is split.

Each answer passes in pieces of 1, 7, 64 and 1,000 bytes. Of answers beyond 20 kB, the last 20 kB go in pieces of one
byte and the head goes in one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from yarl import URL

from askii_middleware.pricing import ModelPrice
from askii_middleware.records import UsageRecord
from tests.providers.support import NO_CORPUS
from tests.support.ledgers import Ledger, ledger
from tests.support.recordings import Recording, Request, beginning_of, recordings, request_for
from tests.support.replay import Played, Replay
from tests.support.servers import serving

RECORDINGS = recordings()
SIZES = (1, 7, 64, 1000)
pytestmark = pytest.mark.skipif(not RECORDINGS, reason=NO_CORPUS)
one_loop = pytest.mark.asyncio(loop_scope="module")

NOT_CHARGED = {
    "openai_responses/error_insufficient_quota.json": "the provider refused: nothing was used",
    "openrouter/error_429.json": "the provider refused: nothing was used",
    "openai_responses/input_tokens_count.json": "counting tokens is free",
}
DEFERRED = {"openai_responses/json_background_queued_no_usage.json": "its usage comes with a later answer"}
ESTIMATED = {
    "openai_chat/stream_no_usage.sse": "the stream says nothing of its usage",
    "gemini/embed_001_no_usage.json": "the model reports no usage",
}
FAILED = {"openrouter/stream_error_with_usage.sse": "ends in an error, with usage"}
CLAMPED = {
    # Parts that exceed their whole, as these providers send them: 163 cached of 7, 11 reasoning of 10.
    "azure_ai_inference/grok_cached_gt_prompt.json": {"cached_input_tokens": 7},
    "openrouter/stream_error_with_usage.sse": {"reasoning_tokens": 10},
}
PARTLY_REPORTED = {
    "ollama/generate_stream_prompt_eval_count_absent.ndjson": "the prompt was cached, its size is not told"
}
FIELDS = {"audio_in": "audio_input_tokens", "audio_out": "audio_output_tokens"}
"""Where the manifest and our records call a count by different names."""

SIGHTS = [r for r in RECORDINGS if r.entry["method"] == "GET"]
SOCKETS = [r for r in RECORDINGS if r.is_socket]
CALLS = [r for r in RECORDINGS if r not in SIGHTS and r not in SOCKETS]


@dataclass(frozen=True)
class Front:
    """The wrapped provider, and a client that leaves answers encoded as they come."""

    url: str
    client: aiohttp.ClientSession
    replay: Replay
    ledger: Ledger

    async def ask(self, method: str, prefix: str, request: Request) -> tuple[aiohttp.ClientResponse, bytes]:
        url = URL(f"{self.url}/{prefix}{request.path}", encoded=True)
        headers = {"content-type": request.content_type} if method == "POST" else {}
        async with self.client.request(method, url, data=request.body or None, headers=headers) as answer:
            return answer, await answer.read()

    async def record(self, call_id: str) -> UsageRecord | None:
        return next((r for r in await self.ledger.records() if r.call_id == call_id), None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front() -> AsyncIterator[Front]:
    replay = Replay({})
    price = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2, request_usd="0.002")
    by_search = {r.entry["request_model"]: price for r in RECORDINGS if "search_units" in r.entry["extra"]}
    async with (
        ledger(budgets=[], prices=by_search, unknown_price="default", default_price=price) as book,
        serving(book.around(replay), ws="websockets-sansio") as url,
        aiohttp.ClientSession(auto_decompress=False) as client,
    ):
        yield Front(url, client, replay, book)


def expected_counts(recording: Recording) -> dict[str, int]:
    """The reported counts by the names that records have, those of further models added."""
    counts = {name: value for name, value in recording.entry["expected"].items() if value is not None}
    counts |= CLAMPED.get(recording.name, {})
    for other in recording.entry["extra"].get("other_model_usage", []):
        for name in counts:
            counts[name] += other[name] or 0
    return {FIELDS.get(name, name): value for name, value in counts.items()}


def expected_buckets(recording: Recording) -> dict[str, int]:
    """What the manifest knows of single buckets."""
    extra = recording.entry["extra"]
    names = {
        "cache_write_1h": "cache_write_1h",
        "web_search_requests": "web_search",
        "image_in": "input_image",
        "image_out": "output_image",
        "search_units": "request",
    }
    return {bucket: extra[name] for name, bucket in names.items() if name in extra}


def check(recording: Recording, record: UsageRecord) -> None:
    counts = expected_counts(recording)
    assert {name: getattr(record.usage, name) for name in counts} == counts
    charged = {charge.bucket: charge.quantity for charge in record.charges}
    buckets = expected_buckets(recording)
    assert {bucket: charged.get(bucket, 0) for bucket in buckets} == buckets
    extra = recording.entry["extra"]
    for other in extra.get("other_model_usage", []):
        ours = {b: q for b, q in charged.items() if b.startswith(f"{other['model']}:")}
        assert sum(ours.values()) == other["input_tokens"] + other["output_tokens"]
    tier = extra.get("service_tier", extra.get("serviceTier"))
    if tier is not None:
        assert record.service_tier == tier
    cost = extra.get("cost")
    if cost is not None:
        usd = cost["total_cost"] if isinstance(cost, dict) else cost
        assert record.provider_cost_nano_usd == round(usd * 10**9)
    assert record.estimated == (recording.name in ESTIMATED or recording.name in PARTLY_REPORTED)
    assert record.anomalous == (recording.name in CLAMPED)
    assert record.outcome == ("upstream_error" if recording.name in FAILED else "completed")


async def settled(front: Front, call_id: str) -> UsageRecord:
    """The record of a call, which is written behind its client's last byte."""
    async with asyncio.timeout(5):
        while (record := await front.record(call_id)) is None:
            await asyncio.sleep(0.002)
    return record


@one_loop
@pytest.mark.parametrize("recording", CALLS, ids=lambda r: r.name)
async def test_a_recorded_answer_passes_unchanged_and_is_charged_exactly(front: Front, recording: Recording) -> None:
    request = request_for(recording)
    for size in SIZES:
        # The ledger knows operations by their ids: each size plays one of its own.
        played = Played.of(recording, {"resp_": f"resp_{size}"} if recording.name in DEFERRED else {})
        front.replay.answers["call"] = played
        known, held = len(await front.ledger.records()), (await front.ledger.totals()).held_nano_usd
        answer, body = await front.ask("POST", f"call/{size}", request)
        assert answer.status == recording.entry["http_status"]
        assert body == played.body
        call_id = answer.headers.get("x-askii-call-id")
        if recording.name in NOT_CHARGED or recording.name in DEFERRED:
            await asyncio.sleep(0.01)
            assert len(await front.ledger.records()) == known
        else:
            assert call_id is not None, "the request was not metered"
            check(recording, await settled(front, call_id))
        still_held = (await front.ledger.totals()).held_nano_usd - held
        assert (still_held > 0) == (recording.name in DEFERRED)
        assert still_held >= 0


@one_loop
@pytest.mark.parametrize("recording", SIGHTS, ids=lambda r: r.name)
async def test_the_first_of_two_sights_of_an_operation_settles_it_exactly(front: Front, recording: Recording) -> None:
    request, begun = beginning_of(recording)
    for size in SIZES:
        old, new = recording.operation, f"{recording.operation}{size}"
        front.replay.answers["begun"] = first = Played.json(begun, {old: new})
        front.replay.answers["told"] = Played.of(recording, {old: new})
        answer, body = await front.ask("POST", f"begun/{size}", request)
        assert (answer.status, body) == (200, first.body)
        call_id = answer.headers.get("x-askii-call-id")
        assert call_id is not None, "the request was not metered"
        await asyncio.sleep(0.01)
        assert await front.record(call_id) is None
        for _ in range(2):
            sight = Request(recording.entry["request_path"].replace(old, new), b"")
            answer, body = await front.ask("GET", f"told/{size}", sight)
            assert (answer.status, body) == (200, front.replay.answers["told"].body)
        check(recording, await settled(front, call_id))


@one_loop
@pytest.mark.parametrize("recording", SOCKETS, ids=lambda r: r.name)
async def test_a_recorded_conversation_passes_unchanged_and_each_response_is_charged(
    front: Front, recording: Recording
) -> None:
    front.replay.answers["talk"] = played = Played.of(recording)
    held = (await front.ledger.totals()).held_nano_usd
    known = {record.call_id for record in await front.ledger.records()}
    url = front.url.replace("http", "ws") + "/talk/0" + recording.entry["request_path"]
    async with connect(url, proxy=None) as socket:
        for speaker, text in played.frames:
            if speaker == "sent":
                await socket.send(text)
            else:
                assert await socket.recv() == text
    async with asyncio.timeout(5):
        while (await front.ledger.totals()).held_nano_usd > held:
            await asyncio.sleep(0.005)
    records = [record for record in await front.ledger.records() if record.call_id not in known]
    assert len(records) == recording.entry["extra"].get("responses", 1)
    counts = expected_counts(recording)
    assert {name: sum(getattr(record.usage, name) for record in records) for name in counts} == counts
    assert all(record.outcome == "completed" and not record.estimated for record in records)


def test_every_recorded_answer_is_played_or_its_absence_explained() -> None:
    named = NOT_CHARGED | DEFERRED | ESTIMATED | FAILED | PARTLY_REPORTED
    assert {r.name for r in RECORDINGS} == {r.name for r in CALLS + SIGHTS + SOCKETS}
    assert named.keys() | CLAMPED.keys() <= {r.name for r in CALLS}
    for recording in CALLS:
        silent = all(value is None for value in recording.entry["expected"].values())
        assert (
            silent == (recording.name in NOT_CHARGED | DEFERRED | ESTIMATED)
            or "search_units" in recording.entry["extra"]
        )
