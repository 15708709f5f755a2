"""A shop with a login and a cart, served by several workers. Run it with ``scripts/demo``."""

import os
import secrets

from flask import Flask, abort, flash, redirect, render_template, request
from werkzeug.wrappers import Response

from flask_hybridsession import HybridSession, session

GOODS = {  # name, price, colour
    "tea": ("Assam tea", 4.20, "#b5652b"),
    "mug": ("Blue mug", 9.00, "#3f6fb0"),
    "honey": ("Wild honey", 6.50, "#e0a526"),
    "bread": ("Rye bread", 3.80, "#8a6a4f"),
}

app = Flask(__name__)
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
app.config.from_prefixed_env()  # FLASK_SESSION_DIR=/somewhere
sessions = HybridSession(app)


def add_up(
    base: dict[str, int] | None, mine: dict[str, int] | None, theirs: dict[str, int] | None
) -> dict[str, int]:
    """Two tabs at once: what the other has stored, and what this one has added."""
    base, mine, theirs = base or {}, mine or {}, theirs or {}
    added = {item: mine.get(item, 0) - base.get(item, 0) for item in GOODS}
    return {item: max(theirs.get(item, 0) + added[item], 0) for item in GOODS}


sessions.merge("cart", add_up)


@app.before_request
def check_form() -> None:
    """Another site cannot know the token, so it cannot post our forms for a visitor."""
    if request.method == "POST":
        token = session.get("csrf")
        if not token or not secrets.compare_digest(token, request.form.get("csrf", "")):
            abort(400, "This form is out of date. Go back, reload the page and try again.")


@app.get("/")
def index() -> str:
    session.setdefault("csrf", secrets.token_urlsafe())
    cart = {item: count for item, count in session.get("cart", {}).items() if count}
    return render_template(
        "shop.html",
        goods=GOODS,
        cart=cart,
        total=sum(GOODS[item][1] * count for item, count in cart.items()),
        devices=len(sessions.of_user(session.user_id)) if session.user_id else 0,
        pid=os.getpid(),
    )


@app.post("/login")
def login() -> Response:
    name = request.form["name"].strip()[:40] or abort(400, "Please give a name.")
    session.login(name)
    flash(f"Welcome, {name}.")
    return redirect("/")


@app.post("/logout")
def logout() -> Response:
    session.logout(everywhere="everywhere" in request.form)
    flash("You are logged out.")
    return redirect("/")


@app.post("/cart/<item>")
def add(item: str) -> Response:
    if item not in GOODS:
        abort(404)
    session.setdefault("cart", dict.fromkeys(GOODS, 0))
    session["cart"][item] += 1  # saved, though only the dict inside changed
    flash(f"{GOODS[item][0]} is in your cart.")
    return redirect("/")


@app.post("/empty")
def empty() -> Response:
    session.pop("cart", None)
    flash("Your cart is empty.")
    return redirect("/")
