"""The page of the capacity report in a real browser: it draws, filters, sorts, answers keys, and runs nobody's script.

The browser is Debian's chromium (apt-get install chromium) or the one that `playwright install chromium` fetched.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.capacity.report import Report
from planner.report.capacity.page import page_text
from tests.planner.test_capacity_formats import HOSTILE, full_report, hostile_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next((found for name in NAMES if (found := shutil.which(name))), own)
        if not Path(path).exists():
            pytest.skip("no browser: apt-get install chromium, or playwright install chromium")
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium's own refuses to run as root
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a whole report, and of one in which every name is an attack."""
    folder = tmp_path_factory.mktemp("pages")
    made: dict[str, Callable[[Path], Report]] = {"whole": full_report, "hostile": hostile_report}
    for name, make in made.items():
        (folder / f"{name}.html").write_text(page_text(make(folder)))
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def opened(browser: Any, written: dict[str, Path]) -> Iterator[Open]:
    """Opens a page; what it says on the console, or asks the network for, fails the test at its end."""
    pages, told, asked = list[Any](), list[str](), list[str]()

    def opened(name: str = "whole", size: str = "desktop", **options: Any) -> Any:
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        page.set_default_timeout(10_000)
        pages.append(page)
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(f"error: {error}"))
        page.on("dialog", lambda dialog: told.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(written[name].as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert told == []
    assert all(url.startswith("file:") and url.endswith(".html") for url in asked)


def visible(page: Any, attribute: str) -> set[str]:
    return set(
        page.eval_on_selector_all("#setups tbody tr:not([hidden])", f"rows => rows.map(row => row.dataset.{attribute})")
    )


def hovered(page: Any, chart: str, point: str) -> str:
    """What a chart says where the mouse is over its first point."""
    page.locator(chart).scroll_into_view_if_needed()
    box = page.locator(point).first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(f"{chart} .hoverlayer text")
    return str(page.text_content(f"{chart} .hoverlayer"))


def until(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold in a few seconds; the page's own policy keeps playwright from waiting inside it."""
    for _ in range(100):
        if holds():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("name", ["whole", "hostile"])
def test_it_draws_every_chart_without_a_word_on_the_console(opened: Open, name: str) -> None:
    page = opened(name)
    for chart in ("cost-chart", "memory-chart", "sweep-chart", "runs-chart"):
        assert page.locator(f"#{chart} svg.main-svg").count() > 0, chart
        assert page.locator(f"#{chart}").bounding_box()["height"] > 60
    assert page.locator("#cost-chart .scatterlayer .point").count() > 3
    assert page.locator("#memory-chart .barlayer .point").count() > 3


def test_names_that_are_attacks_are_shown_as_they_are(opened: Open) -> None:
    page = opened("hostile")
    assert "<script>alert(1)</script>" in page.inner_text("h1")
    assert page.locator("script").count() == 3 and page.locator("img, iframe").count() == 0
    assert HOSTILE[:32] in hovered(page, "#runs-chart", "#runs-chart .scatterlayer .point")
    assert HOSTILE[:8] in (page.text_content("#runs-chart .yaxislayer-above") or "")


def test_a_filter_leaves_rows_and_points_of_its_kind(opened: Open) -> None:
    page = opened()
    before = page.locator("#cost-chart .scatterlayer .point").count()
    assert visible(page, "method") > {"lora"}
    page.select_option("#what-if select[name=method]", "lora")
    assert visible(page, "method") == {"lora"}
    assert 0 < page.locator("#cost-chart .scatterlayer .point").count() < before
    shown = page.locator("#setups tbody tr:not([hidden])").count()
    assert page.inner_text("#what-if output").startswith(f"{shown} of ")
    page.select_option("#what-if select[name=gpu]", "t4")
    page.uncheck("#what-if input[name=fits]")
    assert visible(page, "gpu") == {"t4"} and visible(page, "method") == {"lora"}
    page.select_option("#memory select[name=method]", "qlora")
    assert "GiB" in hovered(page, "#memory-chart", "#memory-chart .barlayer .point")


def test_hovering_over_a_point_says_what_it_is(opened: Open) -> None:
    page = opened()
    said = hovered(page, "#cost-chart", "#cost-chart .scatterlayer .trace .point")
    assert "×" in said and "tokens a sequence" in said and " h, " in said and "USD" in said


def test_a_heading_sorts_by_what_the_cells_mean(opened: Open) -> None:
    page = opened()
    heads = page.locator("#setups thead th").all_inner_texts()
    column = heads.index("time")
    values = f"rows => rows.map(row => Number(row.cells[{column}].dataset.v))"
    button = page.locator("#setups thead th button", has_text="time").first
    for way in (1, -1):
        button.click()
        found = [way * value for value in page.eval_on_selector_all("#setups tbody tr", values)]
        assert found == sorted(found) and len(set(found)) > 3
    assert page.get_attribute(f"#setups thead th:nth-child({column + 1})", "aria-sort") == "descending"


def test_it_is_used_with_keys_alone(opened: Open) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to every set-up"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "model"
    page.keyboard.press("ArrowDown")
    assert len(visible(page, "model")) == 1
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#setups th') !== null"):
            break
    page.keyboard.press("Enter")
    assert page.locator("#setups th[aria-sort=ascending]").count() == 1
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.focus("summary >> nth=0")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open") is True


def test_what_scrolls_can_be_reached_and_is_named(opened: Open) -> None:
    page = opened()
    named = "all => all.every(one => one.tabIndex === 0 && one.getAttribute('aria-label'))"
    assert page.eval_on_selector_all(".scroll", named)
    charts = page.eval_on_selector_all("figure [role=img]", "all => all.map(one => one.getAttribute('aria-label'))")
    assert len(charts) == 4 and all("table" in label for label in charts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_and_a_desktop_by_day_and_night(opened: Open, size: str, scheme: str) -> None:
    page = opened("whole", size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ink, paper = (
        luminance(page.evaluate(f"getComputedStyle(document.body).{name}")) for name in ("color", "backgroundColor")
    )
    assert (ink < paper) == (scheme == "light") and contrast(ink, paper) > 7
    for selector in (".ranges", "dt", "th", "aside li", ".does-not-fit", ".tight", ".chosen", ".filters label"):
        if page.locator(selector).count():
            colour = page.eval_on_selector(selector, "one => getComputedStyle(one).color")
            assert contrast(luminance(colour), paper) > 4.5, selector
    text = page.eval_on_selector("#cost-chart .xtick text", "one => getComputedStyle(one).fill")
    assert contrast(luminance(text), paper) > 4.5


def test_the_charts_change_with_the_night(opened: Open) -> None:
    page = opened(color_scheme="light")
    colour = "one => getComputedStyle(one).fill"
    before = page.eval_on_selector("#cost-chart .xtick text", colour)
    page.emulate_media(color_scheme="dark")
    assert until(lambda: page.eval_on_selector("#cost-chart .xtick text", colour) != before)


def test_paper_has_everything_and_no_controls(opened: Open) -> None:
    page = opened(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".filters:visible").count() == 0
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
    assert len(page.pdf()) > 20_000


def test_without_scripts_the_tables_are_all_there(opened: Open) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator("#setups tbody tr").count() > 10
    assert page.locator(".filters:visible, figure:visible").count() == 0
    assert page.locator("h1").inner_text().startswith("Fine-tune ")


def luminance(colour: str) -> float:
    """As WCAG has it, of "rgb(…)"."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
