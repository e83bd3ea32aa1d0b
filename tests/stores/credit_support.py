"""What a worker does with credit: it draws, admits by itself, and turns calls into holds."""

from __future__ import annotations

from typing import Any

from askii_middleware.admission import Admission
from askii_middleware.currency import MAX_NANO_USD, parse_rate
from askii_middleware.stores.base import CreditAsk, CreditLine, CreditUse, Drawn, DrawRequest, Promotion, Settled

from .support import Client


def asks(
    client: Client, more: int, *, share: int = 1_000_000, ceiling: int = 1_000_000, tenant: str = "acme", **values: str
) -> tuple[CreditAsk, ...]:
    """One for each match of a tenant's calls."""
    return tuple(CreditAsk(match, more, share, ceiling) for match in client.matches(tenant, **values))


def draw_request(client: Client, sequence: int, more: int = 0, **options: Any) -> DrawRequest:
    """Options: those of `asks`, and the request's own fields."""
    own = {name: options.pop(name) for name in DrawRequest.__struct_fields__ if name in options}
    fields: dict[str, Any] = {
        "holder": "w",
        "sequence": sequence,
        "windows": client.index.windows(client.clock.now_s),
        "rate": parse_rate("1000000").ratio,
        "forms_version": client.index.version,
        **own,
    }
    if "asks" not in own:
        fields["asks"] = asks(client, more, **options)
    return DrawRequest(**fields)


async def draw(client: Client, sequence: int, more: int = 0, **options: Any) -> Drawn:
    return await client.store.draw(draw_request(client, sequence, more, **options))


async def drawn_line(client: Client, sequence: int, more: int = 0, **options: Any) -> CreditLine:
    """Draw on the only line of the only match."""
    ((line,),) = (await draw(client, sequence, more, **options)).lines
    return line


def by_counter(drawn: Drawn) -> dict[str, CreditLine]:
    return {line.state.counter: line for lines in drawn.lines for line in lines}


def use(*drawn: Drawn, holder: str = "w", hold: int = MAX_NANO_USD) -> CreditUse:
    """What a call stands on that is admitted from this; unless `hold` says otherwise, it held whatever it costs."""
    ends = {line.state.counter: line.state.resets_at_s for told in drawn for lines in told.lines for line in lines}
    return CreditUse(holder, tuple(ends.items()), hold)


async def settle_from(client: Client, call_id: str, cost: int, credit: CreditUse, **options: Any) -> Settled:
    return await client.settle(call_id, cost, credit=credit, **options)


async def promote(
    client: Client, call_id: str, hold: int, credit: CreditUse, drawn: Drawn, **options: Any
) -> Admission:
    """Returns what the call was answered by its worker."""
    states = tuple(line.state for lines in drawn.lines for line in lines)
    fields: dict[str, Any] = {
        "admission": Admission(candidate=0, admitted_at_s=client.clock.now_s, states=states, hold_nano_usd=hold),
        "deadline_s": 600.0,
        **options,
    }
    await client.store.promote(Promotion(call_id=call_id, credit=credit, **fields))
    admission: Admission = fields["admission"]
    return admission
