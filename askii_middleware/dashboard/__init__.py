"""The dashboard: server-rendered pages over the same service functions as the billing API.

`routes(Desk(tracker, admin_token=…))` are what an application serves; they work below any mount path. Needs the extra
`dashboard`.
"""

from __future__ import annotations

from .desk import Desk
from .pages import routes

__all__ = ["Desk", "routes"]
