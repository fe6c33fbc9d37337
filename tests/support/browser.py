"""A headless Chromium on one file, with everything that it asks for or complains about on record."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120_000.0  # milliseconds until a test gives up; never the measure of a pass
FLAGS = [
    "--no-sandbox",  # of a container; the page is our own file
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def lacking() -> str | None:
    """Why no browser can be had here, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return None if CHROMIUM else "no Chromium: apt-get install chromium"


class Opened:
    """A page, and what it did: `problems` (console errors, exceptions) and `requests` beyond its own file."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith("data:") or self.requests.append(request.url))
        page.goto(path.resolve().as_uri(), wait_until="load")

    def await_plots(self) -> None:
        """Until every chart that can be seen is drawn, and what is done to a drawn one is done."""
        self.page.wait_for_function(
            """() => {
              const seen = [...document.querySelectorAll("figure.chart")].filter((e) => e.checkVisibility());
              return seen.length && seen.every((e) => e.querySelector(".main-svg[aria-hidden='true']"));
            }"""
        )


class Chromium:
    """One browser with a profile of its own, which goes with it."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    @contextmanager
    def opened(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> Iterator[Opened]:
        """The page in a window of its own."""
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            reduced_motion="reduce",
        )
        context.set_default_timeout(PATIENCE)
        try:
            yield Opened(context.new_page(), path)
        finally:
            context.close()


@contextmanager
def chromium() -> Iterator[Chromium]:
    """A headless Chromium; playwright gives it a new profile folder and removes that again."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS, timeout=PATIENCE)
        try:
            yield Chromium(browser)
        finally:
            browser.close()
