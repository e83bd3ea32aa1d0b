"""However many tenants and models there are and whatever they are called: metrics stay small, readable and right."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser

from askii_middleware.budgets import Budget
from askii_middleware.metric_series import MAX_LABEL_BYTES, label
from askii_middleware.metrics import Metrics
from askii_middleware.scraping import exposition

from .support.calls import make_call
from .support.service import opened
from .test_metrics import FRESH, record, samples, scrape, value

open_metrics: Any = parser.text_string_to_metric_families
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def exposed(metrics: Metrics) -> str:
    return metrics.render("")[0].decode()


# Folding -------------------------------------------------------------------------------------------------------------


def test_a_full_metric_folds_tenants_first_then_models_and_the_sums_stay_right() -> None:
    metrics = Metrics(max_series=20)
    for number in range(50):
        metrics.settled(record(model=f"m{number % 2}", tenant=f"t{number}"), FRESH, 0.0)
    for number in range(10):
        metrics.settled(record(model=f"new{number}", tenant="late"), FRESH, 0.0)
    found = samples(exposed(metrics))
    costs = {labels: v for (name, labels), v in found.items() if name == "llm_cost_usd_total"}
    assert sum(costs.values()) == pytest.approx(60 * 20_000 / 1e9)
    # 18 pairs have series of their own, two of the 20 are kept for models whose tenant is folded.
    assert len(costs) == 21
    assert value(found, "llm_cost_usd_total", model="m0", tenant_id="t0") == 0.00002
    assert value(found, "llm_cost_usd_total", model="m0", tenant_id="other") == pytest.approx(16 * 0.00002)
    assert value(found, "llm_cost_usd_total", model="m1", tenant_id="other") == pytest.approx(16 * 0.00002)
    assert value(found, "llm_cost_usd_total", model="other", tenant_id="other") == pytest.approx(10 * 0.00002)
    assert value(found, "askii_series_folded_total", metric="llm") == 42
    # What has a series keeps it.
    metrics.settled(record(model="m0", tenant="t0"), FRESH, 0.0)
    found = samples(exposed(metrics))
    assert value(found, "llm_cost_usd_total", model="m0", tenant_id="t0") == 0.00004


def test_words_of_our_own_are_never_folded() -> None:
    metrics = Metrics(max_series=1)
    for reason in ("spent", "held", "unauthorized"):
        metrics.refused("tenant", reason)
    found = samples(exposed(metrics))
    assert [
        value(found, "askii_refusals_total", scope_kind="tenant", reason=reason) for reason in ("spent", "held")
    ] == [
        1,
        1,
    ]


# Which labels are shown ----------------------------------------------------------------------------------------------


def test_labels_that_are_not_shown_are_other_and_the_sums_stay() -> None:
    metrics = Metrics(labels=("model",))
    for tenant in ("acme", "zoo"):
        metrics.settled(record(model="big", tenant=tenant), FRESH, 0.0)
    metrics.fell_back("big", "small", "budget")
    text = exposed(metrics)
    found = samples(text)
    assert "acme" not in text
    assert "zoo" not in text
    assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="other") == 20
    assert value(found, "askii_fallbacks_total", requested_model="big", served_model="small", reason="budget") == 1
    assert value(found, "askii_series_folded_total", metric="llm") is None
    metrics = Metrics(labels=())
    metrics.settled(record(model="big", tenant="acme"), FRESH, 0.0)
    metrics.fell_back("big", "small", "budget")
    found = samples(exposed(metrics))
    assert value(found, "llm_tokens_total", model="other", direction="input", tenant_id="other") == 10
    assert value(found, "askii_fallbacks_total", requested_model="other", served_model="other", reason="budget") == 1


async def test_hidden_tenants_have_no_gauges_and_no_budget_names_them(tmp_path: Path) -> None:
    budgets = [
        Budget(scope="tenant=*", limit_usd=1),
        Budget(scope="tenant=acme,model=big", limit_usd=2),
        Budget(scope="model=big", limit_usd=3),
        Budget(scope="global", limit_usd=4),
    ]
    async with opened("memory", tmp_path, budgets=budgets, metrics_labels=("model",)) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=10)
        found = await scrape(tracker)
        scopes = {dict(labels)["scope"] for name, labels in found if name == "askii_budget_limit_usd"}
        assert scopes == {"model=big", "global"}
        assert not [name for name, _ in found if name == "budget_limit_usd"]
    async with opened("memory", tmp_path, budgets=budgets, metrics_labels=("tenant_id",)) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=10)
        found = await scrape(tracker)
        scopes = {dict(labels)["scope"] for name, labels in found if name == "askii_budget_limit_usd"}
        assert scopes == {"tenant=acme", "global"}
        assert value(found, "budget_limit_usd", tenant_id="acme") == 1


# Names ---------------------------------------------------------------------------------------------------------------

HOSTILE = [
    'a"} 1\nllm_cost_usd_total{model="x',
    "back\\slash",
    "new\nline",
    "\ud800",
    "x" * 10_000,
    "",
    "é☃",
    "\x00",
    "\r",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_label_value_can_break_the_exposition(text: str) -> None:
    metrics = Metrics()
    metrics.settled(record(model=text, tenant=text), FRESH, 0.0)
    metrics.fell_back(text, text, "budget")
    for accept, parse in (("", None), (OPEN_METRICS, open_metrics)):
        body = metrics.render(accept)[0].decode()
        found = (
            samples(body)
            if parse is None
            else {(s.name, tuple(s.labels.items())): s for f in parse(body) for s in f.samples}
        )
        (labels,) = [dict(labels) for name, labels in found if name == "llm_cost_usd_total"]
        assert labels["model"] == labels["tenant_id"] == label(text)


@given(st.text(max_size=300))
def test_a_label_is_short_as_it_stands_in_the_exposition_and_short_names_are_themselves(text: str) -> None:
    shown = label(text)
    escaped = shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert len(escaped.encode()) <= MAX_LABEL_BYTES
    if len(text.encode()) <= MAX_LABEL_BYTES // 2:
        assert shown == text


def test_names_that_differ_stay_different_however_alike_they_begin() -> None:
    names = ["x" * 10_000, "x" * 10_001, "\ud800", "\udfff", "?", '"' * 100, '"' * 101, "😀" * 50, "😀" * 51]
    assert len({label(name) for name in names}) == len(names)


async def test_a_tenant_named_as_the_short_form_of_another_has_series_of_its_own(tmp_path: Path) -> None:
    long = '"' * 200
    async with opened("memory", tmp_path) as tracker:
        for tenant, tokens in ((long, 10), (label(long), 20)):
            await tracker.record_usage(tenant, "big", input_tokens=tokens)
        body, _ = await exposition(tracker, "")
    told = [line.rpartition(" ")[0] for line in body.decode().splitlines() if not line.startswith("#")]
    assert len(set(told)) == len(told)
    assert sum(name.startswith("budget_limit_usd") for name in told) == 2


# The proof -----------------------------------------------------------------------------------------------------------


def names(seed: int, count: int) -> Iterator[str]:
    """As many different names, of every kind that makes trouble."""
    draw = random.Random(seed)
    for number in range(count):
        mark = f"{number}-{draw.getrandbits(64):x}"
        yield draw.choice(
            (
                mark,
                f'{mark}"}} 1\n',
                f"{mark}\n" * 3,
                "\\" * 60 + mark,
                "😀" * 40 + mark,
                "\ud800" + mark,
                mark + "x" * 10_000,
            )
        )


async def test_a_hundred_thousand_tenants_and_models_keep_every_metric_bounded_and_the_scrape_small(
    tmp_path: Path,
) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="tenant=*", limit_usd=1)]) as tracker:
        metrics = tracker.metrics
        for tenant, model in zip(names(1, 100_000), names(2, 100_000), strict=True):
            metrics.settled(record(model=model, tenant=tenant), FRESH, 0.0001)
            metrics.fell_back(model, tenant, "budget")
        for number, tenant in enumerate(names(3, 1100)):
            await tracker.record_usage(tenant.encode(errors="replace").decode()[:200], "big", input_tokens=number + 1)
        took = []
        for _ in range(5):
            begun = time.perf_counter()
            body, _type = await exposition(tracker, "")
            took.append(time.perf_counter() - begun)
        found = samples(body.decode())
        assert len(body) < 2_000_000
        # Measured with little else to do: 60 to 80 ms.
        assert min(took) < 0.15
        counts = Counter(name for name, _ in found)
        assert counts["llm_cost_usd_total"] == 1001
        assert counts["llm_tokens_total"] == 2 * 1001
        assert counts["askii_fallbacks_total"] == 1001
        assert counts["budget_limit_usd"] == counts["askii_budget_limit_usd"] == 1000
        assert max(counts.values()) == 2002
        assert value(found, "askii_budget_series_cut", kind="tenant") == 1
        tokens = sum(v for (name, _), v in found.items() if name == "llm_tokens_total")
        assert tokens == 100_000 * 15 + sum(range(1, 1101))


# Exemplars -----------------------------------------------------------------------------------------------------------


def test_openmetrics_names_the_dearest_call_of_a_cost_and_the_last_one_of_a_bucket() -> None:
    metrics = Metrics()
    for call_id, cost in (("cheap", 10_000), ("dear", 50_000), ("last", 20_000)):
        metrics.settled(record(call_id=call_id, cost_nano_usd=cost), FRESH, 0.0003)
    metrics.admitted(make_call(id="call-1"), 0.002)
    body = metrics.render(OPEN_METRICS)[0].decode()
    found = {(s.name, tuple(sorted(s.labels.items()))): s for f in open_metrics(body) for s in f.samples}
    cost_sample = found["llm_cost_usd_total", (("model", "big"), ("tenant_id", "acme"))]
    assert cost_sample.value == 0.00008
    assert (cost_sample.exemplar.labels, cost_sample.exemplar.value) == ({"call_id": "dear"}, 0.00005)
    settle = found["askii_overhead_seconds_bucket", (("le", "0.0005"), ("phase", "settle"))]
    assert (settle.exemplar.labels, settle.exemplar.value) == ({"call_id": "last"}, 0.0003)
    admit = found["askii_overhead_seconds_bucket", (("le", "0.0025"), ("phase", "admit"))]
    assert (admit.exemplar.labels, admit.exemplar.value) == ({"call_id": "call-1"}, 0.002)


def test_the_plain_format_has_no_exemplars_and_a_callers_long_id_is_left_out() -> None:
    metrics = Metrics()
    metrics.settled(record(call_id="one"), FRESH, 0.0)
    assert " # " not in metrics.render("text/plain; version=0.0.4")[0].decode()
    metrics.settled(record(call_id="x" * 500), FRESH, 0.0)
    body = metrics.render(OPEN_METRICS)[0].decode()
    assert "x" * 100 not in body
    assert list(open_metrics(body))
