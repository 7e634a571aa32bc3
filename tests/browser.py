"""A real browser for pages: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "OPTUNA_MERGE_REQUIRE_CHROMIUM"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


class Tab:
    """A page that was opened, and what it did."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", self._told)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(dialog.message))

    def _told(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium.

    Without it the test is skipped; with OPTUNA_MERGE_REQUIRE_CHROMIUM=1 it fails instead.
    """
    program = shutil.which("chromium")
    if program is None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, but chromium was not found: apt-get install chromium")
        pytest.skip("chromium was not found (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Tab]]:
    """Opens a URL, without network unless told otherwise."""
    contexts = []

    def open_(
        url: str,
        *,
        width: int = 1280,
        dark: bool = False,
        offline: bool = True,
        touch: bool = False,
    ) -> Tab:
        context = chromium.new_context(
            has_touch=touch,
            is_mobile=touch,
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            offline=offline,
        )
        contexts.append(context)
        tab = Tab(context.new_page())
        tab.page.goto(url)
        return tab

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go, for people to look at."""
    return tmp_path_factory.mktemp("screenshots")
