"""Get a published Collaborative Experts model and convert it for the operator.

    python weights/fetch.py                  the default model, into this folder
    python weights/fetch.py --list [WORD]    the models that models.toml knows (with this word)
    python weights/fetch.py NAME             another one of them
    python weights/fetch.py --url URL        any folder on the web with a config.json and a trained_model.pth
    python weights/fetch.py --to FOLDER      into another folder

The script needs no installed package: it takes the folder above, and its work is done by hub/fetch.py.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    sys.path.insert(0, ROOT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what towhee imports
            from collaborative_experts.hub import fetch
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        sys.path.remove(ROOT)
    return fetch.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
