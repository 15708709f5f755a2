"""What Flask's users do with a session, as they do it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    copy_current_request_context,
    redirect,
    render_template_string,
    request,
    stream_with_context,
)
from flask import session as flask_session
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client
from werkzeug.wrappers import Response as WerkzeugResponse

from flask_hybridsession import ConfigError, HybridSession
from flask_hybridsession.core.session import Session
from tests.site import Counting, Site, nothing

session = cast(Session, flask_session)


def everything() -> dict[str, Any]:
    return dict(session)


def late(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The errors about what came too late to be saved."""
    records = [record for record in caplog.records if record.name == "flask_hybridsession"]
    return [record.getMessage() for record in records if record.levelno >= logging.ERROR]


# -- apps ----------------------------------------------------------------------------------------


def counter(sessions: HybridSession | None = None, **config: Any) -> Flask:
    app = Flask("counter")
    app.testing = True
    app.config.update({"SESSION_TYPE": "memory", **config})
    if sessions is None:
        HybridSession(app)
    else:
        sessions.init_app(app)

    @app.get("/")
    def count() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    return app


def test_factories_with_one_extension_object() -> None:
    sessions = HybridSession()
    one, two = counter(sessions), counter(sessions)
    client_one, client_two = one.test_client(), two.test_client()
    assert [client_one.get("/").text for _ in range(2)] == ["1", "2"]
    assert client_two.get("/").text == "1"
    cookie = client_one.get_cookie("session")
    assert cookie is not None
    client_two.set_cookie("session", cookie.value)
    assert client_two.get("/").text == "1", "the apps share no sessions"
    for app in (one, two):
        with app.app_context():
            assert sessions.count() == (1 if app is one else 2)


def test_apps_with_one_provider_share_their_sessions() -> None:
    provider = Counting()
    one = Flask("one")
    HybridSession(one, provider=provider)
    two = Flask("two")
    HybridSession(two, provider=provider)
    for app in (one, two):
        app.add_url_rule("/", view_func=lambda: str(session.increment("n")), endpoint="count")
    first, second = one.test_client(), two.test_client()
    assert first.get("/").text == "1"
    second.set_cookie("session", first.get_cookie("session").value)  # type: ignore[union-attr]
    assert second.get("/").text == "2"


def test_a_second_extension_for_one_app_is_an_error() -> None:
    app = counter()
    with pytest.raises(ConfigError, match="has a HybridSession already"):
        HybridSession(app)


def test_test_client_and_session_transaction() -> None:
    client = counter().test_client()
    with client.session_transaction() as transaction:
        transaction["n"] = 41
    assert client.get("/").text == "42"
    with client.session_transaction() as transaction:
        assert dict(transaction) == {"n": 42}
        transaction.clear()
    assert client.get_cookie("session") is None
    with client:
        client.get("/")
        assert session["n"] == 1, "within the block the request's session can be looked at"
    with client.session_transaction() as transaction:
        transaction["list"] = [1]
    with client.session_transaction() as transaction:
        transaction["list"].append(2)
    with client.session_transaction() as transaction:
        assert transaction["list"] == [1, 2]


def test_test_request_context() -> None:
    app = counter()
    with app.test_request_context("/"):
        session["a"] = 1
        assert session["a"] == 1
        app.preprocess_request()
        response = app.process_response(Response("x"))
        assert "session=" in response.headers["Set-Cookie"]


def test_blueprints_and_redirects() -> None:
    app = counter()
    shop = Blueprint("shop", __name__, url_prefix="/shop")

    @shop.post("/cart/<item>")
    def add(item: str) -> WerkzeugResponse:
        session.setdefault("cart", []).append(item)
        return redirect("/shop/cart")

    @shop.get("/cart")
    def cart() -> str:
        return ",".join(session["cart"])

    app.register_blueprint(shop)
    client = app.test_client()
    client.post("/shop/cart/tea")
    assert client.post("/shop/cart/jam", follow_redirects=True).text == "tea,jam"


@pytest.mark.parametrize("config", [{}, {"APPLICATION_ROOT": "/app"}, {"SESSION_COOKIE_PATH": "/"}])
def test_an_app_in_a_subdirectory(config: dict[str, Any]) -> None:
    client = Client(DispatcherMiddleware(Flask("root"), {"/app": counter(**config)}))
    assert [client.get("/app/").text for _ in range(3)] == ["1", "2", "3"]
    assert client.get_cookie("session", path=config.get("APPLICATION_ROOT", "/")) is not None


def test_two_apps_side_by_side_by_the_path_of_the_cookie() -> None:
    apps = {f"/{name}": counter(SESSION_COOKIE_PATH=f"/{name}") for name in ("a", "b")}
    client = Client(DispatcherMiddleware(Flask("root"), apps))
    assert [client.get(path).text for path in ("/a/", "/b/", "/a/", "/b/")] == ["1", "1", "2", "2"]


