"""The report in a real browser (Chromium): at two widths, in both colour schemes, and in print."""

import shutil

import pytest

from jax_unlearn.runs.cli import main
from jax_unlearn.runs.report import plots
from jax_unlearn.runtime.assets import CLIP_ASSETS
from tests import rendering

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"
)
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}
# Luminance of sRGB and contrast, by WCAG 2.2; of every text on what is painted behind it.
CONTRASTS = """() => {
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) =>
    0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const TEXTS = "h1,h2,h3,p,td,th,dt,dd,li,figcaption,summary,code,svg text";
  const found = [];
  for (const element of document.querySelectorAll(TEXTS)) {
    if (!element.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const color = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [luminance(parse(color)), luminance(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push([element.tagName, element.textContent.trim(), contrast]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    """Reports of runs of every kind by name, with attacks, and a comparison; its own plots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "svg", rendering.rendered)
        return made_pages(run, tmp_path_factory.mktemp("pages"))


def made_pages(run, folder):
    attacked = shutil.copytree(run, folder / "attacked")
    main(["attack", str(attacked), "--kinds", "readers"])
    names = folder / "names"
    main(["run", "--checkpoint", str(CLIP_ASSETS / "checkpoint"), "--forget-text", "red triangle",
          "--preserve-text", "blue circle", "red circle", "--out", str(names)])  # fmt: skip
    main(["report", "--compare", str(run), str(attacked), "--out", str(folder / "compared.html")])
    return {
        "images": attacked / "report.html",
        "names": names / "report.html",
        "compared": folder / "compared.html",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["images", "names", "compared"])
def test_a_page_fits_and_can_be_read(browser, pages, page, width, scheme):
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    context = browser.new_context(viewport=size, color_scheme=scheme)
    tab, requests, faults = context.new_page(), [], []
    tab.on("request", lambda one: requests.append(one.url))
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(pages[page].as_uri())
    # One file: nothing is fetched, and nothing is reported.
    assert [url for url in requests if not url.startswith("data:")] == [pages[page].as_uri()]
    assert faults == []
    # Nothing is wider than the window; what is, scrolls by itself.
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert tab.evaluate(CONTRASTS) == []
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    # Words for every picture and plot.
    assert tab.evaluate("[...document.images].every(one => one.alt && one.naturalWidth > 0)")
    assert tab.evaluate(
        "[...document.querySelectorAll('svg')]"
        ".every(one => one.closest('[role=img]').getAttribute('aria-label'))"
    )
    assert tab.evaluate("document.querySelectorAll('h1').length") == 1
    context.close()


def test_a_page_can_be_used_by_keyboard_and_printed(browser, pages):
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.goto(pages["images"].as_uri())
    # What scrolls, and what opens, is reached by Tab in the order of the page.
    reached = []
    focusable = tab.evaluate(
        "[...document.querySelectorAll('[tabindex], summary')]"
        ".filter(one => one.checkVisibility()).length"
    )
    for _ in range(focusable):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.tagName"))
    assert "SUMMARY" in reached
    assert "BODY" not in reached
    tab.locator("summary", has_text="Settings").focus()
    assert tab.locator("dl").is_hidden()
    tab.keyboard.press("Enter")
    assert tab.locator("dl").is_visible()
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.pdf()[:4] == b"%PDF"
    tab.close()


def test_what_a_person_wants_to_know_comes_first(browser, pages):
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(pages["images"].as_uri())
    order = tab.evaluate(
        "[...document.querySelectorAll('.verdict, h2')]"
        ".map(one => one.className || one.textContent)"
    )
    assert order[:3] == ["verdict", "Held-out images", "Who can still find it"]
    verdict = tab.locator(".verdict p")
    assert verdict.count() == 2
    assert "The model itself was not asked yet" in verdict.first.text_content()
    assert "original weights" in verdict.last.text_content()
    images = tab.locator("ul.pictures").first.locator("img")
    assert images.count() > 0
    tab.close()
