"""`tracker.price_desk`: prices that are changed at run time. They live in the ledger and win over declared ones; every
worker has them within seconds. What was charged before keeps its price.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, Literal, NamedTuple

import msgspec

from .errors import ConfigurationError
from .item_watch import ItemWatcher
from .litellm_prices import SPECIMEN, is_litellm, litellm_price
from .log_fields import fields
from .model_price import AMOUNTS, ModelPrice
from .models import MAX_MODEL_CHARS, catalogue_provider, split_provider, strip
from .options import DEFAULT_PRICE
from .pricing import PriceBook
from .stores.base import Item, Store

logger = logging.getLogger(__name__)

KIND: Final = "price"
MAX_PRICES: Final = 10_000
MAX_PRICE_BYTES: Final = 16_384
MAX_PROVIDER_CHARS: Final = 64
_UNUSABLE: Final = (ConfigurationError, TypeError, AttributeError, ValueError)
"""What a table of the wrong shape comes to."""
_DEFAULTS: Final = {f.name: f.default for f in dataclasses.fields(ModelPrice) if f.default is not dataclasses.MISSING}


class ListedPrice(NamedTuple):
    """A price of the operator's own, and where it comes from. One model may have several, each of another
    `price.provider`.
    """

    model: str
    """Without a provider's prefix."""
    price: ModelPrice
    source: Literal["store", "config"]


class _Value(msgspec.Struct):
    model: str
    price: dict[str, Any]


class _Read(NamedTuple):
    value: bytes
    model: str
    price: ModelPrice


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(_Value).decode


class PriceDesk:
    """Prices of one ledger, and the copy of them in the price book."""

    def __init__(
        self, store: Store, watcher: ItemWatcher, prices: PriceBook, *, ready: Callable[[], Awaitable[None]]
    ) -> None:
        self._store = store
        self._watcher = watcher
        self._prices = prices
        self._ready = ready
        self._read: dict[str, _Read] = {}
        watcher.watch(KIND, self._take)

    async def set(self, prices: Mapping[str, ModelPrice]) -> None:
        """Set or replace the prices of models: here at once, elsewhere within seconds. All are checked before the
        first is written. Raises ConfigurationError, StoreError.
        """
        items: dict[str, bytes] = {}
        for model, price in prices.items():
            name, value = _item(model, price)
            if items.setdefault(name, value) != value:
                raise ConfigurationError(f"price: {name!r} is given twice, under two spellings")
        await self._ready()
        stored = {item.name: item.value for item in await self._store.items(KIND)}
        if len(stored.keys() | items.keys()) > MAX_PRICES:
            raise ConfigurationError(
                f"price: at most {MAX_PRICES} models have prices set at run time; remove some first"
            )
        try:
            for name, value in items.items():
                if stored.get(name) != value:
                    await self._store.put_item(KIND, name, value)
        finally:
            await self._watcher.look()

    async def load(self, table: Mapping[str, Any]) -> list[str]:
        """Set prices from a table as JSON has it: model to our fields in USD per million tokens (`ModelPrice`), or to
        an entry in the format of LiteLLM's `model_prices_and_context_window.json`. The models that were set; entries
        of LiteLLM's that tell no price of anything counted here are left out, and logged. Raises ConfigurationError
        naming the model and the field, also where nothing is left, StoreError.
        """
        prices = read_prices(table)
        await self.set(prices)
        return list(prices)

    async def remove(self, model: str, provider: str | None = None) -> int:
        """Forget a price set at run time; the declared or public one applies again. With a provider, or the model's
        prefix, that provider's, else all of the model's. How many there were. Raises StoreError.
        """
        await self._ready()
        short, prefix = strip(model), split_provider(model)[0]
        label = prefix if provider is None else catalogue_provider(provider)
        names = [
            item.name
            for item in await self._store.items(KIND)
            if item.name == f"{label}|{short}" or (label is None and item.name.partition("|")[2] == short)
        ]
        removed = [await self._store.put_item(KIND, name, None) for name in names]
        await self._watcher.look()
        return sum(removed)

    async def list(self) -> list[ListedPrice]:
        """The operator's own prices by model and provider: stored ones, and declared ones that none of these replaces.
        Raises StoreError.
        """
        await self._ready()
        await self._watcher.look()
        listed = {
            (read.model, read.price.provider): ListedPrice(read.model, read.price, "store")
            for read in self._read.values()
        }
        for model, label, price in self._prices.declared():
            if model != DEFAULT_PRICE:
                listed.setdefault(
                    (model, label), ListedPrice(model, dataclasses.replace(price, provider=label), "config")
                )
        return [listed[place] for place in sorted(listed)]

    def _take(self, items: Sequence[Item]) -> None:
        """Into the price book. What has not changed is not read again: there may be thousands."""
        if len(items) > MAX_PRICES:
            logger.error(
                "%d prices were set at run time; only %d of them are used: remove those that nobody needs",
                *(len(items), MAX_PRICES),
                extra=fields("prices_cut", count=len(items)),
            )
            items = items[:MAX_PRICES]
        before, self._read = self._read, {}
        digest = sha256()
        by_model: dict[str, dict[str, ModelPrice]] = {}
        for item in items:
            read = before.get(item.name)
            if read is None or read.value != item.value:
                read = _readable(item)
            if read is not None:
                self._read[item.name] = read
                digest.update(b"%d:%b" % (len(item.value), item.value))
                by_model.setdefault(read.model, {})[read.price.provider] = read.price
        self._prices.override(by_model, digest.hexdigest())


