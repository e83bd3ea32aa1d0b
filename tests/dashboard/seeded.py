"""A month of calls to look at."""

from __future__ import annotations

from askii_middleware import Budget, CostTracker
from askii_middleware.identity import Identity
from askii_middleware.model_price import ModelPrice

from .site import Clock

BUDGETS = (
    Budget(scope="global", limit_usd=40, period="daily"),
    Budget(scope="tenant=*", limit_usd=8),
    Budget(scope="tenant=acme", limit_usd=150, period="monthly", alert_at=(0.8, 1.0)),
    Budget(scope="tenant=acme,model=big", limit_usd=5),
    Budget(scope="team=research", limit_usd=25, period="weekly", soft=True),
)
TENANTS = {"acme": 9, "globex": 5, "initech": 3, "umbrella": 7, "hooli": 2}
"""By tenant how much it calls."""
DAY_S = 86_400


async def seed(tracker: CostTracker, clock: Clock, *, days: int = 30) -> None:
    """Calls of five tenants on so many days, some keys, budgets and prices set at run time. Nothing is by chance."""
    now_s = clock.now_s
    for back in range(days - 1, -1, -1):
        hours = range(0, 24, 6) if back else range(12)
        for hour in hours:
            clock.now_s = now_s // DAY_S * DAY_S - back * DAY_S + hour * 3600 + 600
            for place, (tenant, size) in enumerate(TENANTS.items()):
                swing = (back * 7 + hour * 3 + place * 5) % 11 + 1
                who = Identity(tenant=tenant, user=("ada", "grace", "alan")[swing % 3], team="research")
                model = ("big", "mini", "mini")[swing % 3]
                await tracker.record_usage(
                    who, model, input_tokens=size * swing * 4000, output_tokens=size * swing * 650
                )
    clock.now_s = now_s
    enforcer = tracker.budget_enforcer
    await enforcer.set_budget(Budget(scope="tenant=globex", limit_usd=6, alert_at=(0.8, 0.9, 1)))
    await enforcer.set_budget(Budget(scope="tenant=umbrella", limit_usd=100, period="monthly", zone="Europe/Berlin"))
    await tracker.keys.create("acme", key_id="acme-web", name="Web shop", user="ada", team="research")
    await tracker.keys.create("acme", key_id="acme-batch", name="Nightly batch", models=["mini"], tags=["batch"])
    await tracker.keys.create("globex", key_id="globex-chat", expires_at_s=now_s + 30 * DAY_S)
    await tracker.keys.create("initech", key_id="initech-old", name="Retired")
    await tracker.keys.revoke("initech-old")
    await tracker.keys.rotate("acme-web")
    await tracker.price_desk.set({"house-llama": ModelPrice(input_usd_per_mtok="0.05", output_usd_per_mtok="0.2")})
    await tracker.suspend_tenant("hooli", reason="invoice 2025-11 is open")
    await tracker.flush()
