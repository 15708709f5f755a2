"""uWSGI's cache, in uWSGI: the suite in a worker, and an app with four of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.overlap.web import Browser, wait_for
from tests.servers import HOST, Program, Server, needs, running, says

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CACHES = (
    "name=small,items=10",
    "name=blocks,items=100",
    "name=sessions,items=5000,blocks=20000,blocksize=4096,bitmap=1",
    # uWSGI tells an app the definition of the last one only.
    "name=evicts,items=10,purge_lru=1",
)


def uwsgi(*options: str) -> list[str]:
    return [
        *(str(Path(sys.prefix) / "bin" / "uwsgi"), "--master", "--enable-threads"),
        *("--virtualenv", sys.prefix, "--pythonpath", str(ROOT), "--chdir", str(ROOT)),
        *(word for cache in CACHES for word in ("--cache2", cache)),
        *options,
    ]


UWSGI = Program(
    uwsgi()[0],
    "pip install uwsgi",
    lambda port, folder: uwsgi(
        *("--http-socket", f"{HOST}:{port}", "--processes", "4", "--need-app", "--die-on-term"),
        *("--wsgi-file", str(HERE / "site_uwsgi.py"), "--callable", "app"),
    ),
    lambda port: says(port, b"GET /look HTTP/1.0\r\n\r\n", b"HTTP/1.0 200"),
)

RUNNER = """
import os, sys, pytest
code = pytest.main({arguments!r})
sys.stdout.flush()
open({outcome!r}, "w").write(str(int(code)))
os._exit(0)
"""


def test_what_a_worker_runs(tmp_path: Path) -> None:
    needs(UWSGI)
    outcome, runner = tmp_path / "outcome", tmp_path / "runner.py"
    tests, inside = str(HERE / "inside_uwsgi.py"), f"--basetemp={tmp_path / 'inside'}"
    arguments = ["-q", "-p", "no:cacheprovider", inside, tests]
    runner.write_text(RUNNER.format(arguments=arguments, outcome=str(outcome)))
    run = subprocess.run(uwsgi("--pyrun", str(runner)), capture_output=True, text=True, timeout=300)
    said = run.stdout + run.stderr
    assert outcome.exists(), said
    assert outcome.read_text() == "0", said
    assert " passed" in said


@pytest.fixture(scope="module")
def site() -> Iterator[Server]:
    with running(UWSGI) as server:
        yield server


def test_four_workers_share_the_sessions(site: Server) -> None:
    browser = Browser(site)
    seen: set[int] = set()

    def four_have_answered() -> bool:
        name = f"n{len(names)}"
        names.append(name)
        answer = browser.ok(f"/add/{name}")
        assert answer["names"] == sorted(names)
        seen.add(answer["pid"])
        return len(seen) == 4

    names: list[str] = []
    wait_for(four_have_answered, "an answer of each worker")


def test_what_was_cleared_stays_so_in_all_workers(site: Server) -> None:
    browser = Browser(site)
    browser.ok("/add/name")
    thief = browser.with_cookie(browser.cookie)
    assert thief.ok("/look")["names"] == ["name"]
    browser.ok("/clear")
    seen: set[int] = set()

    def four_have_answered() -> bool:
        answer = thief.with_cookie(thief.cookie).ok("/look")
        assert answer["names"] == []
        seen.add(answer["pid"])
        return len(seen) == 4

    wait_for(four_have_answered, "an answer of each worker")
