"""The documentation's site as a browser shows it, and what readers and search engines need."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from axe import WCAG, broken_rules

import optuna_merge

pytestmark = pytest.mark.slow  # the site is built, which takes half a minute

ROOT = Path(optuna_merge.__file__).resolve().parents[1]
SHOWN = ("", "optuna_merge/reports/", "reference/merging/")


class Page(HTMLParser):
    """What stands in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lang: str | None = None
        self.description: str | None = None
        self.title = ""
        self.headings: list[int] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.without_alt: list[str] = []
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._in_title = tag == "title" and not self.title
        self.ids |= {value for value in (found.get("id"), found.get("name")) if value}
        if tag == "html":
            self.lang = found.get("lang")
        elif tag == "meta" and found.get("name") == "description":
            self.description = found.get("content")
        elif len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.headings.append(int(tag[1]))
        elif tag == "img" and not found.get("alt"):
            self.without_alt.append(str(found.get("src")))
        self.links += [v for k in ("href", "src") if (v := found.get(k)) is not None]

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
            self._in_title = False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = f"-m mkdocs build -q -f .ci/docs/mkdocs.yml -d {folder}"
    subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        check=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """The pages by path; that of what is not found has links from the root."""
    found = {p.relative_to(site).as_posix(): Page(p.read_text()) for p in site.rglob("*.html")}
    del found["404.html"]
    return found


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_every_page_has_language_title_description_and_headings_in_order(
    pages: dict[str, Page],
) -> None:
    assert len(pages) > 60
    for name, page in pages.items():
        assert page.lang == "en" and page.title, name
        assert page.description and len(page.description) > 40, name
        assert page.headings.count(1) == 1 and page.headings[0] == 1, (name, page.headings)
        steps = zip(page.headings, page.headings[1:])
        assert all(after <= before + 1 for before, after in steps), (name, page.headings)
        assert page.without_alt == [], name


def test_no_link_leads_nowhere(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(urljoin(f"http://site/{name}", link))
            if not target.startswith("http://site/") or link.startswith("data:"):
                continue
            path = unquote(target.removeprefix("http://site/")).partition("?")[0]
            path = f"{path}index.html" if path.endswith("/") or not path else path
            there = (site / path).is_file()
            if not there or (anchor and path in pages and unquote(anchor) not in pages[path].ids):
                broken.append(f"{name}: {link}")
    assert broken == []


@pytest.mark.parametrize("path", SHOWN)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (360, False)])
def test_a_browser_finds_no_fault(
    address: str, open_page: Callable[..., Any], path: str, width: int, dark: bool
) -> None:
    tab = open_page(address + path, width=width, dark=dark, offline=False)
    tab.page.wait_for_load_state("networkidle")
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith(address)] == []
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert broken_rules(tab.page, WCAG) == []
