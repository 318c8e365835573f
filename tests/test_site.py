"""The documentation in a real browser: Debian's Chromium, driven by Playwright."""

import functools
import http.server
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

import keras
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
NEEDED = os.environ.get("KERAS_VISATTN_BROWSER") == "needed"  # where a skipped test is no answer
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="pages have no backend"),
    pytest.mark.skipif(not (CHROMIUM or NEEDED), reason="no Chromium is installed"),
    pytest.mark.skipif(not (shutil.which("npm") or NEEDED), reason="no npm is installed"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the built site, and its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True)
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, site):
    """Opens a page of the site, and holds everything against it that the browser complains of."""
    address, _ = site
    complaints, contexts = [], []

    def open_page(path, viewport=WIDE, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda x: x.type in ("error", "warning") and complaints.append(x.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("response", lambda x: x.status >= 400 and complaints.append(f"{x.status} {x.url}"))
        page.on(
            "request",
            lambda x: x.url.startswith((address, "data:", "blob:")) or complaints.append(x.url),
        )
        page.goto(address + path, wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def pages_of(folder):
    return sorted(
        "/" + path.relative_to(folder).as_posix().removesuffix("index.html")
        for path in folder.rglob("*.html")
        if path.name != "404.html"
    )


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
def test_every_page_is_whole(opened, site, viewport, scheme):
    address, folder = site
    paths = pages_of(folder)
    assert len(paths) > 20
    page = opened("/", viewport, scheme)
    links, anchors = set(), {}
    for path in paths:
        page.goto(address + path, wait_until="networkidle")
        assert page.title()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        broken = page.eval_on_selector_all(
            "img", "all => all.filter(x => x.offsetParent && !x.naturalWidth).map(x => x.src)"
        )
        assert broken == [], path
        unread = "x => x.querySelector('.katex-error') || !x.querySelector('.katex')"
        formulas = page.eval_on_selector_all(
            ".arithmatex", f"all => all.filter({unread}).map(x => x.textContent)"
        )
        assert formulas == [], path
        links |= set(page.eval_on_selector_all("a[href]", "all => all.map(x => x.href)"))
        anchors[path] = set(page.eval_on_selector_all("[id]", "all => all.map(x => x.id)"))
    for link in links:
        target, anchor = urldefrag(link)
        if not target.startswith(address):
            continue
        path = urlsplit(target).path
        place = folder / path.strip("/")
        assert place.is_file() or (place / "index.html").is_file(), link
        assert not anchor or path not in anchors or anchor in anchors[path], link


def test_search_finds_a_layer(opened):
    page = opened("/")
    page.click("[data-md-component=search-query]")
    page.keyboard.type("CBAM")
    result = page.locator(".md-search-result__item a").first
    result.wait_for()
    result.click()
    page.wait_for_load_state("networkidle")
    assert "CBAM" in page.inner_text("main")


def stroke(page, points):
    """Draws a line through points, each from 0 to 1 to the right and down."""
    canvas = page.locator("#live-draw")
    canvas.evaluate("canvas => canvas.scrollIntoView({block: 'center', behavior: 'instant'})")
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


CIRCLE = [
    (0.5 + 0.2 * math.sin(math.tau * n / 20), 0.5 - 0.32 * math.cos(math.tau * n / 20))
    for n in range(21)
]
DRAWN = {
    "0": CIRCLE,
    "1": [(0.52, 0.15), (0.5, 0.85)],
    "7": [(0.25, 0.2), (0.75, 0.2), (0.45, 0.85)],
    "2": [(0.3, 0.3), (0.45, 0.17), (0.65, 0.25), (0.62, 0.45), (0.28, 0.82), (0.75, 0.82)],
}


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_live_page_knows_drawn_digits(opened, viewport):
    page = opened("/live/", viewport)
    page.locator(".live-status[data-milliseconds]").wait_for(timeout=60_000)
    for digit, points in DRAWN.items():
        page.click("#live-clear")
        stroke(page, points)
        page.wait_for_function(f"document.getElementById('live-answer').textContent == '{digit}'")
    right = 0
    for _ in range(20):
        page.click("#live-another")
        page.wait_for_timeout(150)
        label = page.get_attribute("#live-draw", "data-label")
        right += page.inner_text("#live-answer") == label
    assert right >= 18


def photograph(path, dark, light):
    """A seven in pen on paper that is lit from one side, with the camera's noise."""
    draw = np.random.default_rng(0)
    side = 600
    picture = Image.new("L", (side, side), 0)
    points = [(190, 150), (400, 160), (290, 470)]
    ImageDraw.Draw(picture).line(points, fill=255, width=26, joint="curve")
    ink = np.asarray(picture.filter(ImageFilter.GaussianBlur(2))) / 255
    paper = light + np.linspace(-30, 30, side)[None] + draw.normal(scale=4, size=(side, side))
    shades = np.clip(paper + ink * (dark - light), 0, 255)
    Image.fromarray(shades.astype("uint8")).save(path)


@pytest.mark.parametrize(("dark", "light"), [(60, 190), (230, 70)], ids=["pen", "chalk"])
def test_the_live_page_reads_a_photograph(opened, tmp_path, dark, light):
    photograph(tmp_path / "seven.png", dark, light)
    page = opened("/live/")
    page.locator(".live-status[data-milliseconds]").wait_for(timeout=60_000)
    page.click("#live-clear")
    page.set_input_files("#live-photograph", tmp_path / "seven.png")
    page.wait_for_function("document.getElementById('live-answer').textContent == '7'")


def test_the_live_page_shows_attention(opened):
    page = opened("/live/")
    page.locator(".live-status[data-milliseconds]").wait_for(timeout=60_000)
    bright = """() => document.getElementById('live-seen').getContext('2d')
        .getImageData(0, 0, 280, 280).data.filter((x, i) => i % 4 == 0 && x > 200).length"""
    pictures = set()
    for x, y in ((140, 140), (60, 200)):
        page.hover("#live-seen", position={"x": x, "y": y})
        assert float(page.get_attribute("#live-seen", "data-total")) == pytest.approx(1, abs=1e-3)
        pictures.add(page.evaluate(bright))
    page.select_option("#live-head", "2")
    pictures.add(page.evaluate(bright))
    assert len(pictures) == 3
    gate = page.evaluate(
        "Array.from(document.getElementById('live-gate').getContext('2d')"
        ".getImageData(0, 0, 14, 14).data).filter((x, i) => i % 4 == 0)"
    )
    assert len(set(gate)) > 10
    assert len(page.locator("#live-channels > div").all()) == 32
