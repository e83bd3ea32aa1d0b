"""From the outbox to the sinks: one task per sink, so that none waits for another.

Each round takes or renews the sink's lease, fetches a batch, sends it and writes down what became of it, fenced by the
lease's token. A crash anywhere in between only means that the same bytes are sent again. Three kinds of trouble:

- A record the sink rejects goes to the dead letters; one it wants *again* waits on its own, the others go on.
- While the sink cannot be reached, is busy or misconfigured, nothing moves and the order stays. The pause is kept in
  the store, so a restart does not cut it short.
- A sink that breaks on a batch, time after time, may break because of one record. From the `ISOLATE_AFTER`th failure
  in a row the batch is halved, in order, down to the single record. Once anything was delivered, what failed alone is
  known to be the cause and waits on its own; if nothing was, the sink is down, and nothing is written.

A tenant's records arrive in order, except those that had to wait on their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from random import Random

from .delivery_worker import CLOSE_S, DeliveryOptions, OnResult, SinkWorker
from .errors import ConfigurationError
from .sinks.base import Sink
from .stores.base import Store


class DeliveryLoop:
    """Delivers a store's outbox to sinks that are registered with it.

    Args:
        owner: names this process among those that share the store; unique for each start.
        lease_s: how long other processes wait after this one has died.
        send_timeout_s: one `send` as a whole; below `lease_s`, so that no send outlives its lease.
        idle_s: how often to look for what other processes have recorded.
        linger_s: how long to gather records after `wake`, so that a busy time makes batches.
        base_backoff_s, max_backoff_s: first and largest bound of the pause after a failure (full jitter).
        on_result: for metrics.
    """

    def __init__(
        self,
        store: Store,
        sinks: Sequence[Sink],
        *,
        clock: Callable[[], float] = time.time,
        owner: str,
        lease_s: float = 30.0,
        send_timeout_s: float = 22.0,
        idle_s: float = 1.0,
        linger_s: float = 0.05,
        base_backoff_s: float = 1.0,
        max_backoff_s: float = 300.0,
        random: Random | None = None,
        on_result: OnResult | None = None,
    ) -> None:
        if not 0 < send_timeout_s < lease_s:
            raise ConfigurationError(f"send_timeout_s ({send_timeout_s}) must be above 0 and below lease_s ({lease_s})")
        if any(sink.max_batch < 1 for sink in sinks):
            raise ConfigurationError("max_batch of a sink must be at least 1")
        options = DeliveryOptions(
            clock=clock,
            owner=owner,
            lease_s=lease_s,
            send_timeout_s=send_timeout_s,
            idle_s=idle_s,
            linger_s=linger_s,
            base_backoff_s=base_backoff_s,
            max_backoff_s=max_backoff_s,
            random=random or Random(),  # noqa: S311 - jitter, not a secret
            on_result=on_result or _ignore,
        )
        self.workers = tuple(SinkWorker(store, sink, options) for sink in sinks)
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def alarms(self) -> dict[str, str]:
        """What a person has to put right, by sink."""
        return {worker.sink.name: worker.alarm for worker in self.workers if worker.alarm}

    def start(self) -> None:
        """Begin delivering, on the running event loop. Started already: nothing happens."""
        if self._tasks:
            return
        for worker in self.workers:
            worker.reset()
            self._tasks.append(asyncio.create_task(worker.run(), name=f"askii-delivery-{worker.sink.name}"))

    def wake(self) -> None:
        """Something new is in the outbox. From the event loop's thread; well under a microsecond per sink."""
        for worker in self.workers:
            worker.wake()

    async def flush(self, timeout_s: float) -> bool:
        """Deliver what is due. True if nothing due is left. Ends early where waiting is pointless: a sink's pause
        outlasts the time, or another process delivers to it.
        """
        if not self._tasks:
            return False
        until_s = self._clock() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return all(await asyncio.gather(*(worker.flush(until_s) for worker in self.workers)))
        except TimeoutError:
            return False

    async def stop(self, timeout_s: float) -> bool:
        """Flush, end the tasks and give back the leases; the sinks stay open. Leftovers stay in the outbox: a send
        that is cut short is repeated by whoever comes next. Takes `timeout_s`, and seconds more where a sink or the
        store resists. True if nothing due is left.
        """
        try:
            return await self.flush(timeout_s)
        finally:
            tasks, self._tasks = self._tasks, []
            for worker, task in zip(self.workers, tasks, strict=False):
                worker.ended = True
                task.cancel()
            if tasks:
                ended, _ = await asyncio.wait(tasks, timeout=CLOSE_S)
                # A sink that resists its cancellation may still be sending: its lease has to run out.
                quiet = [worker for worker, task in zip(self.workers, tasks, strict=True) if task in ended]
                await asyncio.gather(*(worker.give_back() for worker in quiet))


def _ignore(sink: str, result: str, records: int) -> None:
    """No metrics."""
