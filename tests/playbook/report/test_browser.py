"""What a person sees of a report: on a phone, on a desktop, in the dark, on paper."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import browser as chromium
import pytest
from PIL import Image, ImageStat

from playbook import report

PHONE, DESKTOP = 390, 1280
SMALLEST_TEXT = 9  # CSS pixels, in a plot on a phone
LEAST_CONTRAST = 4.5  # WCAG 2.2, AA

# JavaScript: what sticks out of the window, or out of its plot; the smallest text of a plot; the weakest contrast.
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(each => !each.closest('svg') &&
  each.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(each => each.outerHTML)"""
OUT_OF_PLOT = """[...document.querySelectorAll('figure text')].filter(each => {
  const text = each.getBoundingClientRect(), plot = each.closest('svg').getBoundingClientRect();
  return text.left < plot.left - 2 || text.right > plot.right + 2 || text.bottom > plot.bottom + 2;
}).map(each => each.textContent)"""
TEXT_SIZE = """Math.min(...[...document.querySelectorAll('figure text')].map(each =>
  parseFloat(getComputedStyle(each).fontSize) * each.getScreenCTM().a))"""
CONTRAST = """(() => {
  const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(part => linear(Number(part) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const contrast = colour => {
    const own = light(colour);
    return (Math.max(own, paper) + 0.05) / (Math.min(own, paper) + 0.05);
  };
  const words = [...document.querySelectorAll('p, small, th, td, dt, dd, h1, h2, li, figcaption')];
  const drawn = [...document.querySelectorAll('figure text')];
  return Math.min(...words.map(each => contrast(getComputedStyle(each).color)),
                  ...drawn.map(each => contrast(getComputedStyle(each).fill)));
})()"""


@pytest.mark.parametrize("name", ["gb300", "three-arms", "cpu", "forced", "emulators", "recipes"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window(
    browser: chromium.Browser, written: Callable[[str], Path], name: str, width: int
) -> None:
    page = written(name) / report.PAGE
    browser.open(page, width=width)
    assert browser.requests == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(TOO_WIDE) == []
    assert browser.evaluate(OUT_OF_PLOT) == []
    assert browser.evaluate(TEXT_SIZE) >= SMALLEST_TEXT
    verdict = browser.evaluate("document.querySelector('.verdict').getBoundingClientRect().bottom")
    assert 0 < verdict < 500 or name == "recipes", "the verdict is on the first screen, unless it judges several losses"


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_dark_scheme_is_dark_and_both_can_be_read(
    browser: chromium.Browser, written: Callable[[str], Path], width: int
) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        browser.open(written("three-arms") / report.PAGE, width=width, scheme=scheme)
        seen[scheme] = Image.open(io.BytesIO(browser.screenshot())).convert("L")
        assert seen[scheme].width == width
        assert browser.evaluate(CONTRAST) >= LEAST_CONTRAST
    assert seen["light"].size == seen["dark"].size
    assert ImageStat.Stat(seen["light"]).median[0] > 240
    assert ImageStat.Stat(seen["dark"]).median[0] < 40


def test_columns_on_a_desktop_and_one_on_a_phone(browser: chromium.Browser, written: Callable[[str], Path]) -> None:
    count = "getComputedStyle(document.querySelector('.plots')).gridTemplateColumns.split(' ').length"
    for width, columns in ((PHONE, 1), (DESKTOP, 2)):
        browser.open(written("gb300") / report.PAGE, width=width)
        assert browser.evaluate(count) == columns


def test_it_prints_on_white_whatever_the_scheme(browser: chromium.Browser, written: Callable[[str], Path]) -> None:
    browser.open(written("gb300") / report.PAGE, width=DESKTOP, scheme="dark", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate(CONTRAST) >= LEAST_CONTRAST
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert 3 <= printed.count(b"/Type /Page\n") <= 8
