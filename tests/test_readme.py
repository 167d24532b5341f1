"""The README and the pages of docs/ are complete: the tree, links, sections, names. Their blocks: test_docs.py."""

import re
import subprocess

import pytest

import collaborative_experts


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def test_length(readme):
    assert len(readme.split()) <= 1300


def test_the_tree_is_complete(readme, root):
    tree = readme.split("## What is where")[1].split("```")[1]
    listed = {line.split()[0] for line in tree.splitlines()[1:] if line}
    modules = {path.name for path in root.glob("*.py")}
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    folders = {f"{line.split('/')[0]}/" for line in tracked.splitlines() if "/" in line} - {".ci/"}
    assert listed == modules | folders


def test_links_and_pictures_exist(root):
    for page in [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
            file, _, heading = target.partition("#")
            linked = page.parent / file if file else page
            assert linked.exists(), f"{page.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                assert heading in anchors, f"{page.name}: {target}"


def test_the_readme_leads_to_every_page(readme, root):
    linked = set(re.findall(r"\]\(docs/(\w+\.md)\)", readme))
    assert linked == {path.name for path in (root / "docs").glob("*.md")}


def test_hub_sections(readme):
    sections = re.findall(r"^## (.*)$", readme, flags=re.MULTILINE)
    for name in ("Description", "Code Example", "Factory Constructor", "Interface", "More Resources"):
        assert name in sections


def test_public_names_are_documented():
    for name in collaborative_experts.__all__:
        documented = getattr(collaborative_experts, name).__doc__
        assert documented
        assert not documented.startswith(f"{name}("), f"{name} has only the docstring that dataclass makes"
