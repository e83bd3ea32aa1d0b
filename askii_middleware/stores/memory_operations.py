"""The operations of a ledger in memory: open calls that go on elsewhere, by key and by call."""

from __future__ import annotations

from .base import Operation
from .rules import COUNTER_S


class OperationBook:
    """Invariant: both tables hold the same operations."""

    def __init__(self) -> None:
        self._by_call: dict[str, Operation] = {}
        self._by_key: dict[str, Operation] = {}

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._by_call

    def add(self, operation: Operation) -> bool:
        """False: the key is taken."""
        if operation.key in self._by_key:
            return False
        self._by_key[operation.key] = self._by_call[operation.call_id] = operation
        return True

    def find(self, key: str) -> Operation | None:
        return self._by_key.get(key)

    def forget(self, call_id: str) -> None:
        operation = self._by_call.pop(call_id, None)
        if operation is not None:
            del self._by_key[operation.key]

    def overdue(self, limit: int, now_s: float) -> list[Operation]:
        due = [operation for operation in self._by_call.values() if operation.until_s <= now_s]
        return sorted(due, key=lambda operation: (operation.until_s, operation.call_id))[: max(limit, 0)]

    def prune(self, now_s: float) -> None:
        """Forget what nobody could settle for as long as its hold is remembered."""
        for operation in list(self._by_call.values()):
            if operation.until_s + COUNTER_S <= now_s:
                self.forget(operation.call_id)
