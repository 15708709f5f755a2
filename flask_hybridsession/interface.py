"""Flask's two hooks: the only file that touches a request or a response."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flask import Flask, g, has_app_context, has_request_context, request
from flask import session as flask_session
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from .core import clock, cookies, ids
from .core.breaker import begin_budget
from .core.cookies import Action
from .core.errors import ConfigError, ProviderUnavailable
from .core.identity import CSRF_NAMES, CSRF_SETTING
from .core.live import LiveSettings
from .core.manager import Manager
from .core.provider import Remote
from .core.session import Session
from .core.settings import OUTAGE_POLICIES, OnOutage, Settings, outage_policy
from .core.timers import clockwork
from .signals import provider_failed

if TYPE_CHECKING:
    from flask.wrappers import Request, Response

log = logging.getLogger("flask_hybridsession")

#: Seconds that a client is told to wait when the provider is down.
RETRY_AFTER = 5

View = TypeVar("View", bound=Callable[..., Any])


def on_outage(policy: OnOutage) -> Callable[[View], View]:
    """Decorate a view: its own ``SESSION_ON_OUTAGE``.

    For a class-based view, put it in the class' ``decorators``, or on one of its methods. Raises
    ``ConfigError`` for what is no policy, ``TypeError`` for what is no view.
    """
    outage_policy(policy, "on_outage")

    def decorate(view: View) -> View:
        if isinstance(view, type) or not callable(view):
            raise TypeError("on_outage decorates a view function; a class lists it in `decorators`")
        try:
            view._session_on_outage = policy  # type: ignore[attr-defined]
        except AttributeError:  # a bound method, say
            raise TypeError(
                "on_outage decorates a function: put it where that is defined"
            ) from None
        return view

    return decorate


class _CurrentManager:
    """The manager under the settings of the moment when it is first asked for: then it stays."""

    def __get__(self, session: HybridSessionMapping, owner: object) -> Manager:
        manager = session._manager = session._interface.current()
        return manager


class HybridSessionMapping(Session, SessionMixin):  # type: ignore[override]
    """``flask.session``: see ``core.session.Session``."""

    _manager = _CurrentManager()
    _asking = False  # the policy for outages, which may look at the session itself

    def __init__(self, interface: HybridSessionInterface, app: Flask, request: Request) -> None:
        self._live = {}
        self._interface = interface
        self._app = app
        self._environ = request.environ

    def _present(self) -> Sequence[str]:
        """The sids of the request's cookies."""
        settings = self._manager.settings
        if settings.sign_cookie:
            _secret_keys(self._app)  # before anything is stored that no cookie could name
        header = self._environ.get("HTTP_COOKIE")
        if not header:
            return ()
        return self._interface.presented(self._app, header, settings)

    def _cannot_send_cookies(self) -> bool:
        return self._closed or self._is_on_a_socket()

    def _is_on_a_socket(self) -> bool:
        """A header that asks for a socket makes none: the request's rule does, or its server.

        Flask-SocketIO calls its handlers within requests, whose responses it throws away.
        """
        if "wsgi.websocket" in self._environ:
            return True
        if not has_request_context():
            return False
        rule = request.url_rule
        by_socket_io = hasattr(request, "namespace") and hasattr(request, "event")
        return by_socket_io or (rule is not None and bool(rule.websocket))

    def _forget_csrf(self) -> None:
        """With what others keep of the old token until the request ends."""
        super()._forget_csrf()
        if not has_app_context():
            return
        name = self._manager.config.get(CSRF_SETTING) or CSRF_NAMES[0]
        if name not in self:
            g.pop(name, None)  # Flask-WTF makes another
        if "seasurf_csrf_token" in g:  # Flask-SeaSurf puts it into session and cookie in the end
            g.seasurf_csrf_token = ids.mint()

    def _goes_on_without(self, error: ProviderUnavailable) -> bool:
        if self._asking or not has_request_context():  # a test's session_transaction has none
            return False
        self._asking = True
        try:
            answer = self._interface.ask(self._app, error)
        finally:
            self._asking = False
        if answer == "ephemeral":
            report_failure(self._app, error)
            return True
        if isinstance(answer, str):
            return False
        raise Answered(str(error), answer) from error


#: ``flask.session`` itself, with its type: for who checks types, or likes his editor to help.
session = cast(HybridSessionMapping, flask_session)


class Answered(ProviderUnavailable):
    """The session cannot be loaded, and the app's policy has the response for that."""

    def __init__(self, text: str, response: Response) -> None:
        super().__init__(text)
        self.response = response


