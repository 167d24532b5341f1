"""The Python blocks of docs/extract.md run in order, on a folder of made media."""

import re
import sys

import numpy as np
import pytest

from helpers import flat_frames, needs, tone, write_media

pytest.importorskip("av")
pytest.importorskip("lance")
pytest.importorskip("cv2")
pytest.importorskip("rapidocr")
pytest.importorskip("efficientnet_lite_pytorch")

from collaborative_experts.apps.extract import add_arguments, extract

pytestmark = needs("sentence_transformers")


@pytest.fixture
def blocks(root, tmp_path, monkeypatch):
    """{language: the blocks of the page}, in a folder with `videos/`."""
    (tmp_path / "videos").mkdir()
    moving = np.stack([np.roll(flat_frames([0])[0], i, axis=1) + np.uint8(i) for i in range(30)])
    write_media(tmp_path / "videos" / "film.mp4", moving, sound=tone(3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = (root / "docs" / "extract.md").read_text(encoding="utf-8")
    return {x: re.findall(rf"```{x}\n(.*?)```", page, flags=re.DOTALL) for x in ("python", "bash")}


def test_python_blocks_run(blocks, tmp_path, monkeypatch):
    first, expert, search, last = blocks["python"]
    namespace = {}
    exec(compile(first, "docs/extract.md, block 1", "exec"), namespace)
    assert namespace["report"].problems == []
    assert [x.name for x in namespace["config"].experts] == ["appearance", "motion", "audio"]
    (tmp_path / "my_experts.py").write_text(expert)
    report = extract("videos", "mine.lance", experts=["motion", "my_experts.Brightness"])
    assert report.problems == []
    monkeypatch.delitem(sys.modules, "my_experts")
    extract("videos", "with_words.lance", experts=["appearance", "ocr"])
    exec(compile(search.replace("features.lance", "with_words.lance"), "docs/extract.md, block 3", "exec"), namespace)
    assert namespace["found"].ids[0, 0] == "film.mp4"
    exec(compile(last.replace("features.lance", "with_words.lance"), "docs/extract.md, block 4", "exec"), namespace)
    assert namespace["table"].num_rows == 1


def test_commands_have_options_that_exist(blocks):
    import argparse
    import shlex

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    commands = [line for block in blocks["bash"] for line in block.splitlines() if " extract " in line]
    assert len(commands) >= 5
    for command in commands:
        options = parser.parse_args(shlex.split(command.partition(" extract ")[2]))
        assert options.to.suffix == ".lance"
