"""Whoever logs in, by whatever code: the id of before is worth nothing, and nobody inherits."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from flask import Flask, Response, flash, get_flashed_messages, request
from flask_login import (
    FlaskLoginClient,
    LoginManager,
    UserMixin,
    confirm_login,
    current_user,
    login_user,
    logout_user,
)
from werkzeug.test import TestResponse

from flask_hybridsession import (
    ConfigError,
    Handle,
    HybridSession,
    ProviderUnavailable,
    flash_value,
    get_flash,
    session,
    session_renamed,
)
from flask_hybridsession.core.provider import Provider, Users
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.testing import FakeClock, fake_clock  # noqa: F401
from tests.everywhere import anywhere, app_with  # noqa: F401
from tests.remote import RemoteProvider


class User(UserMixin):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self.id = name


def login(how: str, name: str) -> None:
    """Log in as apps do."""
    if how == "login_user":
        login_user(User(name))
    elif how == "remember":
        login_user(User(name), remember=True)
    elif how == "user_id":
        session["user_id"] = name
    else:
        session.login(name)


def site(provider: Provider | str = "memory", flask_login: bool = True, **config: Any) -> Flask:
    """An app where one can log in in all ways. ``/do`` is what ``DO`` says."""
    app = app_with(provider, **config)  # type: ignore[arg-type]
    if flask_login:
        manager = LoginManager(app)
        manager.user_loader(User)

    @app.post("/collect")
    def collect() -> dict[str, Any]:
        session.update(request.form)
        return {}

    @app.post("/login/<how>/<name>")
    def enter(how: str, name: str) -> dict[str, Any]:
        session.update(request.form)
        login(how, name)
        return dict(session)

    @app.post("/logout")
    def leave() -> dict[str, Any]:
        logout_user()
        return dict(session)

    @app.get("/who")
    def who() -> dict[str, Any]:
        there = {name: session[name] for name in session if name not in ("_id", "_fresh")}
        user = current_user.get_id() if flask_login else None
        return {"there": there, "user_id": session.user_id, "current": user}

    @app.route("/do", methods=["GET", "POST"])
    def do() -> Any:
        done = app.config["DO"]()
        return done if isinstance(done, Response) else {"done": done}

    return app


def sid_of(response: TestResponse) -> str | None:
    """The id that the response sets; an empty one: it deletes the cookie."""
    lines = response.headers.getlist("Set-Cookie")
    found = [line.split(";")[0].split("=", 1)[1] for line in lines if line.startswith("session=")]
    assert len(found) <= 1
    return found[0] if found else None


class Visitor:
    """A browser that keeps its cookies, the session's in the open."""

    def __init__(self, app: Flask, sid: str | None = None) -> None:
        self.client = app.test_client()
        if sid is not None:
            self.client.set_cookie("session", sid)

    @property
    def sid(self) -> str | None:
        cookie = self.client.get_cookie("session")
        return None if cookie is None else cookie.value

    def post(self, path: str, **data: Any) -> TestResponse:
        response = self.client.post(path, data=data)
        assert response.status_code == 200, response.text
        return response

    def who(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/who").json
        return found


NOBODY = {"there": {}, "user_id": None, "current": None}
WAYS = ["login_user", "remember", "user_id", "session.login"]


@pytest.mark.parametrize("how", WAYS)
def test_a_planted_id_is_nobody(anywhere: Provider, how: str) -> None:  # noqa: F811
    app = site(anywhere)
    attacker = Visitor(app)
    attacker.post("/collect", cart="planted")
    victim = Visitor(app, attacker.sid)
    victim.post(f"/login/{how}/ada")
    assert victim.sid != attacker.sid
    assert attacker.who() == NOBODY
    assert attacker.sid is not None, "and its cookie is left alone"
    found = victim.who()
    assert found["there"]["cart"] == "planted", "what a visitor collected stays"
    assert found["user_id"] == (None if how == "user_id" else "ada")
    assert found["current"] == ("ada" if how in ("login_user", "remember") else None)


@pytest.mark.parametrize("between", [None, "/logout"])
@pytest.mark.parametrize("how", ["login_user", "remember", "session.login"])
def test_the_next_user_sees_nothing_of_the_one_before(
    anywhere: Provider,  # noqa: F811
    how: str,
    between: str | None,
) -> None:
    app = site(anywhere)
    visitor = Visitor(app)
    visitor.post(f"/login/{how}/alice", secret="alice's")
    alice = visitor.sid
    assert visitor.who()["there"]["secret"] == "alice's"
    if between is not None and how != "session.login":
        visitor.post(between)
        assert visitor.who()["user_id"] is None
    seen = visitor.post(f"/login/{how}/bob", mine="bob's").json
    assert "secret" not in seen
    assert seen["mine"] == "bob's"
    found = visitor.who()
    assert found["user_id"] == "bob"
    assert "secret" not in found["there"]
    assert found["there"]["mine"] == "bob's"
    assert Visitor(app, alice).who() == NOBODY
    if isinstance(anywhere, Users):
        sessions: HybridSession = app.extensions["hybridsession"]
        assert sessions.of_user("alice") == []
        assert len(sessions.of_user("bob")) == 1


@pytest.mark.parametrize("between", [None, "/logout"])
@pytest.mark.parametrize("how", ["login_user", "session.login"])
def test_the_same_user_keeps_his_values(how: str, between: str | None) -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post(f"/login/{how}/alice", cart="tea", csrf_token="hers")
    before = visitor.sid
    if between is not None and how == "login_user":
        visitor.post(between)
    visitor.post(f"/login/{how}/alice")
    nothing_new = how == "login_user" and between is None  # some apps call it in each request
    assert (visitor.sid == before) == nothing_new
    assert visitor.who()["there"]["cart"] == "tea"
    assert visitor.who()["there"]["csrf_token"] == "hers"


# -- Flask-Login -----------------------------------------------------------------------------------


def handles(app: Flask, user: Any) -> list[Handle]:
    sessions: HybridSession = app.extensions["hybridsession"]
    return sessions.of_user(user)


def test_flask_logins_user_is_ours() -> None:
    app = site()
    visitors = [Visitor(app), Visitor(app)]
    for visitor in visitors:
        visitor.post("/login/login_user/7")
    sessions: HybridSession = app.extensions["hybridsession"]
    for user in ("7", 7, User("7")):
        assert len(handles(app, user)) == 2
    assert handles(app, "8") == []
    assert sessions.destroy_user(7) == 2
    assert [visitor.who() for visitor in visitors] == [NOBODY, NOBODY]


def test_a_login_of_ours_is_the_same_user_there() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/login_user/7", cart="tea")
    app.config["DO"] = lambda: (session.login(7), session.user_id)[1]
    assert visitor.client.post("/do").json == {"done": "7"}
    assert visitor.who()["there"]["cart"] == "tea"
    app.config["DO"] = lambda: (session.login(User("7")), session.user_id)[1]
    assert visitor.client.post("/do").json == {"done": "7"}
    assert len(handles(app, 7)) == 1


def test_without_flask_login_ids_keep_their_types() -> None:
    app = site(flask_login=False)
    visitor = Visitor(app)
    app.config["DO"] = lambda: (session.login(7), session.user_id)[1]
    assert visitor.client.post("/do").json == {"done": 7}
    assert len(handles(app, 7)) == 1
    assert handles(app, "7") == []


def test_logout_user_unbinds_and_rotates() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/login_user/ada", cart="tea")
    before = visitor.sid
    visitor.post("/logout")
    assert visitor.sid != before
    assert visitor.who() == {"there": {"cart": "tea"}, "user_id": None, "current": None}
    assert Visitor(app, before).who() == NOBODY
    assert handles(app, "ada") == []


def test_logout_user_of_a_session_with_nothing_else_ends_it() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/login_user/ada")
    response = visitor.post("/logout")
    assert sid_of(response) == ""
    assert app.extensions["hybridsession"].count() == 0


def test_a_remember_cookie_logs_in_with_a_new_id() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/remember/ada")
    assert app.extensions["hybridsession"].destroy_user("ada") == 1
    visitor.client.delete_cookie("session")
    visitor.post("/collect", cart="planted")  # an anonymous one: nobody asked who it is
    planted = visitor.sid
    found = visitor.who()
    assert found["current"] == found["user_id"] == "ada"
    assert visitor.sid != planted
    assert Visitor(app, planted).who() == NOBODY
    assert len(handles(app, "ada")) == 1


def test_a_remember_cookie_is_no_fresh_login() -> None:
    app = site()
    visitor = Visitor(app)
    app.config["DO"] = lambda: session.logged_in_at is not None
    visitor.post("/login/remember/ada")
    assert visitor.client.get("/do").json == {"done": True}
    visitor.client.delete_cookie("session")
    assert visitor.who()["user_id"] == "ada"
    assert visitor.client.get("/do").json == {"done": False}


def test_strong_protection_unbinds() -> None:
    app = site()
    app.login_manager.session_protection = "strong"  # type: ignore[attr-defined]
    visitor = Visitor(app)
    visitor.post("/login/login_user/ada")
    visitor.client.environ_base["HTTP_USER_AGENT"] = "another"
    assert visitor.who()["user_id"] is None
    assert handles(app, "ada") == []


def test_flask_logins_test_client_is_logged_in() -> None:
    app = site()
    app.test_client_class = FlaskLoginClient
    client = app.test_client(user=User("ada"))
    assert client.get("/who").json["user_id"] == "ada"
    assert len(handles(app, "ada")) == 1


def test_it_can_be_switched_off() -> None:
    app = site(SESSION_FLASK_LOGIN=False)
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    planted = visitor.sid
    visitor.post("/login/login_user/ada")
    assert visitor.who()["user_id"] is None
    assert visitor.who()["current"] == "ada"
    assert visitor.sid != planted, "a new id all the same"
    assert handles(app, "ada") == []


def test_it_can_be_switched_off_later() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/login_user/7")
    app.config["SESSION_FLASK_LOGIN"] = False
    assert handles(app, 7) == []
    assert len(handles(app, "7")) == 1
    Visitor(app).post("/login/login_user/7")
    assert len(handles(app, "7")) == 1


def test_flask_login_may_come_later() -> None:
    app = site(flask_login=False)
    LoginManager(app).user_loader(User)
    visitor = Visitor(app)
    visitor.post("/login/login_user/7")
    assert visitor.who()["user_id"] == "7"
    assert len(handles(app, 7)) == 1


def test_a_user_without_an_id_is_refused() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    before = visitor.sid
    for user in (object(), None, 1.5, True, User(None)):  # type: ignore[arg-type]
        # What get_id() gives for None is the text "None": it is Flask-Login's.
        if isinstance(user, User):
            user.get_id = lambda: None
        app.config["DO"] = lambda user=user: session.login(user)
        with pytest.raises(TypeError, match="a user id is a str, an int or a UUID, not"):
            visitor.client.post("/do")
    assert visitor.sid == before
    assert visitor.who() == {"there": {"cart": "tea"}, "user_id": None, "current": None}


# -- the app's own key -----------------------------------------------------------------------------

SAME, NEW = False, True

CHANGES: list[tuple[str, Any, Any, bool]] = [
    ("user_id", None, 7, NEW),
    ("user_id", 7, 8, NEW),
    ("user_id", 7, 7, SAME),
    ("user_id", 7, "7", NEW),
    ("user_id", 7, None, SAME),
    ("user_id", False, 7, NEW),
    ("user_id", None, 0, NEW),
    ("uid", None, "x", NEW),
    ("username", "ada", "bob", NEW),
    ("logged_in", None, True, NEW),
    ("logged_in", True, True, SAME),
    ("logged_in", True, False, SAME),
    ("logged_in", None, False, SAME),
    ("logged_in", None, 1700000000.5, NEW),
    ("logged_in", 1700000000.5, 1700000001.5, SAME),
    ("_user_id", None, "7", NEW),
    ("user", None, {}, NEW),
    ("user", {"name": "ada"}, {"name": "ada", "seen": 5}, SAME),
    ("user", {"id": 7}, {"id": 7, "seen": 5}, SAME),
    ("user", {"id": 7}, {"id": 8}, NEW),
    ("user", {"name": "ada"}, {"name": "ada", "email": "ada@example.com"}, NEW),
    ("user", {"sub": "a", "email": "x@y"}, {"sub": "a", "email": "z@y"}, NEW),
    ("user", {"id": 7, "email": None}, {"id": 7}, SAME),
    ("user", "ada", {"id": 7}, NEW),
    ("user", (7, "ada"), (7, "Ada"), SAME),
    ("user", (7, "ada"), (8, "ada"), NEW),
    ("profile", {"user_id": 1}, {"user_id": 2}, NEW),
    ("oidc_auth_profile", None, {"sub": "a"}, NEW),
    ("google_oauth_token", None, {"access_token": "a"}, NEW),
    ("google_oauth_token", {"access_token": "a"}, {"access_token": "b"}, SAME),
    ("user", "ada", {"name": "bob"}, NEW),
    ("user", {"userinfo": {"sub": "a"}}, {"userinfo": {"sub": "b"}}, NEW),
    ("user", {"userinfo": {"sub": "a"}}, {"userinfo": {"sub": "a"}, "token": "b"}, SAME),
    ("user_id", Decimal(7), Decimal(8), NEW),
    ("cart", None, 7, SAME),
    ("users", None, 7, SAME),
]


@pytest.mark.parametrize(("name", "before", "after", "rotates"), CHANGES)
def test_a_key_that_tells_another_user_gives_a_new_id(
    name: str, before: Any, after: Any, rotates: bool
) -> None:
    app = site(flask_login=False)
    visitor = Visitor(app)
    app.config["DO"] = lambda: session.update(
        {"cart": "tea", **({name: before} if before is not None else {})}
    )
    visitor.client.post("/do")
    old = visitor.sid
    app.config["DO"] = lambda: session.update({name: after})
    response = visitor.client.post("/do")
    assert (sid_of(response) is not None) is rotates
    assert (visitor.sid != old) is rotates
    app.config["DO"] = lambda: (session["cart"], session[name])
    cart, _ = visitor.client.get("/do").json["done"]
    assert cart == ("tea" if name != "cart" else 7)


def changes_inside() -> None:
    session["user"]["id"] = 8


def counts_up() -> None:
    session.increment("uid")


def clears_first() -> None:
    session.clear()
    session["user_id"] = 7


def takes_it_out_first() -> None:
    session.pop("user_id")
    session["user_id"] = 7


@pytest.mark.parametrize("job", [changes_inside, counts_up, clears_first, takes_it_out_first])
def test_however_it_is_written(job: Callable[[], None]) -> None:
    app = site(flask_login=False)
    visitor = Visitor(app)
    app.config["DO"] = lambda: session.update(user={"id": 7}, user_id=7, uid=1)
    visitor.client.post("/do")
    old = visitor.sid
    app.config["DO"] = job
    visitor.client.post("/do")
    assert visitor.sid != old
    assert Visitor(app, old).who() == {**NOBODY, "current": None}
    app.config["DO"] = lambda: len(session)
    assert visitor.client.get("/do").json["done"] > 0


def test_once_in_a_request() -> None:
    app = site(flask_login=False)
    renamed: list[Any] = []

    def work() -> None:
        session["user_id"] = 7
        session.commit()
        session["username"] = "ada"
        session.commit()
        session["profile"] = {"id": 7}

    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    app.config["DO"] = work
    with session_renamed.connected_to(lambda sender, **details: renamed.append(details)):
        visitor.client.post("/do")
    assert len(renamed) == 1
    assert visitor.who()["there"]["profile"] == {"id": 7}


def test_names_of_an_apps_own() -> None:
    app = site(flask_login=False, SESSION_ROTATE_ON=["member", "sso_*"])
    visitor = Visitor(app)
    seen = [visitor.post("/collect", cart="tea") and visitor.sid]
    for name in ("user_id", "member", "sso_google"):
        visitor.post("/collect", **{name: "7"})
        seen.append(visitor.sid)
    assert [after != before for before, after in pairwise(seen)] == [False, True, True]


def test_names_that_come_later() -> None:
    app = site(flask_login=False)
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    app.config["SESSION_ROTATE_ON"] = ("member",)
    seen = [visitor.sid]
    for name in ("user_id", "member"):
        visitor.post("/collect", **{name: "7"})
        seen.append(visitor.sid)
    assert [after != before for before, after in pairwise(seen)] == [False, True]


@pytest.mark.parametrize("wrong", ["user_id", 7, [7], ["user_id", None], [""], b"user_id"])
def test_names_that_are_none(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="SESSION_ROTATE_ON must"):
        site(flask_login=False, SESSION_ROTATE_ON=wrong)


def test_no_names_at_all() -> None:
    app = site(flask_login=False, SESSION_ROTATE_ON=())
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    old = visitor.sid
    visitor.post("/collect", user_id="7")
    assert visitor.sid == old


def test_another_user_in_the_apps_own_key_empties_nothing() -> None:
    app = site(flask_login=False)
    visitor = Visitor(app)
    visitor.post("/login/user_id/ada", cart="tea")
    visitor.post("/login/user_id/bob")
    assert visitor.who()["there"] == {"cart": "tea", "user_id": "bob"}


# -- where no cookie can be sent -------------------------------------------------------------------


def test_in_a_stream_the_value_is_kept_under_the_same_id(caplog: pytest.LogCaptureFixture) -> None:
    app = site(flask_login=False)
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    before = visitor.sid

    def stream() -> Response:
        mine = session._get_current_object()  # type: ignore[attr-defined]

        def body() -> Iterator[str]:
            mine["user_id"] = 7
            mine.commit()
            yield "done"

        return Response(body())

    app.config["DO"] = stream
    with caplog.at_level(logging.WARNING, "flask_hybridsession"):
        assert visitor.client.get("/do").text == "done"
    assert visitor.sid == before
    assert visitor.who()["there"] == {"cart": "tea", "user_id": 7}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "keeps its id" in caplog.text


SOCKET = {"Upgrade": "websocket", "Connection": "Upgrade"}


def test_on_a_socket_the_value_is_kept_under_the_same_id(caplog: pytest.LogCaptureFixture) -> None:
    app = site(flask_login=False)

    @app.route("/socket", websocket=True)
    def socket() -> str:
        session["user_id"] = 7
        return ""

    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    before = visitor.sid
    response = visitor.client.get("ws://localhost/socket", headers=SOCKET)
    assert response.status_code == 200
    assert sid_of(response) is None
    assert visitor.sid == before
    assert visitor.who()["there"] == {"cart": "tea", "user_id": 7}
    assert "keeps its id" in caplog.text


@pytest.mark.parametrize("path", ["/do", "/nowhere", "ws://localhost/socket", "/socket"])
def test_a_handshake_from_another_site_logs_nobody_in_under_a_planted_id(path: str) -> None:
    """It shows a planted id beside the victim's remember cookie, and the app looks who it is."""
    app = site()

    @app.route("/socket", websocket=True)
    def socket() -> str:
        return ""

    @app.before_request
    def look() -> None:
        current_user.get_id()

    app.config["DO"] = lambda: None
    attacker = Visitor(app)
    attacker.post("/collect", cart="planted")
    victim = Visitor(app)
    victim.post("/login/remember/ada")
    victim.client.set_cookie("session", attacker.sid or "")
    victim.client.get(path, headers=SOCKET)
    assert attacker.who()["user_id"] is None
    assert attacker.who()["current"] is None


# -- requests of the old id ------------------------------------------------------------------------


def count() -> None:
    session["n"] = session.get("n", 0) + 1


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("permanent", [False, True])
def test_a_request_of_the_old_id_leaves_the_new_cookie_alone(
    anywhere: Provider,  # noqa: F811
    how: str,
    permanent: bool,
) -> None:
    app = site(anywhere)
    visitor = Visitor(app)
    app.config["DO"] = lambda: session.update(n=1, _permanent=permanent)
    visitor.client.post("/do")
    old = visitor.sid
    visitor.post(f"/login/{how}/ada")
    for job in (count, lambda: session.clear(), lambda: session.regenerate(), lambda: len(session)):
        app.config["DO"] = job
        assert sid_of(Visitor(app, old).client.post("/do")) is None
    assert visitor.who()["there"]["n"] == 1, "and what it wrote is not there"


def test_a_slow_request_of_the_old_id_saves_nothing(anywhere: Provider) -> None:  # noqa: F811
    app = site(anywhere)
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    old = Visitor(app, visitor.sid)

    def slow() -> None:
        session["cart"] = "overwritten"
        visitor.post("/login/session.login/ada")
        session["more"] = 1

    app.config["DO"] = slow
    assert sid_of(old.client.post("/do")) is None
    found = visitor.who()
    assert found["there"] == {"cart": "tea"}
    assert found["user_id"] == "ada"


@pytest.mark.parametrize("how", WAYS)
def test_of_two_logins_at_once_both_work(anywhere: Provider, how: str) -> None:  # noqa: F811
    app = site(anywhere)
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    other = Visitor(app, visitor.sid)

    def slow() -> None:
        login(how, "ada")
        visitor.post(f"/login/{how}/ada")

    app.config["DO"] = slow
    other.client.post("/do")
    assert other.sid != visitor.sid
    for one in (other, visitor):
        found = one.who()
        assert (found["there"].get("user_id") if how == "user_id" else found["user_id"]) == "ada"


def test_a_login_with_an_id_that_was_just_replaced_works(anywhere: Provider) -> None:  # noqa: F811
    """The response with the new id was lost, and the visitor tries again."""
    app = site(anywhere)
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    again = Visitor(app, visitor.sid)
    visitor.post("/login/login_user/ada")
    again.post("/login/login_user/ada")
    assert again.who()["current"] == "ada"
    assert visitor.who()["current"] == "ada"


def leave_by_the_old_id(
    app: Flask, visitor: Visitor, leave: Callable[[], object], late: bool
) -> TestResponse:
    """While the visitor logs in, or just after it, he leaves by the id of before."""
    old = Visitor(app, visitor.sid)

    def out() -> None:
        if not late:
            len(session)
        visitor.post("/login/session.login/ada")
        leave()

    app.config["DO"] = out
    return old.client.post("/do")


@pytest.mark.parametrize("late", [False, True])
def test_a_logout_by_the_old_id_ends_the_session_of_the_new_one(
    anywhere: Provider,  # noqa: F811
    late: bool,
) -> None:
    app = site(anywhere)
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    leave_by_the_old_id(app, visitor, lambda: session.logout(), late)
    assert visitor.who() == NOBODY


@pytest.mark.parametrize("late", [False, True])
def test_logout_user_by_the_old_id_ends_the_session_of_the_new_one(
    anywhere: Provider,  # noqa: F811
    late: bool,
) -> None:
    app = site(anywhere)
    visitor = Visitor(app)
    visitor.post("/login/login_user/ada", cart="tea")
    assert sid_of(leave_by_the_old_id(app, visitor, logout_user, late)) == ""
    assert visitor.who() == NOBODY


class Failing(MemoryProvider):
    """Fails one call of a kind, or lets another request in before it."""

    def __init__(self) -> None:
        super().__init__()
        self.before_rename: Callable[[], None] | None = None
        self.after_rename: Callable[[], None] | None = None

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        before, self.before_rename = self.before_rename, None
        after, self.after_rename = self.after_rename, None
        if before is not None:
            before()
        super().rename(old, new, now, alias_until)
        if after is not None:
            after()


def down() -> None:
    raise ProviderUnavailable("for once")


@pytest.mark.parametrize("when", ["before_rename", "after_rename"])
@pytest.mark.parametrize("then", ["login_user", "session.login", "logout"])
def test_a_new_id_that_failed_is_made_by_the_next_try(when: str, then: str) -> None:
    app = site(provider := Failing())
    visitor = Visitor(app)
    visitor.post("/login/login_user/alice", secret="alice's")
    old = visitor.sid
    setattr(provider, when, down)
    path = "/logout" if then == "logout" else f"/login/{then}/bob"
    assert visitor.client.post(path).status_code == 503
    visitor.post(path)
    assert visitor.sid != old
    assert Visitor(app, old).who() == NOBODY
    found = visitor.who()
    assert found["user_id"] == (None if then == "logout" else "bob")
    assert ("secret" in found["there"]) == (then == "logout" and when == "before_rename")
    if when == "before_rename":  # else nobody knows the id under which her session is
        assert handles(app, "alice") == []


@pytest.mark.parametrize("when", ["before_rename", "after_rename"])
def test_no_token_that_comes_between_lands_in_the_victims_session(when: str) -> None:
    """Who keeps the planted id busy while the victim logs in."""
    app = site(provider := Failing())
    attacker = Visitor(app)
    attacker.post("/collect", cart="planted")
    victim = Visitor(app, attacker.sid)

    def meanwhile() -> None:
        attacker.post("/collect", csrf_token="known", role="admin")

    setattr(provider, when, meanwhile)
    victim.post("/login/login_user/ada")
    before = {"role": "admin"} if when == "before_rename" else {}  # as the cart was
    assert victim.who()["there"] == {"_user_id": "ada", "cart": "planted", **before}


def test_a_token_that_was_planted_while_the_login_was_under_way(
    anywhere: Provider,  # noqa: F811
) -> None:
    app = site(anywhere)
    attacker = Visitor(app)
    attacker.post("/collect", cart="planted")
    victim = Visitor(app, attacker.sid)

    def slow() -> None:
        len(session)  # loaded; now a password is hashed
        attacker.post("/collect", csrf_token="known")
        session.login("ada")

    app.config["DO"] = slow
    victim.client.post("/do")
    assert victim.who()["there"] == {"cart": "planted"}


def test_a_planted_token_that_is_only_written_again_goes() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/collect", csrf_token="known")
    app.before_request_funcs.setdefault(None, []).append(
        lambda: session.update(csrf_token=session.get("csrf_token", "new"))
    )
    visitor.post("/login/login_user/ada")
    app.before_request_funcs[None].pop()
    assert "csrf_token" not in visitor.who()["there"]


def test_a_login_in_two_steps_leaves_no_token_of_before() -> None:
    app = site(flask_login=False)
    visitor = Visitor(app)
    visitor.post("/collect", username="ada")
    visitor.post("/collect", csrf_token="known")
    visitor.post("/login/user_id/7")
    assert visitor.who()["there"] == {"username": "ada", "user_id": "7"}


def test_modified_false_undoes_no_part_of_a_login() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/session.login/alice", secret="alice's")
    app.config["DO"] = lambda: (session.login("bob"), setattr(session, "modified", False))[0]
    visitor.client.post("/do")
    assert visitor.who() == {"there": {}, "user_id": "bob", "current": None}


def test_a_remember_cookie_of_somebody_who_is_no_more_binds_nobody() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/remember/ada")
    app.login_manager.user_loader(lambda user_id: None)  # type: ignore[attr-defined]
    visitor.client.delete_cookie("session")
    assert visitor.who()["user_id"] is None
    first = visitor.sid
    for _ in range(3):
        assert visitor.who()["user_id"] is None
    assert visitor.sid == first, "one new id, not one each time"
    assert len(handles(app, "ada")) == 1, "the session that he had"


def test_login_user_in_each_request_gives_one_new_id() -> None:
    app = site()
    app.before_request_funcs.setdefault(None, []).append(lambda: login_user(User("ada")) and None)
    visitor = Visitor(app)
    visitor.who()
    first = visitor.sid
    for _ in range(3):
        assert visitor.who()["user_id"] == "ada"
    assert visitor.sid == first


@pytest.mark.parametrize("enter", [True, False])
def test_an_ephemeral_session_claims_no_login_and_no_logout(enter: bool) -> None:
    app = site(provider := RemoteProvider(), SESSION_ON_OUTAGE="ephemeral")
    visitor = Visitor(app)
    if not enter:
        visitor.post("/login/login_user/ada")
    visitor.post("/collect", cart="tea")
    provider.take_down()
    assert visitor.client.get("/who").json == NOBODY
    path = "/login/login_user/ada" if enter else "/logout"
    assert visitor.client.post(path).status_code == 503
    provider.bring_back()


def test_a_login_inside_a_dict_survives_a_new_id_in_another_request() -> None:
    app = site(flask_login=False)
    visitor = Visitor(app)
    app.config["DO"] = lambda: session.update(user={"id": 1})
    visitor.client.post("/do")
    other = Visitor(app, visitor.sid)

    def slow() -> None:
        session["user"]["id"] = 2
        visitor.post("/login/session.login/ada")

    app.config["DO"] = slow
    other.client.post("/do")
    assert other.who()["there"] == {"user": {"id": 2}}


def test_a_user_is_asked_for_his_id_as_flask_login_asks() -> None:
    app = site()
    app.login_manager.id_attribute = "get_alternative"  # type: ignore[attr-defined]
    app.config["DO"] = lambda: login_user(Aliased("ada")) and None
    visitor = Visitor(app)
    visitor.client.post("/do")
    assert visitor.who()["user_id"] == "alias of ada"
    assert len(handles(app, Aliased("ada"))) == 1


class Aliased(User):
    def get_alternative(self) -> str:
        return f"alias of {self.id}"


def test_a_confirmed_login_is_fresh_and_has_a_new_id() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/remember/ada")
    visitor.client.delete_cookie("session")
    visitor.who()
    before = visitor.sid
    app.config["DO"] = lambda: (confirm_login(), session.logged_in_at is not None)[1]
    assert visitor.client.post("/do").json == {"done": True}
    assert visitor.sid != before
    assert visitor.who()["user_id"] == "ada"


# -- what else was there ---------------------------------------------------------------------------


def test_a_token_against_forged_requests_does_not_outlive_the_login() -> None:
    for how in WAYS:
        app = site(WTF_CSRF_FIELD_NAME="my_token")
        visitor = Visitor(app)
        planted = dict.fromkeys(("csrf_token", "_csrf_token", "csrf", "my_token"), "known")
        visitor.post("/collect", cart="tea", **planted)
        visitor.post(f"/login/{how}/ada")
        found = visitor.who()["there"]
        assert not planted.keys() & found.keys()
        assert found["cart"] == "tea"


def test_flashes_for_the_user_before_are_not_shown() -> None:
    app = site()
    visitor = Visitor(app)
    visitor.post("/login/session.login/alice")
    app.config["DO"] = lambda: (flash("for alice"), flash_value("order", "alice's"))[0]
    visitor.client.post("/do")

    def enter() -> None:
        flash("hello")
        session.login("bob")
        flash("welcome")

    app.config["DO"] = enter
    visitor.client.post("/do")
    app.config["DO"] = lambda: [get_flashed_messages(), get_flash("order")]
    assert visitor.client.get("/do").json["done"] == [["hello", "welcome"], None]


def test_what_this_request_added_to_anothers_is_its_own() -> None:
    app = site()
    visitor = Visitor(app)
    app.config["DO"] = lambda: (session.login("alice"), session.update(n=5, cart=["hers"]))[0]
    visitor.client.post("/do")

    def enter() -> dict[str, Any]:
        session.increment("n")
        session["cart"].append("not written, but changed")
        session["mine"] = 1
        session.login("bob")
        return dict(session)

    app.config["DO"] = enter
    assert visitor.client.post("/do").json["done"] == {"n": 1, "mine": 1}
    assert visitor.who()["there"] == {"n": 1, "mine": 1}


def test_logged_in_at_is_the_last_login() -> None:
    app = site()
    visitor = Visitor(app)
    app.config["DO"] = lambda: session.logged_in_at is None
    visitor.post("/collect", cart="tea")
    assert visitor.client.get("/do").json["done"] is True
    visitor.post("/login/login_user/ada")
    app.config["DO"] = lambda: (
        session.logged_in_at is not None
        and abs(session.logged_in_at - dt.datetime.now(dt.timezone.utc)) < dt.timedelta(minutes=1)
    )
    assert visitor.client.get("/do").json["done"] is True


def test_the_old_id_is_known_for_seconds_only(fake_clock: FakeClock) -> None:  # noqa: F811
    app = site()
    visitor = Visitor(app)
    visitor.post("/collect", cart="tea")
    old = visitor.sid
    visitor.post("/login/session.login/ada")
    fake_clock.advance(20)
    app.config["DO"] = count
    assert sid_of(Visitor(app, old).client.post("/do")) not in (None, "", old)
