"""The official SDKs get the same objects through the wrapped application as from the provider itself, and when they are
refused they raise their own typed errors after as few requests as each can be brought to send.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import pytest

from askii_middleware import AskiiMiddleware, Budget, CostTracker
from askii_middleware.pricing import ModelPrice
from tests.providers.support import NO_CORPUS
from tests.support.fakes import CALLS, Call
from tests.support.recordings import recordings
from tests.support.replay import Played, Replay

from .upstreams import Watched, in_thread

RECORDINGS = {r.name: r for r in recordings()}
pytestmark = pytest.mark.skipif(not RECORDINGS, reason=NO_CORPUS)
PRICE = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)
HOLDER = ModelPrice(input_usd_per_mtok=0, output_usd_per_mtok=1000)
"""A thousand tokens of output hold a dollar."""


@dataclass(frozen=True)
class Front:
    """A provider with something in front of it, or nothing."""

    url: str
    watched: Watched

    def base(self, call: Call, size: int = 64) -> str:
        """What an SDK is given as its server."""
        return f"{self.url}/{RECORDINGS[call.recording].number}/{size}"

    def arrived(self) -> int:
        """How many requests came since the last look."""
        count = len(self.watched.seen)
        self.watched.seen.clear()
        return count


@contextlib.contextmanager
def serving(app: Any) -> Iterator[Front]:
    watched = Watched(app)
    with in_thread(watched) as url:
        yield Front(url, watched)


def replay() -> Replay:
    answers = {str(r.number): Played.of(r) for r in RECORDINGS.values() if not r.is_socket}
    events = [(b"content-type", b"text/event-stream")]
    return Replay({**answers, "endless": Played(200, events, b": wait\n\n", streamed=True, endless=True)})


def wrapped(limit_usd: int) -> AskiiMiddleware:
    tracker = CostTracker(
        store="memory://",
        unknown_price="default",
        default_price=PRICE,
        prices={"holder": HOLDER},
        budgets=[Budget(scope="tenant=*", limit_usd=limit_usd)],
    )
    return AskiiMiddleware(replay(), tracker=tracker, identify=lambda _: "acme")


@pytest.fixture(scope="module")
def provider() -> Iterator[Front]:
    with serving(replay()) as front:
        yield front


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with serving(wrapped(1_000_000)) as front:
        yield front


@pytest.fixture(scope="module")
def exhausted() -> Iterator[Front]:
    """Nothing may run at all."""
    with serving(wrapped(0)) as front:
        yield front


@pytest.fixture(scope="module")
def busy() -> Iterator[Front]:
    """A running call holds everything there is."""
    request = {"model": "holder", "messages": [], "max_tokens": 1000, "stream": True}
    with (
        serving(wrapped(1)) as front,
        httpx.Client(trust_env=False, verify=False, timeout=30) as client,
        client.stream("POST", f"{front.url}/endless/0/v1/chat/completions", json=request) as answer,
    ):
        assert answer.status_code == 200
        front.arrived()
        yield front


@pytest.mark.parametrize("call", CALLS, ids=lambda c: c.id)
def test_an_sdk_gets_through_the_middleware_what_it_gets_without_it(provider: Front, front: Front, call: Call) -> None:
    expected = call.run(provider.base(call))
    assert expected
    assert call.run(front.base(call)) == expected
    assert provider.arrived() == front.arrived() == 1


class Refused(NamedTuple):
    """How an SDK tells its caller of a refusal: the error's class, its status and its code."""

    error: str
    status: Any
    code: Any


def openai_error(error: Any) -> Refused:
    return Refused(type(error).__name__, error.status_code, error.code)


def anthropic_error(error: Any) -> Refused:
    return Refused(type(error).__name__, error.status_code, error.body["error"]["type"])


def google_error(error: Any) -> Refused:
    return Refused(type(error).__name__, error.code, error.status)


