"""The whole store, put together, and its life."""

from __future__ import annotations

from ...errors import StoreError
from ..base import Store
from ..copying import unfinished_error
from .alerts import RedisAlerts
from .forgetting import RedisForgetting
from .items import RedisItems
from .ledger import RedisLedger
from .outbox import RedisOutbox
from .reading import RedisReading

SCHEMA = 1
LEAST_RELEASE = 7
UNFINISHED = "unfinished_copy"
"""The member of `meta` that marks the target of a copy."""


class RedisStore(RedisForgetting, RedisAlerts, RedisOutbox, RedisReading, RedisItems, RedisLedger, Store):
    """The ledger in Redis or Valkey. See `Store`, and `RedisBase` for the arguments.

    Records stay readable for 8 days, and until every sink has passed them; calls are remembered for 25 hours after
    their settlement, aggregates for 400 days.
    """

    async def open(self) -> None:
        found = int(await self._run("open", (SCHEMA,)))
        if found != SCHEMA:
            raise StoreError(f"{self.url}: the ledger has schema {found}, and this release knows {SCHEMA}: upgrade")
        if not self.for_copy and await self._call("HEXISTS", "meta", UNFINISHED):
            raise unfinished_error(self.url)
        await self._check_server()
        await self.load_terms()

    async def _check_server(self) -> None:
        """An old one takes no scripts with flags; one that drops keys when it is full would forget what was spent."""
        try:
            told = await self._link.call("INFO")
        except StoreError:
            return  # it was reached a moment ago: this user may not ask
        lines = (line.partition(":") for line in told.decode("utf-8", "replace").splitlines())
        info = {name: value for name, _, value in lines}
        release = info.get("redis_version", "")
        if release.partition(".")[0].isdecimal() and int(release.partition(".")[0]) < LEAST_RELEASE:
            raise StoreError(
                f"{self.url}: the server speaks as Redis {release}: Redis {LEAST_RELEASE} or Valkey 7.2 is the least"
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and info.get("maxmemory", "0") != "0":
            raise StoreError(
                f"{self.url}: maxmemory-policy is {policy}, so a full server would forget what was spent: "
                "set it to noeviction"
            )

    async def close(self) -> None:
        await self._link.close()

    async def ping(self) -> None:
        await self._run("ping")

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        alive = await super().heartbeat(worker, ttl_s)
        await self._run("tend")
        return alive
