"""The operator's own prices: they count on every worker within seconds, and what was charged before keeps its price."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Final, Literal

from pydantic import Field, JsonValue, RootModel

from ..budget_status import plain
from ..model_price import AMOUNTS, ModelPrice, usd_amount
from .operation import Answer, Asked, NoBody, NoQuery, Operation, Query, Text
from .problems import judged, not_found

PRICING_BYTES: Final = 4 << 20


class PriceAnswer(Answer):
    """A price of the operator's own. `price` has the fields of `ModelPrice` that are set, amounts as exact strings."""

    model: str
    source: Literal["store", "config"]
    price: dict[str, JsonValue]


class PricingAnswer(Answer):
    """The operator's own prices by model; the public catalogue holds for all other models."""

    version: str
    """As in usage records."""
    prices: tuple[PriceAnswer, ...]


class PricesSetAnswer(Answer):
    """The models whose prices were set."""

    models: tuple[str, ...]
    version: str


class PriceRemovedAnswer(Answer):
    """A price set at run time is gone; the declared or public one applies again."""

    model: str
    removed: Literal[True]


class PricingBody(
    RootModel[
        Annotated[
            dict[Annotated[str, Field(min_length=1, max_length=256)], dict[str, JsonValue]],
            Field(
                min_length=1,
                max_length=10_000,
                examples=[{"local-llama": {"input_usd_per_mtok": "0.05", "output_usd_per_mtok": "0.10"}}],
            ),
        ]
    ]
):
    """Model to price: our fields in USD per million tokens, or an entry as LiteLLM's price file has it."""


class PriceQuery(Query):
    model: Text


async def get_pricing(asked: Asked[NoQuery, NoBody]) -> PricingAnswer:
    tracker = asked.desk.tracker
    await tracker.ready()
    listed = await tracker.price_desk.list()
    return PricingAnswer(
        version=tracker.prices.version,
        prices=tuple(
            PriceAnswer(model=each.model, source=each.source, price=price_table(each.price)) for each in listed
        ),
    )


async def put_pricing(asked: Asked[NoQuery, PricingBody]) -> PricesSetAnswer:
    tracker = asked.desk.tracker
    await tracker.ready()
    with judged("body"):
        models = await tracker.price_desk.load(asked.body.root)
    return PricesSetAnswer(models=tuple(models), version=tracker.prices.version)


async def remove_price(asked: Asked[PriceQuery, NoBody]) -> PriceRemovedAnswer:
    tracker, model = asked.desk.tracker, asked.query.model
    await tracker.ready()
    if not await tracker.price_desk.remove(model):
        raise not_found()
    return PriceRemovedAnswer(model=model, removed=True)


def price_table(price: ModelPrice) -> dict[str, Any]:
    """What a price says, without what it leaves open."""
    values = {each.name: getattr(price, each.name) for each in fields(price)}
    return {
        name: _plain(name, value) for name, value in values.items() if value or (name in AMOUNTS and value is not None)
    }


def _plain(name: str, value: Any) -> Any:
    if name in AMOUNTS:
        return plain(usd_amount(name, value))
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): _plain(str(key), inner) for key, inner in value.items()}
    return value


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/billing/pricing",
        name="get_pricing",
        summary="The operator's own prices.",
        handler=get_pricing,
        answer=PricingAnswer,
    ),
    Operation(
        method="PUT",
        path="/api/billing/pricing",
        name="put_pricing",
        summary="Set prices. They count on every worker within seconds; records keep the price they were made at.",
        handler=put_pricing,
        body=PricingBody,
        answer=PricesSetAnswer,
        max_body_bytes=PRICING_BYTES,
    ),
    Operation(
        method="DELETE",
        path="/api/billing/pricing",
        name="remove_price",
        summary="Forget a price that was set at run time.",
        handler=remove_price,
        query=PriceQuery,
        answer=PriceRemovedAnswer,
    ),
)
