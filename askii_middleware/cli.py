"""The `askii` command."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from ._version import __version__
from .errors import AskiiError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed (with one line on stderr), 2 wrong usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        result: int = arguments.run(arguments)
        sys.stdout.flush()
    except AskiiError as error:
        print("askii:", harmless(str(error), but="\n"), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads has seen enough, such as `head`; Python would complain once more at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="askii", description="Budgets, metering and billing for LLM traffic.")
    parser.add_argument("--version", action="version", version=f"askii {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole thing on this machine, with a simulated provider")
    demo.add_argument("--seconds", type=_positive, default=30.0, help="how long traffic runs (default 30)")
    demo.add_argument("--port", type=int, default=8000, help="the gateway's port, or any free one (default 8000)")
    demo.add_argument("--json", action="store_true", help="print the reconciliation as one JSON object")
    demo.set_defaults(run=_demo)

    serve = commands.add_parser("serve", help="a gateway in front of one or more upstreams")
    serve.add_argument("--upstream", metavar="URL", help="where calls go, such as https://host/v1")
    serve.add_argument("--provider", default=None, help="whose wire format and prices the upstream has")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--workers", type=int, default=1)
    _config(serve)
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="validate the configuration and reach what it names")
    _config(check)
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)

    budget = commands.add_parser("budget", help="set, list, remove and show budgets")
    budgets = budget.add_subparsers(required=True, metavar="ACTION")
    set_ = budgets.add_parser("set", help="set the budget of a scope")
    set_.add_argument("scope", help="such as tenant=acme or tenant=*")
    limit = set_.add_mutually_exclusive_group(required=True)
    limit.add_argument("--usd", help="limit in USD; 'none' exempts")
    limit.add_argument("--coins", help="limit in Askii Coins")
    set_.add_argument("--period", default="daily")
    set_.add_argument("--zone", default="UTC")
    set_.add_argument("--soft", action="store_true", help="it reports and never refuses")
    set_.add_argument("--alert-at", type=_shares, metavar="SHARES", help="shares of the limit, such as 0.8,0.9,1")
    set_.add_argument("--max-values", type=int, metavar="N", help="so many values of * have counters of their own")
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
    for name, action in (
        *(("set", set_), ("rm", remove), ("status", status), ("list", list_), ("explain", explain)),
        ("reclaim", reclaim),
    ):
        _config(action)
        action.add_argument("--json", action="store_true")
        action.set_defaults(run=_in_store, action=f"budget_{name}")

    keys = commands.add_parser("keys", help="add, list and revoke API keys")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a key; its secret is shown once")
    add.add_argument("tenant")
    for option in ("--id", "--user", "--team"):
        add.add_argument(option)
    revoke = actions.add_parser("revoke", help="a revoked key is refused at once, wherever it is declared")
    revoke.add_argument("id")
    listed = actions.add_parser("list", help="all keys, without their secrets")
    for name, action in (("add", add), ("revoke", revoke), ("list", listed)):
        _config(action)
        action.add_argument("--json", action="store_true")
        action.set_defaults(run=_in_store, action=f"keys_{name}")

    tenant = commands.add_parser("tenant", help="show, suspend and resume tenants")
    verbs = tenant.add_subparsers(required=True, metavar="ACTION")
    shown = verbs.add_parser("show", help="who is suspended, by whom and why")
    shown.add_argument("tenant", nargs="?", help="only this one")
    suspend = verbs.add_parser("suspend", help="refuse its calls from now on; those that run go on")
    suspend.add_argument("tenant")
    suspend.add_argument("--reason", default="", help="for operators; clients are not told")
    resume = verbs.add_parser("resume", help="lift all its suspensions, whoever set them")
    resume.add_argument("tenant")
    for name, action in (("show", shown), ("suspend", suspend), ("resume", resume)):
        _config(action)
        action.add_argument("--json", action="store_true")
        action.set_defaults(run=_tenant, action=name)

    adjust = commands.add_parser("adjust", help="credit a tenant, or charge it besides its calls")
    adjust.add_argument("tenant")
    adjust.add_argument("usd", help="such as -1.25 for a credit; at most 9 digits after the point")
    adjust.add_argument("--reason", required=True, help="kept in the record")
    adjust.add_argument("--ref", metavar="CALL_ID", help="the call it corrects (default: none, it counts from now)")
    adjust.add_argument("--id", help="the same id adjusts once (default with --ref: made from amount and reason)")
    adjust.add_argument("--force", action="store_true", help="credit more than the call has cost")
    reprice = commands.add_parser("reprice", help="correct calls that were charged at a wrong price")
    reprice.add_argument("--model", required=True)
    reprice.add_argument("--since", required=True, metavar="TIME", help="ISO 8601, in UTC unless it says otherwise")
    reprice.add_argument("--until", metavar="TIME", help="before this moment (default: now)")
    reprice.add_argument("--tenant", help="only this one")
    reprice.add_argument("--dry-run", action="store_true", help="only say what would be done")
    for name, command in (("adjust", adjust), ("reprice", reprice)):
        _config(command)
        command.add_argument("--json", action="store_true")
        command.set_defaults(run=_correct, action=name)

    report = commands.add_parser("report", help="what was charged and billed, and whether all sides agree")
    report.add_argument("--reconcile", action="store_true", required=True, help="compare ledger, records and receivers")
    report.add_argument(
        "--since", metavar="TIME", help="ISO 8601, in UTC unless it says otherwise (default: everything)"
    )
    report.add_argument("--tenant", help="only this one")
    _config(report)
    report.add_argument("--json", action="store_true")
    report.set_defaults(run=_report)

    outbox = commands.add_parser("outbox", help="what waits for the sinks, and what they refused")
    steps = outbox.add_subparsers(required=True, metavar="ACTION")
    waiting = steps.add_parser("status", help="what waits for each sink, since when, and who delivers")
    retry = steps.add_parser("retry", help="send a sink's dead letters again")
    retry.add_argument("--despite-age", action="store_true", help="for an hour also those that were too old to be sent")
    dead = steps.add_parser("dead", help="a sink's dead letters, and why they are")
    dead.add_argument("--limit", type=_count, default=100, metavar="N", help="at most so many (default 100)")
    export = steps.add_parser("export", help="dead letters and what waits, as JSON lines; nothing is changed")
    forget = steps.add_parser("forget", help="drop what waits for a sink that is no longer configured")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    for what, step in (("status", waiting), ("retry", retry), ("dead", dead), ("export", export), ("forget", forget)):
        if what != "status":
            step.add_argument("sink")
        if what == "export":
            step.add_argument("file", nargs="?", help="a new file (default: standard output)")
        _config(step)
        step.add_argument("--json", action="store_true")
        step.set_defaults(run=_outbox, action=what)

    migrate = commands.add_parser("migrate", help="bring the configured store's schema up to date")
    migrate.add_argument("--check", action="store_true", help="only say what would be done; 1 if anything")
    _config(migrate)
    copy = commands.add_parser("copy-store", help="copy a whole ledger into another store, and prove it")
    copy.add_argument("source", metavar="FROM", help="a store's URL, or env:NAME, file:/path")
    copy.add_argument("target", metavar="TO", help="as FROM; it has to be empty")
    copy.add_argument("--force", action="store_true", help="even if workers seem to live")
    for name, action in (("migrate", migrate), ("copy_store", copy)):
        action.add_argument("--json", action="store_true")
        action.set_defaults(run=_on_ledgers, action=name)

    grafana = commands.add_parser("grafana", help="a Grafana dashboard, or Prometheus rules and alerts, to import")
    grafana.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: standard output)")
    grafana.add_argument("--rules", action="store_true", help="the recording and alert rules for Prometheus")
    grafana.add_argument("--json", action="store_true", help="tell of a written FILE as JSON")
    grafana.set_defaults(run=_grafana)

    price = commands.add_parser("price", help="what a model costs")
    price.add_argument("model")
    _config(price)
    price.add_argument("--json", action="store_true")
    price.set_defaults(run=_price)

    convert = commands.add_parser("convert", help="USD to Askii Coins at the current rate, or back with --coins")
    convert.add_argument("amount", type=float)
    convert.add_argument("--coins", action="store_true", help="the amount is in coins")
    convert.add_argument("--json", action="store_true")
    convert.set_defaults(run=_convert)
    return parser


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("takes a whole number above 0")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 86_400:
        raise argparse.ArgumentTypeError("takes a number of seconds above 0")
    return value


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="the configuration file (default: ASKII_CONFIG, ./askii.toml)")


def _demo(arguments: argparse.Namespace) -> int:
    from .demo.run import run_demo  # noqa: PLC0415 - each command imports only what it needs

    return run_demo(seconds=arguments.seconds, port=arguments.port, as_json=arguments.json)


def _serve(arguments: argparse.Namespace) -> int:
    from .cli_serve import serve  # noqa: PLC0415 - as above

    return serve(arguments)


def _check(arguments: argparse.Namespace) -> int:
    from .cli_check import check  # noqa: PLC0415 - as above

    return asyncio.run(check(arguments.config, as_json=arguments.json))


def _in_store(arguments: argparse.Namespace) -> int:
    from .cli_store import run_action  # noqa: PLC0415 - as above

    return asyncio.run(run_action(arguments.action, arguments))


def _tenant(arguments: argparse.Namespace) -> int:
    from .cli_tenants import run_action  # noqa: PLC0415 - as above

    return asyncio.run(run_action(arguments.action, arguments))


def _correct(arguments: argparse.Namespace) -> int:
    from .cli_adjust import run_action  # noqa: PLC0415 - as above

    return asyncio.run(run_action(arguments.action, arguments))


def _report(arguments: argparse.Namespace) -> int:
    from .cli_report import report  # noqa: PLC0415 - as above

    return asyncio.run(report(arguments))


def _outbox(arguments: argparse.Namespace) -> int:
    from .cli_outbox import run_action  # noqa: PLC0415 - as above

    return asyncio.run(run_action(arguments.action, arguments))


def _on_ledgers(arguments: argparse.Namespace) -> int:
    from .cli_ledgers import run_action  # noqa: PLC0415 - as above

    return asyncio.run(run_action(arguments.action, arguments))


def _grafana(arguments: argparse.Namespace) -> int:
    from .cli_grafana import write  # noqa: PLC0415 - as above

    return write(arguments.output, rules=arguments.rules, as_json=arguments.json)


def _price(arguments: argparse.Namespace) -> int:
    from .cli_check import show_price  # noqa: PLC0415 - as above

    return show_price(arguments.model, arguments.config, as_json=arguments.json)


def _convert(arguments: argparse.Namespace) -> int:
    from .currency import (  # noqa: PLC0415 - as above
        askii_coins_to_usd,
        get_askii_coin_exchange_rate,
        usd_to_askii_coins,
    )

    try:
        if arguments.amount < 0:
            raise ValueError(f"{arguments.amount!r} is not an amount of at least 0")  # noqa: TRY301 - told like the others
        usd = askii_coins_to_usd(arguments.amount) if arguments.coins else arguments.amount
        coins = arguments.amount if arguments.coins else usd_to_askii_coins(arguments.amount)
    except ValueError as error:
        print(f"askii: {error}", file=sys.stderr)
        return 1
    rate = get_askii_coin_exchange_rate()
    show({"usd": usd, "askii_coins": coins, "exchange_rate": rate}, as_json=arguments.json)
    return 0


def show(values: dict[str, Any] | list[dict[str, Any]], *, as_json: bool) -> None:
    """Print an object or a table: JSON, or columns of text."""
    if as_json:
        print(json.dumps(values, indent=2, default=str))
    elif isinstance(values, dict):
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            print(f"{name:<{width}}  {_cell(value)}")
    elif values:
        columns = list(values[0])
        cells = [[_cell(row[c]) for c in columns] for row in values]
        widths = [max(len(c), *(len(row[i]) for row in cells)) for i, c in enumerate(columns)]
        for row in [columns, *cells]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        print("nothing")


def _cell(value: Any) -> str:
    return "-" if value is None else harmless(str(value))


def harmless(text: str, but: str = "") -> str:
    """Text for a terminal: what others named or answered must not move its cursor or turn its lines around."""
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode("ascii") for c in text)


def plain_text(amount: Decimal) -> str:
    """An exact decimal without an exponent or empty places."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


if __name__ == "__main__":
    sys.exit(main())
