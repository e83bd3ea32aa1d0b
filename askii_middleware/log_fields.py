"""What a log line carries besides its text, so that queries need not match prose. See docs/logs.md for all events."""

from __future__ import annotations

PREFIX = "askii_"
"""Before every name: `logging` refuses `extra` names that a LogRecord has itself, such as `name` or `message`."""
MAX_CHARS = 256


def fields(event: str, **known: str | float | bool | None) -> dict[str, str | float | bool]:
    """`extra` of a log call: the event's name and what is known of it; None is left out. Never a prompt or a secret.

    Texts are cut to 256 characters: models and ids of operations are what others made of them.
    """
    extra: dict[str, str | float | bool] = {PREFIX + "event": event}
    for name, value in known.items():
        if value is not None:
            extra[PREFIX + name] = value[:MAX_CHARS] if isinstance(value, str) else value
    return extra


def shown(text: str) -> str:
    """Text of others for a line of text: as it is, or quoted where it could look like a line of its own."""
    return text if len(text) <= MAX_CHARS and text.isprintable() else repr(text[:MAX_CHARS])
