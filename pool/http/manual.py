"""The manual: ``/docs``, its pages rendered from Markdown, and a viewer of the OpenAPI document.

Like the dashboard it holds no data and needs no token. The viewer reads ``/openapi.json`` with the
token that its user enters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from itertools import pairwise
from typing import Final

from fastapi import APIRouter, Request, Response
from markdown_it import MarkdownIt
from markdown_it.token import Token
from starlette.exceptions import HTTPException

from pool.docs import FOLDER, SUBJECTS, TOPICS, Page, page, pages
from pool.http.openapi import DESCRIPTION
from pool.http.page import CONTENT_SECURITY_POLICY, File

#: Paths that are no topics: all pages in one, and the viewer.
ALL: Final = "all"
API: Final = "api"
#: The dashboard for Grafana.
DASHBOARD: Final = "grafana.json"

#: Swagger UI makes markup of text, which it cleans, and has pictures in its style sheet.
_VIEWER_POLICY: Final = "; ".join(
    "img-src 'self' data:" if rule.startswith("img-src") else rule
    for rule in CONTENT_SECURITY_POLICY.split("; ")
    if "trusted-types" not in rule
)
_SHELL: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="description" content="The manual of cvat-task-pool.">
<title>{title} - cvat-task-pool</title>
<link rel="icon" href="{root}static/icon.svg" type="image/svg+xml">
{head}<link rel="stylesheet" href="{root}static/base.css">
<link rel="stylesheet" href="{root}static/manual/manual.css">
</head>
<body class="manual">
<a class="skip" href="#main">Skip to the text</a>
<header class="top">
<div class="top-inner">
<a class="brand" href="{root}">
<img src="{root}static/icon.svg" alt="" width="28" height="28">cvat-task-pool</a>
<a class="to-topics" href="#topics">Topics</a>
</div>
</header>
<div class="columns">
{main}
<nav id="topics" aria-label="Manual">
{topics}</nav>
</div>
</body>
</html>
"""
_TEXT: Final = '<main id="main" class="prose" tabindex="-1">\n{text}</main>\n'
_VIEWER_HEAD: Final = """\
<link rel="stylesheet" href="{root}static/swagger-ui/swagger-ui.css">
<script src="{root}static/swagger-ui/swagger-ui-bundle.js" defer></script>
<script src="{root}static/manual/viewer.js" type="module"></script>
"""
# Swagger UI has a main element of its own.
_VIEWER: Final = """\
<div id="main" tabindex="-1">
<section class="prose" aria-labelledby="title">
<h1 id="title">The HTTP API, call by call</h1>
{about}<p>The same for programs:
<a href="{root}openapi.json"><code>/openapi.json</code></a>. In words:
<a href="{root}docs/http-api">the HTTP API</a>.</p>
<form id="token-form" hidden>
<p>This daemon wants a token (<code>POOL_API_TOKEN</code>). It is kept for this tab only.</p>
<div class="field"><label for="token">Token</label>
<input id="token" type="password" autocomplete="off" required></div>
<button class="primary">Show the API</button>
</form>
<p id="trouble" class="error" role="alert"></p>
<noscript><p>This page needs JavaScript.</p></noscript>
<h2 class="sr-only">Calls</h2>
</section>
<div id="viewer"></div>
</div>
"""


