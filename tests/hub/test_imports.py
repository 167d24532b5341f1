"""The package imports from inside its folder, from a wheel, and through Towhee's hub loader, under its one name."""

import os
import shutil
import subprocess
import sys
import textwrap
from zipfile import ZipFile

import pytest

ROOMS = ("base", "model", "features", "features/extract", "retrieval", "training", "hub", "apps")
DATA = (
    "py.typed",
    "requirements.txt",
    "weights/fetch.py",
    "weights/models.toml",
    "features/extract/imagenet_labels.txt",
)


@pytest.fixture(scope="module")
def clone(root, tmp_path_factory):
    """The tracked files in a folder whose name is no name of a package."""
    folder = tmp_path_factory.mktemp("clone") / "some-folder-with-dashes"
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        if (root / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)
    return folder


def run_python(folder, *arguments, path=""):
    """Run Python in a folder, without the installed package: PYTHONPATH comes before it."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


INSIDE = """
    import multiprocessing, os, pickle, sys, warnings
    import numpy as np
    warnings.simplefilter("ignore")
    import collaborative_experts as ce

    CONFIG = {"experts": {"motion": 3}, "text": {"dim": 4, "clusters": 1}, "use_ce": "", "shared_dim": 4}
    STATEMENTS = (
        "import collaborative_experts as x",
        "import collaborative_experts; from collaborative_experts.retrieval import similarity as x",
        "from collaborative_experts.hub import operator as x",
        "from collaborative_experts import CaptionedVideos; x = sys.modules[CaptionedVideos.__module__]",
    )

    def embed(op):
        return op.encode_video({"motion": np.ones((1, 3))}).embds["motion"]

    def import_takes_no_pytorch():
        from towhee.runtime.operator_manager import OperatorRegistry
        assert OperatorRegistry.resolve("video-text-embedding/collaborative-experts") is not None
        assert not {"torch", "lance", "pandas", "transformers"} & set(sys.modules)
        assert ce.TrainingConfig().members
        assert "torch" in sys.modules and "collaborative_experts.training.loop" not in sys.modules

    def statement_imports(statement):
        for name in [name for name in sys.modules if name.split(".")[0] == "collaborative_experts"]:
            del sys.modules[name]
        namespace = {"sys": sys}
        exec(statement, namespace)
        assert namespace["x"].__file__.startswith(os.getcwd() + os.sep), namespace["x"]

    def public_names_are_there():
        assert set(ce.__all__) == {"collaborative_experts", *ce._MODULE_OF}
        assert set(ce.__all__) <= set(dir(ce))
        for name in ce.__all__:
            assert getattr(ce, name).__name__ == name if name != "MSRVTT" else ce.MSRVTT
        from collaborative_experts.collaborative_experts import CollaborativeExperts
        assert ce.CollaborativeExperts is CollaborativeExperts
        assert ce.collaborative_experts.__module__ == "collaborative_experts"

    def pickle_and_spawn():
        op = ce.CollaborativeExperts(CONFIG, device="cpu")
        assert np.array_equal(embed(pickle.loads(pickle.dumps(op))), embed(op))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert np.array_equal(pool.apply(embed, (op,)), embed(op))

    def in_fork(check, *arguments):
        if not os.fork():
            check(*arguments)
            os._exit(0)
        assert os.wait()[1] == 0, (check, *arguments)

    if __name__ == "__main__":
        import_takes_no_pytorch()
        for statement in STATEMENTS:
            in_fork(statement_imports, statement)
        in_fork(public_names_are_there)
        pickle_and_spawn()
        print("all")
"""
"""One process, which PyTorch takes seconds to be imported in: the import registers the operator with Towhee, PyTorch
comes with the first name that needs it, statements start over in forks, and no name hides the factory, which has the
name of a submodule."""


def test_imports_and_processes_inside_the_folder(clone):
    script = clone / "inside.py"
    script.write_text(textwrap.dedent(INSIDE))
    try:
        assert run_python(clone, script.name) == "all"
    finally:
        script.unlink()


def test_commands_inside_the_folder(clone):
    assert "extract" in run_python(clone, "-m", "collaborative_experts", "--help")


def test_pytest_inside_the_folder(clone):
    assert "passed" in run_python(clone, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/base/test_archives.py")


def test_a_notebook_inside_the_folder(clone, kernel):
    """The kernel's working folder comes before the installed packages, and holds collaborative_experts.py."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("import collaborative_experts as ce; print(ce.__file__)"),
            nbformat.v4.new_code_cell("from collaborative_experts.retrieval.similarity import similarity"),
            nbformat.v4.new_code_cell("print(similarity is ce.similarity)"),
        ]
    )
    resources = {"metadata": {"path": str(clone)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=resources).execute()
    printed = "".join(out.text for cell in notebook.cells for out in cell.outputs if out.get("name") == "stdout")
    assert printed.split() == [str(clone / "__init__.py"), "True"]


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, clone]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_room_and_data_file(clone, wheel):
    held = set(ZipFile(wheel).namelist())
    modules = [path for room in ROOMS for path in (clone / room).glob("*.py")] + list(clone.glob("*.py"))
    assert len(modules) > 60
    assert {f"collaborative_experts/{path.relative_to(clone)}" for path in modules} <= held
    assert {f"collaborative_experts/{name}" for name in DATA} <= held
    assert not any("/tests/" in name for name in held)


def test_the_wheel_brings_the_script(wheel):
    scripts = ZipFile(wheel).read("collaborative_experts-0.1.0.dist-info/entry_points.txt").decode()
    assert "collaborative-experts = collaborative_experts.__main__:run" in scripts


def test_the_wheel_imports_anywhere(wheel, tmp_path):
    ZipFile(wheel).extractall(tmp_path / "site")
    where = run_python(tmp_path, "-c", "import collaborative_experts as x; print(x.__file__)", path=tmp_path / "site")
    assert where.startswith(str(tmp_path / "site"))
    assert "train" in run_python(tmp_path, "-m", "collaborative_experts", "--help", path=tmp_path / "site")


def test_towhees_loader_from_a_path_with_dashes(clone, tmp_path):
    """Through the cache, in a process of its own: the loader finds the folder, each version, and registers no name."""
    versions = tmp_path / "operators/video-text-embedding/collaborative-experts/versions"
    versions.mkdir(parents=True)
    for version in ("main", "v2"):
        (versions / version).symlink_to(clone)
    code = """
        import sys
        import numpy as np
        from towhee import ops
        from towhee.runtime.operator_manager import OperatorRegistry
        config = {"experts": {"motion": 3}, "text": {"dim": 4, "clusters": 1}, "use_ce": "", "shared_dim": 4}
        op = ops.video_text_embedding.collaborative_experts(config, device="cpu")
        text, video = op({"motion": np.ones((1, 3))}, None, np.ones((1, 1, 2, 4)))
        print(*video["motion"].shape, "collaborative_experts" in sys.modules, type(op.get_op()).__module__)
        weights = op.get_op().save("w.safetensors")
        other = ops.video_text_embedding.collaborative_experts(weights_path=weights, device="cpu").revision("v2")
        print(type(other.get_op()).__module__)
        print(OperatorRegistry.resolve("video-text-embedding/collaborative-experts"))
    """
    environment = os.environ | {"TOWHEE_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    name = "towhee.operator.video_text_embedding.collaborative_experts"
    expected = ["1", "4", "False", f"{name}.main.hub.operator", f"{name}.v2.hub.operator", "None"]
    assert done.stdout.split() == expected, done.stderr
