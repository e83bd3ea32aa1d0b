"""The `askii` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ._version import __version__
from .cli_options import config_option, helps, positive, runs
from .cli_output import harmless, show
from .cli_parsers_ledger import add_budget, add_keys, add_outbox, add_prices, add_tenant
from .cli_parsers_money import add_corrections, add_ledgers, add_report
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
    helps(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole thing on this machine, with a simulated provider")
    demo.add_argument("--seconds", type=positive, default=30.0, help="how long traffic runs (default 30)")
    demo.add_argument(
        "--port", type=int, default=8000, help="the gateway's port (default 8000); where it is taken, any free one"
    )
    demo.add_argument("--json", action="store_true", help="print the reconciliation as one JSON object")
    demo.set_defaults(run=_demo)

    serve = commands.add_parser("serve", help="a gateway in front of one or more upstreams")
    serve.add_argument("--upstream", metavar="URL", help="where calls go, such as https://host/v1")
    serve.add_argument("--provider", default=None, help="whose wire format and prices the upstream has")
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine only)")
    serve.add_argument("--port", type=int, default=8000, help="the port; 0: any free one (default 8000)")
    serve.add_argument("--workers", type=int, default=1, help="how many processes (default 1)")
    config_option(serve)
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="validate the configuration and reach what it names")
    price = commands.add_parser("price", help="what a model costs")
    price.add_argument("model")
    runs("cli_check", {"check": check, "price": price}.items())

    for add in (add_budget, add_keys, add_prices, add_tenant, add_corrections, add_report, add_outbox, add_ledgers):
        add(commands)

    grafana = commands.add_parser("grafana", help="a Grafana dashboard, or Prometheus rules and alerts, to import")
    grafana.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: standard output)")
    grafana.add_argument("--rules", action="store_true", help="the recording and alert rules for Prometheus")
    grafana.add_argument("--json", action="store_true", help="tell of a written FILE as JSON")
    grafana.set_defaults(run=_grafana)

    convert = commands.add_parser("convert", help="USD to Askii Coins at the current rate, or back with --coins")
    convert.add_argument("amount", type=float)
    convert.add_argument("--coins", action="store_true", help="the amount is in coins")
    convert.add_argument("--json", action="store_true")
    convert.set_defaults(run=_convert)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from .demo.run import run_demo  # noqa: PLC0415 - each command imports only what it needs

    return run_demo(seconds=arguments.seconds, port=arguments.port, as_json=arguments.json)


def _serve(arguments: argparse.Namespace) -> int:
    from .cli_serve import serve  # noqa: PLC0415 - as above

    return serve(arguments)


def _grafana(arguments: argparse.Namespace) -> int:
    from .cli_grafana import write  # noqa: PLC0415 - as above

    return write(arguments.output, rules=arguments.rules, as_json=arguments.json)


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


if __name__ == "__main__":
    sys.exit(main())
