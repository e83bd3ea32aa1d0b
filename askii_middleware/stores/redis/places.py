"""Where a ledger's server is: what a URL says, and how to find the one that takes writes at the moment.

A ledger lies on one shard, so one server at a time is enough. Behind Sentinels and in a Cluster it moves, and is looked
for anew with every connection.
"""

from __future__ import annotations

import re
import ssl
from binascii import crc_hqx
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

from ...errors import ConfigurationError
from .wire import Part, Refused, Reply

KINDS = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SLOTS = 16384


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Ask = Callable[[Address, tuple[Part, ...]], Awaitable[Reply]]
"""Put one command to the server there. A Sentinel is not logged in to with the ledger's credentials."""


class Place:
    """What a URL says. Raises ConfigurationError, which does not show the URL: it may hold a password.

    Args:
        url: see `open_store`.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self._told: list[Address] = []
        self.kind = scheme.partition("+")[2]
        """`sentinel`, `cluster`, or empty for a server that stays where it is."""
        login, _, hosts = rest.partition("/")[0].partition("?")[0].rpartition("@")
        try:
            parts = urlsplit(url)
            query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            self.namespace = query.pop("namespace", "askii")
            self.wait_replicas = int(query.pop("wait_replicas", "0"))
            """So many replicas have to have a write before it is answered."""
            self._sentinel_login = query.pop("sentinel_username", ""), query.pop("sentinel_password", "")
            port = 26379 if self.kind == "sentinel" else 6379
            strange = sorted(name for name in query if name != "db" and not name.startswith("ssl_"))
            self.addresses = [_address(host, port) for host in hosts.split(",")]
            path = parts.path.strip("/").split("/")
            self.service = unquote(path.pop(0)) if self.kind == "sentinel" else ""
            if self.wait_replicas < 0:
                raise ValueError("a number of replicas")  # noqa: TRY301 - one message for all that is wrong
            if any(part and not part.isdecimal() for part in path):
                raise ValueError("a database has a number")  # noqa: TRY301 - one message for all that is wrong
            # The client library's own reading of all that is left: login, database and TLS.
            plain = f"{scheme.partition('+')[0]}://{login}@{hosts.split(',')[0]}/{'/'.join(path)}?{urlencode(query)}"
            self._options: dict[str, Any] = dict(parse_url(plain))
            self.tls = _tls(self._options)
            self.db = int(self._options.get("db") or 0)
            secrets = self._options.get("password"), self._sentinel_login[1], self._options.get("ssl_password")
            self.secrets = [secret for secret in secrets if secret]
            """What no message may show."""
        except (ValueError, TypeError, OSError) as error:
            raise ConfigurationError(
                f"store {scheme}://: {type(error).__name__} in its URL; expected {_form(scheme)}"
            ) from None
        if strange:
            raise ConfigurationError(f"store {scheme}://: its URL has no option {strange[0]!r}")
        if not self.kind and len(self.addresses) > 1:
            raise ConfigurationError(f"store {scheme}://: one server; several are {scheme}+sentinel:// or +cluster://")
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigurationError(f"store {scheme}://: namespace has 1 to 64 letters, digits and _ . -")
        if self.kind == "sentinel" and not self.service:
            raise ConfigurationError(f"store {scheme}://: the service's name is missing; expected {_form(scheme)}")
        if self.kind == "cluster" and self.db:
            raise ConfigurationError(f"store {scheme}://: a cluster has no database but 0")
        where = ",".join(map(str, self.addresses)) + (f"/{self.service}" if self.service else "")
        self.url = f"{scheme}://{where}" + (f"/{self.db}" if self.db else "") + f"?namespace={self.namespace}"
        """Without secrets."""

    @property
    def seeds(self) -> list[Address]:
        """Whom to ask: those in the URL, then those a cluster has told of."""
        return list(dict.fromkeys((*self.addresses, *self._told)))

    @property
    def login(self) -> tuple[str, ...]:
        """What AUTH is sent with; empty where there is nothing to send."""
        return _login(self._options.get("username"), self._options.get("password"))

    def login_for(self, address: Address) -> tuple[str, ...]:
        if self.kind == "sentinel" and address in self.addresses:
            return _login(*self._sentinel_login)
        return self.login

    async def find(self, ask: Ask) -> Address:
        """The server that takes this ledger's writes. Raises LookupError if nobody knows it."""
        if not self.kind:
            return self.addresses[0]
        wrong = []
        for seed in self.seeds:
            try:
                reply = await (self._sentinel(ask, seed) if self.kind == "sentinel" else self._cluster(ask, seed))
            except OSError as error:
                wrong.append(f"{seed}: {error}")
                continue
            if isinstance(reply, Address):
                return reply
            wrong.append(f"{seed}: {reply}")
        raise LookupError("; ".join(wrong))

    async def _sentinel(self, ask: Ask, seed: Address) -> Address | str:
        reply = await ask(seed, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service))
        if isinstance(reply, list) and len(reply) == 2:
            return Address(reply[0].decode(), int(reply[1]))
        return reply.text if isinstance(reply, Refused) else f"it knows no master of {self.service!r}"

    async def _cluster(self, ask: Ask, seed: Address) -> Address | str:
        reply = await ask(seed, ("CLUSTER", "SLOTS"))
        if isinstance(reply, Refused):
            return reply.text
        self._told = [Address(where[0].decode(), where[1]) for _, _, *nodes in reply for where in nodes if where[0]]
        slot = crc_hqx(self.namespace.encode(), 0) % _SLOTS
        for first, last, (host, port, *_), *_ in reply:
            if first <= slot <= last:
                return Address(host.decode() if host else seed.host, port)
        return f"no server of the cluster has slot {slot}"


def _form(scheme: str) -> str:
    kind = scheme.partition("+")[2]
    if kind == "sentinel":
        return f"{scheme}://[user:password@]host:port,host:port/SERVICE[/db][?namespace=NAME&wait_replicas=N]"
    if kind == "cluster":
        return f"{scheme}://[user:password@]host:port,host:port[?namespace=NAME&wait_replicas=N]"
    return f"{scheme}://[user:password@]host:port[/db][?namespace=NAME&wait_replicas=N]"


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    return Address(parts.hostname or "localhost", parts.port or port)


def _login(user: str | None, password: str | None) -> tuple[str, ...]:
    if not password:
        return ()
    return (user, password) if user else (password,)


def _tls(options: dict[str, Any]) -> ssl.SSLContext | None:
    if options.pop("connection_class", None) is not SSLConnection:
        return None
    named = {name: value for name, value in options.items() if name.startswith("ssl_")}
    context: ssl.SSLContext = SSLConnection(**named).ssl_context.get()
    return context
