"""What of budgets and alerts the holder of a key may see: what is about its own tenant or its own key.

A budget on a user or team alone may add up what several tenants spend under one name, as one on everything does, so
its amounts are no key's business.
"""

from __future__ import annotations

from ..budgets import Scope
from ..errors import ConfigurationError
from ..stores.base import KeyRow


def is_own(row: KeyRow, scope: str) -> bool:
    """Whether a counter, by the text form of its values, is about this key's calls and no other tenant's."""
    try:
        values = Scope.parse(scope)
    except ConfigurationError:
        return False
    # `*` stands for the values that crowd on one counter: those of others too.
    if (values.tenant is None and values.key is None) or "*" in {getattr(values, name) for name in values.shape}:
        return False
    return (
        values.tenant in (None, row.tenant)
        and values.key in (None, row.id)
        and values.user in (None, row.user)
        and values.team in (None, row.team)
        and (values.tag is None or values.tag in row.tags)
        and values.end_user is None
    )


def is_of_tenant(tenant: str, scope: str) -> bool:
    """Whether a counter, by the text form of its values, adds up one tenant's calls only."""
    try:
        values = Scope.parse(scope)
    except ConfigurationError:
        return False
    return values.tenant == tenant != "*"