class HybridSessionInterface(SessionInterface):
    """Opens lazily, saves what changed, and decides about the cookie: send, delete or leave alone.

    The session is saved whatever the status of the response, as Flask does it: also with a 5xx.
    """

    def __init__(
        self, manager: Manager, live: LiveSettings, on_first_request: Callable[[Flask], None]
    ) -> None:
        self.manager = manager
        self._on_first_request = on_first_request
        self._live = live
        self._checked = False  # whether a request has come since the setup
        self._remote = isinstance(manager.provider, Remote)

    def current(self) -> Manager:
        """The manager, under the settings as they are now. Raises ``ConfigError``."""
        settings, manager = self._live.current(), self.manager
        if settings is not manager.settings:
            manager = self.manager = manager.under(settings)
        return manager

    def open_session(self, app: Flask, request: Request) -> HybridSessionMapping | None:
        """A session that loads when looked at; None if it must be signed and no key is set."""
        if not self._checked:
            self.current()
            self._on_first_request(app)
            self._checked = True
        if not clockwork.runs and not _is_a_test(request.environ):
            clockwork.attend()  # what fell due while nobody ran is told now
        if (
            self.manager.settings.sign_cookie
            and not app.secret_key
            and self.current().settings.sign_cookie
        ):
            return None
        if self._remote:
            begin_budget()
        return HybridSessionMapping(self, app, request)

    def presented(self, app: Flask, header: str, settings: Settings) -> Sequence[str]:
        """The sids in a ``Cookie`` header, best first: nothing says yet that they are ours."""
        name = self.get_cookie_name(app)
        found = cookies.candidates(header, name)
        if not (settings.sign_cookie or settings.cookie_codec):
            return found
        return [self._decode(app, settings, name, text) for text in found]

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Store the changes and set the headers. Never a cookie for what is not stored."""
        if not isinstance(session, HybridSessionMapping) or session._closed:
            return
        seen = session._loaded
        if response.status_code == 500:
            self._answer_unhandled(app, session, response)
        try:
            if seen or self.manager.settings.touch_every == 0:
                session._manager.save(session)
        except ProviderUnavailable as error:
            if seen:
                self._replace(app, session, response, error)
            else:  # only a renewal: the view's answer does not depend on it
                report_failure(app, error)
        finally:
            session._closed = True
        if session.accessed or session._cookie is not Action.LEAVE:
            _vary_on_cookie(response)
        if session._cookie is Action.SEND:
            self._send_cookie(app, session, response)
        elif session._cookie is Action.DELETE:
            self._delete_cookie(app, response)
        if response.is_streamed and not response.direct_passthrough:
            session._watched = True
            response.response = _Watched(session, response.response)

    def ask(self, app: Flask, error: ProviderUnavailable) -> str | Response:
        """What the policy of this request's view, or the app's, says: a word or a response."""
        policy = _policy_of_view(app) or self.manager.settings.on_outage
        if isinstance(policy, str):
            return policy
        try:
            answer = app.ensure_sync(policy)(error)
        except HTTPException as raised:
            answer = raised
        except ProviderUnavailable:  # it looked at the session, which is not there for it either
            return "unavailable"
        if isinstance(answer, str) and answer in OUTAGE_POLICIES:
            return answer
        if answer is None:
            raise TypeError("the function for an outage returned None, not a response")
        return app.make_response(answer)

    def answer(self, app: Flask, error: ProviderUnavailable) -> Response:
        """The response to a request that cannot do without the provider, reported."""
        if isinstance(error, Answered):
            cause = error.__cause__
            report_failure(app, cause if isinstance(cause, ProviderUnavailable) else error)
            return error.response
        report_failure(app, error)
        answer = self.ask(app, error)
        return app.make_response(unavailable(error)) if isinstance(answer, str) else answer

    def _answer_unhandled(self, app: Flask, session: Session, response: Response) -> None:
        """Not with a 500 when an error handler raises it: a page for a 404 may greet the user."""
        error = sys.exc_info()[1]
        if isinstance(error, ProviderUnavailable):
            self._replace(app, session, response, error)

    def _replace(
        self, app: Flask, session: Session, response: Response, error: ProviderUnavailable
    ) -> None:
        """The view's answer claims something that is not stored: it is not sent."""
        if session._cookie is Action.DELETE:
            session._cookie = Action.LEAVE
        answer = self.answer(app, error)
        close = getattr(response.response, "close", None)
        if close is not None:
            close()
        response.direct_passthrough = False
        answer.direct_passthrough = False
        response.status = answer.status
        response.headers.clear()
        response.headers.extend(answer.headers)
        response.set_data(answer.get_data())
        response.call_on_close(answer.close)

    # -- the cookie -----------------------------------------------------------------------------

    def get_cookie_domain(self, app: Flask) -> str | None:
        """``SESSION_COOKIE_DOMAIN``, or what the host shares with its subdomains."""
        if self.manager.settings.subdomains:
            return cookies.shared_domain(request.host)
        return super().get_cookie_domain(app)

    def _send_cookie(self, app: Flask, session: Session, response: Response) -> None:
        name = self.get_cookie_name(app)
        terms, now = session._terms(), clock.now()
        max_age = terms.max_age(now)
        response.set_cookie(
            name,
            self._encode(app, session._manager.settings, name, session.sid),
            max_age=max_age,
            expires=None if max_age is None else now + max_age,
            **self._scope(app),
        )
        _never_cache(response)

    def _delete_cookie(self, app: Flask, response: Response) -> None:
        # With every attribute that it was set with: browsers ignore it otherwise (RFC 6265bis).
        response.delete_cookie(self.get_cookie_name(app), **self._scope(app))
        _never_cache(response)

    def _scope(self, app: Flask) -> dict[str, Any]:
        return {
            "domain": self.get_cookie_domain(app),
            "path": self.get_cookie_path(app),
            "secure": self.get_cookie_secure(app),
            "httponly": self.get_cookie_httponly(app),
            "samesite": self.get_cookie_samesite(app),
            "partitioned": self.get_cookie_partitioned(app),
        }

    def _encode(self, app: Flask, settings: Settings, name: str, sid: str) -> str:
        if settings.cookie_codec is not None:
            return cookies.check_value(name, settings.cookie_codec.encode(name, sid))
        return cookies.sign(sid, *_secret_keys(app)) if settings.sign_cookie else sid

    def _decode(self, app: Flask, settings: Settings, name: str, text: str) -> str:
        """The sid in the cookie's value; empty, which is no sid, if it is not ours."""
        codec = settings.cookie_codec
        if codec is None:
            return cookies.unsign(text, *_secret_keys(app)) or ""
        try:
            sid = codec.decode(name, text)
        except Exception as error:
            # The hook's contract: an error is "not our cookie", and whose text it is nobody knows.
            log.info("SESSION_COOKIE_CODEC: decode raised %s", type(error).__name__)
            return ""
        return sid if isinstance(sid, str) else ""


