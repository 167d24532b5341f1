"""Indexes of Milvus become Lance datasets with the same answers."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

pytest.importorskip("lance")
pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from collaborative_experts import ModelIdentity, VideoEmbeddings, VideoIndex, similarity
from collaborative_experts.retrieval.convert import convert_index
from collaborative_experts.retrieval.store import patterns
from helpers import some

NAMES = np.array([f"video {i:03}" for i in range(60)])
MODEL = ModelIdentity("a" * 8, "b" * 8)

MAKE = """
import json, sys
import numpy as np
from pymilvus import DataType, MilvusClient

content = np.load(sys.argv[2])
client = MilvusClient(sys.argv[1])
schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=512)
schema.add_field("pattern", DataType.VARCHAR, max_length=3)
schema.add_field("vector", DataType.FLOAT_VECTOR, dim=18)
index = client.prepare_index_params()
index.add_index("vector", index_type="FLAT", metric_type="IP")
properties = {"collaborative_experts.model": sys.argv[3]} if len(sys.argv) > 3 else {}
client.create_collection("videos", schema=schema, index_params=index, properties=properties)
rows = zip(content["ids"], content["patterns"], content["joint"])
client.insert("videos", [{"id": str(i), "pattern": str(p), "vector": v} for i, p, v in rows])
"""


@pytest.fixture
def embeddings():
    text, video = some()
    return type(text)(text.embds, text.weights, model=MODEL), VideoEmbeddings(video.embds, video.available, model=MODEL)


def make(path, video, header):
    """An index as version 0.1 made it."""
    content = path.with_suffix(".npz")
    np.savez(content, ids=NAMES, patterns=patterns(video.available), joint=video.joint())
    subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE, path, content, *header], check=True)


def test_the_same_answers(tmp_path, embeddings):
    text, video = embeddings
    dims = dict.fromkeys(video.experts, 6)
    make(tmp_path / "videos.db", video, [json.dumps({"dims": dims, "model": asdict(MODEL)})])
    assert convert_index(tmp_path / "videos.db", tmp_path / "videos.lance") == 60
    order = np.argsort(-similarity(text, video), axis=1, kind="stable")[:, :10]
    with VideoIndex(tmp_path / "videos.lance") as index:
        assert index.search(text, 10).ids.tolist() == NAMES[order].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["videos.db", "videos.lance", "videos.npz"]
    with pytest.raises(FileExistsError, match="exists already"):
        convert_index(tmp_path / "videos.db", tmp_path / "videos.lance")


def test_what_is_not_converted(tmp_path, embeddings):
    make(tmp_path / "other.db", embeddings[1], [])
    for source, target, error, message in (
        ("nothing.db", "a.lance", FileNotFoundError, "there is no such index"),
        ("other.db", "a.npz", ValueError, r"expected a path ending in \.lance"),
        ("other.db", "a.lance", ValueError, "is not one of VideoIndex's"),
        ("other.db", "no folder/a.lance", FileNotFoundError, "there is no folder"),
    ):
        with pytest.raises(error, match=message):
            convert_index(tmp_path / source, tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.db", "other.npz"]


def test_the_message_of_an_old_index_says_how_to_convert(tmp_path):
    with pytest.raises(ValueError, match=r"python -m collaborative_experts convert .*videos\.db .*videos\.lance"):
        VideoIndex(tmp_path / "videos.db")
