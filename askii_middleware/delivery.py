"""From the outbox to the sinks: one task per sink, so that none waits for another. Alerts go to their channels in the
same way, see `alerts`.

The processes that share a store share each sink's partitions of tenants evenly. A round takes, renews or gives up
leases, fetches a batch from all its partitions together, sends it and writes down what became of it, fenced by each
partition's token: what was lost meanwhile is left out, the rest is written. A crash anywhere in between only means that
the same bytes are sent again, once the leases of that process have run out. Three kinds of trouble, none of which
reaches partitions of other processes:

- A record the sink rejects goes to the dead letters; one it wants *again* waits on its own, the others go on.
- While the sink cannot be reached, is busy or misconfigured, nothing moves and the order stays. The pause is kept in
  the store, so a restart does not cut it short.
- A sink that breaks on a batch, time after time, may break because of one record. From the `ISOLATE_AFTER`th failure
  in a row the batch is halved, in order, down to the single record. Once anything was delivered, what failed alone is
  known to be the cause and waits on its own; if nothing was, the sink is down, and nothing is written.

A tenant's records arrive in order, except those that had to wait on their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random

from .alerts import AlertWorker
from .channels.base import AlertChannel
from .currency import Rate, current_rate
from .delivery_rounds import DeliveryOptions, OnResult, RoundTasks
from .delivery_worker import SinkWorker
from .errors import ConfigurationError
from .sinks.base import Sink
from .stores.base import Store


class DeliveryLoop(RoundTasks):
    """Delivers a store's outbox to sinks, and its alerts to channels, that are registered with it.

    Args:
        owner: names this process among those that share the store; unique for each start.
        lease_s: how long the partitions of a process that died wait, until others ask for them. Everyone asks after a
            third of it, or what it is above `send_timeout_s`, if that is less: so leases are renewed, and partitions
            pass to processes that joined.
        send_timeout_s: one `send` as a whole; below `lease_s`, so that no send outlives its lease.
        idle_s: how often to look for what other processes have recorded.
        linger_s: how long to gather records after `wake`, so that a busy time makes batches.
        base_backoff_s, max_backoff_s: first and largest bound of the pause after a failure (full jitter).
        on_result: for metrics.
        channels: receivers of alerts.
        rate: the exchange rate of now, in which alerts show coins.
        on_alert: as `on_result`, for channels.
    """

    def __init__(
        self,
        store: Store,
        sinks: Sequence[Sink],
        *,
        clock: Callable[[], float] = time.time,
        owner: str,
        lease_s: float = 24.0,
        send_timeout_s: float = 22.0,
        idle_s: float = 1.0,
        linger_s: float = 0.05,
        base_backoff_s: float = 1.0,
        max_backoff_s: float = 300.0,
        random: Random | None = None,
        on_result: OnResult | None = None,
        channels: Sequence[AlertChannel] = (),
        rate: Callable[[], Rate] = current_rate,
        on_alert: OnResult | None = None,
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
        told = options._replace(on_result=on_alert or _ignore)
        self.alerts = tuple(AlertWorker(store, channel, told, rate) for channel in channels)
        super().__init__((*self.workers, *self.alerts), clock)

    @property
    def alarms(self) -> dict[str, str]:
        """What a person has to put right, by sink."""
        return {worker.sink.name: worker.alarm for worker in self.workers if worker.alarm}


def _ignore(receiver: str, result: str, count: int) -> None:
    """No metrics."""