def _is_a_test(environ: Mapping[str, Any]) -> bool:
    """Whether no server made the request (they name themselves), but pytest or a test client.

    Nothing happens behind the back of a test: it destroys what is due with ``sessions.purge()``.
    """
    if "SERVER_SOFTWARE" in environ:
        return False
    werkzeugs = "REQUEST_URI" in environ and "RAW_URI" in environ
    return werkzeugs or ("pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ)


def _policy_of_view(app: Flask) -> OnOutage | None:
    """What ``on_outage`` says of this request's view; of a class, its methods first."""
    view = app.view_functions.get(request.endpoint or "")
    cls = getattr(view, "view_class", None)
    method = request.method.lower()
    if method == "head" and not hasattr(cls, method):
        method = "get"  # as Flask calls it
    for one in (getattr(cls, method, None), getattr(cls, "dispatch_request", None), view):
        policy: OnOutage | None = getattr(one, "_session_on_outage", None)
        if policy is not None:
            return policy
    return None


def _secret_keys(app: Flask) -> tuple[str | bytes, Sequence[str | bytes]]:
    if not app.secret_key:
        raise ConfigError("SESSION_SIGN_COOKIE = True needs a SECRET_KEY.")
    return app.secret_key, app.config["SECRET_KEY_FALLBACKS"] or ()


def _vary_on_cookie(response: Response) -> None:
    headers = response.headers
    if headers.getlist("Vary"):
        response.vary.add("Cookie")
    else:
        headers.add("Vary", "Cookie")


def _never_cache(response: Response) -> None:
    """A response with a session cookie must reach nobody else (CVE-2024-26144)."""
    if "Cache-Control" not in response.headers:
        response.headers["Cache-Control"] = 'no-cache="Set-Cookie"'
        return
    control = response.cache_control
    if control.public:
        control.public = False
        control.private = True
    elif not (control.no_store or control.private or control.no_cache):
        response.headers["Cache-Control"] += ', no-cache="Set-Cookie"'


class _Watched:
    """The body of a stream; what it changes in the session and does not save is reported."""

    def __init__(self, session: Session, body: Iterable[Any]) -> None:
        self._session = session
        self._body = body
        self._parts = iter(body)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._parts)
        except BaseException:
            self._session._report_unsaved()
            raise

    def close(self) -> None:
        """The server calls it, also when it has read nothing."""
        try:
            close: Callable[[], None] | None = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._session._report_unsaved()


def unavailable(error: ProviderUnavailable) -> ServiceUnavailable:
    """The 503 for a provider that cannot answer."""
    return ServiceUnavailable(
        "The session storage cannot answer at the moment. Please try again.",
        retry_after=RETRY_AFTER,
    )


def report_failure(app: Flask, error: ProviderUnavailable) -> None:
    log.error("the session provider failed: %s", error)
    try:
        provider_failed.send(app, error=error)
    except Exception:
        log.exception("a receiver of provider_failed failed")  # the answer stays a 503
