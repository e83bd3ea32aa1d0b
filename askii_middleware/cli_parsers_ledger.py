"""What the commands take that change and show what lives in the ledger: budgets, keys, prices and tenants."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from typing import TYPE_CHECKING

from .cli_options import count, group, runs, shares, span_s

if TYPE_CHECKING:
    from .cli_options import Commands


def add_budget(commands: Commands) -> None:
    """`askii budget …`."""
    budgets = group(commands, "budget", "set, list, remove and show budgets")
    set_ = budgets.add_parser("set", help="set the budget of a scope, or change some of what it says")
    set_.add_argument("scope", help="such as tenant=acme or tenant=*")
    limit = set_.add_mutually_exclusive_group()
    limit.add_argument("--usd", help="limit in USD; 'none' exempts (default: the budget's own)")
    limit.add_argument("--coins", help="limit in Askii Coins")
    set_.add_argument("--period", default="daily")
    set_.add_argument("--zone", help="whose midnights bound the period (default UTC)")
    set_.add_argument("--soft", action=BooleanOptionalAction, help="it reports and never refuses")
    set_.add_argument("--alert-at", type=shares, metavar="SHARES", help="shares of the limit, such as 0.8,0.9,1")
    set_.add_argument("--max-values", type=int, metavar="N", help="so many values of * have counters of their own")
    switch = set_.add_mutually_exclusive_group()
    switch.add_argument("--disable", dest="enabled", action="store_false", default=None, help="as if it were not there")
    switch.add_argument("--enable", dest="enabled", action="store_true", default=None, help="in force again")
    set_.set_defaults(wrong=set_.error)
    remove = budgets.add_parser("rm", help="forget a budget set at run time; a declared one applies again")
    remove.add_argument("scope")
    remove.add_argument("--period", default="daily")
    status = budgets.add_parser("status", help="every budget that binds a scope, now")
    status.add_argument("scope")
    list_ = budgets.add_parser("list", help="all budgets and where each comes from")
    explain = budgets.add_parser("explain", help="what a call would be answered now, and why; nothing is held")
    explain.add_argument("tenant")
    explain.add_argument("model")
    explain.add_argument("--input-tokens", type=int, default=0, metavar="N")
    explain.add_argument("--output-tokens", type=int, metavar="N", help="the request's own limit (default: none)")
    explain.add_argument("--stream", action="store_true", help="a streamed answer")
    for option in ("--key", "--user", "--team", "--end-user"):
        explain.add_argument(option)
    explain.add_argument("--tag", action="append", help="may be repeated")
    reclaim = budgets.add_parser("reclaim", help="take back the credit of dead workers (see docs/leases.md)")
    reclaim.add_argument("scope", nargs="?", help="only on this scope, such as tenant=acme (default: on all)")
    actions = {"set": set_, "rm": remove, "status": status, "list": list_, "explain": explain, "reclaim": reclaim}
    runs("cli_budgets", actions.items())


def add_keys(commands: Commands) -> None:
    """`askii keys …`."""
    keys = group(commands, "keys", "add, list, rotate and revoke API keys")
    add = keys.add_parser("add", help="make a key; its secret is shown once")
    add.add_argument("tenant")
    add.add_argument("--id", help="how reports, budgets and logs name it (default: a random one)")
    add.add_argument("--name", help="what people call it")
    add.add_argument("--user")
    add.add_argument("--team")
    add.add_argument("--tag", action="append", help="of all its calls; may be repeated")
    add.add_argument("--model", action="append", help="allow only this one; may be repeated (default: all)")
    add.add_argument("--expires", metavar="WHEN", help="a span such as 30d, or a moment such as 2026-12-31T00:00Z")
    list_ = keys.add_parser("list", help="all keys, without their secrets")
    list_.add_argument("--tenant", help="only this one's")
    rotate = keys.add_parser("rotate", help="a new secret for a key, whose id, budgets and history stay")
    rotate.add_argument("id")
    overlap = "how long the secret before opens it as well, such as 2h; 0: not at all (default 1d)"
    rotate.add_argument("--overlap", type=span_s, default=86_400.0, metavar="SPAN", help=overlap)
    revoke = keys.add_parser("revoke", help="a revoked key is refused at once, wherever it is declared")
    revoke.add_argument("id")
    runs("cli_keys", {"add": add, "list": list_, "rotate": rotate, "revoke": revoke}.items())


def add_prices(commands: Commands) -> None:
    """`askii prices …`."""
    prices = group(commands, "prices", "set, load, list and remove the operator's own prices")
    set_ = prices.add_parser("set", help="set a model's whole price; all workers have it within seconds")
    set_.add_argument("model")
    per_million = "USD per million tokens"
    set_.add_argument("--input", metavar="USD", help=per_million)
    set_.add_argument("--output", metavar="USD", help=f"{per_million}; without it calls that generate any are refused")
    for option in ("--cache-read", "--cache-write"):
        set_.add_argument(option, metavar="USD", help=per_million)
    set_.add_argument("--request", metavar="USD", help="USD for each call")
    set_.add_argument("--provider", help="only at this provider (default: at each)")
    set_.add_argument("--allow-high", action="store_true", help="take more than 1,000 USD per million")
    load = prices.add_parser("load", help="set prices from JSON, in our fields or in LiteLLM's format")
    load.add_argument("file")
    remove = prices.add_parser("rm", help="forget a price set at run time; the declared or public one applies again")
    remove.add_argument("model")
    remove.add_argument("--provider", help="only this provider's")
    list_ = prices.add_parser("list", help="the operator's own prices, and where each comes from")
    runs("cli_prices", {"set": set_, "load": load, "rm": remove, "list": list_}.items())


def add_tenant(commands: Commands) -> None:
    """`askii tenant …`."""
    tenants = group(commands, "tenant", "show, suspend, resume, export and delete tenants")
    show = tenants.add_parser("show", help="who is suspended, by whom and why")
    show.add_argument("tenant", nargs="?", help="only this one")
    suspend = tenants.add_parser("suspend", help="refuse its calls from now on; those that run go on")
    suspend.add_argument("tenant")
    suspend.add_argument("--reason", default="", help="for operators; clients are not told")
    resume = tenants.add_parser("resume", help="lift all its suspensions, whoever set them")
    resume.add_argument("tenant")
    export = tenants.add_parser("export", help="all that the ledger has of it, as JSON lines")
    export.add_argument("tenant")
    export.add_argument("file", nargs="?", help="a new file (default: standard output)")
    delete = tenants.add_parser("delete", help="suspend it and delete its data; the ledger's sums stay")
    delete.add_argument("tenant")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    actions = {"show": show, "suspend": suspend, "resume": resume, "export": export, "delete": delete}
    runs("cli_tenants", actions.items())


def add_outbox(commands: Commands) -> None:
    """`askii outbox …`."""
    steps = group(commands, "outbox", "what waits for the sinks, and what they refused")
    status = steps.add_parser("status", help="what waits for each sink, since when, and who delivers")
    retry = steps.add_parser("retry", help="send a sink's dead letters again")
    retry.add_argument("--despite-age", action="store_true", help="for an hour also those that were too old to be sent")
    dead = steps.add_parser("dead", help="a sink's dead letters, and why they are")
    dead.add_argument("--limit", type=count, default=100, metavar="N", help="at most so many (default 100)")
    export = steps.add_parser("export", help="dead letters and what waits, as JSON lines; nothing is changed")
    forget = steps.add_parser("forget", help="drop what waits for a sink that is no longer configured")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    for step in (retry, dead, export, forget):
        step.add_argument("sink")
    export.add_argument("file", nargs="?", help="a new file (default: standard output)")
    actions = {"status": status, "retry": retry, "dead": dead, "export": export, "forget": forget}
    runs("cli_outbox", actions.items())
