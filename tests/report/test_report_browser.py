"""The page as people meet it: a real Chromium, its console, its requests, its accessibility tree, its keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Chromium, Opened, chromium, lacking
from report_pages import page_of, run_of

from tp_harness.report import html

pytestmark = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))

NAMED_ROLES = {"button", "link", "combobox", "region", "img", "image", "figure", "navigation", "DisclosureTriangle"}
FOCUSABLE = "a[href], button, select, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name in ("clean", "mismatch", "hostile"):
        (folder / f"{name}.html").write_bytes(page_of(name).encode("utf-8", "replace"))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as each:
        yield each


@pytest.fixture(scope="module")
def clean(browser: Chromium, pages: Path) -> Iterator[Opened]:
    """The page of a run in which everything passed, at a desk, in the light."""
    with browser.opened(pages / "clean.html") as page:
        page.await_plots()
        yield page


def test_it_says_nothing_and_asks_for_nothing(clean: Opened) -> None:
    assert clean.problems == []
    assert len(clean.requests) == 1
    assert clean.requests[0].startswith("file://")


def test_every_visible_plot_is_drawn(clean: Opened) -> None:
    drawn, static = plots(clean)
    assert drawn == len(clean.page.query_selector_all("figure.chart:visible")) > 5
    assert static == 0
    bars = clean.page.query_selector_all("#time figure.chosen .bars .point")
    assert len(bars) == 2 * 3  # compute and collectives of one rank at tp 1 and two at tp 2


def plots(opened_page: Opened) -> tuple[int, int]:
    """How many interactive and how many static charts can be seen."""
    page = opened_page.page
    return (
        page.locator("figure.chart:visible .main-svg:first-child:visible").count(),
        page.locator("figure.chart:visible svg.static:visible").count(),
    )


def test_another_component_can_be_chosen(clean: Opened) -> None:
    select = clean.page.locator("#time-choice")
    before = clean.page.locator("#time figure.chosen h3").inner_text()
    select.select_option(index=0)
    clean.page.wait_for_selector("#time figure.chosen .main-svg")
    after = clean.page.locator("#time figure.chosen h3").inner_text()
    assert before != after
    assert clean.page.locator("#time figure:visible").count() == 1


def unnamed(opened_page: Opened) -> list[str]:
    """Roles in the accessibility tree that need a name and have none."""
    session = opened_page.page.context.new_cdp_session(opened_page.page)
    nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (str(node.get("role", {}).get("value")), node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"]
    ]
    assert {"button", "link", "region"} <= {role for role, _ in named}
    return [role for role, name in named if role in NAMED_ROLES and not name]


def test_everything_that_acts_has_an_accessible_name(clean: Opened) -> None:
    assert unnamed(clean) == []


def unreached(opened_page: Opened) -> list[str]:
    """What can be acted upon but is not reached by the Tab key."""
    page = opened_page.page
    count: int = page.evaluate(
        """(focusable) => {
          const seen = [...document.querySelectorAll(focusable)].filter((e) => e.checkVisibility());
          seen.forEach((e, i) => (e.dataset.number = i));
          document.activeElement.blur();
          getSelection().removeAllRanges();
          return seen.length;
        }""",
        FOCUSABLE,
    )
    reached = set()
    for _ in range(count + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.number"))
    left = [str(number) for number in range(count) if str(number) not in reached]
    return [page.locator(f"[data-number='{number}']").evaluate("e => e.outerHTML.slice(0, 80)") for number in left]


def test_the_keyboard_reaches_everything(browser: Chromium, pages: Path) -> None:
    with browser.opened(pages / "clean.html") as page:
        page.page.keyboard.press("Tab")
        assert page.page.evaluate("document.activeElement.className") == "skip"
        assert unreached(page) == []


def test_a_cell_leads_to_its_row_by_keyboard(browser: Chromium, pages: Path) -> None:
    with browser.opened(pages / "mismatch.html") as page:
        page.page.locator(".cell.MISMATCH a").first.focus()
        page.page.keyboard.press("Enter")
        page.page.wait_for_function("location.hash")
        target = page.page.evaluate("location.hash.slice(1)")
        page.page.wait_for_selector(f"#{target}[open]")
        row = page.page.locator(f"#{target}")
        assert row.get_attribute("open") is not None
        assert "bias_times_tp" in row.inner_text()
        passing = page.page.locator(".cell.PASS a").first
        passing.focus()
        page.page.keyboard.press("Enter")
        page.page.wait_for_function("(old) => location.hash.slice(1) !== old", arg=target)
        target = page.page.evaluate("location.hash.slice(1)")
        page.page.wait_for_selector(f"#{target}[open]")
        assert page.page.locator(f"#{target} dl").is_visible()
        assert page.problems == []


def test_faults_of_a_page_would_be_found(browser: Chromium, pages: Path) -> None:
    broken = pages / "broken.html"
    text = (pages / "mismatch.html").read_text(encoding="utf-8").replace("default-src 'none'", "default-src *")
    text = text.replace("default-src &#39;none&#39;", "default-src *")
    text = text.replace(
        "</main>", '<img src="http://127.0.0.1:9/x.png"><button></button><a href="#rows" tabindex="-1">x</a></main>'
    )
    broken.write_text(text.replace("img-src data: blob:;", "img-src *;"), encoding="utf-8")
    with browser.opened(broken) as page:
        assert "http://127.0.0.1:9/x.png" in page.requests
        assert page.problems
        assert "button" in unnamed(page)
        assert any('tabindex="-1"' in each for each in unreached(page))


def test_hostile_names_do_nothing(browser: Chromium, pages: Path) -> None:
    with browser.opened(pages / "hostile.html") as page:
        page.page.on("dialog", lambda dialog: page.problems.append(dialog.message))
        page.await_plots()
        assert page.problems == []
        assert len(page.requests) == 1
        assert page.page.locator("img").count() == 0
        shown = page.page.locator("figure.drawn .legendtext").all_text_contents()
        assert "<script>alert(1)</script> 0" in shown


def test_an_injected_script_would_not_run(browser: Chromium, pages: Path) -> None:
    injected = pages / "injected.html"
    text = (pages / "clean.html").read_text(encoding="utf-8")
    injected.write_text(text.replace("</main>", "<script>document.title = 'taken'</script></main>"), encoding="utf-8")
    with browser.opened(injected) as page:
        assert page.page.title() != "taken"
        assert any("Content Security Policy" in each for each in page.problems)


def test_dark_follows_the_system_while_open(clean: Opened) -> None:
    def colours() -> tuple[str, str, str]:
        script = """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
          getComputedStyle(document.querySelector('figure.drawn .xtick text')).fill]"""
        return tuple(clean.page.evaluate(script))

    light = colours()
    clean.page.emulate_media(color_scheme="dark")
    clean.page.wait_for_function(
        "(old) => getComputedStyle(document.querySelector('.xtick text')).fill !== old", arg=light[2]
    )
    dark = colours()
    clean.page.emulate_media(color_scheme="light")
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_a_phone_scrolls_down_only(browser: Chromium, pages: Path) -> None:
    for name in ("clean", "hostile"):
        with browser.opened(pages / f"{name}.html", width=360, height=740) as page:
            page.await_plots()
            assert page.page.evaluate("document.documentElement.scrollWidth") == 360, name
            assert page.page.locator(".matrix .cell a").first.is_visible()


def test_without_scripts_all_charts_are_there(browser: Chromium, pages: Path) -> None:
    with browser.opened(pages / "clean.html", scripts=False) as page:
        assert page.page.locator("svg.static:visible").count() > 5
        assert page.page.locator(".plot:visible, button:visible, select:visible").count() == 0


def test_a_plot_that_cannot_be_drawn_leaves_the_static_one(browser: Chromium, pages: Path) -> None:
    """Were the library missing, the page must still show its charts."""
    record = run_of("clean")
    text = html.render(record)
    library = html._file("vendor/plotly-basic.min.js")
    broken = pages / "no_library.html"
    broken.write_text(text.replace(library, ""), encoding="utf-8")
    with browser.opened(broken) as page:
        assert page.page.locator("svg.static:visible").count() > 3
