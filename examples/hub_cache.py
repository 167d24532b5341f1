"""A temporary Towhee cache that holds this operator, so that Towhee's own hub loader finds it without network."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
VERSION = Path("operators", "video-text-embedding", "collaborative-experts", "versions", "main")
"""Where in its cache Towhee looks for `ops.video_text_embedding.collaborative_experts`."""
MODULE = "towhee.operator.video_text_embedding.collaborative_experts.main"
"""The name under which Towhee's loader imports what it finds there."""


@contextmanager
def hub_cache() -> Iterator[Path]:
    """Within the block, TOWHEE_HOME is a new folder with a link to this repository; yields the folder.

    Enter it before the operator is first used. A cache of yours is neither read nor written.
    """
    with tempfile.TemporaryDirectory(prefix="towhee-") as home:
        link = Path(home, VERSION)
        link.parent.mkdir(parents=True)
        link.symlink_to(ROOT, target_is_directory=True)
        with mock.patch.dict(os.environ, TOWHEE_HOME=home):
            yield Path(home)
