"""Every Python block of the README runs, in order, as a reader would run it, and prints what it says it prints."""

import re
import subprocess
import warnings

import pytest

import collaborative_experts
from collaborative_experts.apps.run_file import Run


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(readme, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(blocks) == 11
    namespace = {"__name__": "readme"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*seeded initial parameters")
        for number, block in enumerate(blocks):
            exec(compile(block, f"README.md, Python block {number + 1}", "exec"), namespace)
    printed = capsys.readouterr().out
    message = re.search(r"```text\n(experts\[.*?)\n```", readme, flags=re.DOTALL)[1]
    assert message in printed
    assert "vid_embds" in printed


def test_the_run_file_is_read(readme, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", readme, flags=re.DOTALL)[1])
    found = Run.read(path)
    assert (found.features, found.folder) == (tmp_path / "features", tmp_path / "run")


def test_the_tree_is_complete(readme, root):
    tree = readme.split("## What is where")[1].split("```")[1]
    listed = {line.split()[0] for line in tree.splitlines()[1:] if line}
    modules = {path.name for path in root.glob("*.py")}
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    folders = {f"{line.split('/')[0]}/" for line in tracked.splitlines() if "/" in line} - {".ci/"}
    assert listed == modules | folders


def test_links_and_pictures_exist(readme, root):
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", readme) + re.findall(r'src="\./([^"]+)"', readme):
        assert (root / target).exists(), target


def test_hub_sections(readme):
    sections = re.findall(r"^## (.*)$", readme, flags=re.MULTILINE)
    for name in ("Description", "Code Example", "Factory Constructor", "Interface", "More Resources"):
        assert name in sections


def test_public_names_are_documented():
    for name in collaborative_experts.__all__:
        documented = getattr(collaborative_experts, name).__doc__
        assert documented
        assert not documented.startswith(f"{name}("), f"{name} has only the docstring that dataclass makes"
