"""A stream's meter by itself: what it counts, when it asks, when it says that the stream must end.

Prices: 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.admission import ExtendRequest, Extension
from askii_middleware.calls import Call, CallSpec
from askii_middleware.errors import StoreError
from askii_middleware.expectations import FIRST_SLICE_TOKENS, Expectations
from askii_middleware.metering import MARGIN_TOKENS, MAX_SLICE_TOKENS, Meters, StreamMeter
from askii_middleware.modes import Modes
from askii_middleware.options import LEAST_SLICE_TOKENS
from askii_middleware.price import Price
from askii_middleware.pricing import ModelPrice
from askii_middleware.stores.memory import MemoryStore
from askii_middleware.tokens import count_tokens, encoding_of
from askii_middleware.usage import Report, TokenUsage

from .support.calls import make_call
from .support.ledgers import PRICES

PROMPT = 400
IN, OUT = 1_000, 10_000
ENGLISH = "The quick brown fox jumps over the lazy dog, and the ledger holds what a call may cost. "


class Room:
    """A ledger with so many tokens of room for one stream's output."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.asked: list[ExtendRequest] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.error: Exception | None = None
        self.held = 0

    async def __call__(self, request: ExtendRequest) -> Extension:
        self.asked.append(request)
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        limit = PROMPT * IN + self.tokens * OUT
        granted = min(request.target_nano_usd, limit)
        if granted < request.least_nano_usd:
            return Extension(granted=False, hold_nano_usd=self.held, reason="spent")
        self.held = max(granted, self.held)
        return Extension(granted=True, hold_nano_usd=self.held)


class Stream:
    """A stream under a meter; what has passed is what a client got."""

    def __init__(self, room: Room, *, first: int = 512, bound: int = 16_384, **options: Any) -> None:
        spec = CallSpec(model="big", stream=True, choices=options.pop("choices", 1))
        self.call: Call = make_call(
            spec=spec,
            price=Price("big", PRICES["big"]),
            held_nano_usd=PROMPT * IN + first * OUT,
            output_bound=bound,
            covered_tokens=first,
        )
        self.report = Report()
        self.room = room
        self.meter = StreamMeter(self.call, self.report, room, **{"encoding": None, "answer_timeout_s": 5.0, **options})
        self.passed = 0
        self.open = True

    async def send(self, text: str) -> bool:
        """One piece of text; whether another may follow."""
        assert self.open
        size = len(text.encode())
        self.report.visible_bytes += size
        self.report.visible_deltas += 1
        if self.report.text is not None:
            self.report.text.append(text)
        if self.meter.behind():
            self.open = await self.meter.advance()
        if not self.meter.overrun:
            self.passed += size
        return self.open

    async def until_cut(self, text: str, limit: int = 100_000) -> int:
        """Send the same piece until the stream is cut; how many passed."""
        for count in range(limit):
            if not await self.send(text):
                return count + 1
            await asyncio.sleep(0)
        raise AssertionError("never cut")


