"""Rounds of delivery to one receiver under leases, and the tasks that make them. What is delivered, and what becomes of
it, is for those who derive from it: see `delivery` for records and `alerts` for alerts.

A receiver has partitions, which the processes that deliver to it share (an alert channel has one). A round is for those
partitions that we have and that are not paused. What we have changes at the beginning of a round, where nothing is on
its way; a partition that is lost later than that drops out of the round, and the rest goes on.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import NamedTuple

from .errors import StoreError
from .log_fields import fields
from .stores.base import Lease, Store

logger = logging.getLogger("askii_middleware.delivery")

OnResult = Callable[[str, str, int], None]
"""Called with a receiver's name, a result and a number: for records `delivered`, `dead`, `again` (waits on its own) or
`error` (the whole batch waits); for alerts `delivered` or `error`.
"""

CLOSE_S = 5.0
"""How long giving back the leases, or ending a cancelled send, may take."""
MAX_PAUSE_S = 3600.0
"""The longest pause a receiver can ask for."""


class DeliveryOptions(NamedTuple):
    """What `DeliveryLoop` was given."""

    clock: Callable[[], float]
    owner: str
    lease_s: float
    send_timeout_s: float
    idle_s: float
    linger_s: float
    base_backoff_s: float
    max_backoff_s: float
    random: Random
    on_result: OnResult

    def back_off_s(self, failures: int) -> float:
        """Full jitter: anywhere between 0 and a bound that doubles with each failure, up to a cap."""
        bound_s = min(self.max_backoff_s, self.base_backoff_s * 2.0 ** min(failures - 1, 64))
        return self.random.uniform(0.0, bound_s)


class LeaseLostError(Exception):
    """Other owners deliver all that this round was for."""


class Rounds(ABC):
    """Delivers to one receiver; at most one send at a time.

    Args:
        lease: the receiver's name in the store.
        what: what the log calls it.
    """

    def __init__(self, store: Store, lease: str, what: str, options: DeliveryOptions) -> None:
        self._store = store
        self._lease = lease
        self._what = what
        self._o = options
        self._held: dict[int, Lease] = {}
        """By partition, with the pause and the failures that we know of."""
        self._asked_s: float | None = None
        self._round: set[int] = set()
        """The partitions this round is for, as long as we have them."""
        self._store_failures = 0
        self._drained = False
        self.reset()

    def reset(self) -> None:
        """Begin anew, perhaps on another event loop."""
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._deaf = False
        """Set while a wake changes nothing: in a pause, or while other processes have all partitions."""
        self._asked = self._answered = 0
        """Flushes asked for, and those whose round has ended with nothing more to do."""
        self._answer = False
        self._flush_until_s = 0.0
        self._quiet = asyncio.Event()
        self.ended = False
        """Set to end `run` after its round, should a receiver swallow the cancellation."""

    def wake(self) -> None:
        """A call was settled."""
        if not self._deaf:
            self._wake.set()

    async def flush(self, until_s: float) -> bool:
        """Wait for a round that began after this call and found nothing more to do before `until_s`."""
        self._asked += 1
        mine = self._asked
        self._flush_until_s = until_s
        self._wake.set()
        self._urgent.set()
        while self._answered < mine:
            self._quiet.clear()
            await self._quiet.wait()
        return self._answer

    async def run(self) -> None:
        """Rounds until cancelled."""
        while not self.ended:
            asked = self._asked
            self._wake.clear()
            self._urgent.clear()
            self._deaf = False
            try:
                wait_s = await self.round()
                self._store_failures = 0
            except Exception as error:
                self._store_failures += 1
                self._deaf = True
                wait_s = self._o.back_off_s(self._store_failures)
                if isinstance(error, StoreError):
                    logger.warning(
                        "%s: the outbox cannot be used: %s",
                        self._what,
                        error,
                        extra=fields("outbox_unusable", target=self._what),
                    )
                else:
                    logger.exception(
                        "%s: delivery failed", self._what, extra=fields("delivery_failed", target=self._what)
                    )
            if wait_s <= 0:
                await asyncio.sleep(0)
                continue
            resumes_s = max(self._o.clock() + wait_s, *(lease.retry_at_s for lease in self._held.values()), 0.0)
            if self._drained or not self._held or resumes_s > self._flush_until_s:
                self._answered, self._answer = asked, self._drained
                self._quiet.set()
            await self._sleep(wait_s)

    async def _sleep(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
            async with asyncio.timeout(self._o.linger_s):
                await self._urgent.wait()
        except TimeoutError:
            pass

    async def round(self) -> float:
        """One look at what waits, and what follows from it. Returns the seconds until the next; 0: there is more.
        Raises StoreError.
        """
        self._drained = False
        try:
            if self._asked_for() >= min(self._o.lease_s / 3, self._o.lease_s - self._o.send_timeout_s):
                await self._ask()
            if (wait_s := self._pause_left_s()) > 0:
                return wait_s
            now_s = self._o.clock()
            self._round = {lease.partition for lease in self._held.values() if lease.retry_at_s <= now_s}
            if self._round and not await self._deliver():
                paused = [lease.retry_at_s - now_s for lease in self._held.values() if lease.retry_at_s > now_s]
                self._drained = not paused
                return min([self._o.idle_s, *paused])
        except LeaseLostError:
            logger.debug(
                "%s: other processes took over all partitions of this round",
                self._what,
                extra=fields("leases_lost", target=self._what),
            )
        if not self._held:
            self._deaf = True
            return self._o.lease_s / 3
        return self._pause_left_s()

    @abstractmethod
    async def _deliver(self) -> bool:
        """Send what waits in the round's partitions and write down what became of it. False: nothing waits. Raises
        LeaseLostError, StoreError.
        """

    async def give_back(self) -> None:
        """End the leases and our share, so that other processes need not wait until they run out."""
        if self._asked_s is None:
            return
        self._held, self._asked_s = {}, None
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._store.lease(self._lease, self._o.owner, 0.0)
        except (StoreError, TimeoutError) as error:
            logger.warning(
                "%s: the leases were not given back and run out by themselves: %s",
                self._what,
                error,
                extra=fields("leases_kept", target=self._what),
            )

    def _asked_for(self) -> float:
        """Seconds since the last ask; without end, if there was none or the clock was set back."""
        age_s = float("inf") if self._asked_s is None else self._o.clock() - self._asked_s
        return age_s if age_s >= 0 else float("inf")

    async def _ask(self) -> None:
        """Take, renew or give up leases. What was lost for a while may be delivered by now: it leaves the round."""
        now_s, before = self._o.clock(), self._held
        leases = await self._store.lease(self._lease, self._o.owner, self._o.lease_s)
        self._asked_s = now_s
        kept = {n: known for n, token, _, _ in leases if (known := before.get(n)) is not None and known.token == token}
        self._held = {lease.partition: kept.get(lease.partition, lease) for lease in leases}
        self._round &= kept.keys()

    async def _confirm(self) -> None:
        """Make sure that the round's leases outlive one send. Raises LeaseLostError if none is left."""
        if self._asked_for() >= self._o.lease_s - self._o.send_timeout_s:
            await self._ask()
        if not self._round:
            raise LeaseLostError

    def _lost(self, partitions: Iterable[int]) -> None:
        """Somebody else delivers these now. Raises LeaseLostError if the round has no other."""
        for partition in partitions:
            self._held.pop(partition, None)
            self._round.discard(partition)
        if not self._round:
            raise LeaseLostError

    def _pause(self, retry_at_s: float, failures: int) -> None:
        """Remember the round's pause."""
        for n in self._round:
            self._held[n] = self._held[n]._replace(retry_at_s=retry_at_s, failures=failures)

    def _pause_left_s(self) -> float:
        """Until the first partition that we have may be sent to."""
        now_s = self._o.clock()
        for n, lease in self._held.items():
            # Further away than any pause can be: the clock was set back. Without the bound it would be waited for.
            if lease.retry_at_s > now_s + MAX_PAUSE_S:
                self._held[n] = lease._replace(retry_at_s=now_s + MAX_PAUSE_S)
        left_s = max(min((lease.retry_at_s for lease in self._held.values()), default=0.0) - now_s, 0.0)
        self._deaf = left_s > 0
        return left_s


