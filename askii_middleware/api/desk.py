"""What the operations work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .access import Access

if TYPE_CHECKING:
    from ..tracker import CostTracker


@dataclass(frozen=True, slots=True)
class Desk:
    """A tracker, and who may see what of it."""

    tracker: CostTracker
    access: Access
