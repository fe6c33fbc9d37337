"""What its pages point to exists, the site builds strictly, and it asks no other host for anything."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium, lacking

from tp_harness.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "docs|kernels|launch|reference|tests|tp_harness"


def title(page: Path) -> str:
    """How a test's id calls a page."""
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its fenced code."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """The relative links of a page that lead to no file, to no heading, or from docs/ out of the site."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose(page))):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        site = root / "docs"
        outside = page.is_relative_to(site) and not target.is_relative_to(site)
        wrong = outside or not target.exists() or (anchor and anchor not in anchors(target))
        found += [link] if wrong and not link.startswith(("http:", "https:")) else []
    return found


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# One `two`, three\n[a](docs/a.md#b-c) [b](docs/b.md)\n```\n# n\n```\n[c](#n)")
    page = tmp_path / "docs" / "a.md"
    page.write_text("# B: c\n[up](../README.md) [x](#b) `[y](z)` [`y`](z)\n    - [u](https://a.org/#v) [w](#b-c)\n")
    assert broken_links(tmp_path / "README.md", tmp_path) == ["docs/b.md", "#n"]
    assert broken_links(page, tmp_path) == ["../README.md", "#b", "z"]
    assert anchors(tmp_path / "README.md") == {"one-two-three"}


def missing_paths(text: str) -> list[str]:
    """The files and folders in backticks that do not exist."""
    text = re.sub(r"`[\w./]+`:\n\n +```.*?```", "", text, flags=re.DOTALL)  # files that a walkthrough makes
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)", text)
    return [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_path_in_backticks_exists(page: Path) -> None:
    assert missing_paths(page.read_text()) == []


def test_a_missing_path_would_be_found() -> None:
    assert missing_paths("`docs/case.md`, `tests/no.py::x`, `tp_harness/` and docs/no.md") == ["tests/no.py"]


def unknown_options(text: str) -> list[str]:
    """Subcommands and options of `tp-harness` in commands of a text that its parser does not have."""
    known = {}
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        command.add_options(parser)
        known[command.NAME] = set(re.findall(r"--[\w-]+", parser.format_help()))
    known |= {"--version": set(), "--help": set()}
    found = []
    for name, rest in re.findall(r"(?:    |`|/|CPU )tp-harness ([a-z-]+)([^`#\n]*)", text):
        options = re.findall(r"(?<!\S)--[\w-]+", rest)
        found += [f"{name} {option}" for option in options if option not in known.get(name, ())]
        found += [] if name in known else [name]
    return found


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_option_in_a_command_exists(page: Path) -> None:
    assert unknown_options(page.read_text()) == []


def test_an_unknown_option_would_be_found() -> None:
    text = "    tp-harness verify --case x.py --tps 2  # --no\n`.venv/bin/tp-harness lists` `tp-harness compare --tp 2`"
    assert unknown_options(text) == ["verify --tps", "lists", "compare --tp"]


def test_the_readme_is_short_and_one_click_from_failures() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert "](docs/failures.md)" in text.partition("\n## ")[0]


def test_contributing_has_a_line_for_each_folder_in_the_order_of_imports() -> None:
    rows = re.findall(r"^\| `(?:tp_harness/)?([\w/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    order = (ROOT / "tests" / "test_rooms.py").read_text().partition("ROOMS = (")[2].partition(")")[0]
    modules = {path.parent.name for name in ("tp_harness", ".") for path in (ROOT / name).glob("*/*.py")}
    modules |= {"models.gpt_oss"}
    assert [row.replace("/", ".") for row in rows] == [room for room in re.findall(r"[\w.]+", order) if room in modules]


def test_the_site_names_every_page() -> None:
    named = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


# the site itself, where mkdocs is installed


@pytest.fixture(scope="module")
def site_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the site is made of."""
    if not importlib.util.find_spec("material"):
        pytest.skip("mkdocs-material is not installed: `make docs` installs it")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_site_builds_and_its_search_works_from_a_file(site_source: Path) -> None:
    built = build(site_source)
    assert built.returncode == 0, built.stderr
    site = site_source / "build" / "site"
    for page in (ROOT / "docs").glob("*.md"):
        text = (site / page.with_suffix(".html").name).read_text()
        assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//[^>]+", text) == []
    if reason := lacking():
        pytest.skip(f"the site was built; its search was not tried: {reason}")
    with chromium() as browser, browser.opened(site / "index.html") as shown:
        shown.page.click("input.md-search__input")
        shown.page.keyboard.type("KVHeads")
        found = shown.page.locator(".md-search-result__link").first
        assert found.get_attribute("href") == (site / "case.html").as_uri()
        assert shown.problems == []
        assert [request for request in shown.requests if not request.startswith(site.as_uri())] == []


@pytest.mark.parametrize("link", ["nowhere.md", "index.md#nowhere", "/index.md", "../README.md"])
def test_a_broken_link_fails_the_build(site_source: Path, link: str) -> None:
    page = site_source / "docs" / "index.md"
    text = page.read_text()
    page.write_text(f"{text}\n[link]({link})\n")
    built = build(site_source)
    page.write_text(text)
    assert (built.returncode, built.stderr.count("WARNING -")) == (1, 1), built.stderr
    assert f"'{link}'" in built.stderr
