"""Damaged provider traffic against every parser, by the million.

Run by hand, from the repository's root:

    python -m tools.fuzz                              # every family, a million inputs each
    python -m tools.fuzz sse streams --inputs 50000   # some of them
    python -m tools.fuzz sse --engine atheris         # guided by coverage (needs the package atheris)

Inputs are pieces of recorded answers and requests (../shared/corpus), damaged at random (tests/support/mutations.py),
cut at random places. What must hold of each stands in tools/fuzz_checks.py. The seed is printed; a failure prints the
input that it needs. Exit status 1: something failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from .fuzz_seeds import Seed

MAX_FAILURES = 5
"""Of one family; then the next one's turn comes."""
MAX_SHOWN = 1500


class Result(NamedTuple):
    """What became of one family."""

    name: str
    inputs: int
    seconds: float
    failures: int


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_failure(family: str, seed: Seed, data: bytes, error: Exception) -> None:
    say(f"\n{family} {seed.of}: {type(error).__name__}: {str(error)[:300]}")
    say("".join(traceback.format_tb(error.__traceback__)[-3:]))
    say(f"  input: {data[:MAX_SHOWN]!r}{'...' if len(data) > MAX_SHOWN else ''}")


def random_run(name: str, check: Callable[..., Any], seeds: list[Seed], inputs: int, rng: Random) -> Result:
    """Damage, cut, check, so many times."""
    from tests.support.mutations import mutate  # noqa: PLC0415 - after the instrumentation, where there is one

    failures, done = 0, 0
    began = time.perf_counter()
    for _ in range(inputs):
        seed = rng.choice(seeds)
        data = mutate(rng, seed.data)
        done += 1
        try:
            check(rng, data, seed.of)
        except Exception as error:  # noqa: BLE001 - any error at all is what is looked for
            failures += 1
            show_failure(name, seed, data, error)
            if failures >= MAX_FAILURES:
                break
    return Result(name, done, time.perf_counter() - began, failures)


def guided_run(name: str, inputs: int) -> Result:
    """The same in a process of its own, which libFuzzer ends."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tools.fuzz", name, "--inputs", str(inputs), "--engine", "atheris-child"]
    code = subprocess.run(command, check=False).returncode
    return Result(name, inputs, time.perf_counter() - began, int(code != 0))


def guided_child(name: str, inputs: int) -> None:
    """Hand one family to libFuzzer, the recorded pieces as its first corpus. Does not return."""
    import atheris  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - optional

    with atheris.instrument_imports(include=["askii_middleware"]):
        from .fuzz_checks import CHECKS  # noqa: PLC0415 - importing is what instruments
        from .fuzz_seeds import seeds  # noqa: PLC0415 - as above

    check, own = CHECKS[name], seeds()[name]

    def one(data: bytes) -> None:
        rng = Random(crc32(data))
        check(rng, data, rng.choice(own).of)

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(own[:2000]):
            Path(folder, str(number)).write_bytes(seed.data)
        atheris.Setup([sys.argv[0], folder, f"-runs={inputs}", "-max_len=4096", "-verbosity=0"], one)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("family", nargs="*", help="which parsers; all where none is named")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each family")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--engine", choices=["random", "atheris", "atheris-child"], default="random")
    options = parser.parse_args()
    if options.engine == "atheris-child":
        guided_child(options.family[0], options.inputs)
    from .fuzz_checks import CHECKS  # noqa: PLC0415 - after the instrumentation, where there is one
    from .fuzz_memory import memory  # noqa: PLC0415 - as above
    from .fuzz_seeds import seeds  # noqa: PLC0415 - as above

    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000_000
    chosen = options.family or list(CHECKS)
    unknown = set(chosen) - CHECKS.keys()
    if unknown:
        parser.error(f"no such family: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    pieces = seeds()
    say(f"Python {sys.version.split()[0]}, engine {options.engine}, seed {seed}")
    say(f"\n| family | seeds | inputs | s | inputs/s | failures |\n|{'---|' * 6}")
    failed = False
    for name in chosen:
        own = pieces[name]
        if options.engine == "random":
            result = random_run(name, CHECKS[name], own, options.inputs, Random(f"{seed}/{name}"))
        else:
            result = guided_run(name, options.inputs)
        failed = failed or result.failures > 0
        rate = result.inputs / result.seconds
        say(f"| {name} | {len(own)} | {result.inputs:,} | {result.seconds:.0f} | {rate:,.0f} | {result.failures} |")
    if options.engine == "random" and not options.family:
        made, grown = memory()
        say("\n".join([f"\nendless answers: {made} kinds of readers, {len(grown)} that grow", *grown]))
        failed = failed or bool(grown)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