# -- around the view -----------------------------------------------------------------------------


def test_before_request_makes_sessions_permanent() -> None:
    site = Site()

    @site.app.before_request
    def permanent() -> None:
        session.permanent = True

    browser = site.browser()
    cookie = browser.visit(lambda: session.update(a=1)).cookie
    assert cookie is not None
    assert cookie["max-age"] == str(31 * 86_400)
    site.provider.new_calls()
    assert browser.visit().cookie is None
    assert site.provider.new_calls() == ["load"], "the same value again is no write"


def test_after_request_writes_are_saved() -> None:
    site = Site()

    @site.app.after_request
    def count(response: Response) -> Response:
        session["visits"] = session.get("visits", 0) + 1
        return response

    browser = site.browser()
    for _ in range(3):
        browser.visit()
    assert browser.do(lambda: session["visits"]) == 3


def test_error_handlers_and_failing_views_are_saved_as_in_flask() -> None:
    site = Site(testing=False)

    @site.app.errorhandler(404)
    @site.app.errorhandler(500)
    def failed(error: Exception) -> tuple[str, int]:
        session["errors"] = session.get("errors", 0) + 1
        return "sorry", int(getattr(error, "code", 500))

    def oops() -> None:
        session["before"] = 1
        raise ValueError("oops")

    browser = site.browser()
    assert browser.visit(oops).status == 500
    assert browser.visit(lambda: abort(404)).status == 404
    assert browser.visit(path="/missing").status == 404
    assert browser.do(everything) == {"before": 1, "errors": 3}


def test_teardown_writes_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    jobs: list[Any] = []

    @site.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        if jobs:
            jobs.pop()()

    browser = site.browser()
    browser.visit(lambda: session.update(a=1, b=[1]))
    for job, name in [
        (lambda: session.update(late=1), "session['late']"),
        (lambda: session.pop("a"), "session['a']"),
        (lambda: session.clear(), "cleared"),
    ]:
        for view in (nothing, lambda: session.get("a")):
            caplog.clear()
            jobs.append(job)
            browser.visit(view)
            assert len(late(caplog)) == 1
            assert name in late(caplog)[0]
            assert "not saved" in late(caplog)[0]
    jobs.append(lambda: session.get("a"))
    caplog.clear()
    browser.visit()
    assert late(caplog) == []
    assert browser.do(everything) == {"a": 1, "b": [1]}


