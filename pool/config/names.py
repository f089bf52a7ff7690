"""The names of files: with their callers, in CVAT, on its share and in clouds.

CVAT changes the names of uploaded files, and answers with 500, or fails late, to names that it
cannot hold. What it makes of each name, and what it refuses, is in the recordings names and
share_paths; here it is known before anything is sent.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import PurePath, PurePosixPath
from posixpath import splitext
from typing import Final

from pool.errors import InputError

#: Characters to which Django cuts the name of an uploaded file, its extension kept, and the bytes
#: that the file system of the server then has room for.
LONGEST_FILE_NAME: Final = 255
#: Characters of a path on the share, of a cloud key and of a URL: CVAT's columns hold no more.
LONGEST_PATH: Final = 1024
#: Folders at most that tell files of one name apart.
MOST_FOLDERS: Final = 8


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
    if len(known) > LONGEST_PATH:
        raise InputError(
            f"{shown(known)}: at most {LONGEST_PATH} characters, and these are {len(known)}"
        )
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


def distinct_names(given: Sequence[str], *, mapped: bool = False) -> list[str]:
    """Return the names that files have in CVAT within one task, each its own, in their order.

    A file keeps its name. Files of one name get those of their folders as well, as few as tell
    them apart: ``cam1/a.jpg`` and ``cam2/a.jpg`` are ``cam1_a.jpg`` and ``cam2_a.jpg``. What has
    the same folders, or is too long with them, gets a number: ``a.jpg`` and ``a-2.jpg``. A name
    that is ``mapped`` has no spaces around it: CVAT cuts these off in a list of names.

    :raises InputError: as :func:`check_file_name`.
    """
    alone = [check_file_name(name) for name in given]
    if mapped:
        alone = [name.strip() for name in alone]
    alike: dict[str, list[int]] = {}
    for index, name in enumerate(alone):
        alike.setdefault(name, []).append(index)
    taken = {name for name, indices in alike.items() if len(indices) == 1}
    names, numbered = list(alone), []
    for name, indices in alike.items():
        if len(indices) == 1:
            continue
        folders = telling_folders([given[index] for index in indices])
        for index, candidate in zip(indices, _with_folders(name, folders), strict=True):
            if candidate in taken:
                numbered.append(index)
            else:
                names[index] = candidate
                taken.add(candidate)
    last: dict[str, int] = {}
    for index in sorted(numbered):
        names[index] = _with_number(alone[index], taken, last)
        taken.add(names[index])
    return names


def telling_folders(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the last folders of each path, as few as tell paths to files of one name apart; of
    some these may be the same."""
    folders = [_folders(path) for path in paths]
    best: list[tuple[str, ...]] = [()] * len(paths)
    most = 1
    for depth in range(1, min(max(map(len, folders), default=0), MOST_FOLDERS) + 1):
        if most == len(paths):
            break
        last = [path[-depth:] for path in folders]
        if len(set(last)) > most:
            best, most = last, len(set(last))
    return best


def _folders(path: str) -> tuple[str, ...]:
    text = "".join(each for each in html.unescape(path) if each.isprintable())
    parts = (part.strip() for part in text.replace("\\", "/").split("/")[:-1])
    return tuple(part for part in parts if part not in ("", ".", ".."))


def _with_folders(name: str, folders: Sequence[tuple[str, ...]]) -> Iterator[str]:
    for each in folders:
        longer = "_".join((*each, name))
        # Not cut: the end is what files of one folder have apart.
        yield longer if len(longer.encode()) <= LONGEST_FILE_NAME else name


def _with_number(name: str, taken: Collection[str], last: dict[str, int]) -> str:
    """Return a name that is not taken; ``last`` has the numbers that were tried before."""
    root, extension = splitext(name)
    number = last.get(name, 1)
    while True:
        number += 1
        suffix = f"-{number}{extension}"
        room = LONGEST_FILE_NAME - len(suffix.encode())
        numbered = root.encode()[:room].decode(errors="ignore") + suffix
        if numbered not in taken:
            last[name] = number
            return numbered


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
