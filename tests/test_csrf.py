"""Flask-WTF's tokens around a login: the old one is worthless, whatever is rendered later works."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask, render_template_string
from flask_login import LoginManager, UserMixin, login_user
from flask_wtf import FlaskForm
from flask_wtf.csrf import CSRFProtect, generate_csrf
from werkzeug.test import Client
from werkzeug.wrappers import Response
from wtforms import StringField

from flask_hybridsession import HybridSession, session

PAGE = """
<meta name="csrf-token" content="{{ csrf_token() }}">
<form method="post" action="/login">{{ form.hidden_tag() }}{{ form.name }}</form>
"""


class User(UserMixin):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self.id = name


class Form(FlaskForm):  # type: ignore[misc]
    name = StringField("Name")


def enter(how: str, name: str) -> None:
    if how == "login_user":
        login_user(User(name))
    elif how == "session.login":
        session.login(name)
    elif how == "clear first":
        session.clear()
        session["user_id"] = name
    else:
        session["user_id"] = name


def site(how: str, **config: Any) -> Flask:
    """A login page; the page after the login comes in the same response."""
    app = Flask("csrf")
    app.secret_key = "signs the tokens"
    app.config.update(SESSION_TYPE="memory", **config)
    HybridSession(app)
    LoginManager(app).user_loader(User)
    CSRFProtect(app)

    @app.get("/login")
    def ask() -> str:
        return render_template_string(PAGE, form=Form())

    @app.post("/login")
    def login() -> str:
        form = Form()
        assert form.validate_on_submit()
        enter(how, form.name.data)
        return render_template_string(PAGE, form=Form(formdata=None))

    @app.post("/buy")
    def buy() -> str:
        assert Form().validate_on_submit()
        return f"bought by {session.user_id or session.get('user_id')}"

    @app.after_request
    def tell(response: Response) -> Response:
        response.set_cookie("csrf", generate_csrf())
        return response

    return app


def tokens(client: Client, page: str) -> list[str]:
    """Those of the form, of the page's head, and of the cookie."""
    found = re.findall(
        r'(?:name="csrf-token" content|csrf_token" type="hidden" value)="(.*?)"', page
    )
    cookie = client.get_cookie("csrf")
    assert len(found) == 2
    assert cookie is not None
    return [*found, cookie.decoded_value]


WAYS = ["login_user", "session.login", "user_id", "clear first"]


@pytest.mark.parametrize("how", WAYS)
def test_forms_around_a_login(how: str) -> None:
    client = site(how).test_client()
    before = tokens(client, client.get("/login").text)
    logged_in = client.post("/login", data={"name": "ada", "csrf_token": before[0]})
    assert logged_in.status_code == 200
    after = tokens(client, logged_in.text)
    for token in after:
        bought = client.post("/buy", data={"csrf_token": token})
        assert bought.text == "bought by ada"
    for token in before:
        assert client.post("/buy", data={"csrf_token": token}).status_code == 400


def test_a_field_of_another_name() -> None:
    client = site("session.login", WTF_CSRF_FIELD_NAME="proof").test_client()
    page = client.get("/login").text
    (before,) = re.findall(r'name="csrf-token" content="(.*?)"', page)
    page = client.post("/login", data={"name": "ada", "proof": before}).text
    (after,) = re.findall(r'name="csrf-token" content="(.*?)"', page)
    assert client.post("/buy", data={"proof": after}).text == "bought by ada"
    assert client.post("/buy", data={"proof": before}).status_code == 400


@pytest.mark.parametrize("how", ["login_user", "session.login"])
def test_a_second_login_of_the_same_user_leaves_other_tabs_their_forms(how: str) -> None:
    client = site(how).test_client()
    first = tokens(client, client.get("/login").text)[0]
    first = tokens(client, client.post("/login", data={"name": "ada", "csrf_token": first}).text)[0]
    client.post("/login", data={"name": "ada", "csrf_token": first})
    assert client.post("/buy", data={"csrf_token": first}).text == "bought by ada"
    other = client.post("/login", data={"name": "bob", "csrf_token": first})
    assert client.post("/buy", data={"csrf_token": first}).status_code == 400
    token = tokens(client, other.text)[0]
    assert client.post("/buy", data={"csrf_token": token}).text == "bought by bob"


def test_a_token_that_this_request_made_stays() -> None:
    app = Flask("fresh")
    app.secret_key = "signs the tokens"
    app.config.update(SESSION_TYPE="memory")
    HybridSession(app)
    CSRFProtect(app)

    @app.get("/enter")
    def by_link() -> str:
        token = generate_csrf()
        session.login("ada")
        assert generate_csrf() == token
        return str(token)

    @app.post("/buy")
    def buy() -> str:
        return "bought"

    client = app.test_client()
    token = client.get("/enter").text
    assert client.post("/buy", data={"csrf_token": token}).text == "bought"
