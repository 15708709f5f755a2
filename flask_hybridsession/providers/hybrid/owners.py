"""Whose the directory is: who may write in it may forge sessions, or put an older file in place.

The directory itself is judged, not those above it. Root may use one that is another user's.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import stat
from contextlib import suppress

from ...core.errors import ConfigError

logger = logging.getLogger("flask_hybridsession.hybrid")

#: Directories of other users that root was warned of.
_warned: set[str] = set()


def check(directory: str, group: str | int | None = None) -> None:
    """Raise ``ConfigError`` if others could have a say in the sessions, or keep us from them.

    ``group`` is the one, by its name or number, whose members may write in the directory.
    """
    if not check_directory(directory, group):
        return  # it is made, or refused, by who opens it
    if me := os.geteuid():
        _check_files(directory, me)
    elif (owner := owner_of(directory)[0]) and directory not in _warned:
        _warned.add(directory)
        logger.warning(
            "root uses %s, the sessions of %s: what is made there is given to him",
            directory,
            user_name(owner),
        )


def check_directory(directory: str, group: str | int | None = None) -> bool:
    """As ``check``, but for the files in it. False when there is no such directory."""
    trusted = None if group is None else group_id(group)
    try:
        there = os.stat(directory)
    except OSError:
        return False
    me = os.geteuid()
    if not stat.S_ISDIR(there.st_mode):
        return False
    if me and there.st_uid not in (me, 0):
        raise _refusal(
            directory, f"belongs to {user_name(there.st_uid)}, who could replace sessions"
        )
    if there.st_mode & stat.S_IWOTH:
        raise _refusal(directory, "can be written by everybody", f"chmod o-w {directory}")
    if there.st_mode & stat.S_IWGRP and there.st_gid != trusted:
        name = _group(there.st_gid)
        raise _refusal(
            directory,
            f"can be written by the group {name}",
            f"chmod g-w {directory}",
            f'say that you trust it: SESSION_OPTIONS = {{"group": "{name}"}}',
        )
    return True


def owner_of(directory: str) -> tuple[int, int]:
    """User and group that a store belongs to: in a directory of root's, those of its files."""
    there = os.stat(directory)
    if not there.st_uid:
        with suppress(FileNotFoundError):
            there = os.lstat(os.path.join(directory, "lock"))
    return there.st_uid, there.st_gid


def group_id(group: str | int) -> int:
    """The number of a group. Raises ``ConfigError`` where there is none of that name."""
    if isinstance(group, str):
        with suppress(KeyError):
            return grp.getgrnam(group).gr_gid
    elif type(group) is int:
        return group
    raise ConfigError(
        f"SESSION_OPTIONS: group must be the name or the number of a group, not {group!r}."
    )


def _check_files(directory: str, me: int) -> None:
    """What a command as root has made, say, is no file of ours. Hidden names are nobody's yet."""
    with suppress(OSError), os.scandir(directory) as entries:  # who opens it tells what is wrong
        for entry in entries:
            owner = entry.stat(follow_symlinks=False).st_uid
            if owner != me and not entry.name.startswith("."):
                raise ConfigError(
                    f"SESSION_DIR: {entry.path} belongs to {user_name(owner)}, not to "
                    f"{user_name(me)}, who runs this: chown -R {user_name(me)} {directory}"
                )


def _refusal(directory: str, why: str, *cures: str) -> ConfigError:
    inner = os.path.join(directory, "sessions")
    ways = [*cures, f'take a directory in it, which is made for this user alone: "{inner}"']
    return ConfigError(f"SESSION_DIR: {directory} {why}. To mend it: {'; or '.join(ways)}.")


def user_name(number: int) -> str:
    """The name of a user, or the number of one that has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
