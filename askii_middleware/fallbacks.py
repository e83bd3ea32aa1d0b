"""Which cheaper models may stand in for a requested one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from .errors import ConfigurationError
from .models import family

ANY = "*"
MAX_CACHED = 4096


class _Prices(Protocol):
    def find(self, model: str, *, provider: str | None = None, service_tier: str | None = None) -> object | None: ...

    def canonical(self, model: str) -> str: ...


class Fallbacks:
    """Requested model to the models that may replace it, in order. Names are compared canonically; a dated name uses
    its family's fallbacks unless it has its own; `*` covers every other model that generates text.
    """

    def __init__(self, table: Mapping[str, Sequence[str]], prices: _Prices) -> None:
        self._prices = prices
        self._table: dict[str, tuple[str, ...]] = {}
        self._cache: dict[tuple[str, str], tuple[str, ...]] = {}
        for model, chain in table.items():
            if isinstance(chain, str) or not all(isinstance(other, str) and other for other in chain):
                raise ConfigurationError(f"fallbacks: {model!r} needs a list of models' names, got {chain!r}")
            name = model if model == ANY else prices.canonical(model)
            if name in self._table:
                raise ConfigurationError(f"fallbacks: {model!r} is given twice, under two spellings")
            self._table[name] = tuple(chain)

    def __bool__(self) -> bool:
        return any(self._table.values())

    def models(self) -> Iterable[str]:
        """Every model some chain names."""
        return {model for chain in self._table.values() for model in chain}

    @property
    def default(self) -> str | None:
        """The first model every other model falls back to."""
        chain = self._table.get(ANY)
        return chain[0] if chain else None

    @default.setter
    def default(self, model: str | None) -> None:
        self._cache.clear()
        if model is None:
            self._table.pop(ANY, None)
        else:
            self._table[ANY] = (model,)

    def of(self, model: str, kind: str = "text") -> tuple[str, ...]:
        """The fallbacks of a requested model, itself left out. Bounded cache: clients choose the names."""
        known = self._cache.get((model, kind))
        if known is None:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            known = self._cache[model, kind] = self._find(model, kind)
        return known

    def _find(self, model: str, kind: str) -> tuple[str, ...]:
        name = self._prices.canonical(model)
        chain = self._table.get(name)
        if chain is None:
            chain = self._table.get(family(name))
        if chain is None:
            chain = self._table.get(ANY, ()) if kind == "text" else ()
        return tuple(other for other in chain if self._prices.canonical(other) != name)

    def check(self, *, is_served: Callable[[str], bool] | None = None, unpriced_allowed: bool = False) -> None:
        """Refuse at start what cannot work: cycles between chains, models without a price, models nothing serves.

        Raises ConfigurationError naming the model.
        """
        for model, chain in self._table.items():
            for other in chain:
                name = self._prices.canonical(other)
                if model != ANY and (name == model or model in self._reachable(name)):
                    raise ConfigurationError(f"fallbacks: {model!r} falls back to {other!r}, which leads back to it")
                if not unpriced_allowed and self._prices.find(other) is None:
                    raise ConfigurationError(
                        f"fallbacks: {other!r} (for {model!r}) has no price; add [pricing.{other!r}] or remove it"
                    )
                if is_served is not None and not is_served(other):
                    raise ConfigurationError(f"fallbacks: nothing serves {other!r} (for {model!r})")

    def _reachable(self, start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in self._table.get(waiting.pop(), ()):
                name = self._prices.canonical(other)
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return seen
