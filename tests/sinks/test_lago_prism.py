"""Lago's published spec as a server that nobody here wrote: Prism. It knows the shape of requests, not Lago's rules.

Runs where node is present. Prism is taken from the PATH, else installed once into the user's cache folder; where that
fails, as without a network, the tests are skipped. `ASKII_TEST_PRISM=0` skips them without trying.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from askii_middleware.sinks.base import DELIVERED
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.stores.base import Store

from .support import API_KEY, SPEC, FakeClock, drain, put, record, worker_for
from .test_lago_tokens import tokens

VERSION = "5.14.2"


def _executable() -> str:
    if os.environ.get("ASKII_TEST_PRISM") == "0":
        pytest.skip("ASKII_TEST_PRISM=0")
    found = shutil.which("prism")
    if found:
        return found
    npm = shutil.which("npm")
    if not shutil.which("node") or not npm:
        pytest.skip("Prism needs node and npm")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "askii-middleware-tests" / VERSION
    prism = home / "node_modules" / ".bin" / "prism"
    if not prism.exists():
        home.mkdir(parents=True, exist_ok=True)
        quick = ["--no-audit", "--no-fund", "--fetch-retries=0", "--fetch-timeout=20000", "--prefix", str(home)]
        try:
            subprocess.run(
                [npm, "install", *quick, f"@stoplight/prism-cli@{VERSION}"],
                check=True,
                capture_output=True,
                timeout=120,
            )
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"Prism could not be installed: {type(error).__name__}")
    return str(prism)


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not SPEC.exists():
        pytest.skip("Lago's published spec is not beside the repository (../shared/lago)")
    log = tmp_path_factory.mktemp("prism") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [_executable(), "mock", "-h", "127.0.0.1", "-p", "0", str(SPEC)], stdout=out, stderr=out
        )
    try:
        deadline_s = time.monotonic() + 30
        while not (found := re.search(r"listening on (http://[\d.:]+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline_s:
                pytest.fail(f"Prism did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
async def answers() -> list[httpx.Response]:
    return []


def client_keeping(answers: list[httpx.Response]) -> httpx.AsyncClient:
    async def keep(response: httpx.Response) -> None:
        await response.aread()
        answers.append(response)

    return httpx.AsyncClient(event_hooks={"response": [keep]})


@pytest.fixture
async def sink(prism: str, answers: list[httpx.Response]) -> AsyncIterator[LagoSink]:
    async with client_keeping(answers) as client:
        yield LagoSink(prism, API_KEY, client=client)


def violations(response: httpx.Response) -> list[Any]:
    """What Prism found wrong with the request (it also judges its own answers)."""
    found = json.loads(response.headers.get("sl-violations", "[]"))
    return [each for each in found if each["location"][0] == "request"]


async def test_point_01_prism_finds_no_violation_in_any_request(
    store: Store, clock: FakeClock, sink: LagoSink, answers: list[httpx.Response]
) -> None:
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n, coins=10**n % 10**12, model="gpt-4o é \u2028") for n in range(230)))
    await drain(worker, clock)
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [violations(answer) for answer in answers] == [[], [], []]
    assert await store.pending() == {"lago": 0}


async def test_point_01_prism_finds_no_violation_in_token_events_with_properties(
    prism: str, answers: list[httpx.Response]
) -> None:
    async with client_keeping(answers) as client:
        properties = {"env": "prod", "team": "{team}"}
        sink = LagoSink(prism, API_KEY, events="tokens", properties=properties, client=client)
        assert (await sink.send([tokens(n) for n in range(30)])).verdicts == (DELIVERED,) * 30
    assert [violations(answer) for answer in answers] == [[], []]


async def test_point_28_a_listing_is_asked_for_and_read_as_the_spec_has_it(
    prism: str, answers: list[httpx.Response]
) -> None:
    async with client_keeping(answers) as client:
        api = LagoSink(prism, API_KEY, client=client).api()
        listed = api.events("acme", "askii_coins", from_s=1_767_225_600.0, to_s=1_767_225_660.25)
        event = await anext(listed)
        await listed.aclose()
    assert [violations(answer) for answer in answers] == [[]]
    assert answers[0].request.url.params["timestamp_to"] == "2026-01-01T00:01:00.250Z"
    shown = answers[0].json()["events"][0]
    assert event._asdict() == {name: shown[name] for name in event._fields}


async def test_prism_would_find_one(prism: str) -> None:
    async with httpx.AsyncClient() as client:
        events = {"events": [{"transaction_id": 5, "external_subscription_id": "acme", "code": "askii_coins"}]}
        answer = await client.post(f"{prism}/events/batch", json=events, headers={"authorization": "Bearer k"})
    assert answer.status_code == 422
    assert violations(answer)


@pytest.mark.parametrize(("status", "alarm"), [(401, "check the API key"), (403, "the API key may not send events")])
async def test_the_documented_refusals_are_understood(prism: str, status: int, alarm: str) -> None:
    async with httpx.AsyncClient(headers={"prefer": f"code={status}"}) as client:
        delivery = await LagoSink(prism, API_KEY, client=client).send([record()])
    assert delivery.alarm == f"HTTP {status}: {alarm}"


async def test_the_documented_400_and_422_reject_a_lone_event_and_never_a_neighbour(prism: str) -> None:
    for status in (400, 422):
        async with httpx.AsyncClient(headers={"prefer": f"code={status}"}) as client:
            delivery = await LagoSink(prism, API_KEY, client=client).send([record()])
        assert delivery.verdicts[0].result == "rejected"
        assert delivery.verdicts[0].reason.startswith(f"HTTP {status}: ")


async def test_the_documented_success_delivers(sink: LagoSink) -> None:
    assert (await sink.send([record(1), record(2)])).verdicts == (DELIVERED, DELIVERED)
