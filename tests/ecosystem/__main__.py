"""Runs the packages' own tests and prints how they fare: python -m tests.ecosystem [PACKAGE...]."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.ecosystem.running import PROVIDERS, Run, UnavailableError, fetch, judge, run
from tests.ecosystem.suites import SUITES, Suite

_HEAD = ("package", "version", "without", *PROVIDERS)


class Result(NamedTuple):
    row: tuple[str, ...]
    wrong: list[str]


def main() -> int:
    wanted = _arguments()
    with TemporaryDirectory() as directory:
        results = [
            examine(SUITES[name], Path(directory) / name, wanted.verbose)
            for name in wanted.packages or SUITES
        ]
    print("\n".join(_table([_HEAD, *(result.row for result in results)])))
    print("The tests that passed / failed / were skipped.")
    for result in results:
        _explain(result)
    return int(any(result.wrong for result in results))


def examine(suite: Suite, directory: Path, verbose: bool) -> Result:
    """Run the tests of one package without this extension, and with each provider."""
    try:
        archive = fetch(suite, directory)
    except UnavailableError as error:
        return Result((suite.package, version(suite.package), "", "", ""), [str(error)])
    without, *with_ours = (
        _timed(suite, archive, provider, verbose) for provider in (None, *PROVIDERS)
    )
    ours = dict(zip(PROVIDERS, with_ours, strict=True))
    row = (suite.package, version(suite.package), *map(_counts, (without, *with_ours)))
    return Result(row, judge(suite, without, ours))


def _timed(suite: Suite, archive: Path, provider: str | None, verbose: bool) -> Run:
    start = time.monotonic()
    done = run(suite, archive, provider)
    took = time.monotonic() - start
    place = f"{suite.package} {f'with {provider}' if provider else 'without'}"
    print(f"{place}: {took:.0f} s, {done.created} sessions", file=sys.stderr, flush=True)
    if verbose or not done.outcomes:
        print(done.printed, file=sys.stderr, flush=True)
    return done


def _arguments() -> Namespace:
    parser = ArgumentParser("scripts/ecosystem", description=__doc__)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=", ".join(SUITES))
    parser.add_argument("--verbose", action="store_true", help="print what pytest printed")
    wanted = parser.parse_args()
    for name in wanted.packages:
        if name not in SUITES:
            parser.error(f"{name} is none of {', '.join(SUITES)}")
    return wanted


def _counts(done: Run) -> str:
    return " / ".join(str(len(done.those(its))) for its in ("passed", "failed", "skipped"))


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _explain(result: Result) -> None:
    if result.wrong:
        print(f"\n{result.row[0]}:")
    for line in result.wrong:
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
