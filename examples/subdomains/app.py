"""One session for all subdomains of a site.

    flask --app examples/subdomains/app.py run

Then open http://one.example.localhost:5000/ and http://two.example.localhost:5000/: they count on.

Which names work on your own machine:

- ``one.example.localhost``: yes, with no setup. Chromium and Firefox send every name that ends in
  ``.localhost`` to this machine, and the cookie's domain becomes ``example.localhost``.
- ``one.localhost``: a session of its own. Its only parent is ``localhost``, which is a top-level
  name, and no browser lets a cookie be shared by a whole top-level name.
- ``localhost``, ``127.0.0.1``: a session of its own. There is nothing above them to share with.
- ``one.example.test``: yes, if ``/etc/hosts`` says so, or for one request by
  ``curl --resolve one.example.test:5000:127.0.0.1 -c jar -b jar http://one.example.test:5000/``.

Share a session only with subdomains that you all own: each of them can read and replace the cookie.
"""

from flask import Flask, render_template_string, session

from flask_hybridsession import HybridSession

app = Flask(__name__)
app.config["SESSION_COOKIE_SUBDOMAINS"] = True
app.config.from_prefixed_env()  # FLASK_SESSION_DIR=/somewhere
HybridSession(app)

PAGE = """
<!doctype html>
<title>{{ request.host }}</title>
<p>This is <b>{{ request.host }}</b>, visit number <b id="visits">{{ session.visits }}</b>.
<ul>
  {% for name in ("one.example.localhost", "two.example.localhost", "one.localhost") %}
  <li><a href="//{{ name }}:{{ request.environ.SERVER_PORT }}/">{{ name }}</a>
  {% endfor %}
</ul>
"""


@app.get("/")
def index() -> str:
    session["visits"] = session.get("visits", 0) + 1
    return render_template_string(PAGE)
