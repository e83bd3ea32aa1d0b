"""Checking options that are given in code. Those of a configuration are checked where it is read."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ConfigurationError


def check_choice(name: str, value: str, *known: str) -> None:
    """Raise ConfigurationError unless `value` is one of the known."""
    if value not in known:
        raise ConfigurationError(f"{name}: {value!r} is none of {', '.join(known)}")


def check_positive(**values: float) -> None:
    """Raise ConfigurationError, naming it, for a value that is not a finite number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigurationError(f"{name}: {value!r} is not a number above 0")


def check_different(what: str, names: Sequence[str]) -> None:
    """Raise ConfigurationError where two have the same name."""
    if len(set(names)) != len(names):
        raise ConfigurationError(f"{what} need different names, got {', '.join(names)}")
