"""Operators, folders and servers that many tests share."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

# Threads that wait for each other by spinning take minutes where processes share the cores. Before PyTorch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

# PyTorch and the package are imported by those who use them: the process that hands out the tests reads this file, too.

ROOT = Path(__file__).resolve().parents[1]


class PlainFolders:
    """Folders are not imported as packages: the root is one, and a clone's name may have dashes."""

    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path)


LONGEST = (
    "training/test_loop.py",
    "proof/test_processes.py",
    "apps/test_bulk.py",
    "apps/test_page.py",
    "examples/test_examples.py",
    "apps/test_run_file.py",
    "tests/test_docs.py",
    "hub/test_imports.py",
)
"""Files that take half a minute or more come first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


def pytest_configure(config):
    config.pluginmanager.register(PlainFolders())


@pytest.fixture
def threads(request):
    """So many threads of PyTorch in a test: @pytest.mark.parametrize("threads", [1, 2], indirect=True)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def save_cenet(tmp_path_factory):
    """A CENet's weights as a file: save_cenet(model) -> path."""
    import torch

    folder = tmp_path_factory.mktemp("weights")

    def save(model, name=None):
        path = folder / (name or f"{id(model)}.pth")
        torch.save(model.state_dict(), path)
        return path

    return save


@pytest.fixture(scope="session")
def small_weights(save_cenet):
    from helpers import SMALL, cenet

    return save_cenet(cenet(SMALL), "small.pth")


@pytest.fixture(scope="session")
def small_op(small_weights):
    from collaborative_experts import CollaborativeExperts
    from helpers import SMALL

    return CollaborativeExperts(SMALL, small_weights, device="cpu")


@pytest.fixture(params=["float64", "float16", "bfloat16", "meta"])
def other_defaults(request):
    """A function that gives a context with another default dtype of PyTorch, or another default device."""
    import torch

    @contextmanager
    def default_dtype():
        torch.set_default_dtype(getattr(torch, request.param))
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)

    # On this device nothing has values. One that has them, a GPU's, is not everywhere.
    return default_dtype if request.param != "meta" else lambda: torch.device("meta")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The name of a Jupyter kernel that runs this very interpreter, whatever kernels the user has."""
    folder = tmp_path_factory.mktemp("jupyter")
    spec = folder / "JUPYTER_PATH" / "kernels" / "of-this-test" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "test", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(variable, str(folder / variable))
        yield "of-this-test"


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory):
    """The address of a server of Milvus Lite that the tests share."""
    for module in ("pymilvus", "milvus_lite"):
        pytest.importorskip(module)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "milvus-lite"] if _has_command() else [sys.executable, "-m", "milvus_lite"]
    folder = tmp_path_factory.mktemp("server")
    process = subprocess.Popen(
        [*command, "server", "--data-dir", folder / "videos.db", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


def _has_command():
    return (Path(sys.executable).parent / "milvus-lite").exists()