class RoundTasks:
    """One task for each receiver, so that none waits for another."""

    def __init__(self, rounds: Sequence[Rounds], clock: Callable[[], float]) -> None:
        self._rounds = tuple(rounds)
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin delivering, on the running event loop. Started already: nothing happens."""
        if self._tasks:
            return
        for rounds in self._rounds:
            rounds.reset()
            self._tasks.append(asyncio.create_task(rounds.run(), name=f"askii-delivery-{rounds._lease}"))  # noqa: SLF001

    def wake(self) -> None:
        """Something new is in the outbox. From the event loop's thread; well under a microsecond per receiver."""
        for rounds in self._rounds:
            rounds.wake()

    async def flush(self, timeout_s: float) -> bool:
        """Deliver what is due. True if nothing due is left. Ends early where waiting is pointless: a receiver's pause
        outlasts the time, or another process delivers to it.
        """
        if not self._tasks:
            return False
        until_s = self._clock() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return all(await asyncio.gather(*(rounds.flush(until_s) for rounds in self._rounds)))
        except TimeoutError:
            return False

    async def stop(self, timeout_s: float) -> bool:
        """Flush, end the tasks and give back the leases; the receivers stay open. Leftovers stay in the store: a send
        that is cut short is repeated by whoever comes next. Takes `timeout_s`, and seconds more where a receiver or
        the store resists. True if nothing due is left.
        """
        try:
            return await self.flush(timeout_s)
        finally:
            tasks, self._tasks = self._tasks, []
            for rounds, task in zip(self._rounds, tasks, strict=False):
                rounds.ended = True
                task.cancel()
            if tasks:
                ended, _ = await asyncio.wait(tasks, timeout=CLOSE_S)
                # A receiver that resists its cancellation may still be sending: its lease has to run out.
                quiet = [rounds for rounds, task in zip(self._rounds, tasks, strict=True) if task in ended]
                await asyncio.gather(*(rounds.give_back() for rounds in quiet))
