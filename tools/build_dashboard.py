"""Write the dashboard that ships in the package: `python -m tools.build_dashboard`.

Counters are summed over instances. Gauges of the ledger are the same from every worker, so they are never summed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TARGET = Path(__file__).parents[1] / "askii_middleware" / "observability" / "dashboard.json"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TENANT = '{tenant_id=~"$tenant"}'
ALL_TENANTS = "Of all tenants: this metric has no tenant label."
RATE = "[$__rate_interval]"

Query = tuple[str, str]
"""An expression and the legend of its series."""
Panel = Any
"""A panel's builder: the kinds share their methods and no type."""


def build() -> str:
    """The dashboard as the JSON that Grafana imports."""
    board = (
        dashboard.Dashboard("Askii: budgets, tokens and cost of LLM traffic")
        .uid("askii")
        .description("Spend, budgets, refusals and health of askii_middleware. Alert rules: askii grafana --rules.")
        .tags(["askii", "llm", "cost"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("tenant")
            .label("Tenant")
            .datasource(SOURCE)
            .query({"query": "label_values(llm_cost_usd_total, tenant_id)", "refId": "tenant"})
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(models.VariableOption(text="All", value="$__all", selected=True))
        )
    )
    ids = itertools.count(1)
    for panel in _summary():
        board.with_panel(panel.id(next(ids)))
    for title, panels in ROWS.items():
        board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels():
            board.with_panel(panel.id(next(ids)))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


# What stands in it ---------------------------------------------------------------------------------------------------


def _summary() -> Iterator[Panel]:
    yield _stat("Spend", _gained(f"llm_cost_usd_total{TENANT}"), "currencyUSD", decimals=4)
    yield _stat("Spend in Askii Coins", _gained(f"llm_cost_askii_coins_total{TENANT}"), "short")
    yield _stat("Tokens", _gained(f"llm_tokens_total{TENANT}"), "short")
    refused = _gained('askii_refusals_total{reason="spent"}') + " or vector(0)"
    yield _stat("Refused: money spent", refused, "short", red_from=1).description(ALL_TENANTS)
    yield _stat("Budgets used up", f"count(({_used('tenant_id', 'budget')}) >= 0.99) or vector(0)", "short", red_from=1)
    yield _stat("Ledger", "min(askii_store_up)", "bool_on_off").thresholds(_steps(("red", None), ("green", 1)))


def _money() -> Iterator[Panel]:
    usd = f"sum by (tenant_id) (rate(llm_cost_usd_total{TENANT}{RATE})) * 3600"
    coins = f"sum by (tenant_id) (rate(llm_cost_askii_coins_total{TENANT}{RATE})) * 3600"
    by_model = f"sum by (model) (rate(llm_cost_usd_total{TENANT}{RATE})) * 3600"
    spikes = f"max by (tenant_id) (job_tenant:llm_cost_usd:rate5m{TENANT}) * 3600"
    usual = f"max by (tenant_id) (job_tenant:llm_cost_usd:usual_rate5m{TENANT}) * 3600"
    yield _lines("Cost per tenant, USD an hour", "currencyUSD", (usd, "{{tenant_id}}"))
    yield _lines("Cost per tenant, Askii Coins an hour", "short", (coins, "{{tenant_id}}"))
    yield _lines("Cost by model, USD an hour", "currencyUSD", (by_model, "{{model}}"))
    yield _lines(
        "Spikes: USD an hour, now and usual", "currencyUSD", (spikes, "{{tenant_id}}"), (usual, "{{tenant_id}} usual")
    ).description(
        "Usual: 99 % of the last week's five-minute rates were below it. Three times that, above 1 USD an hour, is an "
        "alert. Both come from the recording rules (askii grafana --rules)."
    )


def _tokens() -> Iterator[Panel]:
    by_model = f"sum by (model) (rate(llm_tokens_total{TENANT}{RATE}))"
    split = f"sum by (direction) (rate(llm_tokens_total{TENANT}{RATE}))"
    yield _lines("Tokens a second by model", "short", (by_model, "{{model}}"), stacked=True)
    yield _lines("Tokens a second, input and output", "short", (split, "{{direction}}"))


def _budgets() -> Iterator[Panel]:
    tightest = _used("tenant_id", "budget", TENANT)
    every = f"topk(50, {_used('scope, period', 'askii_budget')})"
    yield _bars("Budget used, tightest of each tenant", tightest, "{{tenant_id}}")
    yield _bars("Budget used, every budget", every, "{{scope}} {{period}}").description(
        "The 50 fullest. Running calls hold their worst case, which counts as used."
    )
    yield _table(
        "Left in each tenant's tightest budget",
        {
            "USD": (f"min by (tenant_id) (budget_remaining_usd{TENANT})", "currencyUSD"),
            "Askii Coins": (f"min by (tenant_id) (budget_remaining_askii_coins{TENANT})", "short"),
            "Limit, USD": (f"max by (tenant_id) (budget_limit_usd{TENANT})", "currencyUSD"),
            "Resets in": (f"min by (tenant_id) (budget_daily_reset_time{TENANT}) - time()", "s"),
        },
    )


def _calls() -> Iterator[Panel]:
    outcomes = f"sum by (outcome) (rate(askii_requests_total{RATE}))"
    moved = f"sum by (requested_model, served_model, reason) (rate(askii_fallbacks_total{RATE}))"
    finished = f'sum(rate(askii_requests_total{{outcome!="released"}}{RATE}))'
    share = f"sum(rate(askii_fallbacks_total{RATE})) / ({finished} > 0)"
    refusals = f"sum by (reason, scope_kind) (rate(askii_refusals_total{RATE}))"
    yield _lines("Calls a second by outcome", "reqps", (outcomes, "{{outcome}}"), stacked=True).description(ALL_TENANTS)
    yield _lines("Refusals a second by reason", "reqps", (refusals, "{{scope_kind}} {{reason}}")).description(
        ALL_TENANTS
    )
    yield _lines(
        "Fallback use, calls a second", "reqps", (moved, "{{requested_model}} to {{served_model}}: {{reason}}")
    ).description(ALL_TENANTS)
    yield _lines("Share of calls on a fallback", "percentunit", (share, "share")).min(0).description(ALL_TENANTS)
    lowered = (
        (f"sum(rate(askii_clamped_calls_total{RATE}))", "output limit lowered"),
        (f"sum(rate(askii_cut_streams_total{RATE}))", "stream cut"),
        (f"sum by (outcome) (rate(askii_shadow_total{RATE}))", "in shadow: {{outcome}}"),
    )
    yield _lines("Calls lowered, cut, or spared in shadow", "reqps", *lowered).description(ALL_TENANTS)
    flagged = (
        (f"sum by (flag) (rate(askii_flagged_calls_total{RATE}))", "{{flag}}"),
        (f"sum by (action) (rate(askii_unknown_prices_total{RATE}))", "no price: {{action}}"),
        (f"sum(rate(askii_bypasses_total{RATE}))", "unmetered usage"),
    )
    yield _lines("Calls to look at, a second", "reqps", *flagged).description(ALL_TENANTS)


def _health() -> Iterator[Panel]:
    quantiles = [
        (
            f"histogram_quantile({q}, sum by (le, phase) (rate(askii_overhead_seconds_bucket{RATE})))",
            f"{{{{phase}}}} p{round(q * 100)}",
        )
        for q in (0.5, 0.95, 0.99)
    ]
    yield _lines("Overhead of a call", "s", *quantiles).description("Time besides the application, by phase.")
    yield _lines(
        "Outbox",
        "short",
        ("max by (sink) (askii_outbox_pending)", "{{sink}} waiting"),
        ("max by (sink) (askii_outbox_dead)", "{{sink}} dead"),
    )
    oldest = ("max by (sink) (askii_outbox_oldest_seconds)", "{{sink}}")
    yield _lines("Oldest record that waits", "s", oldest).description("Since the use it tells of; 0 where none waits.")
    events = f'sum by (sink, result) (rate(askii_sink_events_total{{result!="delivered"}}{RATE}))'
    yield _lines("Sink errors, records a second", "short", (events, "{{sink}} {{result}}"))
    trouble = (
        (f"sum by (operation) (rate(askii_store_errors_total{RATE}))", "{{operation}}"),
        (f"sum(rate(askii_lost_holds_total{RATE}))", "lost holds"),
        (f"sum(rate(askii_lost_leases_total{RATE}))", "lost leases"),
    )
    yield _lines("Store errors and lost holds, a second", "short", *trouble)
    yield _lines("Charges in the journal", "short", ("sum by (instance) (askii_journal_entries)", "{{instance}}"))
    yield _lines(
        "Limits of these metrics",
        "short",
        ("sum by (metric) (increase(askii_series_folded_total[$__rate_interval]))", "{{metric}} folded into other"),
        ("max by (kind) (askii_budget_series_cut)", "{{kind}}: gauges cut"),
    )


ROWS: dict[str, Callable[[], Iterator[Panel]]] = {
    "Cost": _money,
    "Token use": _tokens,
    "Budgets": _budgets,
    "Calls": _calls,
    "Health": _health,
}


def _gained(series: str) -> str:
    """The sum of what counters have gained: increase() knows nothing of what one has when it first appears."""
    first = f"sum(min_over_time({series}[$__range]) unless {series} offset $__range)"
    return f"sum(increase({series}[$__range])) + ({first} or vector(0))"


def _used(by: str, prefix: str, where: str = "") -> str:
    """The used share of budgets. One of limit 0 blocks on purpose and has no share."""
    left, limit = f"{prefix}_remaining_usd{where}", f"{prefix}_limit_usd{where}"
    return f"1 - min by ({by}) ({left}) / (max by ({by}) ({limit}) > 0)"


# How it looks --------------------------------------------------------------------------------------------------------


def _targets(panel: Panel, queries: tuple[Query, ...], *, instant: bool = False) -> Panel:
    for letter, (expr, legend) in zip("ABCDEFGH", queries, strict=False):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(letter).datasource(SOURCE)
        panel.with_target(query.instant() if instant else query.range())
    return panel.datasource(SOURCE)


def _steps(*steps: tuple[str, float | None]) -> dashboard.ThresholdsConfig:
    """Colours and the values from which they hold; the first from minus infinity on."""
    thresholds = [models.Threshold(color=color, value=value) for color, value in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _stat(title: str, expr: str, unit: str, *, decimals: int | None = None, red_from: float | None = None) -> Panel:
    panel = _targets(stat.Panel().title(title).unit(unit), ((expr, title),), instant=True)
    panel.reduce_options(_last()).graph_mode(looks.BigValueGraphMode.NONE).height(4).span(4)
    steps = [("text", None)] if red_from is None else [("green", None), ("red", red_from)]
    panel.thresholds(_steps(*steps))
    return panel if decimals is None else panel.decimals(decimals)


def _lines(title: str, unit: str, *queries: Query, stacked: bool = False) -> Panel:
    legend = common.VizLegendOptions().display_mode(looks.LegendDisplayMode.LIST).show_legend(True)
    panel = _targets(timeseries.Panel().title(title).unit(unit), queries)
    panel.legend(legend.placement(looks.LegendPlacement.BOTTOM)).height(8).span(12)
    panel.tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    panel.line_width(2).fill_opacity(25 if stacked else 8).show_points(looks.VisibilityMode.NEVER).axis_soft_min(0)
    if stacked:
        panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A"))
    return panel


def _bars(title: str, expr: str, legend: str) -> Panel:
    panel = _targets(bargauge.Panel().title(title).unit("percentunit"), ((expr, legend),), instant=True)
    panel.min(0).max(1).reduce_options(_last()).orientation(looks.VizOrientation.HORIZONTAL).height(9).span(8)
    panel.display_mode(looks.BarGaugeDisplayMode.BASIC)
    return panel.thresholds(_steps(("green", None), ("orange", 0.8), ("red", 0.99)))


def _table(title: str, columns: dict[str, tuple[str, str]]) -> Panel:
    """One row for each tenant; `columns`: expression and unit by name."""
    panel = table.Panel().title(title).height(9).span(8).datasource(SOURCE)
    names = {}
    for letter, (name, (expr, unit)) in zip("ABCDEFGH", columns.items(), strict=False):
        query = prometheus.Dataquery().expr(expr).ref_id(letter).datasource(SOURCE).instant()
        panel.with_target(query.format(PromQueryFormat.TABLE))
        panel.override_by_name(name, [models.DynamicConfigValue(id_val="unit", value=unit)])
        names[f"Value #{letter}"] = name
    panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    organize = {"excludeByName": {"Time": True}, "renameByName": {"tenant_id": "Tenant", **names}}
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=organize))


if __name__ == "__main__":
    TARGET.write_text(build(), encoding="utf-8")
