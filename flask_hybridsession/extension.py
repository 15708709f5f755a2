"""``HybridSession``: settings -> provider -> manager -> interface; and what operators ask."""

from __future__ import annotations

import datetime as dt
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary, ref

from flask import Flask, current_app, has_app_context
from flask.sessions import SecureCookieSessionInterface

from . import logins, signals
from .cli import sessions_cli
from .core import clock, ids
from .core.breaker import end_budget
from .core.change import Record
from .core.edits import Merge, merge_flashes
from .core.errors import ConfigError, CorruptData, ProviderUnavailable
from .core.live import LiveSettings
from .core.manager import Manager
from .core.names import FLASHES
from .core.provider import Lists, Provider, Remote, Reports
from .core.settings import read_settings
from .flash import add_to_templates
from .interface import HybridSessionInterface, report_failure
from .providers.registry import make_provider, with_database

log = logging.getLogger("flask_hybridsession")

Loader = TypeVar("Loader", bound=Callable[[Any], Any])


class Handle(NamedTuple):
    """One session of a user, for a list of devices. ``key`` is a hash, not the id in the cookie."""

    key: str
    created: dt.datetime
    touched: dt.datetime
    expires: dt.datetime | None
    device: str | None


class HybridSession:
    """Server-side sessions for a Flask app: ``HybridSession(app)``, or later ``init_app(app)``.

    One object may serve several apps, each with a provider of its own; its methods speak of the
    current app, or of the only one. ``provider`` is a provider, or the name of one: it wins over
    ``SESSION_TYPE``. Raises ``ConfigError`` for settings that cannot work.
    """

    def __init__(self, app: Flask | None = None, *, provider: Provider | str | None = None) -> None:
        self._given = provider
        self._managers: WeakKeyDictionary[Flask, Manager] = WeakKeyDictionary()
        self._load_user: Callable[[ids.UserId], Any] | None = None
        self._merges: dict[str, Merge] = {FLASHES: merge_flashes}
        self._databases: list[Any] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the settings, make the provider and become the app's session interface."""
        if "hybridsession" in app.extensions:
            raise ConfigError("this app has a HybridSession already: make one only.")
        config: dict[str, Any] = dict(app.config)
        if self._given is not None:
            config["SESSION_TYPE"] = self._given
        directory = os.path.join(app.instance_path, "sessions")
        settings = read_settings(config, directory)
        provider = make_provider(settings)
        for database in self._databases:
            provider = with_database(provider, database)
        _watch(app, provider)
        reference = ref(app)
        manager = Manager(
            provider,
            settings,
            app.config,
            _announcer(app),
            lambda user_id: self._user(provider, user_id),
            self._merges,
            lambda: logins.id_method(reference()),
        )
        self._managers[app] = manager
        live = LiveSettings(app.config, settings, directory, self._given)
        interface = HybridSessionInterface(manager, live, logins.listen)
        app.session_interface = cast(SecureCookieSessionInterface, interface)
        app.register_error_handler(
            ProviderUnavailable, lambda error: interface.answer(_current_app(), error)
        )
        if isinstance(provider, Remote):
            app.teardown_request(lambda _: end_budget())
        add_to_templates(app)
        app.cli.add_command(sessions_cli)
        app.extensions["hybridsession"] = self

    # -- what an app gives ----------------------------------------------------------------------

    def user_loader(self, function: Loader) -> Loader:
        """Decorate the function that makes ``session.user`` of ``session.user_id``."""
        self._load_user = function
        return function

    def merge(self, name: str, function: Merge) -> None:
        """Join concurrent changes of ``session[name]``: ``function(base, mine, theirs)``.

        ``base`` is the value that this request began with, ``mine`` is what it made of it,
        ``theirs`` is what another request has stored meanwhile; None stands for no value. What it
        returns is stored. It may be called several times, and must not change its arguments.
        """
        self._merges[name] = function

    def use_database(self, database: Any) -> None:
        """Register one more database of sessions; the provider stays the one that decides.

        ``database`` is a provider, or an object with ``load(key)`` and ``sync(payload)``: see
        ``Database``. Each is told every change, in the order in which they were registered; what
        the provider does not have is asked of them, and the first that has it wins. For all apps
        that ``init_app`` is called with afterwards; later, for the current one, or the only one.
        Raises ``ConfigError`` for what is no database, and what Flask raises for a setup that
        comes after the first request.
        """
        if not self._managers:
            self._databases.append(database)
            return
        app = self._app()
        app._check_setup_finished("sessions.use_database")
        manager = self._managers[app]
        manager.provider = with_database(manager.provider, database)
        # Its own may have another provider, made for settings that have changed since.
        cast(HybridSessionInterface, app.session_interface).manager = manager
        _watch(app, manager.provider)

    # -- what an operator asks ------------------------------------------------------------------

    @property
    def provider(self) -> Provider:
        """The provider of the current app."""
        return self._manager().provider

    def of_user(self, user_id: ids.UserId | ids.HasId) -> list[Handle]:
        """The live sessions of a user, newest use first.

        With Flask-Login ids are texts, whatever they are given as: ``7`` is ``"7"``.
        """
        manager, token = self._manager(), self._user_token(user_id)
        keys = manager.need_users().keys_of(token, clock.now())
        records = [record for key in keys if (record := _readable(manager, key))]
        return [_handle(record) for record in sorted(records, key=lambda r: -r.touched)]

    def destroy(self, handle: Handle | str) -> bool:
        """End one session: a handle of ``of_user``, or its key. True if it was there."""
        return self._manager().destroy(handle if isinstance(handle, str) else handle.key)

    def destroy_user(
        self, user_id: ids.UserId | ids.HasId, keep: Handle | str | None = None
    ) -> int:
        """End all sessions of a user, but for ``keep`` (``session.key`` is this one); how many."""
        kept = keep.key if isinstance(keep, Handle) else keep
        return self._manager().destroy_user(self._user_token(user_id), kept)

    def destroy_all(self) -> int:
        """End every session; how many there were."""
        return self._manager().destroy_all()

    def count(self) -> int:
        """How many sessions are stored."""
        return self._manager().need_lists().count(clock.now())

    def purge(self) -> int:
        """Destroy what is past its deadline, now rather than by the clockwork; how many."""
        return self._manager().purge()

    def stats(self) -> dict[str, int | float | str]:
        """What the provider tells about itself: names and numbers, no keys and no values."""
        provider = self.provider
        stats: dict[str, int | float | str] = {"provider": type(provider).__name__}
        if isinstance(provider, Reports):
            stats |= provider.stats()
        if isinstance(provider, Lists) and "sessions" not in stats:
            stats["sessions"] = provider.count(clock.now())
        return stats

    def close(self) -> None:
        """Write out and let go of the provider of the current app. Harmless twice."""
        self._manager().close()

    def _manager(self) -> Manager:
        return self._managers[self._app()]

    def _user_token(self, user: ids.UserId | ids.HasId) -> str:
        interface = cast(HybridSessionInterface, self._app().session_interface)
        return interface.current().user_token(user)

    def _app(self) -> Flask:
        """The current app, or the only one."""
        apps = list(self._managers)
        if has_app_context() and _current_app() in self._managers:
            return _current_app()
        if len(apps) == 1:
            return apps[0]
        raise RuntimeError(
            "HybridSession has no app yet: call init_app(app)."
            if not apps
            else "HybridSession serves several apps: use it within app.app_context()."
        )

    def _user(self, provider: Provider, user_id: ids.UserId) -> Any:
        load = self._load_user or getattr(provider, "load_user", None)
        if load is None:
            raise ConfigError(
                "session.user needs a function that loads a user: decorate one with "
                "@sessions.user_loader, or use session.user_id."
            )
        return load(user_id)


