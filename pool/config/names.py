"""The names of files: with their callers, in CVAT, on its share and in clouds.

CVAT changes the names of uploaded files, and answers with 500, or fails late, to names that it
cannot hold. What it makes of each name, and what it refuses, is in the recordings names and
share_paths; here it is known before anything is sent.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath
from posixpath import splitext
from typing import Final

from pool.errors import InputError

#: Characters to which Django cuts the name of an uploaded file, its extension kept, and the bytes
#: that the file system of the server then has room for.
LONGEST_FILE_NAME: Final = 255
#: Characters of a path on the share, of a cloud key and of a URL: CVAT's columns hold no more.
LONGEST_PATH: Final = 1024


def name_in_cvat(name: str) -> str:
    """Return the name that CVAT gives to an uploaded file.

    Django decodes character references, keeps the last part of a path, leaves out what is not
    printable and cuts the rest (``MultiPartParser.sanitize_file_name`` and ``UploadedFile``).
    """
    name = html.unescape(name).rsplit("/", 1)[-1].rsplit("\\", 1)[-1]
    name = "".join(character for character in name if character.isprintable())
    if len(name) > LONGEST_FILE_NAME:
        root, extension = splitext(name)
        extension = extension[:LONGEST_FILE_NAME]
        name = root[: LONGEST_FILE_NAME - len(extension)] + extension
    return name


def check_file_name(name: object) -> str:
    """Return the name in CVAT of a file that is called ``name``.

    :raises InputError: CVAT has no room for it, or would take the file for no media.
    """
    known = check_text(name, "the name of a file")
    there = name_in_cvat(known)
    if there.strip() in ("", ".", ".."):
        raise InputError(f"{shown(known)}: is no file name")
    if there != there.rstrip():
        raise InputError(f"{shown(known)}: the space at its end hides its extension from CVAT")
    check_length(there, shown(known))
    return there


def check_length(name: str, where: str) -> None:
    """Check that CVAT has room for the name of a file; ``where`` stands before the message.

    :raises InputError: it has not.
    """
    size = len(name.encode())
    if size > LONGEST_FILE_NAME:
        raise InputError(
            f"{where}: CVAT has room for {LONGEST_FILE_NAME} bytes of a file's name, and these are "
            f"{size}; give it a shorter one"
        )


def check_extensions(names: Iterable[str]) -> None:
    """Refuse files none of which has an extension, by which alone CVAT knows media.

    :raises InputError: none has.
    """
    names = list(names)
    if names and not any(splitext(name)[1] for name in names):
        raise InputError(
            f"{shown(names[0])}: CVAT knows media by their extension, such as .jpg, and there is "
            "none"
        )


class DistinctNames:
    """The names that the files of one task have in CVAT, each of one file. ``remedy`` is what to
    do about two of one name."""

    def __init__(
        self,
        *,
        remedy: str = "put them into a zip archive, which keeps folders, or give them names of "
        "their own",
    ) -> None:
        self._given: dict[str, str] = {}
        self._remedy = remedy

    def add(self, given: str, there: str | None = None) -> str:
        """Take the name of a file, and return the one that it has in CVAT: ``there`` where that is
        known.

        :raises InputError: as :func:`check_file_name`, or another file has the same.
        """
        there = check_file_name(given) if there is None else there
        if there in self._given:
            other = self._given[there]
            which = shown(given)
            if other != given:
                which = f"{shown(other)} and {shown(given)}: CVAT calls both of them {shown(there)}"
            raise InputError(
                f"{which}: two files of one name cannot be in one task; {self._remedy}"
            )
        self._given[there] = given
        return there


def check_server_path(name: object, *, what: str) -> str:
    """Return a path on CVAT's share, or a key in a cloud storage, as it is sent.

    :raises InputError: CVAT would refuse it (recording share_paths).
    """
    path = check_text(name, what)
    problem = _problem_with_path(path)
    if problem:
        raise InputError(f"{what} {shown(path)}: {problem}")
    return path


def _problem_with_path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path != path.strip():
        return "CVAT would cut the spaces around it off"
    if not parts:
        return "is empty"
    if path.startswith("/"):
        return "is not relative"
    if ".." in parts:
        return "contains '..'"
    if PurePosixPath(path).as_posix() != path.removesuffix("/"):
        return "has needless slashes or dots"
    if len(path) > LONGEST_PATH:
        return f"CVAT has room for {LONGEST_PATH} characters, and these are {len(path)}"
    return ""


def shown(name: str | PurePath) -> str:
    """Return a name for a message: as it is where it can be printed, else escaped; not too long."""
    text = str(name)
    text = text if len(text) <= 100 else f"{text[:70]}…{text[-29:]}"
    return text if text and text == text.strip() and text.isprintable() else ascii(text)


def check_text(value: object, what: str) -> str:
    """Return a text that JSON, CVAT and the store can hold.

    :raises InputError: they cannot.
    """
    if not isinstance(value, str):
        raise InputError(f"{what} has to be text, not {type(value).__name__}")
    if "\0" in value:
        problem = "has a NUL character"
    else:
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            problem = "is not UTF-8; give it another name"
    # An address that cannot be read is not shown: it may hold a secret.
    which = what if "://" in value else f"{what}, {shown(value)},"
    raise InputError(f"{which} {problem}")
