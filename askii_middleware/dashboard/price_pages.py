"""Prices: the operator's own, with where they come from, and one to edit."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ..budget_status import plain
from ..errors import ConfigurationError
from ..model_price import AMOUNTS, ModelPrice
from .visits import PageError, Visit

if TYPE_CHECKING:
    from ..price_desk import ListedPrice

PAGE = 100
EDITED = {
    "input_usd_per_mtok": "Input",
    "output_usd_per_mtok": "Output",
    "cache_read_usd_per_mtok": "Cached input",
    "cache_write_usd_per_mtok": "Cache write",
    "reasoning_usd_per_mtok": "Reasoning",
    "request_usd": "Each request",
}
"""The fields that the form has; others of a price that is there stay as they are."""
DONE = {
    "set": "The price is set. Every worker charges it within seconds; what was charged before stays.",
    "removed": "The price is removed. The declared or public one applies again.",
    "none": "There was no price of this model to remove.",
}


async def listed(visit: Visit) -> Response:
    """A page of the prices, by model; those with a text in their name, where one is asked for."""
    wanted, after = visit.asked("find", 256).strip(), visit.asked("after", 1024)
    own = await visit.tracker.price_desk.list()
    found = [each for each in own if wanted.lower() in each.model.lower() and each.model > after]
    return visit.page(
        "prices.html",
        title="Prices",
        prices=[(each, others(each.price)) for each in found[:PAGE]],
        edited=EDITED,
        wanted=wanted,
        after=after,
        next=found[PAGE - 1].model if len(found) > PAGE else "",
        done=DONE.get(visit.asked("done")),
    )


async def edit(visit: Visit) -> Response:
    """The form: of a price that is there, or of a new one."""
    model = visit.asked("model", 256)
    found = await _find(visit, model) if model else None
    if model and found is None:
        raise PageError(404, "No such price", "There is no price of your own for this model. It may be removed.")
    typed = dict.fromkeys(EDITED, "") if found is None else _typed(found.price)
    high = found is not None and found.price.allow_high
    return _form(visit, model, typed, high=high, kept=() if found is None else others(found.price), fixed=bool(found))


async def save(visit: Visit) -> Response:
    """Set a price; what is wrong with it is told beside the form."""
    model, fixed = visit.field("model", 256), bool(visit.field("fixed"))
    typed = {name: visit.field(name, 64) for name in EDITED}
    high = bool(visit.field("allow_high"))
    found = await _find(visit, model) if model else None
    amounts: dict[str, Any] = {name: text or None for name, text in typed.items()}
    try:
        if not model:
            raise ConfigurationError("model: say whose price it is")  # noqa: TRY301 - told like the rest
        if not any(typed.values()) and not (found and others(found.price)):
            raise ConfigurationError("prices: give at least one; 0 for a free model")  # noqa: TRY301 - as above
        price = replace(found.price if found else ModelPrice(), **amounts, allow_high=high)
        await visit.tracker.price_desk.set({model: price})
    except ConfigurationError as error:
        kept = others(found.price) if found else ()
        return _form(visit, model, typed, high=high, kept=kept, fixed=fixed, problem=str(error))
    return visit.to("/prices", done="set", find=model)


async def remove(visit: Visit) -> Response:
    """Forget a price that was set at run time."""
    gone = await visit.tracker.price_desk.remove(visit.field("model", 256))
    return visit.to("/prices", done="removed" if gone else "none")


def others(price: ModelPrice) -> tuple[str, ...]:
    """What a price says besides the fields of the form."""
    told = [
        f"{name} {plain(value)}"
        for name in sorted(AMOUNTS - EDITED.keys())
        if (value := getattr(price, name)) is not None
    ]
    if price.tiers:
        told.append("tiers above " + ", ".join(map(str, price.tiers)) + " input tokens")
    if price.service_tiers:
        told.append("service tiers " + ", ".join(sorted(price.service_tiers)))
    told += [
        f"{name} {getattr(price, name)}"
        for name in ("provider", "context_window", "max_output_tokens", "minimum_seconds")
        if getattr(price, name)
    ]
    return tuple(told)


async def _find(visit: Visit, model: str) -> ListedPrice | None:
    return next((each for each in await visit.tracker.price_desk.list() if each.model == model), None)


def _typed(price: ModelPrice) -> dict[str, str]:
    values = {name: getattr(price, name) for name in EDITED}
    return {name: "" if value is None else str(plain(value)) for name, value in values.items()}


def _form(
    visit: Visit,
    model: str,
    typed: dict[str, str],
    *,
    high: bool,
    kept: tuple[str, ...],
    fixed: bool,
    problem: str = "",
) -> Response:
    return visit.page(
        "price.html",
        422 if problem else 200,
        title="Edit price" if fixed else "New price",
        model=model,
        typed=typed,
        edited=EDITED,
        high=high,
        kept=kept,
        fixed=fixed,
        problem=problem,
    )


assert {field.name for field in fields(ModelPrice)} > EDITED.keys()
