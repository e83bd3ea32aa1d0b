"""What the parsers of all commands share. A command's module is imported only when the command runs."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no other name

_SPAN = re.compile(r"([0-9]{1,9})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def group(commands: Commands, name: str, about: str) -> Commands:
    """A command that has commands of its own."""
    parser = commands.add_parser(name, help=about)
    helps(parser)
    return parser.add_subparsers(metavar="ACTION")


def helps(parser: argparse.ArgumentParser) -> None:
    """Let a command that needs another one, and was given alone, show what there is: wrong usage, status 2."""

    def run(_arguments: argparse.Namespace) -> NoReturn:
        parser.print_help(sys.stderr)
        parser.exit(2)

    parser.set_defaults(run=run)


def runs(module: str, parsers: Iterable[tuple[str, argparse.ArgumentParser]], *, config: bool = True) -> None:
    """Let `run_action` of a module run these actions, each with `--json` and perhaps `--config`."""
    for action, parser in parsers:
        if config:
            config_option(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=_runner(module), action=action)


def _runner(module: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        run_action = import_module(f".{module}", __package__).run_action
        return int(asyncio.run(run_action(arguments.action, arguments)))

    return run


def config_option(parser: argparse.ArgumentParser) -> None:
    """Which configuration a command uses."""
    parser.add_argument("--config", metavar="FILE", help="the configuration file (default: ASKII_CONFIG, ./askii.toml)")


def shares(text: str) -> tuple[float, ...]:
    """Shares of a limit, such as 0.8,0.9."""
    return tuple(float(part) for part in text.split(","))


def count(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("takes a whole number above 0")
    return value


def positive(text: str) -> float:
    """A number of seconds above 0."""
    value = float(text)
    if not 0 < value < 86_400:
        raise argparse.ArgumentTypeError("takes a number of seconds above 0")
    return value


def span_s(text: str) -> float:
    """A span of time in seconds, such as 3600, 60m, 24h or 30d."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError("takes a span such as 3600, 60m, 24h or 30d")
    return float(int(found[1]) * _SECONDS[found[2]])
