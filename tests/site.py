"""A site whose view is whatever a test hands over, and the browsers that visit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request
from werkzeug.test import Client, TestResponse

from flask_hybridsession import HybridSession, ProviderUnavailable
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.memory import MemoryProvider

Job = Callable[[], Any]


class Counting(MemoryProvider):
    """Remembers who asked what of it, and can be made unable to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.changes: list[Change] = []
        #: The calls that fail from now on.
        self.down: set[str] = set()
        #: Runs before each commit: another request that is faster.
        self.before_commit: Callable[[], None] | None = None

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.down:
            raise ProviderUnavailable(f"{call} was switched off")

    def load(self, key: str, now: float) -> Record | None:
        self._note("load")
        return super().load(key, now)

    def commit(self, key: str, change: Change, now: float) -> None:
        self._note("commit")
        faster, self.before_commit = self.before_commit, None
        if faster is not None:
            faster()
        super().commit(key, change, now)
        self.changes.append(change)

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        self._note("rename")
        super().rename(old, new, now, alias_until)

    def destroy(self, key: str) -> bool:
        self._note("destroy")
        return super().destroy(key)

    def exists(self, key: str, now: float) -> bool:
        self._note("exists")
        return super().exists(key, now)

    def new_calls(self) -> list[str]:
        """The calls since this was last asked."""
        calls, self.calls = self.calls, []
        return calls


def nothing() -> None:
    """A view that does not look at the session."""


class Visit:
    """What a browser got, and what the view's job returned."""

    def __init__(self, response: TestResponse, results: list[Any]) -> None:
        self.response = response
        self.status = response.status_code
        self.headers = response.headers
        self.result = results[0] if results else None

    @property
    def cookie(self) -> dict[str, str] | None:
        """The attributes of the one ``Set-Cookie``, names in lower case; ``value`` is the value."""
        lines = self.headers.getlist("Set-Cookie")
        assert len(lines) <= 1, "two session cookies in one response"
        if not lines:
            return None
        first, *rest = lines[0].split(";")
        name, _, value = first.partition("=")
        cookie = {"name": name, "value": value}
        for part in rest:
            attribute, _, text = part.strip().partition("=")
            cookie[attribute.lower()] = text
        return cookie

    @property
    def deletes(self) -> bool:
        cookie = self.cookie
        return cookie is not None and cookie.get("max-age") == "0" and not cookie["value"]


class Site:
    """A Flask app with sessions on a provider that counts."""

    def __init__(self, provider: Provider | None = None, testing: bool = True, **config: Any):
        self.provider: Any = Counting() if provider is None else provider
        self.app = Flask("site")
        self.app.testing = testing
        self.app.config.update(config)
        self.sessions = HybridSession(self.app, provider=self.provider)
        self.app.add_url_rule("/", "work", self._work, methods=["GET", "POST"])

    @staticmethod
    def _work() -> Any:
        result = request.environ["job"]()
        request.environ["job.results"].append(result)
        return result if isinstance(result, Response) else "ok"

    def browser(self, cookie: str | None = None) -> Browser:
        return Browser(self, cookie)

    def visit(self, job: Job = nothing, cookie: str | None = None, **options: Any) -> Visit:
        """One request with this ``Cookie`` header, if any. ``options`` are the test client's."""
        results: list[Any] = []
        environ = {"job": job, "job.results": results, **options.pop("environ", {})}
        if cookie is not None:
            environ["HTTP_COOKIE"] = cookie
        client = Client(self.app, use_cookies=False)
        path = options.pop("path", "/")
        return Visit(client.open(path, environ_overrides=environ, **options), results)

    def names(self) -> Counter[str]:
        """The calls that the provider has had."""
        return Counter(self.provider.calls)

    def records(self) -> int:
        """How many sessions are stored."""
        return int(self.provider.count(0))


class Browser:
    """Keeps the session cookie. ``copy`` is another tab: a request with the same cookie."""

    def __init__(self, site: Site, cookie: str | None = None) -> None:
        self.site = site
        self.cookie = cookie
        self.name = str(site.app.config["SESSION_COOKIE_NAME"])

    def visit(self, job: Job = nothing, **options: Any) -> Visit:
        header = None if self.cookie is None else f"{self.name}={self.cookie}"
        visit = self.site.visit(job, header, **options)
        if visit.cookie is not None:
            self.cookie = None if visit.deletes else visit.cookie["value"]
        return visit

    def do(self, job: Job) -> Any:
        """Visit, and give what the job returned."""
        return self.visit(job).result

    def copy(self) -> Browser:
        return Browser(self.site, self.cookie)