async def test_the_first_half_of_a_slice_asks_nobody_anything() -> None:
    stream = Stream(Room(10_000), first=512)
    for _ in range(512 // 2 - MARGIN_TOKENS):
        assert await stream.send("a")
    await asyncio.sleep(0)
    assert stream.room.asked == []
    stream.meter.close()


async def test_an_extension_is_asked_for_while_chunks_go_on_passing() -> None:
    room = Room(10_000)
    room.answers.clear()
    stream = Stream(room, first=512)
    for _ in range(512 - MARGIN_TOKENS - 2):
        assert await stream.send("a")
        await asyncio.sleep(0)
    assert len(room.asked) == 1  # and it has not been answered yet
    stream.meter.close()


async def test_a_chunk_waits_only_where_what_is_held_less_the_largest_chunk_is_reached() -> None:
    room = Room(10_000)
    room.answers.clear()
    stream = Stream(room, first=512)
    await stream.send("0123456789")
    while 512 - stream.meter.produced_tokens > 11:
        await asyncio.wait_for(stream.send("a"), 1)
    last = asyncio.ensure_future(stream.send("a"))
    await asyncio.sleep(0.01)
    assert not last.done()
    room.answers.set()
    assert await last
    assert stream.call.covered_tokens > 512
    stream.meter.close()


async def test_what_has_passed_is_never_more_than_what_is_held_for() -> None:
    room = Room(2_000)
    stream = Stream(room)
    await stream.until_cut("x" * 7)
    assert stream.passed + MARGIN_TOKENS <= stream.call.covered_tokens <= room.tokens
    assert stream.passed >= room.tokens - MARGIN_TOKENS - LEAST_SLICE_TOKENS - 2 * 7
    assert stream.meter.refusal is not None
    assert stream.meter.refusal.reason == "spent"


async def test_a_piece_larger_than_all_before_does_not_pass_where_it_has_no_room() -> None:
    stream = Stream(Room(600))
    assert await stream.send("x" * 100)
    assert not await stream.send("x" * 900)
    assert stream.meter.overrun
    assert stream.passed == 100


async def test_with_its_whole_bound_held_a_stream_is_left_alone() -> None:
    room = Room(100_000)
    stream = Stream(room, first=500, bound=900)
    for _ in range(2_000):
        assert await stream.send("four")
        await asyncio.sleep(0)
    asked = len(room.asked)
    assert stream.call.covered_tokens == 900
    assert await stream.send("x" * 100_000)
    assert len(room.asked) == asked <= 2


async def test_slices_grow_with_the_stream_up_to_a_largest_one() -> None:
    room = Room(1_000_000)
    stream = Stream(room, bound=1_000_000)
    for _ in range(8_000):
        assert await stream.send("0123456789")
        await asyncio.sleep(0)
    steps = [b.target_nano_usd - a.target_nano_usd for a, b in zip(room.asked, room.asked[1:], strict=False)]
    assert len(room.asked) < 40
    assert max(steps) <= 2 * MAX_SLICE_TOKENS * OUT
    assert [request.sequence for request in room.asked] == list(range(1, len(room.asked) + 1))
    stream.meter.close()


async def test_near_the_end_of_a_budget_few_questions_are_asked() -> None:
    room = Room(5_000)
    stream = Stream(room)
    await stream.until_cut("abcde")
    assert len(room.asked) <= 12


@pytest.mark.parametrize("error", [StoreError("away"), TimeoutError()])
async def test_a_ledger_that_does_not_answer_cuts_a_stream_where_its_hold_ends(error: Exception) -> None:
    room = Room(10_000)
    room.error = error
    stream = Stream(room)
    await stream.until_cut("abcde")
    assert stream.passed + MARGIN_TOKENS <= 512
    assert stream.meter.refusal is None


async def test_a_ledger_that_takes_too_long_is_not_waited_for() -> None:
    room = Room(10_000)
    room.answers.clear()
    stream = Stream(room, answer_timeout_s=0.01)
    await asyncio.wait_for(stream.until_cut("abcde"), 5)
    assert stream.passed + MARGIN_TOKENS <= 512


async def test_a_stream_may_go_on_unheld_where_the_ledger_is_away_and_that_is_allowed() -> None:
    room = Room(10_000)
    room.error = StoreError("away")
    stream = Stream(room, goes_on_unheld=True)
    for _ in range(1_000):
        assert await stream.send("abcde")
    assert len(room.asked) == 1


async def test_a_refusal_stands_until_it_hurts_and_then_others_may_have_given_something_back() -> None:
    room = Room(512)
    stream = Stream(room)
    while 512 - stream.meter.produced_tokens > 12:
        assert await stream.send("abcde")
        await asyncio.sleep(0)
    assert len(room.asked) == 1
    room.tokens = 2_000
    for _ in range(10):
        assert await stream.send("abcde")
    assert len(room.asked) == 2
    stream.meter.close()


async def test_closing_asks_for_nothing_more_and_waits_for_nothing() -> None:
    room = Room(10_000)
    room.answers.clear()
    stream = Stream(room)
    for _ in range(400):
        await stream.send("a")
        await asyncio.sleep(0)
    assert len(room.asked) == 1
    stream.meter.close()
    await asyncio.sleep(0)
    assert stream.call.covered_tokens == 512
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_whoever_is_cancelled_while_waiting_leaves_the_question_to_be_closed() -> None:
    room = Room(10_000)
    room.answers.clear()
    stream = Stream(room)
    waiting = asyncio.ensure_future(stream.until_cut("abcde"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    stream.meter.close()
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@pytest.mark.skipif(encoding_of("gpt-4o") is None, reason="needs the extra `tokenizer`")
async def test_english_is_counted_as_tokens_and_uses_what_it_may() -> None:
    room = Room(20_000)
    stream = Stream(room, bound=100_000, encoding="o200k_base")
    words = [f" {word}" for word in ENGLISH.split()]
    sent = ""
    while stream.open:
        for word in words:
            sent += word
            if not await stream.send(word):
                break
            await asyncio.sleep(0)
    exact = count_tokens(sent.encode(), "o200k_base")
    assert exact is not None
    assert 0.99 * room.tokens <= exact <= room.tokens
    stream.meter.close()
    assert stream.report.counted_tokens == pytest.approx(exact, rel=0.01)


async def test_a_provider_that_counts_as_it_goes_is_believed_as_far_as_it_counts_up() -> None:
    stream = Stream(Room(0), counts_as_it_goes=True)
    report, meter = stream.report, stream.meter
    for total in (5, 9):
        report.visible_bytes += 100
        report.usage = TokenUsage(input=10, output=total)
        meter.behind()
    # The last piece's text may have come behind its usage.
    assert meter.produced_tokens == 9 + 100 + MARGIN_TOKENS
    report.visible_bytes += 100
    report.usage = TokenUsage(input=10, output=2)
    meter.behind()
    assert meter.produced_tokens == 9 + 200 + MARGIN_TOKENS


async def test_a_stream_that_has_ended_and_told_its_usage_needs_room_for_no_more() -> None:
    stream = Stream(Room(0))
    stream.report.finished = True
    stream.report.usage = TokenUsage(input=400, output=500)
    assert await stream.send("x" * 5_000)
    assert not stream.meter.overrun


async def test_names_of_tools_and_every_choice_count() -> None:
    stream = Stream(Room(0), choices=3)
    stream.report.frame_tokens = 40
    assert stream.meter.produced_tokens == 40 + 3 * MARGIN_TOKENS


async def test_calls_of_tools_use_up_room_even_without_text() -> None:
    stream = Stream(Room(600))
    for _ in range(30):
        if not stream.open:
            break
        stream.report.frame_tokens += 40
        if stream.meter.behind():
            stream.open = await stream.meter.advance()
    assert not stream.open
    assert stream.meter.produced_tokens <= 600 + 40


async def test_an_answer_that_cannot_be_watched_is_held_for_as_a_whole_or_not_at_all() -> None:
    enough = Stream(Room(16_384))
    assert await enough.meter.cover_all()
    assert enough.call.covered_tokens == 16_384
    short = Stream(Room(16_383))
    assert not await short.meter.cover_all()
    assert short.call.covered_tokens == 512


@given(
    room=st.integers(0, 3_000),
    first=st.integers(64, 600),
    sizes=st.lists(st.integers(0, 200), max_size=80),
    eager=st.booleans(),
)
def test_whatever_comes_no_more_passes_than_is_held_for(room: int, first: int, sizes: list[int], eager: bool) -> None:
    async def run() -> None:
        stream = Stream(Room(room), first=first)
        for size in sizes:
            if not await stream.send("x" * size):
                break
            if eager:
                await asyncio.sleep(0)
        assert stream.passed <= max(stream.call.covered_tokens, first)
        assert stream.call.covered_tokens <= max(room, first)
        stream.meter.close()
        await asyncio.sleep(0)

    asyncio.run(run())


# Who is watched -------------------------------------------------------------------------------------------------------


def meters(modes: Modes) -> Meters:
    return Meters(MemoryStore(), modes, canonical=str, answer_timeout_s=1, goes_on_unheld=False)


def test_only_a_held_and_enforced_call_that_began_with_a_part_is_watched() -> None:
    price = Price("big", PRICES["big"])
    call = make_call(price=price, output_bound=50, covered_tokens=20)
    assert meters(Modes("enforce", 1.0)).watches(call)
    assert not meters(Modes("shadow", 1.0)).watches(call)
    assert not meters(Modes("enforce", 0.0)).watches(call)
    assert not meters(Modes("enforce", 1.0)).watches(make_call(price=price, covered_tokens=50))
    assert not meters(Modes("enforce", 1.0)).watches(make_call(price=price, covered_tokens=20, held=False))


# What is expected -----------------------------------------------------------------------------------------------------


def test_a_first_slice_follows_what_a_tenant_and_a_model_usually_produce() -> None:
    known = Expectations()
    assert known.first_slice("acme", "big") == FIRST_SLICE_TOKENS
    for _ in range(50):
        known.learn("acme", "big", 1_000)
    assert 1_000 <= known.first_slice("acme", "big") <= 1_100
    assert known.output_tokens("acme", "big") == 1_000
    assert known.first_slice("other", "big") == FIRST_SLICE_TOKENS


def record(output_tokens: int, *, outcome: str = "completed", estimated: bool = False) -> Any:
    return SimpleNamespace(
        tenant="acme", outcome=outcome, estimated=estimated, usage=SimpleNamespace(output_tokens=output_tokens)
    )


def test_what_was_broken_off_or_estimated_teaches_only_that_more_is_usual() -> None:
    known = Expectations()
    known.learn_from("big", record(1_000))
    known.learn_from("big", record(10, outcome="cut", estimated=True))
    known.learn_from("big", record(10, estimated=True))
    known.learn_from("big", record(0))
    assert known.output_tokens("acme", "big") == 1_000
    known.learn_from("big", record(2_000, outcome="cut", estimated=True))
    assert known.output_tokens("acme", "big") == 1_200


# What a hold pays for -------------------------------------------------------------------------------------------------

AMOUNT = st.decimals("0", "100", places=3)


@given(
    AMOUNT,
    AMOUNT,
    st.lists(st.tuples(st.integers(1, 5_000), AMOUNT, AMOUNT), max_size=2),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_a_hold_pays_for_as_much_as_it_was_made_for_and_never_for_more_than_it_is(
    entering: Any, leaving: Any, tiers: list[Any], prompt: int, output: int, media: bool
) -> None:
    model_price = ModelPrice(
        input_usd_per_mtok=entering,
        output_usd_per_mtok=leaving,
        tiers={at: {"input_usd_per_mtok": i, "output_usd_per_mtok": o} for at, i, o in tiers},
        service_tiers={"priority": {"output_usd_per_mtok": leaving * 2}},
    )
    for tier in (None, "priority"):
        price = Price("m", model_price, service_tier=tier)
        hold = price.hold(prompt, output, media=media)
        paid = price.output_within(hold, prompt, media=media)
        assert paid is None or paid >= output
        if paid is not None:
            assert price.hold(prompt, paid, media=media) <= hold
        for part in (0, output // 2, output):
            assert price.charge(TokenUsage(input=prompt, output=part)).nano_usd <= hold


async def test_a_piece_that_just_fits_passes_though_another_like_it_would_not() -> None:
    stream = Stream(Room(1_500), first=512)
    assert not await stream.send("a" * 1_000)
    assert stream.passed == 1_000
    assert stream.call.covered_tokens == 1_000 + MARGIN_TOKENS


async def test_a_piece_that_does_not_fit_does_not_pass() -> None:
    stream = Stream(Room(1_000), first=512)
    assert not await stream.send("a" * 1_000)
    assert stream.passed == 0


async def test_a_ledger_that_is_away_is_not_asked_once_more_for_a_piece_that_may_fit() -> None:
    room = Room(10_000)
    room.error = StoreError("away")
    stream = Stream(room, first=512)
    assert not await stream.send("a" * 1_000)
    assert len(room.asked) <= 2
