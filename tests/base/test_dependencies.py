"""A missing or too old dependency is one clear ImportError with the command that mends it."""

import subprocess
import sys

import pytest

from collaborative_experts.base.dependencies import REQUIREMENTS, check_dependencies


def test_this_environment_has_them():
    check_dependencies()


def test_the_file_is_as_the_hubs_loader_reads_it():
    """One plain requirement a line and no newline at the end: of such a file the loader installs the last line."""
    text = REQUIREMENTS.read_text()
    assert not text.endswith("\n")
    assert all(line and " " not in line and not line.startswith(("#", "-")) for line in text.split("\n"))
    assert "setuptools<82" in text.split("\n")


def test_missing_and_too_old(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("numpy>=1.20\nno-such-package\ntorch>=99.1\nsetuptools<2")
    with pytest.raises(ImportError) as error:
        check_dependencies(file)
    message = str(error.value)
    assert "no-such-package (missing)" in message
    assert "torch>=99.1 (found " in message
    assert message.endswith("install with: pip install 'no-such-package' 'torch>=99.1' 'setuptools<2'")


def test_the_import_says_so(root, tmp_path):
    """Without towhee.models, importing the package names the command, not a line deep inside."""
    code = (
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'towhee.models': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "import collaborative_experts\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'towhee.models>=" in done.stderr.splitlines()[-1]
