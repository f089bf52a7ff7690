"""Permissions of the files and folders that the pool makes: the store, which holds the secret of
the webhooks, and the spool, which holds what people upload.

They are this user's alone. The group gets what the umask leaves it only where the umask takes
everything from all others (0007, 0027): such an umask says that the group is trusted.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from pool.logs import get_logger

log = get_logger(__name__)

_OTHERS = 0o007
_umask_guard = threading.Lock()


def create_file(path: Path) -> int:
    """Create a new file and return a descriptor to write to it.

    :raises FileExistsError: there is one.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.open(path, flags, 0o666 & _allowed())


def create_folder(path: Path) -> None:
    """Create a new folder; those above it have to exist.

    :raises FileExistsError: there is one.
    """
    path.mkdir(0o777 & _allowed())


def create_folders(path: Path) -> None:
    """Create a folder and those above it, where they are missing."""
    if path.is_dir():
        return
    create_folders(path.parent)
    try:
        create_folder(path)
    except FileExistsError:
        if not path.is_dir():
            raise


def narrow(path: Path) -> None:
    """Give a file or folder of ours that others can use the permissions of a new one; log a warning
    when it is another user's. Permissions of the group alone stay: they were set on purpose."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & _OTHERS:
            return
        path.chmod(mode & _allowed())
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("others can read it; run chmod o= on it", path=str(path), why=error.strerror)
    else:
        log.warning("others could read it until now", path=str(path), mode=oct(mode & _allowed()))


def warn_of_readers(path: Path, what: str) -> None:
    """Log a warning when others can read the file of a secret, which is the user's to change. Best
    effort: reading the file reports what is wrong with it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning(
            f"{what} can be read by other users",
            path=str(path),
            mode=oct(mode),
            hint=f"chmod 600 {path}",
        )


def _allowed() -> int:
    """Return the permission bits that the process's umask allows."""
    with _umask_guard:
        # It can only be read by setting it; what other threads make meanwhile is not too open.
        umask = os.umask(0o077)
        os.umask(umask)
    return (0o770 if umask & _OTHERS == _OTHERS else 0o700) & ~umask
