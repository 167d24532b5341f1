"""What an index holds of single videos, and another store in the place of an open one."""

import shutil

import numpy as np
import pytest

pytest.importorskip("lance")

from collaborative_experts import ModelIdentity, TextEmbeddings, VideoEmbeddings, VideoIndex
from helpers import random_embeddings


def test_read(tmp_path):
    _, video = random_embeddings(1, 20)
    there = np.flatnonzero(np.asarray(video.available).any(1))
    video, names = video[there], [f"v{i}" for i in there]
    with VideoIndex(tmp_path / "videos.lance") as index:
        with pytest.raises(ValueError, match="holds no videos yet"):
            index.read(["v1"])
        index.add(names, video, spans=[(i, i + 1.0) for i in there], metadata=[{"n": int(i)} for i in there])
        stored = index.read([names[7], "none", names[3]])
        assert (stored.ids, len(stored)) == ([names[7], names[3]], 2)
        np.testing.assert_array_equal(stored.embeddings.available, video.available[[7, 3]])
        np.testing.assert_array_equal(stored.embeddings.joint(), video[[7, 3]].joint())
        assert stored.spans.tolist() == [[there[row], there[row] + 1] for row in (7, 3)]
        assert [x["n"] for x in stored.metadata] == there[[7, 3]].tolist()
        assert len(index.read("none")) == 0
        assert index.read("none").embeddings.available.shape == (0, 3)


@pytest.mark.parametrize("additions", [1, 3])
def test_another_store_in_the_place_of_an_open_one(tmp_path, additions):
    """It is seen by the readers that are open, and its model is held against theirs."""

    def make(weights):
        for part in range(additions if weights == "b" else 1):
            with VideoIndex(tmp_path / "videos.lance") as writer:
                model = ModelIdentity("{}", weights)
                writer.add([f"{weights}{part}"], VideoEmbeddings({"m": np.eye(1, 4)}, np.ones((1, 1)), model))

    def search(index, weights):
        text = TextEmbeddings({"m": np.eye(1, 4)}, np.ones((1, 1)), model=ModelIdentity("{}", weights))
        return index.search(text, 9).ids.tolist()

    make("a")
    with VideoIndex(tmp_path / "videos.lance") as index:
        assert search(index, "a") == [["a0"]]
        shutil.rmtree(tmp_path / "videos.lance")
        for _ in range(2):
            with pytest.raises(OSError, match="cannot read"):
                search(index, "a")
        make("b")
        with pytest.raises(ValueError, match="embedded by another model"):
            index.add(["c"], VideoEmbeddings({"m": np.eye(1, 4)}, np.ones((1, 1)), ModelIdentity("{}", "a")))
        assert search(index, "b") == [[f"b{part}" for part in range(additions)]]
        with pytest.raises(ValueError, match="embedded by another model"):
            search(index, "a")


@pytest.mark.parametrize("use", ["len", "search", "read", "add"])
def test_another_store_of_as_many_versions(tmp_path, use):
    """It is seen at once, whatever is done first."""
    path, text = tmp_path / "videos.lance", TextEmbeddings({"m": np.eye(1, 4)}, np.ones((1, 1)))

    def make(*names):
        with VideoIndex(path) as writer:
            writer.add(names, VideoEmbeddings({"m": np.eye(len(names), 4)}, np.ones((len(names), 1))))

    make("a", "b", "c")
    with VideoIndex(path) as index:
        index.search(text)
        shutil.rmtree(path)
        make("d", "e")
        if use == "len":
            assert len(index) == 2
        elif use == "search":
            assert sorted(index.search(text).ids[0]) == ["d", "e"]
        elif use == "read":
            assert index.read(["a", "d"]).ids == ["d"]
        else:
            index.add(["f"], VideoEmbeddings({"m": np.eye(1, 4)}, np.ones((1, 1))))
            assert sorted(index.to_arrow()["id"].to_pylist()) == ["d", "e", "f"]
