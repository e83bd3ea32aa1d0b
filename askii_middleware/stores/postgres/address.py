"""What a `postgresql://` URL says: where the server is, and how this store is to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...errors import ConfigurationError

_NAMESPACE = re.compile(r"[a-z_][a-z0-9_]{0,40}")
_DEFAULTS = {"namespace": "askii", "pool_size": "8", "prepare": "true"}
MOST_CONNECTIONS = 1000


class Address(NamedTuple):
    """A ledger's place."""

    conninfo: str
    """For libpq, with all secrets."""
    shown: str
    """The same as a URL, without user, password and libpq's own parameters."""
    secrets: tuple[str, ...]
    """What no message may contain."""
    namespace: str
    """The schema that holds the ledger: a plain identifier."""
    pool_size: int
    prepare: bool
    """Keep prepared statements and time-outs on connections. Not behind a pooler that shares connections between
    transactions: see `docs/stores.md` for what the role is to have there.
    """

    def conninfo_within(self, timeout_s: float) -> str:
        """For libpq, with so little time for each of several hosts that one that is silent leaves some for the next."""
        fields = conninfo_to_dict(self.conninfo)
        hosts = str(fields.get("host") or fields.get("hostaddr") or "").count(",") + 1
        if hosts == 1 or "connect_timeout" in fields:
            return self.conninfo
        return make_conninfo(self.conninfo, connect_timeout=max(int(timeout_s / (hosts + 1)), 1))

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse(url: str) -> Address:
    """Raises ConfigurationError, which never contains the URL: it may hold a password."""
    parts = urlsplit(url)
    options = dict(_DEFAULTS)
    passed = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in options:
            options[name] = value
        else:
            passed.append((name, value))
    query = urlencode(passed, quote_via=quote)
    try:
        fields = conninfo_to_dict(urlunsplit(parts._replace(query=query)))
        conninfo = make_conninfo("", **{"fallback_application_name": "askii", **fields, "client_encoding": "utf8"})
    except ProgrammingError:
        raise ConfigurationError(
            "store: the postgresql:// URL cannot be read; expected postgresql://user:password@host:port/database"
            "?namespace=askii, with special characters percent-encoded"
        ) from None
    namespace = options["namespace"]
    if not _NAMESPACE.fullmatch(namespace) or namespace.startswith("pg_"):
        raise ConfigurationError(
            f"store: namespace {namespace!r} has to be a lower-case name of at most 41 letters, digits and _, "
            "that begins with neither a digit nor pg_"
        )
    if (
        not options["pool_size"].isascii()
        or not options["pool_size"].isdigit()
        or not 0 < int(options["pool_size"][:9]) <= MOST_CONNECTIONS
    ):
        raise ConfigurationError(f"store: pool_size is a number from 1 to {MOST_CONNECTIONS}")
    if options["prepare"] not in ("true", "false"):
        raise ConfigurationError(f"store: prepare is true or false, not {options['prepare']!r}")
    secrets = tuple(str(fields[name]) for name in ("password", "sslpassword", "passfile") if fields.get(name))
    return Address(
        conninfo, _shown(fields, namespace), secrets, namespace, int(options["pool_size"]), options["prepare"] == "true"
    )


def _shown(fields: Mapping[str, object], namespace: str) -> str:
    hosts = str(fields.get("host") or "").split(",")
    ports = str(fields.get("port") or "").split(",")
    ports += ports[-1:] * (len(hosts) - len(ports))
    places = [f"{quote(host)}{':' if port else ''}{port}" for host, port in zip(hosts, ports, strict=False)]
    return f"postgresql://{','.join(places)}/{quote(str(fields.get('dbname') or ''))}?namespace={namespace}"
