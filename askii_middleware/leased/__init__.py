"""Leases: a worker admits calls by itself, from credit that it has drawn from the shared ledger ahead of need."""

from .store import LeasedStore

__all__ = ["LeasedStore"]