def read_prices(table: Mapping[str, Any]) -> dict[str, ModelPrice]:
    """See `PriceDesk.load`. Pure."""
    prices: dict[str, ModelPrice] = {}
    names: set[str] = set()
    left_out: list[str] = []
    for model, entry in table.items():
        if model == SPECIMEN:
            continue
        try:
            if not isinstance(entry, Mapping):
                raise ConfigurationError("expected a table of amounts")
            theirs = is_litellm(entry)
            price = litellm_price(model, entry) if theirs else ModelPrice.from_table(entry)
            # LiteLLM lists some models once for each of a provider's entrances; the first is taken.
            name = "" if price is None else _item(model, price)[0]
        except _UNUSABLE as error:
            raise ConfigurationError(f"price of {model[:MAX_MODEL_CHARS]!r}: {error}") from None
        if price is None or (theirs and name in names):
            left_out.append(model)
            continue
        names.add(name)
        prices[model] = price
    if not prices:
        raise ConfigurationError(f"no price of anything that is counted here, in {len(left_out)} entries")
    if left_out:
        logger.warning(
            "%d of %d entries tell no price of anything that is counted here: %s",
            *(len(left_out), len(table), ", ".join(left_out[:5])),
            extra=fields("prices_left_out", count=len(left_out)),
        )
    return prices


def price_table(price: ModelPrice) -> dict[str, Any]:
    """A price as JSON has it, amounts as exact decimal strings: what `ModelPrice.from_table` reads."""
    told = {f.name: getattr(price, f.name) for f in dataclasses.fields(price)}
    table = {name: value for name, value in told.items() if value not in ({}, "", _DEFAULTS.get(name, ...))}
    read: dict[str, Any] = msgspec.to_builtins(table, str_keys=True)
    return read


def _item(model: str, price: ModelPrice) -> tuple[str, bytes]:
    """Under which name a price is stored, and as what. Raises ConfigurationError."""
    short = strip(model)
    if not short or len(model) > MAX_MODEL_CHARS or not model.isprintable():
        raise ConfigurationError(f"price: a model's name has 1 to {MAX_MODEL_CHARS} printable characters")
    if all(getattr(price, amount) is None for amount in AMOUNTS):
        raise ConfigurationError(f"price of {model!r}: no amount; a free model has its prices set to 0")
    label = catalogue_provider(price.provider) or split_provider(model)[0] or ""
    if len(label) > MAX_PROVIDER_CHARS or not label.isprintable() or "|" in label:
        raise ConfigurationError(f"price of {model!r}: a provider's name has at most {MAX_PROVIDER_CHARS} characters")
    value = _encode(_Value(short, price_table(price) | ({"provider": label} if label else {})))
    if len(value) > MAX_PRICE_BYTES:
        raise ConfigurationError(f"price of {model!r}: more than {MAX_PRICE_BYTES} bytes")
    return f"{label}|{short}", value


def _readable(item: Item) -> _Read | None:
    try:
        value = _decode(item.value)
        return _Read(item.value, value.model, ModelPrice.from_table(value.price))
    except _UNUSABLE as error:
        logger.error(  # noqa: TRY400 - one line
            "the price of %r that was set at run time cannot be read, so the declared or public one applies: %s",
            *(item.name, error),
            extra=fields("price_unreadable", model=item.name),
        )
        return None
