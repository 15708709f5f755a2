"""How the files of a store are made: for its owner alone, whoever makes them.

What root makes in the directory of another user is given to him, under a hidden name, before
anybody can meet it: a command of root's leaves nothing that the service cannot read and write.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from errno import EACCES, EEXIST, EINVAL, ENOTDIR, ENOTEMPTY

from ...core.errors import ConfigError
from .owners import owner_of, user_name


def open_file(path: str) -> int:
    """A file to read and write, made if it is missing. Raises ``OSError``, as for a link."""
    while True:
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                make_private(fd)
            except BaseException:
                os.close(fd)
                raise
            return fd
        with suppress(FileExistsError):
            return create(path)


def create(path: str, flags: int = 0) -> int:
    """A new file. Raises ``OSError``; and ``ConfigError`` if it cannot be given to its owner."""
    flags |= os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    if os.geteuid() or not (owner := owner_of(os.path.dirname(path)))[0]:
        return os.open(path, flags, 0o600)
    hidden = _hidden(path)
    fd = os.open(hidden, flags, 0o600)
    try:
        _give(hidden, owner)
        os.link(hidden, path)
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.unlink(hidden)
    return fd


def make_private(fd: int) -> None:
    """Take away what others may do with a file."""
    if stat.S_IMODE(os.fstat(fd).st_mode) != 0o600:
        os.fchmod(fd, 0o600)


def make_directory(path: str, mode: int = 0o700) -> None:
    """A directory that may be there, and those above it. Root gives each to who owns the one above.

    Raises ``OSError``, and ``ConfigError`` if it cannot be given to him.
    """
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_directory(above, 0o777)
    there = os.stat(above)
    try:
        if os.geteuid() or not there.st_uid:
            os.mkdir(path, mode)
        else:
            _make_for(path, mode, (there.st_uid, there.st_gid))
    except OSError as error:
        if error.errno not in (EEXIST, ENOTEMPTY) or not os.path.isdir(path):
            raise  # else another worker was faster


def _make_for(path: str, mode: int, owner: tuple[int, int]) -> None:
    hidden = _hidden(path)
    os.mkdir(hidden, mode)
    try:
        _give(hidden, owner)
        os.rename(hidden, path)
    except BaseException:
        os.rmdir(hidden)
        raise


def _hidden(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}")


def _give(path: str, owner: tuple[int, int]) -> None:
    try:
        os.chown(path, *owner, follow_symlinks=False)
    except OSError as error:
        name = user_name(owner[0])
        user = f"'#{name}'" if name.isdigit() else name
        raise ConfigError(
            f"SESSION_DIR: {os.path.dirname(path)} belongs to {name}, and what root makes there "
            f"cannot be given to him: {error.strerror}. Nothing was made. Run this as {name}: "
            f"sudo -u {user} ..."
        ) from None


# Looking ahead


def check_usable(directory: str) -> None:
    """Raise ``OSError`` for a directory that cannot be used, or made. Nothing is opened."""
    place = directory
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    mode = os.stat(place).st_mode
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
    if place == directory:
        _check_access(place, os.R_OK | os.W_OK | os.X_OK)
    elif mode & 0o222:
        _check_access(place, os.W_OK | os.X_OK)
    else:  # as /proc: root too can make nothing there, though it may
        raise PermissionError(EACCES, os.strerror(EACCES))


def check_file(path: str) -> None:
    """Raise ``OSError`` for what is there and no file to read and write. It is not opened."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(EINVAL, f"{path} is no file")
        _check_access(path, os.R_OK | os.W_OK)


def _check_access(path: str, needed: int) -> None:
    if not os.access(path, needed):
        raise PermissionError(EACCES, os.strerror(EACCES))
