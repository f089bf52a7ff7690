"""The documents: the README and the pages of the manual, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pool" / "docs"
README = ROOT / "README.md"
#: All documents, by their topics; that of the README is "README".
DOCUMENTS = {path.stem: path.read_text() for path in (README, *sorted(FOLDER.glob("*.md")))}
PAGES = {topic: text for topic, text in DOCUMENTS.items() if topic != "README"}


@dataclass(frozen=True)
class Block:
    """A code block of a document: ``language`` and ``use`` are the words behind its fence."""

    topic: str
    line: int
    language: str
    use: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.topic}:{self.line}"


def blocks(*languages: str, topic: str | None = None) -> list[Block]:
    """Return the code blocks in these languages, or in all, of a document or of all."""
    return [
        block
        for name, text in DOCUMENTS.items()
        if topic in (None, name)
        for block in _blocks(name, text)
        if not languages or block.language in languages
    ]


def block(language: str, use: str = "", *, holding: str = "") -> Block:
    """Return the only block in a language, marked for a use, that holds a text."""
    (found,) = (each for each in blocks(language) if each.use == use and holding in each.text)
    return found


def _blocks(topic: str, text: str) -> Iterator[Block]:
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "fence" and token.map is not None:
            language, _, use = token.info.strip().partition(" ")
            yield Block(topic, token.map[0] + 1, language, use, token.content)


def rows(topic: str, header: str) -> list[list[str]]:
    """Return the rows of the tables of a document whose header begins with a word, as cells."""
    found: list[list[str]] = []
    wanted = False
    for line in DOCUMENTS[topic].splitlines():
        if not line.startswith("|"):
            wanted = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == header:
            wanted = True
        elif wanted and not re.fullmatch(r"[-:]+", cells[0]):
            found.append(cells)
    return found