def plain_error(error: Any) -> Refused:
    return Refused(type(error).__name__, error.status_code, None)


def amazon_error(error: Any) -> Refused:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return Refused("ClientError", status, error.response["Error"]["Code"])


class Manners(NamedTuple):
    """What an SDK makes of a refusal: with no money left, and while running calls hold it."""

    read: Any
    spent: Refused
    held: Refused
    held_requests: int
    """How many it sends before it gives up on a 429 that asks it to come back."""


QUOTA = "ServiceQuotaExceededException"
MANNERS = {
    "openai": Manners(
        openai_error,
        Refused("APIStatusError", 402, "budget_exceeded"),
        Refused("RateLimitError", 429, "budget_held"),
        3,
    ),
    "groq": Manners(
        lambda e: Refused(type(e).__name__, e.status_code, e.body["error"]["code"]),
        Refused("APIStatusError", 402, "budget_exceeded"),
        Refused("RateLimitError", 429, "budget_held"),
        3,
    ),
    "anthropic": Manners(
        anthropic_error,
        Refused("PaymentRequiredError", 402, "billing_error"),
        Refused("RateLimitError", 429, "rate_limit_error"),
        3,
    ),
    "google-genai": Manners(
        google_error,
        Refused("ClientError", 402, "RESOURCE_EXHAUSTED"),
        Refused("ClientError", 429, "RESOURCE_EXHAUSTED"),
        1,
    ),
    "google-genai interactions": Manners(
        plain_error, Refused("APIStatusError", 402, None), Refused("RateLimitError", 429, None), 5
    ),
    "mistralai": Manners(plain_error, Refused("SDKError", 402, None), Refused("SDKError", 429, None), 1),
    "cohere": Manners(plain_error, Refused("ApiError", 402, None), Refused("TooManyRequestsError", 429, None), 3),
    "ollama": Manners(plain_error, Refused("ResponseError", 402, None), Refused("ResponseError", 429, None), 1),
    "boto3": Manners(
        amazon_error, Refused("ClientError", 402, QUOTA), Refused("ClientError", 429, "ThrottlingException"), 3
    ),
}
MANNERS["openai azure"] = MANNERS["openai"]
ONE_EACH = list({c.sdk: c for c in reversed(CALLS)}.values())


def refusal(run: Any, url: str) -> Exception:
    with pytest.raises(Exception) as raised:
        run(url)
    return raised.value


@pytest.mark.parametrize("call", CALLS, ids=lambda c: c.id)
def test_without_money_an_sdk_raises_its_typed_error_after_one_request(exhausted: Front, call: Call) -> None:
    exhausted.arrived()
    error = refusal(call.run, exhausted.base(call))
    manners = MANNERS[call.sdk]
    assert manners.read(error) == manners.spent, repr(error)
    assert exhausted.arrived() == 1


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that an SDK waits before each repetition; here it does not."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("call", ONE_EACH, ids=lambda c: c.id)
def test_while_others_hold_the_money_an_sdk_comes_back_as_often_as_it_is_made_to(
    busy: Front, call: Call, naps: list[float]
) -> None:
    busy.arrived()
    error = refusal(call.run, busy.base(call))
    manners = MANNERS[call.sdk]
    assert manners.read(error) == manners.held, repr(error)
    assert busy.arrived() == manners.held_requests
    assert len(naps) == manners.held_requests - 1
    if call.sdk != "boto3":  # which never looks at Retry-After
        assert set(naps) <= {1.0}


def test_every_sdk_that_is_promised_is_here() -> None:
    promised = {"openai", "anthropic", "google-genai", "mistralai", "cohere", "ollama", "groq", "boto3"}
    assert promised <= {call.sdk for call in CALLS} & MANNERS.keys()
    for sdk in promised:
        names = [call.name for call in CALLS if call.sdk == sdk]
        assert any("stream" in name for name in names)
        assert any("stream" not in name for name in names)
