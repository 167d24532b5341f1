"""Take `img.png`: the table of the code example as a notebook shows it. `make image`; needs Chromium or Chrome.

The table is Towhee's own HTML for `DataCollection(p(experts, ind, text)).show()` on the real outputs, set on a
page that looks like a notebook's cell and photographed by a headless browser, cut to its content.
"""

import html
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from code_example import make_pipeline, random_inputs
from hub_cache import ROOT, hub_cache

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1000
"""CSS pixels; the image has twice as many, so that it stays sharp on a dense screen."""
CODE = "DataCollection(p(experts, ind, text)).show()"
PAGE = """<!doctype html>
<meta charset="utf-8">
<style>
  body {{ margin: 0; padding: 12px 16px; background: #fff; color: #212121;
         font: 13px/1.45 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }}
  pre {{ margin: 0 0 12px; padding: 7px 10px; background: #f5f5f5; border: 1px solid #e0e0e0; border-radius: 2px;
        font: 13px/1.3 Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
  table {{ width: 100%; table-layout: fixed; }}
  th, td {{ padding: 6px 8px; }}
  td {{ background: #f5f5f5; overflow-wrap: anywhere; }}
</style>
<pre>{code}</pre>
{table}
<script>document.title = "height=" + Math.ceil(document.body.getBoundingClientRect().height);</script>
"""


def example_table() -> str:
    """The HTML that `DataCollection.show()` displays in a notebook, for the code example."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with hub_cache():
        from towhee import DataCollection
        from towhee.utils.html_table import NestedHTMLTable

        shown = DataCollection(make_pipeline(device)(*random_inputs(device))).prepare_table_data()
    return NestedHTMLTable.to_html_table(shown["data"], shown["headers"])


def find_browser() -> str:
    """The first browser of `BROWSERS` on the PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError(f"no browser: none of {', '.join(BROWSERS)} is on the PATH; install Chromium")


def run_browser(browser: str, page: Path, *arguments: str) -> str:
    """Open `page` headless, with a new profile and no background traffic; returns what it printed."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        command = [browser, *flags, f"--user-data-dir={profile}", *arguments, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{browser} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def photograph(table: str, image: Path) -> None:
    """Write the page with `table` as a PNG, as high as its content."""
    browser = find_browser()
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        page = Path(folder, "table.html")
        page.write_text(PAGE.format(code=html.escape(CODE), table=table), encoding="utf-8")
        measured = run_browser(browser, page, f"--window-size={WIDTH},1000", "--dump-dom")
        height = int(re.search(r"<title>height=(\d+)</title>", measured)[1])
        shot = Path(folder, "shot.png")
        size = (f"--window-size={WIDTH},{height}", "--force-device-scale-factor=2")
        run_browser(browser, page, *size, f"--screenshot={shot}")
        if not shot.is_file():
            raise RuntimeError(f"{browser} took no picture")
        shutil.copyfile(shot, image)


def main() -> None:
    """Write img.png at the root of the repository."""
    find_browser()  # before the model is built
    image = ROOT / "img.png"
    photograph(example_table(), image)
    print(f"{image.name}: {image.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(str(error))
