"""The commands `embed` and `search`: from files of features to answers."""

import json

import numpy as np
import pytest

pytest.importorskip("lance")

from collaborative_experts import CollaborativeExperts, VideoIndex, read_features
from collaborative_experts.__main__ import main
from collaborative_experts.apps.bulk import bulk_embed
from collaborative_experts.retrieval.normalise import QueryBank
from collaborative_experts.training.bank import read_bank, write_bank
from collaborative_experts.training.encoder import identify
from helpers import write_lance

CONFIG = {"experts": {"motion": 12}, "text": {"dim": 6, "clusters": 1}, "use_ce": "", "shared_dim": 8}


class Letters:
    """An encoder whose tokens are six numbers of a word's letters."""

    name, dim = "letters", 6

    def __init__(self, model=None, trusted=True):
        self.model = model

    def __call__(self, sentences):
        return [np.array([self._numbers(word) for word in text.split()], np.float32) for text in sentences]

    def _numbers(self, word):
        return [sum(map(ord, word)) % (7 + i) - 3 for i in range(self.dim)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Weights that name their encoder, and features as `extract` writes them; the fourth video has none."""
    monkeypatch.setattr("collaborative_experts.training.encoder.SentenceEncoder", Letters)
    op = CollaborativeExperts(CONFIG, device="cpu")
    op._notes = {"encoder": identify(Letters()).to_dict() | {"model": "letters"}}
    op.save(tmp_path / "w.safetensors")
    rows = list(np.random.default_rng(0).standard_normal((30, 12)).astype(np.float32))
    rows[3] = np.full(12, np.nan, np.float32)
    write_lance(tmp_path / "features.lance", "motion", [f"v{i:02}" for i in range(30)], rows)
    return tmp_path


def test_trust(folder, capsys, monkeypatch):
    """Weights may name any model for sentences; only with --trust is it taken as one that the user names."""

    class Careful(Letters):
        def __init__(self, model=None, trusted=True):
            super().__init__(model)
            if not trusted:
                raise ValueError(f"{model} is not loaded without --trust")

    monkeypatch.setattr("collaborative_experts.training.encoder.SentenceEncoder", Careful)
    weights, store = str(folder / "w.safetensors"), str(folder / "videos.lance")
    assert main(["embed", str(folder / "features.lance"), "--weights", weights, "--to", store]) == 0
    capsys.readouterr()
    assert main(["search", store, "a dog"]) == 1
    assert "letters is not loaded without --trust" in capsys.readouterr().err
    assert main(["search", store, "a dog", "--trust", "-k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_embed_then_search(folder, capsys):
    weights, store = str(folder / "w.safetensors"), str(folder / "videos.lance")
    for _ in range(2):  # the second time replaces
        assert main(["embed", str(folder / "features.lance"), "--weights", weights, "--to", store]) == 0
        assert "29 videos added" in capsys.readouterr().out
    op = CollaborativeExperts(weights_path=weights, device="cpu")
    features = read_features(folder / "features.lance")
    with VideoIndex(store, operator=op) as index:
        assert len(index) == 29
        row = index.to_arrow().to_pylist()[0]
        assert (row["uri"], row["start_s"], row["end_s"]) == (row["id"], 0.0, 1.0)
        expected = index.search(["a dog", "two cats"], k=5)
    assert features.ids[3] not in expected.ids
    assert main(["search", store, "a dog", "two cats", "--weights", weights, "-k", "5", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [[video["id"] for video in answer] for answer in answers] == expected.ids.tolist()
    assert main(["search", store, "a dog", "-k", "2"]) == 0  # by the weights that the index names
    printed = capsys.readouterr().out
    assert printed.startswith("> a dog\n")
    assert expected.ids[0, 0] in printed
    assert main(["search", store, "a dog", "-k", "12"]) == 0  # all that were asked for
    assert len(capsys.readouterr().out.splitlines()) == 15
    assert main(["search", store, "a dog", "--where", "start_s > 60"]) == 0
    assert capsys.readouterr().out == "> a dog\nno videos\n\n"
    report = folder / "found.html"
    assert main(["search", store, "a dog", "two cats", "--weights", weights, "-k", "5", "--html", str(report)]) == 0
    assert all(name in report.read_text("utf-8") for name in expected.ids.ravel())
    capsys.readouterr()
    assert main(["search", store, "a dog", "--html", str(folder)]) == 1
    assert capsys.readouterr().err == f"error: {folder}: expected the name of a file, found a folder\n"
    assert main(["search", store, "--like", "v05", "-k", "3", "--where", "id < 'v10'", "--json"]) == 0
    [alike] = json.loads(capsys.readouterr().out)
    assert len(alike) == 3
    assert all(video["id"] < "v10" and video["id"] != "v05" for video in alike)


def test_embed_then_search_on_a_milvus_server(folder, milvus_server, capsys):
    """The collection knows the weights, as an index in Lance does."""
    weights = str(folder / "w.safetensors")
    for store in (milvus_server, str(folder / "videos.lance")):
        assert main(["embed", str(folder / "features.lance"), "--weights", weights, "--to", store]) == 0
    capsys.readouterr()
    answers = []
    for store in (milvus_server, str(folder / "videos.lance")):
        assert main(["search", store, "a dog", "two cats", "-k", "7", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert [[video["id"] for video in answer] for answer in answers[0]] == [
        [video["id"] for video in answer] for answer in answers[1]
    ]
    assert main(["search", milvus_server, "a dog", "--where", 'id in ["v05", "v09"]', "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert sorted(video["id"] for video in found) == ["v05", "v09"]
    (folder / "w.safetensors").unlink()
    assert main(["search", milvus_server, "a dog"]) == 1
    assert "which is not there; pass --weights FILE" in capsys.readouterr().err


def test_embed_calibrates_with_the_bank_of_the_weights(folder):
    op = CollaborativeExperts(weights_path=folder / "w.safetensors", device="cpu")
    features = read_features(folder / "features.lance")
    bank = op.encode_text(np.random.default_rng(1).standard_normal((40, 5, 6)).astype(np.float32))
    query = op.encode_text(np.random.default_rng(2).standard_normal((9, 5, 6)).astype(np.float32))
    levels = np.linspace(0, 1, 40, dtype=np.float32)
    write_bank(folder / "bank.safetensors", QueryBank(bank, beta=5.0, levels=levels))
    bulk_embed(folder / "features.lance", folder / "w.safetensors", folder / "videos.lance")
    with VideoIndex(folder / "plain.lance") as plain, VideoIndex(folder / "videos.lance") as index:
        kept = features[np.flatnonzero(features.available.any(1))]
        plain.add(kept.ids, op.encode_video(kept.experts, kept.ind))
        plain.calibrate(read_bank(folder / "bank.safetensors").text, beta=5.0, levels=levels)
        np.testing.assert_array_equal(index.search(query, k=9).ids, plain.search(query, k=9).ids)
        np.testing.assert_allclose(index.search(query, k=9).scores, plain.search(query, k=9).scores, atol=1e-6)
        corrected = index.search(query, k=9).ids
        index.calibrate(None)
        assert (corrected != index.search(query, k=9).ids).any()


def write_npz(folder, ids, rows):
    np.savez(folder / "motion.npz", video_id=ids, motion=rows)


def write_npy(folder, ids, rows):
    np.save(folder / "motion.npy", rows)
    (folder / "motion.ids.txt").write_text("\n".join(ids))


def write_folder_of_npy(folder, ids, rows):
    (folder / "motion").mkdir()
    for video, row in zip(ids, rows, strict=True):
        np.save(folder / "motion" / f"{video}.npy", row)


def write_csv(folder, ids, rows):
    lines = [",".join([video, *map(repr, row.tolist())]) for video, row in zip(ids, rows, strict=True)]
    header = ",".join(["video_id", *(f"x{i}" for i in range(rows.shape[1]))])
    (folder / "motion.csv").write_text("\n".join([header, *lines]))


def write_hdf5(folder, ids, rows):
    with pytest.importorskip("h5py").File(folder / "motion.h5", "w") as file:
        file["video_id"], file["motion"] = ids, rows


def write_in_lance(folder, ids, rows):
    write_lance(folder / "motion.lance", "motion", ids, list(rows))


@pytest.mark.parametrize("write", [write_npz, write_npy, write_folder_of_npy, write_csv, write_hdf5, write_in_lance])
def test_every_kind_of_file(folder, write):
    files = folder / "files"
    files.mkdir()
    ids = [f"v{i}" for i in range(5)]
    rows = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)
    write(files, ids, rows)
    assert main(["embed", str(files), "--weights", f"{folder}/w.safetensors", "--to", f"{folder}/videos.lance"]) == 0
    op = CollaborativeExperts(weights_path=folder / "w.safetensors", device="cpu")
    with VideoIndex(folder / "videos.lance") as index:
        table = index.to_arrow().sort_by("id")
    assert table["id"].to_pylist() == ids
    expected = op.encode_video({"motion": rows}).joint()
    np.testing.assert_allclose(np.stack(table["vector"].to_numpy()), expected, atol=1e-6)


def test_the_index_names_its_weights(folder, capsys, monkeypatch):
    """By a path relative to it: both can be moved. Weights of another model are refused."""
    (folder / "run").mkdir()
    (folder / "w.safetensors").rename(folder / "run" / "best.safetensors")
    monkeypatch.chdir(folder)
    arguments = ["embed", "features.lance", "--weights", "run/best.safetensors", "--to", "videos.lance", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {
        "to": "videos.lance",
        "added": 29,
        "without_experts": 1,
        "errors": [],
    }
    moved = folder.parent / "moved"
    folder.rename(moved)
    monkeypatch.chdir(moved.parent)
    assert main(["search", "moved/videos.lance", "a dog", "-k", "1"]) == 0
    (moved / "run" / "best.safetensors").rename(moved / "elsewhere.safetensors")
    capsys.readouterr()
    assert main(["search", "moved/videos.lance", "a dog"]) == 1
    assert "best.safetensors, which is not there; pass --weights FILE" in capsys.readouterr().err
    assert main(["search", "moved/videos.lance", "a dog", "--weights", "moved/elsewhere.safetensors"]) == 0
    other = CollaborativeExperts(CONFIG | {"shared_dim": 4}, device="cpu")
    other.save(moved / "run" / "best.safetensors")
    capsys.readouterr()
    assert main(["search", "moved/videos.lance", "a dog"]) == 1
    assert "expected the weights that moved/videos.lance was made with" in capsys.readouterr().err


def test_an_index_that_names_no_weights(folder, capsys):
    op = CollaborativeExperts(weights_path=folder / "w.safetensors", device="cpu")
    with VideoIndex(folder / "videos.lance") as index:
        index.add(["a"], op.encode_video({"motion": np.ones((1, 12))}))
    assert main(["search", str(folder / "videos.lance"), "a dog"]) == 1
    assert "does not say which weights it was made with; pass --weights FILE" in capsys.readouterr().err


def test_batches_are_one_index(folder, monkeypatch):
    monkeypatch.setattr("collaborative_experts.apps.bulk.BATCH", 7)
    assert bulk_embed(folder / "features.lance", folder / "w.safetensors", folder / "videos.lance").added == 29
    with VideoIndex(folder / "videos.lance") as index:
        assert len(index) == 29


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "no.lance", "a dog"], "no.lance: there is no such index"),
        (["search", "no.lance", "--like", "v1"], "no.lance: there is no such index"),
        (["search", "no.lance"], "expected sentences, or --like ID"),
        (["search", "no.lance", "a dog", " "], "got a blank one"),
        (["embed", "features.lance", "v.lance", "--weights", "w.safetensors", "--actors", "2"], "belong to --ray"),
        (["search", "features.lance", "a dog"], "found features, of which `embed` makes one"),
        (["embed", "no.toml", "--zero-shot", "--to", "videos.lance"], "features: there is no file"),
        (["search", "no.lance", "a dog", "--like", "v1"], "expected sentences, or --like ID"),
        (["embed", "no.lance", "--weights", "w.safetensors", "--to", "videos.lance"], "features: there is no file"),
        (["embed", "features.lance", "--weights", "no.safetensors", "--to", "videos.lance"], "no.safetensors"),
    ],
)
def test_errors_are_one_line(folder, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (folder / "videos.lance").exists()