def test_a_teardown_may_commit(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()

    @site.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        if "n" in session:
            session["n"] += 1
            session.commit()

    browser = site.browser()
    browser.visit(lambda: session.update(n=1, other=1))
    browser.visit(lambda: session.update(other=2))
    assert browser.do(everything) == {"n": 3, "other": 2}


def test_templates_use_the_session() -> None:
    browser = Site().browser()
    browser.visit(lambda: session.update(cart=["tea", "jam"], name="<iris>"))
    page = (
        "{{ session.name }} {{ session['cart']|length }} {{ 'cart' in session }} {{ session.nope }}"
        "{% for key, value in session.items() %}{{ key }};{% endfor %}"
    )
    assert browser.do(lambda: render_template_string(page)) == "&lt;iris&gt; 2 True cart;name;"


def test_a_template_without_the_session_does_not_look_at_it() -> None:
    site = Site()
    browser = site.browser()
    browser.visit(lambda: session.update(a=1))
    site.provider.new_calls()
    visit = browser.visit(lambda: render_template_string("hello {{ request.path }}"))
    assert site.provider.new_calls() == []
    assert "Vary" not in visit.headers


def test_async_views() -> None:
    app = counter()

    async def later() -> str:
        session["n"] = session.get("n", 0) + 10
        session.setdefault("list", []).append(session["n"])
        return str(session["list"])

    app.add_url_rule("/later", view_func=later)
    client = app.test_client()
    assert client.get("/later").text == "[10]"
    assert client.get("/later").text == "[10, 20]"
    assert client.get("/").text == "21"


def test_copy_current_request_context(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    go, threads = threading.Event(), []

    def work() -> str:
        @copy_current_request_context
        def job() -> None:
            go.wait(30)
            seen.append((session["a"], request.path))
            session["late"] = 1

        threads.append(threading.Thread(target=job))
        threads[0].start()
        return str(session["a"])

    browser = Site().browser()
    browser.visit(lambda: session.update(a=1))
    browser.visit(work)
    go.set()
    threads[0].join()
    assert seen == [(1, "/")]
    assert ["session['late']" in text for text in late(caplog)] == [True]
    assert browser.do(everything) == {"a": 1}


# -- streams -------------------------------------------------------------------------------------


def stream(site: Site, cookie: str | None, before: Any, within: Any) -> tuple[str, Any]:
    """A request whose view does ``before`` and whose stream does ``within``; its text."""

    def work() -> Response:
        before()

        def body() -> Iterator[str]:
            yield "begin "
            yield str(within())
            yield " end"

        return Response(stream_with_context(body()))

    visit = site.visit(work, f"session={cookie}", buffered=True)
    return visit.response.text, visit


LOOKS = {"view looks": lambda: session.get("a"), "view does not look": nothing}


@pytest.fixture
def streaming() -> tuple[Site, str]:
    site = Site()
    browser = site.browser()
    browser.visit(lambda: session.update(a=1, list=[1], flag=True))
    return site, cast(str, browser.cookie)


@pytest.mark.parametrize("look", LOOKS)
def test_a_stream_reads(
    streaming: tuple[Site, str], look: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, visit = stream(*streaming, LOOKS[look], lambda: (session["a"], session["list"]))
    assert text == "begin (1, [1]) end"
    assert visit.cookie is None
    assert late(caplog) == []


@pytest.mark.parametrize(
    ("within", "named"),
    [
        (lambda: session.update(new=2), "session['new']"),
        (lambda: session.pop("a"), "session['a']"),
        (lambda: session["list"].append(2), "session['list']"),
        (lambda: session.increment("n"), "session['n']"),
        (lambda: session.clear(), "cleared"),
    ],
    ids=["write", "delete", "nested", "increment", "clear"],
)
@pytest.mark.parametrize("before", [*LOOKS, "view writes"])
def test_what_a_stream_changes_is_reported(
    streaming: tuple[Site, str],
    before: str,
    within: Any,
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site, cookie = streaming
    view = LOOKS.get(before, lambda: session.update(saved=1))
    text, _ = stream(site, cookie, view, within)
    assert text.endswith(" end")
    assert len(late(caplog)) == 1
    assert named in late(caplog)[0]
    assert "session.commit()" in late(caplog)[0]
    after = site.browser(cookie).do(everything)
    saved = {"saved": 1} if before == "view writes" else {}
    assert after == {"a": 1, "list": [1], "flag": True, **saved}


@pytest.mark.parametrize(
    ("within", "after"),
    [
        (lambda: session.update(new=2), {"new": 2}),
        (lambda: session["list"].append(2), {"list": [1, 2]}),
        (lambda: session.increment("a"), {"a": 2}),
        (lambda: session.update(flag=False), {"flag": False}),
    ],
    ids=["write", "nested", "increment", "overwrite"],
)
@pytest.mark.parametrize("before", [*LOOKS, "view writes"])
def test_what_a_stream_commits_is_saved_and_not_reported(
    streaming: tuple[Site, str],
    before: str,
    within: Any,
    after: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    site, cookie = streaming
    view = LOOKS.get(before, lambda: session.update(saved=1))
    stream(site, cookie, view, lambda: (within(), session.commit()))
    saved = {"saved": 1} if before == "view writes" else {}
    expected = {"a": 1, "list": [1], "flag": True, **saved, **after}
    assert site.browser(cookie).do(everything) == expected
    assert late(caplog) == []


def test_a_stream_that_begins_a_session_is_told_that_there_is_no_cookie(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    stream(site, None, nothing, lambda: (session.update(a=1), session.commit()))
    assert site.records() == 0
    assert any("cannot be saved" in text for text in late(caplog))


def test_a_stream_that_makes_a_value_bad_is_not_cut_off(
    streaming: tuple[Site, str], caplog: pytest.LogCaptureFixture
) -> None:
    text, _ = stream(*streaming, LOOKS["view looks"], lambda: session["list"].append(object()))
    assert text == "begin None end"
    assert any("session['list']" in error for error in late(caplog))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("read", ["all", "a part", "nothing"])
def test_a_streams_body_is_closed(method: str, read: str) -> None:
    closed: list[bool] = []

    class Body:
        def __init__(self) -> None:
            self.left = [b"a", b"b"]

        def __iter__(self) -> Body:
            return self

        def __next__(self) -> bytes:
            if not self.left:
                raise StopIteration
            return self.left.pop()

        def close(self) -> None:
            closed.append(True)

    def work() -> Response:
        session.get("a")
        return Response(Body())  # type: ignore[arg-type]

    site = Site()
    visit = site.visit(work, method=method)
    if read == "all":
        assert visit.response.data == (b"" if method == "HEAD" else b"ba")
    elif read == "a part":
        next(visit.response.iter_encoded(), None)
    visit.response.close()
    assert closed


def test_the_body_of_a_stream_is_the_views_own_when_it_did_not_look() -> None:
    visit = Site().visit(lambda: Response(iter(["a", "b"])))
    assert visit.response.text == "ab"
