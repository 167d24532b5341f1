"""A page on which to search the demo's videos: made, trained on and indexed by `train_demo.py`, then served.

    python examples/search_demo.py [--folder demo] [--port 8000] [--no-browser]

The first run takes a minute or two, later ones some seconds. What it needs are the extras `demo` and `serve`.
"""

import argparse
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from train_demo import QUERIES, build

from collaborative_experts.apps.serve import serve
from collaborative_experts.training.run_folder import BEST

WAIT_S = 60


def open_when_ready(address: str, with_browser: bool) -> None:
    """Wait until the service answers, print where, and open the page."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
            continue
        print(f"the page: {address}\nsuch as:  {address}?q={quote(QUERIES[1])}\nCtrl-C ends it", flush=True)
        if with_browser:
            webbrowser.open(f"{address}?q={quote(QUERIES[1])}")
        return


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors of the caller's are one line."""
    parser = argparse.ArgumentParser(description="Search the demo's videos on a page.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the demo is or will be; default: demo")
    parser.add_argument("--videos", type=int, default=600, help="how many are made; default: 600")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options = parser.parse_args(arguments)
    address = f"http://127.0.0.1:{options.port}/"
    try:
        if not (options.folder / "videos.lance").exists():
            build(options.folder, options.videos, seed=0)
        waiting = (address, not options.no_browser)
        threading.Thread(target=open_when_ready, args=waiting, daemon=True).start()
        serve(
            options.folder / "videos.lance",
            options.folder / "run" / BEST,
            port=options.port,
            media=options.folder / "videos",
        )
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
