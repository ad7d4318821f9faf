"""The pages of results in a browser: nothing is fetched, text is readable in light and dark, phones have
room, and a keyboard and a screen reader get everywhere.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import load_script, write_video
from pages import write_run, write_training

from video_iresnet.config import keys_of_run
from video_iresnet.data.dataset import ViewDataset
from video_iresnet.data.decode import open_video
from video_iresnet.data.records import Record
from video_iresnet.data.sampling import DenseSampler
from video_iresnet.report.compare import read_run
from video_iresnet.report.page import run_page, write_html
from video_iresnet.report.results import read_predictions
from video_iresnet.report.runs_page import runs_page
from video_iresnet.report.strips import ReadStrip, no_strips, strips_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
    pytest.mark.usefixtures("drawn_plots"),
]
LONG = "Pretending to put something that is very long onto something that is very large"

# Every visible text with the ratio of its contrast (WCAG 2.2), and whether it is large.
CONTRASTS = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1] }
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]))
  const ground = element => {
    if (!element) return [255, 0, 255]
    const own = parse(getComputedStyle(element).backgroundColor)
    return own[3] === 1 ? own : over(own, ground(element.parentElement))
  }
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  const light = color => color.map(c => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
  const found = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element)
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue
    const below = ground(element).slice(0, 3)
    const ink = over(parse(element.closest("svg") ? style.fill : style.color), below)
    const [high, low] = [light(ink), light(below)].sort((a, b) => b - a)
    found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data.trim().slice(0, 40)])
  }
  return found
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def frames_of(folder: Path, run: Path) -> ReadStrip:
    """Strips of one video under the names of all."""
    path = write_video(folder / "a.mp4", 20, size=(100, 140))
    records = [Record(name, str(path), 0) for name in read_predictions(run / "predictions.csv").names]
    return strips_of(
        ViewDataset(records, sampler=DenseSampler(2), open_video=open_video, num_frames=8, num_clips=3,
                    num_crops=3, short_side=96, crop_size=96)
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of 8 classes with everything, one of 174 classes, an empty one, and the comparison of two."""
    folder = tmp_path_factory.mktemp("pages")
    eight = write_run(folder / "eight", [LONG, *(f"class {i}" for i in range(7))], 8)
    other = write_run(folder / ("x" * 100), [LONG, *(f"class {i}" for i in range(7))], 8, seed=1)
    many = write_run(folder / "many", [f"{LONG}, {i} times" for i in range(174)], 2)
    (folder / "empty").mkdir()
    for run in (eight, other):
        write_training(run)
    script = load_script("tools/report.py")
    runs = [read_run(run, run.name, keys_of_run(run)) for run in (eight, other)]
    made = {
        "eight": run_page(eight, frames_of(folder, eight)),
        "many": run_page(many, no_strips("the disk is elsewhere")),
        "empty": run_page(folder / "empty", no_strips("")),
        "runs": runs_page(runs, script.decides),
    }
    for name, html in made.items():
        write_html(folder / f"{name}.html", html)
    return {name: folder / f"{name}.html" for name in made}


def opened(browser: Browser, path: Path, width: int, scheme: Any = "light") -> tuple[Tab, list[str]]:
    """Open a page; returns it with a list of all that it should not do, which grows."""
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: problems.append(request.url[:80]))
    tab.goto(path.as_uri())
    assert problems.pop(0) == path.as_uri()
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    problems[:] = [problem for problem in problems if not problem.startswith("data:image/")]
    return tab, problems


@pytest.mark.parametrize("name", ["eight", "many", "empty", "runs"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_stands_alone_and_is_readable(
    name: str, width: int, scheme: str, browser: Browser, pages: dict[str, Path]
) -> None:
    tab, problems = opened(browser, pages[name], width, scheme)
    assert problems == []
    # Only boxes scroll to the side, not the page.
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")
    contrasts = tab.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert [found for found in contrasts if found[0] < 4.5] == []
    # All pictures are there, and no plot is cut off.
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    ratios = tab.evaluate("""[...document.querySelectorAll('svg')].map(svg => {
        const box = svg.getBoundingClientRect(), own = svg.viewBox.baseVal
        return box.width / box.height / (own.width / own.height) })""")
    assert ratios == pytest.approx([1] * len(ratios), rel=0.01)
    assert bool(ratios) == (name != "empty")
    tab.close()


def test_texts_of_plots_are_inside_of_them(browser: Browser, pages: dict[str, Path]) -> None:
    for name in ("eight", "many", "runs"):
        tab, _ = opened(browser, pages[name], 1280)
        outside = tab.evaluate("""[...document.querySelectorAll('svg text')].filter(text => {
            const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect()
            return own.left < all.left - 1 || own.right > all.right + 1 || own.top < all.top - 1 ||
                own.bottom > all.bottom + 1 }).map(text => text.textContent)""")
        assert outside == []
        tab.close()


@pytest.mark.parametrize("name", ["eight", "many", "empty", "runs"])
def test_what_a_screen_reader_gets(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages[name], 1280)
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert tab.evaluate("document.documentElement.lang") == "en"
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert tab.get_by_role(landmark).count() == 1
    sections = tab.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    for section in sections:
        assert tab.get_by_role("region", name=section, exact=True).count() >= 1
    assert tab.evaluate("[...document.querySelectorAll('nav a')].map(a => a.textContent)") == sections
    every = "[...document.querySelectorAll('{}')].every({})"
    for selector, is_so in {
        "svg": "svg => svg.getAttribute('role') === 'img' && svg.getAttribute('aria-label').length > 20",
        "img": "image => image.hasAttribute('alt') && image.closest('[role=img][aria-label]')",
        "table": "table => table.caption && table.caption.textContent.length > 10",
        "table th": "th => th.scope",
        "tbody tr": "row => row.cells[0].tagName === 'TH'",
        ".box": "box => box.tabIndex === 0 && box.getAttribute('aria-label')",
    }.items():
        assert tab.evaluate(every.format(selector, is_so)), selector
    tab.close()


def test_the_keyboard_gets_everywhere(browser: Browser, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages["eight"], 390)
    focus = """(one => [one.tagName, one.getAttribute("aria-label") || one.textContent.trim(),
        getComputedStyle(one).outlineStyle])(document.activeElement)"""
    tab.keyboard.press("Tab")
    assert tab.evaluate(focus)[1] == "Skip to the content"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") > 0
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.closest('main') !== null")
    tab.evaluate("document.activeElement.blur(); document.querySelector('.skip').focus()")
    visited = []
    for _ in range(60):
        tab.keyboard.press("Tab")
        tag, text, outline = tab.evaluate(focus)
        if tag == "BODY":
            break
        assert outline != "none", text
        visited.append((tag, text))
    links = tab.evaluate("[...document.querySelectorAll('nav a')].map(a => a.textContent)")
    assert [text for tag, text in visited if tag == "A"] == links
    boxes = tab.evaluate("[...document.querySelectorAll('.box')].map(box => box.getAttribute('aria-label'))")
    assert [text for tag, text in visited if tag == "DIV"] == boxes
    assert ("SUMMARY", "config.yaml, with all keys") in visited
    # A box that is too wide scrolls with the arrows.
    box = tab.locator(".box").filter(has=tab.locator(".heat"))
    box.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())
    tab.close()
