"""A ledger in one schema of a PostgreSQL database, which any number of workers share."""

from __future__ import annotations

from .alerts import PostgresAlerts
from .forgetting import PostgresForgetting
from .items import PostgresItems
from .ledger import PostgresLedger
from .outbox import PostgresOutbox
from .reading import PostgresReading


class PostgresStore(PostgresLedger, PostgresForgetting, PostgresReading, PostgresOutbox, PostgresAlerts, PostgresItems):
    """See `Store`. Every operation is one call of one function in the database, which is one transaction.

    Args:
        url: `postgresql://user:password@host:port/database?namespace=askii&pool_size=8&prepare=true`, and libpq's own
            parameters; see `address`.
        timeout_s: bounds every operation; after it StoreError.
        clock: Unix seconds; None: the server's own.
    """
