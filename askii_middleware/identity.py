"""Who makes a call."""

from __future__ import annotations

import msgspec

MAX_VALUE_CHARS = 256
MAX_TAGS = 16


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """`tenant` pays. Every value has at most 256 characters; there are at most 16 tags."""

    tenant: str
    key: str | None = None
    user: str | None = None
    team: str | None = None
    end_user: str | None = None
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Models this identity may call, by canonical name; empty: all."""
    source: str = "caller"
    """Where it came from: `key`, `state`, `header`, `callable`, `default`, `caller`."""

    def __post_init__(self) -> None:
        if not self.tenant:
            raise ValueError("an identity needs a tenant")
        for name in ("tenant", "key", "user", "team", "end_user"):
            value = getattr(self, name)
            if value is not None and not _is_text(value):
                raise ValueError(f"{name} must be text of at most {MAX_VALUE_CHARS} characters without NUL")
        if len(self.tags) > MAX_TAGS or any(not tag or not _is_text(tag) for tag in self.tags):
            raise ValueError(f"at most {MAX_TAGS} tags of 1 to {MAX_VALUE_CHARS} characters without NUL")

    def dimensions(self) -> dict[str, str | tuple[str, ...] | None]:
        """Values for `BudgetIndex.matches`, the model's own dimensions excluded."""
        return {
            "tenant": self.tenant,
            "key": self.key,
            "user": self.user,
            "team": self.team,
            "end_user": self.end_user,
            "tag": self.tags or None,
        }


def _is_text(value: object) -> bool:
    """Whether a value can stand in the ledger: short enough, and writable as UTF-8, which lone surrogates are not."""
    if not isinstance(value, str) or len(value) > MAX_VALUE_CHARS or "\0" in value:
        return False
    return value.isascii() or value == value.encode(errors="replace").decode()
