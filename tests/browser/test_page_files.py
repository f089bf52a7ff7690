"""The files of the page: what is served, with which headers, and that nothing else is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources

import pytest
import urllib3
from fastapi import FastAPI

from pool.config.settings import DaemonSettings
from pool.http import page
from pool.http.page import HEADERS
from pool.http.problems import install
from pool.http.server import HttpServer

STATIC = resources.files("pool.http") / "static"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    def make_app() -> FastAPI:
        app = FastAPI()
        install(app)
        app.include_router(page.router)
        return app

    server = HttpServer(make_app, DaemonSettings(port=0))
    server.start()
    yield server.url
    server.stop(10.0)


def ask(address: str, path: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
    # As it stands: a client that tidies the path up would hide what is asked for here.
    host, port = address.removeprefix("http://").split(":")
    with urllib3.HTTPConnectionPool(host, int(port)) as http:
        return http.urlopen(method, path, headers=headers, redirect=False)


def test_the_page_and_all_that_it_names_is_there(address: str) -> None:
    page = ask(address, "/")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="(static/[^"]+)"', page.data.decode())
    assert len(named) >= 6
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for path in named:
        answer = ask(address, f"/{path}")
        assert answer.status == 200, path
        assert answer.headers["Content-Type"].startswith(types[path.rpartition(".")[2]])


def test_each_module_that_is_imported_is_there(address: str) -> None:
    modules = [entry.name for entry in STATIC.iterdir() if entry.name.endswith(".js")]
    imported = {
        module
        for importer in modules
        for module in re.findall(
            r'from "\./([^"]+)"', ask(address, f"/static/{importer}").data.decode()
        )
    }
    assert imported == set(modules) - {"main.js"}


def test_all_modules_are_loaded_at_once(address: str) -> None:
    page = ask(address, "/").data.decode()
    ahead = re.findall(r'<link rel="modulepreload" href="static/([^"]+)"', page)
    modules = [entry.name for entry in STATIC.iterdir() if entry.name.endswith(".js")]
    assert sorted([*ahead, "main.js"]) == sorted(modules)


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/static/uplot/uPlot.min.css"])
def test_the_headers_keep_others_out(address: str, path: str) -> None:
    headers = ask(address, path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_is_inline(address: str) -> None:
    page = ask(address, "/").data.decode()
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", page)


def test_what_is_known_is_not_sent_again(address: str) -> None:
    first = ask(address, "/static/main.js")
    assert first.headers["Cache-Control"] == "no-cache"
    etag = first.headers["ETag"]
    for known in (etag, f'"other", W/{etag}'):
        again = ask(address, "/static/main.js", **{"If-None-Match": known})
        assert (again.status, again.data) == (304, b"")
        assert again.headers["ETag"] == etag
        assert "Content-Security-Policy" in again.headers
    assert ask(address, "/static/main.js", **{"If-None-Match": '"other"'}).status == 200


def test_a_head_has_no_body(address: str) -> None:
    answer = ask(address, "/", "HEAD")
    assert (answer.status, answer.data) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/index.html",
        "/static/page.py",
        "/static/../page.py",
        "/static/%2e%2e/page.py",
        "/static/..%2fpage.py",
        "/static/%2fetc/passwd",
        "/static//etc/passwd",
        "/static/uplot",
        "/static/uplot/LICENSE",
        "/static/uplot/../../page.py",
        "/static/main.js%00.svg",
        "/static/MAIN.JS",
        "/static/nothing.js",
    ],
)
def test_nothing_else_is_served(address: str, path: str) -> None:
    answer = ask(address, path)
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_nothing_can_be_written(address: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert ask(address, "/", method).status == 405
        assert ask(address, "/static/main.js", method).status == 405


def test_the_chart_library_comes_with_its_licence_and_version() -> None:
    folder = STATIC / "uplot"
    assert "MIT" in (folder / "LICENSE").read_text()
    version = re.search(r"uPlot (\d+\.\d+\.\d+)", (folder / "README.md").read_text())
    assert version is not None
    assert f"v{version[1]}" in (folder / "uPlot.iife.min.js").read_text()[:200]
