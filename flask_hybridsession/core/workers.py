"""The servers whose workers are known: there something can begin before the first request.

gunicorn and uWSGI call hooks in their workers. A library is not named in their settings: it joins
the hook that is there. Elsewhere nobody tells a worker from a command, a test or a reloader.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import threads

Begin = Callable[[], object]

#: Seconds between two looks whether uWSGI has loaded the app, and after which nobody looks.
_LOOK_EVERY = 0.05
_LONGEST_LOAD = 600.0
_begin: Begin | None = None


def begin_when_ready(begin: Begin) -> None:
    """Call ``begin`` in each process that is, or becomes, a worker, when its app is loaded.

    To be called while the app is loaded. ``begin`` may be called more than once.
    """
    global _begin
    _begin = begin
    _join_gunicorn()
    _join_uwsgi(begin)


# gunicorn: https://docs.gunicorn.org/en/stable/settings.html#post-worker-init


class _PostWorkerInit:
    """What was set, and then what begins."""

    def __init__(self, given: Callable[[Any], object], begin: Begin) -> None:
        self._given = given
        self._begin = begin

    def __call__(self, worker: Any) -> None:
        self._given(worker)
        self._begin()


def _join_gunicorn() -> None:
    """Its settings are those of whoever handles its signals, in the master as in a worker."""
    config: Any = sys.modules.get("gunicorn.config")
    if config is None or _begin is None:
        return
    server = getattr(signal.getsignal(signal.SIGUSR1), "__self__", None)
    settings = getattr(server, "cfg", None)
    if isinstance(settings, config.Config):
        given = settings.post_worker_init
        if not isinstance(given, _PostWorkerInit):
            settings.set("post_worker_init", _PostWorkerInit(given, _begin))


# With --preload the master loads the app before it handles signals: only its children find it.
os.register_at_fork(after_in_child=_join_gunicorn)


# uWSGI: https://uwsgi-docs.readthedocs.io/en/latest/PythonDecorators.html


def _join_uwsgi(begin: Begin) -> None:
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None or not hasattr(uwsgi, "worker_id"):
        return
    if uwsgi.worker_id():
        _begin_when_loaded(uwsgi, begin)
    elif type(uwsgi) is ModuleType:
        _join_post_fork_hook(uwsgi, begin)


def _join_post_fork_hook(uwsgi: Any, begin: Begin) -> None:
    """There is one hook, and others set it, too: ``import uwsgidecorators`` does."""

    def both(given: Callable[[], object] | None) -> Callable[[], None]:
        def post_fork_hook() -> None:
            try:
                if given is not None:
                    given()
            finally:
                # Not in a mule or a spooler. A loop engine takes over the threads only later.
                if uwsgi.worker_id() and not getattr(uwsgi, "loop", None):
                    begin()

        return post_fork_hook

    class Module(ModuleType):
        """Whatever hook is set, now or later, is called beside ours, and not instead."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, both(value) if name == "post_fork_hook" else value)

    given = getattr(uwsgi, "post_fork_hook", None)
    uwsgi.__class__ = Module
    uwsgi.post_fork_hook = given


def _begin_when_loaded(uwsgi: Any, begin: Begin) -> None:
    """With ``--lazy-apps`` the hook was called before: a thread looks until the app is there."""

    def loaded() -> int:
        return len(uwsgi.workers()[uwsgi.worker_id() - 1]["apps"])

    before = loaded()

    def wait() -> None:
        give_up = time.monotonic() + _LONGEST_LOAD
        while time.monotonic() < give_up:
            if loaded() > before:
                begin()
                return
            time.sleep(_LOOK_EVERY)

    if threads.may_start() and not getattr(uwsgi, "loop", None):
        threading.Thread(target=wait, name="flask-hybridsession-loading", daemon=True).start()
