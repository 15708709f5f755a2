"""Counts your visits, in every worker and across restarts.

flask --app examples/hello/app.py run
"""

from flask import Flask, session

from flask_hybridsession import HybridSession

app = Flask(__name__)
HybridSession(app)


@app.get("/")
def index() -> str:
    session["visits"] = session.get("visits", 0) + 1
    return f"Visit number {session['visits']}."
