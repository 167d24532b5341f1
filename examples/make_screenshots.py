"""Take the pictures of the page that the docs show, of the service of `make search-demo`:

    python examples/make_screenshots.py [--address http://127.0.0.1:8000/]

Needs pillow, playwright and a Chromium on the PATH. They are written to docs/.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Error, Page, sync_playwright
from train_demo import QUERIES

DOCS = Path(__file__).resolve().parents[1] / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDE, NARROW = {"width": 1200, "height": 760}, {"width": 360, "height": 720}


def ask(page: Page, address: str, query: str) -> None:
    """Type a sentence, and wait until all pictures that are seen are there."""
    page.goto(address)
    page.fill("#query", query)
    page.press("#query", "Enter")
    page.wait_for_selector(".card")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_load_state("networkidle")


def photograph(page: Page, name: str) -> None:
    path = DOCS / name
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(DOCS.parent)}: {path.stat().st_size / 1024:.0f} KB")


def take_all(driver, browser_path: str, address: str) -> None:
    """The answers, a clip with its reasons, and a narrow dark screen."""
    browser = driver.chromium.launch(executable_path=browser_path, args=FLAGS)
    page = browser.new_page(viewport=WIDE, color_scheme="light")
    ask(page, address, QUERIES[1])
    photograph(page, "page_answers.png")
    page.locator(".open").first.click()
    page.wait_for_selector(".shares")
    page.wait_for_load_state("networkidle")
    page.locator(".clip video").evaluate("video => new Promise(ready => { video.muted = true; video.onended = ready; "
                                         "video.onpause = ready; setTimeout(ready, 4000) })")  # fmt: skip
    photograph(page, "page_clip.png")
    page = browser.new_page(viewport=NARROW, color_scheme="dark")
    ask(page, address, QUERIES[0])
    photograph(page, "page_narrow.png")
    browser.close()


def main() -> None:
    """The command line; errors of the caller's are one line."""
    parser = argparse.ArgumentParser(description="Take pictures of the page.")
    parser.add_argument("--address", default="http://127.0.0.1:8000/", help="of the service; default: %(default)s")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: no browser: none of {', '.join(BROWSERS)} is on the PATH; install Chromium")
    try:
        with sync_playwright() as driver:
            take_all(driver, browser, options.address)
    except Error as error:
        sys.exit(f"error: {error.message.splitlines()[0]}; is the service of make search-demo running?")


if __name__ == "__main__":
    main()
