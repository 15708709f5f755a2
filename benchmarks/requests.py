"""What a session costs per request, as a part of what Flask's signed cookie costs in the same run.

Every contestant has the same app, with the same session and three views: one that never touches the
session although the client shows its cookie, one that reads a key, and one that changes a key. The
apps are called as a server calls them, without one. What is told is the time above an app whose
session does nothing, see ``timing`` for how. In the end it is checked that the work was done.

    python benchmarks/requests.py [--quick] [--json FILE] [--providers NAME ...]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

# Not this directory: a package that imports "requests" shall not get this file.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contestants import CONTESTANTS, VIEWS, Contestant, Place, Runner, nothing
from benchmarks.sample import SIZE
from benchmarks.servers import Missing
from benchmarks.timing import take_turns

#: Requests in a block: 2 ms or so of a contestant that does little.
BLOCK = 50
ROUNDS, QUICK_ROUNDS = 150, 20

#: The part of Flask's cookie that `hybrid` may cost.
TARGETS = {"never touched": 0.03, "read": 0.10, "write": 0.15}

#: The part of Flask-Session's cost on the same server: never touched, read, write.
RIVALS: dict[str, tuple[str, tuple[float | None, float, float | None]]] = {
    "redis": ("fs-redis", (0.05, 0.5, 0.7)),
    "redis-near": ("fs-redis", (0.05, 0.1, None)),
    "sql-sqlite": ("fs-sqlite", (None, 0.35, 0.5)),
    "sql-postgresql": ("fs-postgresql", (None, 0.35, 0.5)),
}

#: Two apps that do nothing: how much they differ is how much of a difference means nothing.
NULL, TWIN = "null", "null's twin"


def main() -> None:
    options = _options()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    with ExitStack() as stack:
        runners, missing = _prepare(Place(stack), options.providers)
        works = {
            (name, view): runner.work(view) for name, runner in runners.items() for view in VIEWS
        }
        gc.collect()
        gc.freeze()  # the modules that one contestant loads are no cost of another's
        seconds = take_turns(works, rounds, BLOCK)
        for name, runner in runners.items():
            if name not in (NULL, TWIN):
                runner.check()
    result = _result(seconds, rounds)
    print(_report(result, missing))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less exact, in a few seconds")
    parser.add_argument("--json", metavar="FILE", help="write all measurements to FILE")
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        metavar="NAME",
        help=f"measure only these beside Flask's cookie: {', '.join(CONTESTANTS)}",
    )
    return parser.parse_args()


def _prepare(place: Place, wanted: list[str]) -> tuple[dict[str, Runner], list[str]]:
    """The apps, and what has to be left out and why."""
    chosen = {name: who for name, who in CONTESTANTS.items() if name in {"cookie", *wanted}}
    field = {NULL: Contestant(NULL, nothing), TWIN: Contestant(TWIN, nothing), **chosen}
    runners, missing = {}, []
    for name, contestant in field.items():
        try:
            runners[name] = Runner(name, contestant.install, place)
        except Missing as reason:
            missing.append(f"{contestant.title}: {reason}")
    return runners, missing


def _result(seconds: dict[tuple[str, str], list[float]], rounds: int) -> dict[str, Any]:
    """Everything that was measured, in microseconds per request."""
    names = list(dict.fromkeys(name for name, _ in seconds))
    return {
        "python": platform.python_version(),
        "flask": version("flask"),
        "processors": os.cpu_count(),
        "session_bytes": SIZE,
        "rounds": rounds,
        "block": BLOCK,
        "microseconds": {
            name: {
                view: {
                    "least": round(min(seconds[name, view]) * 1e6, 3),
                    "median": round(median(seconds[name, view]) * 1e6, 3),
                }
                for view in VIEWS
            }
            for name in names
        },
    }


def _report(result: dict[str, Any], missing: list[str]) -> str:
    measured = result["microseconds"]
    shown = [name for name in measured if name in CONTESTANTS]
    twins = max(abs(_above(measured, TWIN, view)) for view in VIEWS)
    lines = [
        f"Python {result['python']}, Flask {result['flask']}, {result['processors']} processors; "
        f"a session of {result['session_bytes']} bytes as JSON; the best of {result['rounds']} "
        f"rounds of {result['block']} requests.",
        f"A request takes {measured[NULL]['read']['least']:.1f} µs when the session does nothing; "
        f"two such apps differ by up to {twins:.1f} µs here, which is noise.",
        "",
        "Cost of the session, as a part of what Flask's signed cookie costs (µs per request):",
        "",
        f"| | {' | '.join(VIEWS)} |",
        "|---|" + "--:|" * len(VIEWS),
    ]
    for name in shown:
        cells = [
            f"**{round(_part(measured, name, view), 2) + 0:.2f}** "
            f"({round(_above(measured, name, view), 1) + 0:.1f})"
            for view in VIEWS
        ]
        lines.append(f"| {CONTESTANTS[name].title} | {' | '.join(cells)} |")
    lines += [f"\nLeft out: {reason}." for reason in missing]
    if "hybrid" in shown:
        lines += ["", *_targets(measured)]
    if any({name, rival} <= {*shown} for name, (rival, _) in RIVALS.items()):
        lines += ["", *_against_rivals(measured, shown)]
    return "\n".join(lines)


def _targets(measured: dict[str, Any]) -> Iterator[str]:
    yield "| target for `hybrid` | at most | here | of the medians | |"
    yield "|---|--:|--:|--:|---|"
    for view, most in TARGETS.items():
        part = _part(measured, "hybrid", view)
        typical = _part(measured, "hybrid", view, "median")
        verdict = "met" if part <= most else "not met"
        yield f"| {view} | {most:.2f} | {part:.3f} | {typical:.3f} | {verdict} |"


def _against_rivals(measured: dict[str, Any], shown: list[str]) -> Iterator[str]:
    yield "Cost as a part of Flask-Session's on the same server (the target):"
    yield ""
    yield f"| | {' | '.join(VIEWS)} |"
    yield "|---|" + "--:|" * len(VIEWS)
    for name, (rival, targets) in RIVALS.items():
        if name not in shown or rival not in shown:
            continue
        cells = []
        for view, most in zip(VIEWS, targets, strict=True):
            part = _above(measured, name, view) / _above(measured, rival, view)
            cells.append(f"**{part + 0:.2f}** ({'' if most is None else f'<= {most}'})")
        yield f"| {CONTESTANTS[name].title} | {' | '.join(cells)} |".replace(" ()", "")


def _above(measured: dict[str, Any], name: str, view: str, kind: str = "least") -> float:
    """Microseconds more than a session that does nothing."""
    return float(measured[name][view][kind] - measured[NULL][view][kind])


def _part(measured: dict[str, Any], name: str, view: str, kind: str = "least") -> float:
    return _above(measured, name, view, kind) / _above(measured, "cookie", view, kind)


if __name__ == "__main__":
    main()