def _readable(manager: Manager, key: str) -> Record | None:
    """A damaged session hides none of the others."""
    try:
        return manager.load(key)
    except CorruptData:
        log.error("session %s... is damaged and not listed", key[:12])
        return None


def _handle(record: Record) -> Handle:
    utc = dt.timezone.utc
    return Handle(
        record.key,
        dt.datetime.fromtimestamp(record.created, utc),
        dt.datetime.fromtimestamp(record.touched, utc),
        None
        if record.deadline == float("inf")
        else dt.datetime.fromtimestamp(record.deadline, utc),
        record.device,
    )


def _current_app() -> Flask:
    return current_app._get_current_object()  # type: ignore[attr-defined, no-any-return]


def _watch(app: Flask, provider: Any) -> None:
    """Report it when one of several databases falls behind."""
    if not hasattr(provider, "on_failure"):
        return
    reference = ref(app)

    def report(error: ProviderUnavailable) -> None:
        app = reference()
        if app is not None:
            with nullcontext() if has_app_context() else app.app_context():
                report_failure(app, error)

    provider.on_failure = report


_SIGNALS = {
    "created": signals.session_created,
    "renamed": signals.session_renamed,
    "destroyed": signals.session_destroyed,
    "expired": signals.session_expired,
    "rejected": signals.session_rejected,
}


def _announcer(app: Flask) -> Callable[..., None]:
    """Sends the signals, within an app context. Holds the app no longer than others do."""
    reference = ref(app)

    def announce(event: str, *, user: str | None = None, **details: Any) -> None:
        signal = _SIGNALS[event]
        app = reference()
        if app is None or not signal.receivers:
            return
        details["user_id"] = None if user is None else ids.user_id(user)
        try:
            with nullcontext() if has_app_context() else app.app_context():
                signal.send(app, **details)
        except Exception:
            # It has happened already: a receiver's error must not keep the next from being told.
            log.exception("a receiver of session_%s failed", event)

    return announce
