"""``cvat-pool docs``: the pages of the manual."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, ClassVar, Final

import typer

from pool.cli.output import hint
from pool.docs import SUBJECTS, TOPICS, page
from pool.errors import InputError

#: Columns beyond which lines of text are hard to read.
_WIDEST: Final = 100


def docs(
    topic: Annotated[
        str | None, typer.Argument(help="A topic; without one, all are named.")
    ] = None,
) -> None:
    """Show a page of the manual."""
    if topic is None:
        width = max(map(len, TOPICS))
        for subject, topics in SUBJECTS.items():
            print(f"{subject}:")
            for each in topics:
                print(f"  {each:{width}}  {page(each).title}")
        hint("'cvat-pool docs TOPIC' shows one.")
    elif topic not in TOPICS:
        raise InputError(f"there is no topic {topic!r}; there is {', '.join(TOPICS)}")
    elif sys.stdout.isatty():
        _print(page(topic).text)
    else:
        print(page(topic).text, end="")


def _print(text: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown, TableDataElement

    class Cell(TableDataElement):
        """A cell of a table that breaks long words, where Rich's own cuts them off."""

        def __init__(self, justify: Any) -> None:
            super().__init__(justify=justify)
            self.content.overflow = "fold"

    class Page(Markdown):
        elements: ClassVar = {**Markdown.elements, "td_open": Cell}

    console = Console()
    console.print(Page(_for_terminal(text)), width=min(console.width, _WIDEST))


def _for_terminal(text: str) -> str:
    """Name the topics that links lead to, and what pictures show: a terminal has neither."""
    text = re.sub(r"!\[([^]]*)\]\([^)]*\)", r"*(picture: \1)*", text)
    text = re.sub(r"\[([^]]*)\]\(([a-z-]+)\.md[^)]*\)", r"\1 (`docs \2`)", text)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
