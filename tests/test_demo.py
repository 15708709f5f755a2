"""The demo as people meet it: real gunicorn, four workers, a real browser."""

from __future__ import annotations

import http.cookiejar
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

ROOT = Path(__file__).parents[1]
CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


class Server:
    """A server process and its workers, on a port of its own."""

    def __init__(self, command: list[str], port: int, env: dict[str, str]) -> None:
        self.command, self.port, self.env = command, port, env
        self.url = f"http://127.0.0.1:{port}/"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env={**os.environ, **self.env}, stderr=subprocess.DEVNULL
        )
        wait_for(self.answers, "the server to answer")

    def answers(self) -> bool:
        assert self.process.poll() is None, f"ended with {self.process.returncode}"
        try:
            with urllib.request.urlopen(self.url) as response:
                return bool(response.status == 200)
        except (ConnectionError, urllib.error.URLError):
            return False

    def workers(self) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def kill(self) -> None:
        """``kill -9`` of the master, then of every worker: nobody gets to tidy up."""
        self.process.send_signal(signal.SIGSTOP)
        workers = self.workers()
        for pid in (self.process.pid, *workers):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_for(lambda: all(_state(pid) in ("", "Z") for pid in workers), "the workers to be gone")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: all(_state(pid) == "T" for pid in pids), "processes to stop")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _state(pid: int) -> str:
    """As in ``ps``: R, S, T for stopped, Z for a zombie; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Client:
    """Another visitor, without a browser: http and a cookie jar."""

    def __init__(self, url: str) -> None:
        self.url = url
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(jar)
        self.page = self.get()

    def get(self) -> str:
        self.page = self._read(self.url)
        return self.page

    def post(self, path: str, **form: str) -> str:
        self.page = self.submit(path, **form)
        return self.page

    def submit(self, path: str, **form: str) -> str:
        """Post a form of the page seen last, and stay on that page."""
        token = re.search('name="csrf" value="([^"]+)"', self.page)
        assert token is not None
        form = {"csrf": token[1], **form}
        return self._read(self.url + path, urllib.parse.urlencode(form).encode())

    def _read(self, url: str, data: bytes | None = None) -> str:
        with self.opener.open(url, data) as response:
            return str(response.read().decode())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def demo_command(port: int) -> list[str]:
    """The last line of scripts/demo, with this Python."""
    line = ROOT.joinpath("scripts/demo").read_text().splitlines()[-1]
    words = shlex.split(line.replace("$port", str(port)))
    assert words[:2] == ["exec", ".venv/bin/python"]
    return [sys.executable, *words[2:]]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    directory = {"FLASK_SESSION_DIR": str(tmp_path / "sessions")}
    server = Server(demo_command(port), port, directory)
    wait_for(lambda: len(server.workers()) == 4, "four workers")
    yield server
    server.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    if not (which(CHROMIUM) and which(CHROMEDRIVER)):
        assert "CI" not in os.environ, "Chromium is missing: scripts/test installs it on Debian"
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


def text(browser: webdriver.Chrome, place: str) -> str | None:
    """What the page shows at that place, None where it shows nothing."""
    found = browser.find_elements(By.ID, place)
    return found[0].text if found else None


def click(browser: webdriver.Chrome, place: str) -> None:
    """Press a button and wait for the page after it."""
    browser.execute_script("window.before = true")
    browser.find_element(By.ID, place).click()
    loaded = "return !window.before && document.readyState == 'complete'"
    wait_for(lambda: browser.execute_script(loaded), "the next page")


def log_in(browser: webdriver.Chrome, url: str, name: str) -> None:
    browser.get(url)
    browser.find_element(By.ID, "name").send_keys(name)
    click(browser, "login")
    assert text(browser, "user") == name


def test_login_and_cart_outlive_kill_9(shop: Server, browser: webdriver.Chrome) -> None:
    log_in(browser, shop.url, "Ada")
    click(browser, "add-tea")
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get(shop.url)
    click(browser, "add-tea")
    click(browser, "add-mug")
    browser.switch_to.window(first)  # still shows the page from before the second tab
    click(browser, "add-honey")
    cart = {"user": "Ada", "count-tea": "2", "count-mug": "1", "count-honey": "1"}
    assert {place: text(browser, place) for place in cart} == cart

    shop.kill()
    shop.start()

    browser.get(shop.url)
    assert {place: text(browser, place) for place in cart} == cart
    click(browser, "add-tea")
    assert text(browser, "count-tea") == "3"


def test_log_out_everywhere_reaches_another_browser(
    shop: Server, browser: webdriver.Chrome
) -> None:
    log_in(browser, shop.url, "Ada")
    click(browser, "add-tea")
    other = Client(shop.url)
    assert 'id="user">Ada<' in other.post("login", name="Ada")
    assert "on 2 devices" in other.page

    assert 'id="user"' not in other.post("logout", everywhere="1")

    browser.get(shop.url)
    assert text(browser, "user") is None
    assert text(browser, "cart") is None


def test_every_worker_serves_the_one_session(shop: Server) -> None:
    client = Client(shop.url)
    client.post("login", name="Grace")
    workers = shop.workers()
    for awake in workers:
        asleep = [pid for pid in workers if pid != awake]
        with stopped(asleep):
            page = client.get()
        assert 'id="user">Grace<' in page
        assert f'id="pid">{awake}<' in page


def test_tabs_that_add_at_the_same_time_all_count(shop: Server) -> None:
    client = Client(shop.url)
    client.post("login", name="Ada")
    client.post("cart/tea")
    with ThreadPoolExecutor(8) as tabs:
        list(tabs.map(lambda _: client.submit("cart/tea"), range(40)))
    assert 'id="count-tea">41<' in client.get()


def test_a_form_without_the_token_is_refused(shop: Server) -> None:
    client = Client(shop.url)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        client.post("login", name="Mallory", csrf="")


@pytest.fixture
def subdomains(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    run = ["--app", "examples/subdomains/app.py", "run", "--port", str(port)]
    directory = {"FLASK_SESSION_DIR": str(tmp_path / "sessions")}
    server = Server([sys.executable, "-m", "flask", *run], port, directory)
    yield server
    server.stop()


def test_subdomains_share_a_session_and_localhost_does_not(
    subdomains: Server, browser: webdriver.Chrome
) -> None:
    def visits(host: str) -> str | None:
        browser.get(f"http://{host}:{subdomains.port}/")
        return text(browser, "visits")

    assert visits("one.example.localhost") == "1"
    assert visits("two.example.localhost") == "2"
    assert visits("one.example.localhost") == "3"
    assert visits("one.localhost") == "1"
    assert visits("two.localhost") == "1"
    assert visits("localhost") == "1"