def anchor(heading: str) -> str:
    """Return the id of a heading, as GitHub makes it, so that links work in both places."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- Markdown -----------------------------------------------------------------------------------


def _headings(tokens: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    """Yield the headings, each with its text."""
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            yield opening, "".join(each.content for each in inline.children or ())


def _parse(text: str) -> tuple[MarkdownIt, list[Token]]:
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    return markdown, markdown.parse(text)


def render(source: Page, *, root: str, together: bool = False) -> str:
    """Return the HTML of a page.

    ``root`` is the relative path to ``/``. Links to other pages lead to their topics;
    ``together`` with all others in one page, to places in it.
    """
    markdown, tokens = _parse(source.text)
    for opening, text in _headings(tokens):
        opening.attrSet("id", _place(source.topic, anchor(text), opening.tag, together=together))
        if together:
            opening.tag = f"h{int(opening.tag[1]) + 1}"
    for token in tokens:
        if token.type == "heading_close" and together:
            token.tag = f"h{int(token.tag[1]) + 1}"
        for child in token.children or ():
            if child.type == "link_open":
                target = str(child.attrs["href"])
                child.attrSet("href", _link(source.topic, target, root, together=together))
            elif child.type == "image":
                child.attrSet("src", f"{root}docs/{child.attrs['src']}")
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    # Wide ones scroll by themselves, by the keyboard too; the page does not.
    html = html.replace("<pre>", '<pre tabindex="0">')
    html = html.replace("<table>", '<div class="wide" tabindex="0"><table>')
    return html.replace("</table>", "</table></div>")


def _place(topic: str, name: str, tag: str = "", *, together: bool) -> str:
    """Return the id of a heading; in one page with all others it begins with the topic."""
    if not together:
        return name
    return topic if not name or tag == "h1" else f"{topic}--{name}"


def _link(topic: str, target: str, root: str, *, together: bool) -> str:
    if "://" in target:
        return target
    path, _, name = target.partition("#")
    if path and not path.endswith(".md"):
        return f"{root}docs/{path}"
    other = path.removesuffix(".md") or topic
    if together:
        return "#" + _place(other, name, together=True)
    return (f"{root}docs/{other}" if path else "") + (f"#{name}" if name else "")


def _summary(source: Page) -> str:
    """Return the first paragraph of a page, as text."""
    _, tokens = _parse(source.text)
    first = next(inline for opening, inline in pairwise(tokens) if opening.type == "paragraph_open")
    words = (" " if each.type == "softbreak" else each.content for each in first.children or ())
    return " ".join("".join(words).split())


# --- Pages --------------------------------------------------------------------------------------


def _topics(current: str, root: str) -> str:
    """Return the navigation: the subjects and their topics, with the headings of this one."""
    lines = [_entry("", "Contents", current, root), _entry(ALL, "All in one page", current, root)]
    html = f"<ul>{''.join(lines)}</ul>\n"
    for subject, topics in SUBJECTS.items():
        entries = [_entry(topic, page(topic).title, current, root) for topic in topics]
        if "http-api" in topics:
            entries.insert(
                topics.index("http-api") + 1, _entry(API, "The API, call by call", current, root)
            )
        html += f"<h2>{escape(subject)}</h2>\n<ul>{''.join(entries)}</ul>\n"
    return html


def _entry(topic: str, title: str, current: str, root: str) -> str:
    address = f"{root}docs/{topic}".removesuffix("/")
    if topic != current:
        return f'<li><a href="{address}">{escape(title)}</a></li>'
    link = f'<a href="{address}" aria-current="page">{escape(title)}</a>'
    return f"<li>{link}{_contents(page(topic), '') if topic in TOPICS else ''}</li>"


def _contents(source: Page, address: str) -> str:
    """Return the list of a page's sections."""
    _, tokens = _parse(source.text)
    sections = [text for opening, text in _headings(tokens) if opening.tag == "h2"]
    items = "".join(
        f'<li><a href="{address}#{anchor(text)}">{escape(text)}</a></li>' for text in sections
    )
    return f"<ul>{items}</ul>" if items else ""


def _index(root: str) -> str:
    html = "<h1>The manual</h1>\n"
    for subject, topics in SUBJECTS.items():
        html += f"<h2>{escape(subject)}</h2>\n"
        for topic in topics:
            address, found = f"{root}docs/{topic}", page(topic)
            html += (
                f'<section><h3><a href="{address}">{escape(found.title)}</a></h3>\n'
                f"<p>{escape(_summary(found))}</p>\n{_contents(found, address)}</section>\n"
            )
    return html


def _text(topic: str, root: str) -> str:
    if topic == ALL:
        html = [render(each, root=root, together=True) for each in pages()]
        return "\n".join(["<h1>The manual</h1>", *html])
    return render(page(topic), root=root) if topic else _index(root)


@cache
def _document(topic: str) -> File:
    """Return the document of a topic, or of a path that is none; "" is the index."""
    root = "../" if topic else "./"
    head = ""
    if topic == API:
        title = "The HTTP API, call by call"
        about = MarkdownIt("commonmark").render(DESCRIPTION)
        head, main = _VIEWER_HEAD.format(root=root), _VIEWER.format(root=root, about=about)
    else:
        title = page(topic).title if topic in TOPICS else "The manual"
        main = _TEXT.format(text=_text(topic, root))
    html = _SHELL.format(
        title=escape(title), root=root, head=head, main=main, topics=_topics(topic, root)
    )
    return File.of(html.encode(), ".html")


@cache
def _picture(name: str) -> File | None:
    """Return a picture of the manual, or None."""
    pictures = {path.name: path for path in (FOLDER / "pictures").glob("*.png")}
    return File.of(pictures[name].read_bytes(), ".png") if name in pictures else None


@cache
def _dashboard() -> File:
    return File.of((FOLDER / DASHBOARD).read_bytes(), ".json")


router = APIRouter(include_in_schema=False)


@router.api_route("/docs", methods=["GET", "HEAD"])
def index(request: Request) -> Response:
    return _document("").answer(request)


@router.api_route("/docs/pictures/{name}", methods=["GET", "HEAD"])
def picture(name: str, request: Request) -> Response:
    if (found := _picture(name)) is None:
        raise HTTPException(404)
    return found.answer(request)


@router.api_route(f"/docs/{DASHBOARD}", methods=["GET", "HEAD"])
def dashboard(request: Request) -> Response:
    return _dashboard().answer(request)


@router.api_route("/docs/{topic}", methods=["GET", "HEAD"])
def topic(topic: str, request: Request) -> Response:
    if topic == API:
        return _document(API).answer(request, policy=_VIEWER_POLICY)
    if topic != ALL and topic not in TOPICS:
        raise HTTPException(404)
    return _document(topic).answer(request)
