"""Requests per second and latency of four gunicorn workers under wrk, beside Flask-Session.

Each contestant serves the same app, see ``contestants``, with its session on the same server. wrk
presents the cookies of visitors whose sessions were filled before.

    python benchmarks/load.py [--seconds N] [--json FILE] [--contestants NAME ...]

It takes the programs wrk and gunicorn, and whatever servers the contestants need.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flask import Flask

from benchmarks import contestants
from benchmarks.contestants import CONTESTANTS, VIEWS, Place
from benchmarks.servers import Missing, free_port, postgresql_server, redis_server

_ROOT = Path(__file__).resolve().parents[1]
WORKERS, THREADS, CONNECTIONS = 4, 1, 16
#: Visitors whose sessions are there before the first request.
VISITORS = 64
NAMES = ["cookie", "hybrid", "fs-redis", "redis", "redis-near", "fs-postgresql", "sql-postgresql"]
_URLS = {redis_server: "BENCHMARK_REDIS", postgresql_server: "BENCHMARK_POSTGRESQL"}


def main() -> None:
    options = _options()
    result: dict[str, Any] = {}
    missing = []
    with ExitStack() as stack:
        place = Place(stack)
        for name in options.contestants:
            try:
                result[name] = _measure(name, place, options.seconds)
            except Missing as reason:
                missing.append(f"{CONTESTANTS[name].title}: {reason}")
    print(_report(result, options.seconds))
    for line in missing:
        print(f"\nLeft out: {line}.")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


def make_app() -> Flask:
    """What a gunicorn worker serves."""
    name = os.environ["BENCHMARK_CONTESTANT"]
    place = Place(ExitStack())
    place.root = os.environ["BENCHMARK_ROOT"]
    place.directory = lambda: place.root  # type: ignore[method-assign]  # the same for all workers
    for make, variable in _URLS.items():
        if variable in os.environ:
            place.servers[make] = os.environ[variable]
    app = contestants.make_app()
    CONTESTANTS[name].install(app, place)
    return app


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--json", metavar="FILE", help="write all measurements to FILE")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=NAMES)
    return parser.parse_args()


def _measure(name: str, place: Place, seconds: int) -> dict[str, dict[str, float]]:
    environ = {**os.environ, "BENCHMARK_CONTESTANT": name}
    for make, variable in _URLS.items():
        environ[variable] = place.server(make)
    with tempfile.TemporaryDirectory() as root:
        environ["BENCHMARK_ROOT"] = root
        # Once alone: workers that all make Flask-Session's table at once fail.
        make = "from benchmarks.load import make_app; make_app()"
        subprocess.run([sys.executable, "-c", make], env=environ, cwd=_ROOT, check=True)
        with _served(environ) as url:
            script = _wrk_script(Path(root), [_visit(f"{url}/fill") for _ in range(VISITORS)])
            return {
                view: _wrk(f"{url}{contestants.PATHS[view]}", script, seconds) for view in VIEWS
            }


@contextmanager
def _served(environ: dict[str, str]) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), "--bind", address]
    server = subprocess.Popen(
        [*command, "--log-level", "error", "benchmarks.load:make_app()"],
        env=environ,
        cwd=_ROOT,
    )
    try:
        _wait_for(f"http://{address}/untouched", server)
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _visit(url: str) -> str:
    with urllib.request.urlopen(url) as response:
        return str(response.headers["Set-Cookie"]).partition(";")[0]


def _wrk_script(folder: Path, cookies: list[str]) -> str:
    path = folder / "visitors.lua"
    listed = ",".join(json.dumps(cookie) for cookie in cookies)
    path.write_text(
        f"local cookies, turn = {{{listed}}}, 0\n"
        "request = function()\n"
        "  turn = turn % #cookies + 1\n"
        '  return wrk.format("GET", nil, {["Cookie"] = cookies[turn]})\n'
        "end\n"
    )
    return str(path)


def _wrk(url: str, script: str, seconds: int) -> dict[str, float]:
    program = shutil.which("wrk")
    if program is None:
        raise Missing("wrk is not installed")
    command = [program, "-t", str(THREADS), "-c", str(CONNECTIONS), "--latency", "-s", script]
    subprocess.run([*command, "-d", "1s", url], check=True, capture_output=True)  # warm
    done = subprocess.run(
        [*command, "-d", f"{seconds}s", url], check=True, capture_output=True, text=True
    )
    failed = re.search(r"Non-2xx.*: (\d+)|Socket errors: .*", done.stdout)
    if failed:
        raise AssertionError(f"{url}: {failed[0]}")
    return {
        "per_second": float(_found(r"Requests/sec:\s+([\d.]+)", done.stdout)[1]),
        "p50_ms": _milliseconds(_found(r"50%\s+([\d.]+)(us|ms|s)", done.stdout)),
        "p99_ms": _milliseconds(_found(r"99%\s+([\d.]+)(us|ms|s)", done.stdout)),
    }


def _found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    assert match is not None, text
    return match


def _milliseconds(match: re.Match[str]) -> float:
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


def _report(result: dict[str, Any], seconds: int) -> str:
    lines = [
        f"{WORKERS} gunicorn workers, wrk with {CONNECTIONS} connections, {seconds} s each; "
        f"{os.cpu_count()} processors for all of it. Requests per second (p99 in ms):",
        "",
        f"| | {' | '.join(VIEWS)} |",
        "|---|" + "--:|" * len(VIEWS),
    ]
    for name, views in result.items():
        cells = [f"{views[v]['per_second']:,.0f} ({views[v]['p99_ms']:.1f})" for v in VIEWS]
        lines.append(f"| {CONTESTANTS[name].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
