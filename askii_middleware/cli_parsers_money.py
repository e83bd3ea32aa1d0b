"""What the commands take that correct, report and keep the ledger as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cli_options import runs

if TYPE_CHECKING:
    from .cli_options import Commands


def add_corrections(commands: Commands) -> None:
    """`askii adjust` and `askii reprice`."""
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
    runs("cli_adjust", {"adjust": adjust, "reprice": reprice}.items())


def add_report(commands: Commands) -> None:
    """`askii report`, with `--reconcile` another one."""
    report = commands.add_parser("report", help="what was charged, by day, model and user; whether all sides agree")
    report.add_argument("scope", nargs="?", help="such as tenant=acme, key=k1, team=research (default: everything)")
    report.add_argument("--from", metavar="DAY", help="the first day, such as 2026-01-01 (default: its month's first)")
    report.add_argument("--to", metavar="DAY", help="the last day (default: today)")
    report.add_argument("--zone", help="whose midnights bound the days, such as Europe/Berlin (default UTC)")
    report.add_argument("--csv", action="store_true", help="print comma-separated values")
    report.add_argument("--reconcile", action="store_true", help="compare ledger, records and receivers instead")
    since = "with --reconcile: ISO 8601, in UTC unless it says otherwise (default: everything)"
    report.add_argument("--since", metavar="TIME", help=since)
    report.add_argument("--tenant", help="with --reconcile: only this one")
    runs("cli_report", [("report", report)])


def add_ledgers(commands: Commands) -> None:
    """`askii migrate` and `askii copy-store`."""
    migrate = commands.add_parser("migrate", help="bring the configured store's schema up to date")
    migrate.add_argument("--check", action="store_true", help="only say what would be done; 1 if anything")
    runs("cli_ledgers", [("migrate", migrate)])
    copy = commands.add_parser("copy-store", help="copy a whole ledger into another store, and prove it")
    copy.add_argument("source", metavar="FROM", help="a store's URL, or env:NAME, file:/path")
    copy.add_argument("target", metavar="TO", help="as FROM; it has to be empty")
    copy.add_argument("--force", action="store_true", help="even if workers seem to live")
    runs("cli_ledgers", [("copy_store", copy)], config=False)
