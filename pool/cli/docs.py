"""``cvat-pool docs``: the pages of the manual."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from pool.errors import InputError

PAGES: Final = Path(__file__).parent.parent / "docs"


def docs(
    topic: Annotated[
        str | None, typer.Argument(help="A topic; without one, all are named.")
    ] = None,
) -> None:
    """Show a page of the manual."""
    pages = {path.stem: path.read_text() for path in sorted(PAGES.glob("*.md"))}
    if topic is None:
        for name, page in pages.items():
            print(f"{name}\t{page.splitlines()[0].removeprefix('# ')}")
    elif topic not in pages:
        raise InputError(f"there is no topic {topic!r}; there is {', '.join(pages)}")
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(pages[topic]))
    else:
        print(pages[topic], end="")
