"""What visitors get while the provider cannot answer, and what they get afterwards."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    jsonify,
    redirect,
    request,
    send_file,
    session,
    stream_with_context,
)
from flask.views import MethodView, View
from werkzeug.exceptions import Gone

from flask_hybridsession import (
    ConfigError,
    HybridSession,
    ProviderUnavailable,
    on_outage,
    provider_failed,
    session_destroyed,
)
from flask_hybridsession.core import ids
from flask_hybridsession.interface import HybridSessionInterface
from flask_hybridsession.providers.memory import MemoryProvider
from tests.providers.hybrid.tools import run
from tests.remote import RemoteProvider, until
from tests.site import Browser, Counting, Job, Site

mine: Any = session


def look() -> Any:
    return session.get("a")


def write() -> None:
    session["a"] = 2


def log_in() -> None:
    mine.login("ada")


ENDS: dict[str, Job] = {
    "destroy": lambda: mine.destroy(),
    "logout": lambda: mine.logout(),
    "logout everywhere": lambda: mine.logout(everywhere=True),
}
#: What must not seem done when nothing is saved.
CLAIMS: dict[str, Job] = {
    **ENDS,
    "clear": lambda: session.clear(),
    "regenerate": lambda: mine.regenerate(),
    "login": log_in,
    "exclusive": lambda: mine.exclusive().__enter__(),
}


@pytest.fixture
def provider() -> Iterator[RemoteProvider]:
    provider = RemoteProvider()
    yield provider
    provider.close()


@pytest.fixture
def failures() -> Iterator[list[Exception]]:
    seen: list[Exception] = []

    def note(sender: object, error: Exception) -> None:
        seen.append(error)

    with provider_failed.connected_to(note):
        yield seen


@pytest.fixture
def ended() -> Iterator[list[dict[str, Any]]]:
    """What was said about each session that was destroyed."""
    seen: list[dict[str, Any]] = []

    def note(sender: object, **details: Any) -> None:
        seen.append(details)

    with session_destroyed.connected_to(note):
        yield seen


def stored(provider: Any, policy: Any = "unavailable", **config: Any) -> Browser:
    """Who has a session, on a site with this policy."""
    site = Site(provider, testing=False, SESSION_ON_OUTAGE=policy, **config)
    browser = site.browser()
    browser.visit(lambda: (session.update(a=1), mine.login("ada")))
    assert browser.cookie
    return browser


def key_of(browser: Browser) -> str:
    assert browser.cookie is not None
    return ids.key_of(browser.cookie)


def recover(provider: RemoteProvider) -> None:
    provider.bring_back()
    until(lambda: not provider.breaker.is_open, "the breaker to let somebody through")


def trip(browser: Browser) -> None:
    """Visit until the breaker is open."""
    for _ in range(5):
        assert browser.visit(look).status == 503
    assert browser.site.provider.breaker.is_open


# -- unavailable ---------------------------------------------------------------------------------


def test_a_session_that_cannot_be_read_is_a_503(
    provider: RemoteProvider, failures: list[Exception]
) -> None:
    browser = stored(provider)
    provider.take_down()
    visit = browser.visit(look)
    assert (visit.status, visit.cookie) == (503, None)
    assert int(visit.headers["Retry-After"]) > 0
    assert [str(error) for error in failures] == ["load was refused"]
    assert browser.visit().status == 200, "a view that does not look"
    assert len(failures) == 1
    provider.bring_back()
    assert browser.do(lambda: (look(), mine.user_id, mine.ephemeral)) == (1, "ada", False)


def test_once_open_nobody_asks_the_backend(provider: RemoteProvider) -> None:
    browser = stored(provider)
    provider.take_down()
    trip(browser)
    provider.away = frozenset({"ping"})
    provider.new_calls()
    for _ in range(3):
        assert browser.visit(look).status == 503
        assert browser.visit().status == 200
    assert provider.new_calls() == []
    assert threading.current_thread() not in provider.probed_by
    recover(provider)
    assert browser.do(look) == 1


def test_a_request_waits_for_no_more_than_its_budget(provider: RemoteProvider) -> None:
    browser = stored(provider)
    provider.frozen = frozenset({"load"})
    errors: list[str] = []

    def insist() -> None:
        for _ in range(20):
            try:
                look()
            except ProviderUnavailable as error:
                errors.append(str(error))
        look()

    assert browser.visit(insist).status == 503
    assert "in time" in errors[0]
    assert all("used up" in error for error in errors[1:])
    assert not provider.breaker.is_open, "one request is one failure"


def test_a_budget_is_one_requests(provider: RemoteProvider) -> None:
    browser = stored(provider)
    given: list[float] = []

    def spend(seconds: float) -> None:
        given.append(seconds)
        time.sleep(0.002)

    def views_work() -> None:
        provider.breaker.call(spend)
        provider.breaker.call(spend)

    browser.visit(views_work)
    browser.visit(views_work)
    provider.breaker.call(spend)
    assert given[0] == given[2] == given[4] == 0.25
    assert given[1] < 0.25 > given[3]


def test_who_destroys_all_has_the_time_for_it(provider: RemoteProvider) -> None:
    """Each call has a whole budget: that they are many is no sign of trouble."""
    browser = stored(provider)
    for _ in range(20):
        browser.site.browser().visit(write)
    provider.breaker.budget = 0.005
    delayed: set[str] = set()

    def note(sender: object, key: str, **details: Any) -> None:
        delayed.add(key)

    destroy = provider.destroy

    def slowly(key: str) -> bool:
        provider.breaker.call(lambda seconds: time.sleep(0.001))
        return destroy(key)

    provider.destroy = slowly  # type: ignore[method-assign]
    with session_destroyed.connected_to(note):
        visit = browser.visit(lambda: browser.site.sessions.destroy_all())
    assert (visit.status, visit.result) == (200, 21)
    assert len(delayed) == 21


# -- ephemeral -----------------------------------------------------------------------------------


def test_an_empty_session_for_this_request(
    provider: RemoteProvider, failures: list[Exception]
) -> None:
    browser = stored(provider, "ephemeral")
    provider.take_down()
    provider.new_calls()

    def work() -> Any:
        seen = (mine.ephemeral, dict(session), mine.user_id, mine.new)
        write()
        mine.permanent = True
        mine.increment("n")
        mine.commit()
        mine.commit()
        return seen, look()

    visit = browser.visit(work)
    assert (visit.status, visit.cookie) == (200, None)
    assert visit.result == ((True, {}, None, True), 2)
    assert [str(error) for error in failures] == ["load was refused"]
    assert "Cookie" in visit.headers["Vary"]
    assert provider.new_calls() == []
    provider.bring_back()
    assert browser.do(lambda: (mine.ephemeral, look(), mine.get("n"))) == (False, 1, None)


def test_it_stays_empty_when_the_backend_is_back_within_the_request(
    provider: RemoteProvider,
) -> None:
    browser = stored(provider, "ephemeral")
    provider.take_down("load")

    def work() -> Any:
        assert mine.ephemeral
        provider.bring_back()
        write()
        mine.commit()
        return mine.ephemeral, look()

    visit = browser.visit(work)
    assert (visit.result, visit.cookie) == ((True, 2), None)
    assert browser.do(look) == 1


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("back", [False, True])
def test_nothing_seems_done_that_is_not(claim: str, back: bool, provider: RemoteProvider) -> None:
    browser = stored(provider, "ephemeral")
    provider.take_down("load")

    def work() -> None:
        assert look() is None
        if back:
            provider.bring_back()
        CLAIMS[claim]()

    visit = browser.visit(work)
    assert (visit.status, visit.cookie) == (503, None)
    provider.bring_back()
    assert browser.do(look) == (None if claim in ENDS else 1)


@pytest.mark.parametrize("claim", CLAIMS)
def test_nothing_seems_done_at_the_first_look(claim: str, provider: RemoteProvider) -> None:
    browser = stored(provider, "ephemeral")
    provider.take_down("load")
    assert browser.visit(CLAIMS[claim]).status == 503


def test_a_visitor_without_a_cookie_needs_no_backend_to_look(provider: RemoteProvider) -> None:
    site = stored(provider, "ephemeral").site
    provider.take_down()
    assert site.visit(lambda: (look(), mine.ephemeral)).result == (None, False)
    visit = site.visit(write)
    assert (visit.status, visit.cookie) == (503, None), "its session would not be there next time"


def test_a_stream_on_an_ephemeral_session_loses_nothing_unsaid(
    provider: RemoteProvider, caplog: pytest.LogCaptureFixture
) -> None:
    browser = stored(provider, "ephemeral")
    provider.take_down("load")

    def work() -> Response:
        def body() -> Iterator[str]:
            yield str(mine.ephemeral)
            session["b"] = 1

        write()
        return Response(stream_with_context(body()))

    assert browser.visit(work).response.text == "True"
    assert "not saved" not in caplog.text


# -- a function ----------------------------------------------------------------------------------


def gone() -> Any:
    abort(410)


def look_again() -> Any:
    return f"the session has {look()}"


ANSWERS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "text": (lambda: "closed", 200, "closed"),
    "tuple": (lambda: ("closed", 502, {"X-Why": "closed"}), 502, "closed"),
    "dict": (lambda: {"why": "closed"}, 200, "closed"),
    "response": (lambda: Response("closed", 504), 504, "closed"),
    "stream": (lambda: Response(iter(["clo", "sed"]), 504), 504, "closed"),
    "file": (lambda: send_file(io.BytesIO(b"closed"), mimetype="text/plain"), 200, "closed"),
    "json": (lambda: (jsonify(why="closed"), 500), 500, "closed"),
    "redirect": (lambda: redirect("/closed"), 302, "/closed"),
    "an error page": (lambda: Gone(), 410, "Gone"),
    "aborts": (gone, 410, "Gone"),
    "a word": (lambda: "unavailable", 503, "session storage"),
    "it looks at the session": (look_again, 503, "session storage"),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("fault", ["load", "commit"])
def test_a_function_answers(
    kind: str, fault: str, provider: RemoteProvider, failures: list[Exception]
) -> None:
    answer, status, text = ANSWERS[kind]
    asked: list[Exception] = []

    def policy(error: ProviderUnavailable) -> Any:
        asked.append(error)
        return answer()

    browser = stored(provider, policy)
    provider.take_down(fault)

    def work() -> Response:
        write()
        response = Response("saved!", headers={"X-Order": "saved"})
        response.set_cookie("order", "saved")
        return response

    visit = browser.visit(work)
    if kind == "it looks at the session" and fault == "commit":
        assert visit.response.text == "the session has 2"  # which it is, there
    else:
        assert visit.status == status
        assert text in visit.response.text
    assert visit.cookie is None
    assert "saved" not in visit.response.text + str(visit.headers)
    assert ("X-Why" in visit.headers) == (kind == "tuple")
    assert failures == [asked[0]]
    assert str(asked[0]) == f"{fault} was refused"
    provider.bring_back()
    assert browser.do(look) == 1


def test_a_function_that_is_async(provider: RemoteProvider) -> None:
    async def policy(error: ProviderUnavailable) -> Any:
        return "closed", 502

    browser = stored(provider, policy)
    provider.take_down("load")
    assert browser.visit(look).status == 502


def test_a_function_may_choose_ephemeral_by_the_request(provider: RemoteProvider) -> None:
    def policy(error: ProviderUnavailable) -> str:
        return "ephemeral" if request.args.get("q") else "unavailable"

    browser = stored(provider, policy)
    provider.take_down()
    assert browser.visit(look).status == 503
    visit = browser.visit(lambda: mine.ephemeral, path="/?q=1")
    assert (visit.status, visit.result, visit.cookie) == (200, True, None)
    provider.take_down("commit")
    assert browser.visit(write, path="/?q=1").status == 503, "the view's answer claims it is stored"


def test_a_function_is_asked_when_a_destroy_fails(provider: RemoteProvider) -> None:
    browser = stored(provider, lambda error: ("try later", 502))
    provider.take_down("destroy")
    visit = browser.visit(lambda: (look(), mine.logout()))
    assert (visit.status, visit.response.text, visit.cookie) == (502, "try later", None)


def test_what_is_unseen_asks_no_policy(provider: RemoteProvider) -> None:
    asked: list[Exception] = []

    def policy(error: ProviderUnavailable) -> str:
        asked.append(error)
        return "closed"

    browser = stored(provider, policy, SESSION_TOUCH_EVERY=0)
    browser.visit(lambda: setattr(session, "permanent", True))
    provider.take_down()
    visit = browser.visit()
    assert (visit.status, visit.response.text, asked) == (200, "ok", [])


def test_a_function_that_fails_is_an_error(
    provider: RemoteProvider, caplog: pytest.LogCaptureFixture
) -> None:
    def policy(error: ProviderUnavailable) -> str:
        raise ZeroDivisionError

    browser = stored(provider, policy)
    provider.take_down("load")
    with caplog.at_level(logging.CRITICAL):
        assert browser.visit(look).status == 500


# -- by route ------------------------------------------------------------------------------------


def passes(view: Any) -> Any:
    @wraps(view)
    def wrapped(**options: Any) -> Any:
        return view(**options)

    return wrapped


def shop(provider: Any, **config: Any) -> Flask:
    app = Flask("shop")
    app.config.update(config)
    HybridSession(app, provider=provider)

    @app.get("/")
    def index() -> str:
        return f"a is {look()}"

    @app.get("/below")
    @on_outage("ephemeral")
    def below() -> str:
        return f"a is {look()}"

    @on_outage("ephemeral")
    @app.get("/above")
    def above() -> str:
        return f"a is {look()}"

    @app.get("/wrapped")
    @passes
    @on_outage("ephemeral")
    def wrapped() -> str:
        return f"a is {look()}"

    @app.get("/async")
    @on_outage("ephemeral")
    async def waits() -> str:
        return f"a is {look()}"

    @app.get("/function")
    @on_outage(lambda error: ("closed", 502))
    def function() -> str:
        return f"a is {look()}"

    @app.get("/strict")
    @on_outage("unavailable")
    def strict() -> str:
        return f"a is {look()}"

    class Shelf(View):
        decorators = (on_outage("ephemeral"),)

        def dispatch_request(self) -> str:
            return f"a is {look()}"

    class Box(MethodView):
        decorators = (on_outage("ephemeral"),)

        def get(self) -> str:
            return f"a is {look()}"

    class Drawer(MethodView):
        @on_outage("ephemeral")
        def get(self) -> str:
            return f"a is {look()}"

        def post(self) -> str:
            return f"a is {look()}"

    class Safe(View):
        decorators = (on_outage("ephemeral"),)

        @on_outage("unavailable")
        def dispatch_request(self) -> str:
            return f"a is {look()}"

    app.add_url_rule("/drawer", view_func=Drawer.as_view("drawer"))
    app.add_url_rule("/safe", view_func=Safe.as_view("safe"))
    app.add_url_rule("/view", view_func=Shelf.as_view("shelf"))
    app.add_url_rule("/method", view_func=Box.as_view("box"))
    part = Blueprint("part", __name__, url_prefix="/part")

    @part.get("/")
    @on_outage("ephemeral")
    def in_a_part() -> str:
        return f"a is {look()}"

    app.register_blueprint(part)

    @app.get("/write")
    def put() -> str:
        write()
        return "written"

    @app.errorhandler(404)
    def missing(error: Exception) -> tuple[str, int]:
        return f"a is {look()}", 404

    return app


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/", 503, "session storage"),
        ("/strict", 503, "session storage"),
        *((f"/{name}", 200, "a is None") for name in ("below", "above", "wrapped", "async")),
        *((f"/{name}", 200, "a is None") for name in ("view", "method", "drawer", "part/")),
        ("/safe", 503, "session storage"),
        ("/function", 502, "closed"),
        ("/nowhere", 503, "session storage"),
    ],
)
def test_a_view_has_its_own_policy(
    path: str, status: int, text: str, provider: RemoteProvider
) -> None:
    client = shop(provider).test_client()
    client.get("/write")
    provider.take_down()
    answer = client.get(path)
    assert answer.status_code == status
    assert text in answer.text
    provider.bring_back()
    assert "a is 2" in client.get(path).text


@pytest.mark.parametrize("policy", ["unavailable", "ephemeral", lambda error: "closed"])
def test_without_a_request_there_is_no_view_to_ask(policy: Any, provider: RemoteProvider) -> None:
    client = shop(provider, SESSION_ON_OUTAGE=policy).test_client()
    client.get("/write")
    provider.take_down()
    with pytest.raises(ProviderUnavailable), client.session_transaction() as stored:
        stored["a"] = 7
    provider.bring_back()
    assert client.get("/").text == "a is 2"


def test_a_policy_of_one_method(provider: RemoteProvider) -> None:
    client = shop(provider).test_client()
    client.get("/write")
    provider.take_down()
    statuses = [getattr(client, how)("/drawer").status_code for how in ("get", "head", "post")]
    assert statuses == [200, 200, 503]


def test_a_view_may_be_stricter_than_the_app(provider: RemoteProvider) -> None:
    client = shop(provider, SESSION_ON_OUTAGE="ephemeral").test_client()
    client.get("/write")
    provider.take_down()
    assert client.get("/").text == "a is None"
    assert client.get("/strict").status_code == 503
    assert client.get("/nowhere").text == "a is None"


def one_too_many(error: Exception, more: object) -> str:
    return "unavailable"


@pytest.mark.parametrize(
    "policy", ["", "Ephemeral", "503", None, 503, True, {}, ["ephemeral"], lambda: "", one_too_many]
)
def test_what_is_no_policy(policy: Any) -> None:
    with pytest.raises(ConfigError, match="on_outage must be"):
        on_outage(policy)
    with pytest.raises(ConfigError, match="SESSION_ON_OUTAGE must be"):
        Site(SESSION_ON_OUTAGE=policy)


@pytest.mark.parametrize("view", [MethodView, None, "view", "".join])
def test_what_is_no_view(view: Any) -> None:
    with pytest.raises(TypeError, match="on_outage decorates a"):
        on_outage("ephemeral")(view)


def test_the_decorator_gives_the_view_back() -> None:
    def view() -> None:
        """Nothing."""

    assert on_outage("ephemeral")(view) is view


# -- what was to end -----------------------------------------------------------------------------

PROVIDERS: dict[str, Callable[[], Any]] = {"remote": RemoteProvider, "local": Counting}


@pytest.fixture(params=PROVIDERS)
def any_provider(request: pytest.FixtureRequest) -> Iterator[Any]:
    provider = PROVIDERS[request.param]()
    yield provider
    provider.close()


def fail(provider: Any, *calls: str) -> None:
    if isinstance(provider, RemoteProvider):
        provider.away = frozenset(calls)
    else:
        provider.down = set(calls)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("fault", ["load", "destroy", "keys_of"])
def test_what_was_to_end_is_served_to_nobody(
    end: str, fault: str, any_provider: Any, ended: list[dict[str, Any]]
) -> None:
    browser = stored(any_provider)
    if fault == "keys_of" and (end != "logout everywhere" or isinstance(any_provider, Counting)):
        return
    fail(any_provider, fault)
    visit = browser.visit(ENDS[end])
    assert (visit.status, visit.cookie) == (503, None)
    fail(any_provider, "destroy")
    for _ in range(2):
        assert browser.visit(look).status == 503
        assert browser.visit(write).status == 503
    assert ended == []
    fail(any_provider)
    if isinstance(any_provider, RemoteProvider):
        recover(any_provider)
    assert browser.do(lambda: (look(), mine.user_id)) == (None, None)
    assert [each["key"] for each in ended] == [key_of(browser)]
    assert any_provider.load(key_of(browser), time.time()) is None


OPERATORS: dict[str, Callable[[HybridSession, str], Any]] = {
    "destroy": lambda sessions, key: sessions.destroy(key),
    "destroy_user": lambda sessions, key: sessions.destroy_user("ada"),
    "destroy_all": lambda sessions, key: sessions.destroy_all(),
}


@pytest.mark.parametrize("call", OPERATORS)
def test_what_an_operator_ends_is_served_to_nobody(
    call: str, any_provider: Any, ended: list[dict[str, Any]]
) -> None:
    browser = stored(any_provider)
    second = browser.site.browser()
    second.visit(log_in)
    fail(any_provider, "destroy")
    with pytest.raises(ProviderUnavailable):
        OPERATORS[call](browser.site.sessions, key_of(browser))
    assert browser.visit(look).status == 503
    assert second.visit(look).status == (200 if call == "destroy" else 503)
    assert ended == []
    fail(any_provider)
    assert browser.do(look) is None
    assert second.do(lambda: mine.user_id) == ("ada" if call == "destroy" else None)
    assert len(ended) == (1 if call == "destroy" else 2)
    assert ended[0]["user_id"] == (None if call in ("destroy", "destroy_all") else "ada")


def test_a_session_that_was_to_end_is_on_no_list(any_provider: Any) -> None:
    browser = stored(any_provider)
    sessions = browser.site.sessions
    assert [handle.key for handle in sessions.of_user("ada")] == [key_of(browser)]
    fail(any_provider, "destroy")
    assert browser.visit(ENDS["logout"]).status == 503
    with pytest.raises(ProviderUnavailable):
        sessions.of_user("ada")
    fail(any_provider)
    assert sessions.of_user("ada") == []


def test_an_exclusive_login_that_cannot_end_the_others(any_provider: Any) -> None:
    browser = stored(any_provider)
    others = [browser.copy()]
    for _ in range(3):
        other = browser.site.browser()
        other.visit(log_in)
        others.append(other)
    browser = browser.site.browser()
    fail(any_provider, "destroy")
    visit = browser.visit(lambda: mine.login("ada", exclusive=True))
    assert visit.status == 503
    assert {other.visit(look).status for other in others} == {503}
    fail(any_provider)
    if isinstance(any_provider, RemoteProvider):
        recover(any_provider)
    assert {other.do(lambda: mine.user_id) for other in others} == {None}
    assert browser.do(lambda: mine.user_id) == "ada", "it was stored, and has its cookie"


def test_a_destroy_whose_answer_was_lost(
    provider: RemoteProvider, ended: list[dict[str, Any]]
) -> None:
    browser = stored(provider)
    provider.deaf = frozenset({"destroy"})
    assert browser.visit(ENDS["logout"]).status == 503
    provider.bring_back()
    assert browser.do(look) is None
    assert ended == [], "who did it is not known"
    provider.new_calls()
    browser.visit(look)
    assert provider.new_calls() == ["load"], "it is settled"


def test_on_recovery_they_are_destroyed_first(
    provider: RemoteProvider, ended: list[dict[str, Any]]
) -> None:
    browsers = [stored(provider)]
    site = browsers[0].site
    browsers += [site.browser() for _ in range(4)]
    for browser in browsers[1:]:
        browser.visit(write)
    provider.take_down()
    for browser in browsers[:4]:
        assert browser.visit(ENDS["logout"]).status == 503
    trip(browsers[4])
    provider.new_calls()
    provider.take_down("destroy")
    until(lambda: "ping" in provider.calls, "a probe that is answered")
    until(lambda: provider.calls.count("ping") > 1, "a recovery that fails")
    assert provider.breaker.is_open
    assert set(provider.new_calls()) == {"ping"}
    recover(provider)
    calls = provider.new_calls()
    assert calls[calls.index("destroy") :] == ["destroy"] * 4
    assert {each["key"] for each in ended} == set(map(key_of, browsers[:4]))
    assert browsers[4].do(look) == 2
    for browser in browsers[:4]:
        assert browser.do(look) is None
    assert len(ended) == 4


def test_a_backend_that_refuses_to_destroy_serves_the_others(
    provider: RemoteProvider, ended: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    browser = stored(provider)
    other = browser.site.browser()
    other.visit(write)
    provider.take_down()
    assert browser.visit(ENDS["logout"]).status == 503
    trip(other)
    provider.refused = frozenset({"destroy"})
    with caplog.at_level(logging.CRITICAL, logger="flask_hybridsession"):
        provider.away = frozenset()
        until(lambda: not provider.breaker.is_open)
    assert other.do(look) == 2
    assert browser.visit(look).status == 503
    provider.bring_back()
    assert browser.do(look) is None
    assert len(ended) == 1


def test_the_clockwork_rests_while_nobody_answers(provider: RemoteProvider) -> None:
    """Its own errors would make it pause for longer than the outage lasts."""
    browser = stored(provider)
    interface: Any = browser.site.app.session_interface
    provider.take_down()
    trip(browser)
    assert interface.manager.sweep(time.time(), 100) == 0
    assert interface.manager.next_deadline() is None
    with pytest.raises(ProviderUnavailable):
        browser.site.sessions.purge()
    recover(provider)
    assert interface.manager.sweep(time.time() + 1e9, 100) == 1
    assert browser.do(look) is None


def test_many_who_come_with_a_denied_id_at_once(
    provider: RemoteProvider, ended: list[dict[str, Any]]
) -> None:
    browser = stored(provider)
    provider.take_down("destroy")
    assert browser.visit(ENDS["logout"]).status == 503
    with ThreadPoolExecutor(8) as pool:
        refused = list(pool.map(lambda _: browser.copy().visit(look).status, range(40)))
        assert set(refused) == {503}
        recover(provider)
        visits = list(pool.map(lambda _: browser.copy().visit(look), range(80)))
    assert {visit.result for visit in visits} == {None}
    assert {visit.status for visit in visits} <= {200, 503}
    assert browser.do(look) is None
    assert len(ended) == 1


def test_a_forked_worker_denies_it_too(provider: RemoteProvider) -> None:
    browser = stored(provider)
    provider.take_down("destroy")
    assert browser.visit(ENDS["logout"]).status == 503

    def child() -> None:
        assert browser.visit(look).status == 503
        recover(provider)
        assert browser.do(look) is None

    run(child)


def test_forged_ids_that_log_out_are_not_remembered_without_end(provider: RemoteProvider) -> None:
    browser = stored(provider)
    interface: Any = browser.site.app.session_interface
    assert isinstance(interface, HybridSessionInterface)
    provider.take_down()
    site = browser.site
    for cookie in ("junk", "x" * 43 + "!", ""):
        site.visit(ENDS["logout"], f"session={cookie}")
    assert not interface.manager._denied


# -- each row with the breaker -------------------------------------------------------------------


def test_a_rename_whose_answer_was_lost_keeps_the_data(provider: RemoteProvider) -> None:
    browser = stored(provider)
    provider.deaf = frozenset({"rename"})
    old = key_of(browser)
    visit = browser.visit(lambda: mine.regenerate())
    assert (visit.status, visit.cookie) == (503, None)
    keys = provider.keys(0)
    assert len(keys) == 1
    assert keys[0] != old, "the new one is there, with everything"
    record = provider.load(keys[0], 0)
    assert record is not None
    assert "a" in record.values


def test_a_damaged_value_is_no_outage(provider: RemoteProvider) -> None:
    browser = stored(provider, "ephemeral")
    record = MemoryProvider.load(provider, key_of(browser), 0)
    assert record is not None
    provider._store(record._replace(values={"a": b"\xc1"}))
    for _ in range(10):
        visit = browser.visit(lambda: (look(), mine.ephemeral))
        assert (visit.status, visit.result) == (200, (None, False))
    assert not provider.breaker.is_open


def test_the_apps_own_error_handler_still_wins(provider: RemoteProvider) -> None:
    site = Site(provider)

    @site.app.errorhandler(ProviderUnavailable)
    def handle(error: ProviderUnavailable) -> tuple[str, int]:
        return "my own page", 503

    browser = site.browser()
    browser.visit(write)
    provider.take_down("load")
    assert browser.visit(look).response.text == "my own page"
