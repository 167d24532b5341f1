"""Work in bulk: what one undisturbed process stores is stored whatever is killed, and by actors of Ray Data."""

import logging
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lance")

import lance
import pyarrow as pa

from collaborative_experts import CollaborativeExperts, VideoIndex, read_features
from collaborative_experts.apps import bulk, extract, tasks
from collaborative_experts.apps.journal import Journal
from collaborative_experts.apps.tasks import Pool, _connect, run_tasks
from collaborative_experts.features.extract.clips import MediaFile, fragment
from helpers import TRAINABLE, flat_frames, tone, untrained, write_features, write_media

VIDEOS = 96
SHARD = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features of which v007 has no expert and v009 an Inf, and weights."""
    folder = tmp_path_factory.mktemp("bulk")
    (folder / "features").mkdir()
    rng = np.random.default_rng(0)
    ids = [f"v{i:03}" for i in range(VIDEOS)]
    motion = rng.standard_normal((VIDEOS, 12), dtype=np.float32)
    motion[7], motion[9] = np.nan, np.inf
    write_features(folder / "features", "npz", "motion", ids, motion)
    tokens = [rng.standard_normal((3, 6), dtype=np.float32) for _ in ids[20:]]
    write_features(folder / "features", "npz by video", "sound", ids[20:], tokens)
    untrained().save(folder / "w.safetensors")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(bulk, "SHARD_BYTES", 4 * SHARD * sum(TRAINABLE.output_dims.values()))


def embed(folder, to, pool=None):
    return bulk.bulk_embed(folder / "features", folder / "w.safetensors", to, pool, device="cpu")


def rows(to):
    with VideoIndex(to) as index:
        return index.to_arrow().sort_by("id")


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    """The rows of an undisturbed run."""
    to = tmp_path_factory.mktemp("expected") / "videos.lance"
    bulk.bulk_embed(folder / "features", folder / "w.safetensors", to, device="cpu")
    return rows(to)


def test_rows_are_what_the_operator_gives(folder, tmp_path):
    report = embed(folder, tmp_path / "videos.lance")
    assert (report.added, report.without_experts) == (VIDEOS - 2, 1)
    assert [video for video, _ in report.errors] == ["v009"]
    assert "got Inf" in report.errors[0][1]
    assert "v009" in (tmp_path / "videos.errors.csv").read_text()
    op = CollaborativeExperts(weights_path=folder / "w.safetensors", device="cpu")
    found = rows(tmp_path / "videos.lance")
    kept = read_features(folder / "features", found["id"].to_pylist())
    joint = op.encode_video(kept.experts, kept.ind).joint()
    assert np.abs(np.array(found["vector"].to_pylist()) - joint).max() < 1e-6


def test_a_second_run_replaces_what_has_changed(folder, tmp_path):
    to = tmp_path / "videos.lance"
    embed(folder, to)
    first = rows(to)
    assert not (to / "_embed" / "journal.jsonl").exists()
    features = read_features(folder / "features", [f"v{i:03}" for i in range(5)])
    (tmp_path / "changed").mkdir()
    write_features(tmp_path / "changed", "npz", "motion", list(features.ids), -features.experts["motion"])
    report = bulk.bulk_embed(tmp_path / "changed", folder / "w.safetensors", to, device="cpu")
    assert report.added == 5
    assert not (tmp_path / "videos.errors.csv").exists()
    second = rows(to)
    changed = [a != b for a, b in zip(first["vector"].to_pylist(), second["vector"].to_pylist(), strict=True)]
    assert changed == [True] * 5 + [False] * (VIDEOS - 7)


def test_a_failed_run_goes_on(folder, tmp_path, monkeypatch, expected):
    """The disk is full after three shards: one error, and the same call does the other shards only."""
    to, add, calls = tmp_path / "videos.lance", VideoIndex.add, []

    def full(self, ids, *args, **kwargs):
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        calls.append(ids)
        add(self, ids, *args, **kwargs)

    monkeypatch.setattr(VideoIndex, "add", full)
    with pytest.raises(OSError, match="No space left"):
        embed(folder, to)
    assert len(rows(to)) == sum(map(len, calls))
    monkeypatch.setattr(VideoIndex, "add", lambda self, ids, *a, **k: (calls.append(ids), add(self, ids, *a, **k)))
    report = embed(folder, to)
    assert sum(map(len, calls)) == VIDEOS - 2  # each video once
    assert (report.added, len(report.errors)) == (VIDEOS - 2, 1)
    assert rows(to).equals(expected)


def test_a_file_of_which_nothing_can_be_read_stops_the_run(folder, tmp_path):
    (tmp_path / "features").mkdir()
    write_features(
        tmp_path / "features", "npz", "motion", [f"v{i}" for i in range(40)], np.full((40, 12), np.inf, np.float32)
    )
    bulk.SHARD_BYTES *= 4
    with pytest.raises(ValueError, match=r"none of 40 videos can be read: .*got Inf"):
        bulk.bulk_embed(tmp_path / "features", folder / "w.safetensors", tmp_path / "videos.lance", device="cpu")


def test_journal(tmp_path):
    path = tmp_path / "a" / "journal.jsonl"
    journal = Journal(path, ["work"])
    journal.finish(3, {"added": 1})
    journal.finish(1, {"added": 2})
    assert Journal(path, ["work"]).finished == {3: {"added": 1}, 1: {"added": 2}}
    assert Journal(path, ["other work"]).finished == {}
    path.write_text(path.read_text()[:-5])
    cut = Journal(path, ["work"])
    assert cut.finished == {3: {"added": 1}}
    cut.finish(2, {"added": 4})
    assert Journal(path, ["work"]).finished == {3: {"added": 1}, 2: {"added": 4}}
    journal.remove()
    assert Journal(path, ["work"]).finished == {}


def test_the_same_files_of_other_experts_are_other_work(folder):
    files = sorted((folder / "features").iterdir())
    as_given, swapped = (dict(zip(names, files, strict=True)) for names in (["motion", "sound"], ["sound", "motion"]))
    assert bulk._facts(as_given) == bulk._facts(dict(as_given))
    assert bulk._facts(as_given) != bulk._facts(swapped)


def shard_table(number, ids):
    return pa.table({"id": ids, "shard": [number] * len(ids)})


@pytest.mark.parametrize(
    ("tables", "error"),
    [
        ([(0, "ab"), (1, "cd"), (2, "e")], None),
        ([(1, "c"), (0, "ba"), (2, "e"), (1, "d")], None),  # cut, and in any order
        ([(0, "ab"), (2, "e")], r"expected 3 shards, 1 are not whole: \[1\]"),
        ([(0, "ab"), (1, "c"), (2, "e")], r"1 are not whole: \[1\]"),
        ([(0, "aa"), (1, "cd"), (2, "e")], "shard 0: expected its 2 videos once, got 2 rows of 1 of them"),
        ([(0, "ab"), (1, "c"), (1, "dx"), (2, "e")], "shard 1: expected its 2 videos once, got 3 rows of 2 of them"),
        ([(0, "ab"), (1, "ce"), (2, "d")], "shard 1: expected its 2 videos once, got 2 rows of 1 of them"),
        ([(0, "ab"), (1, "cd"), (2, "e"), (0, "ab")], "shard 0: expected its 0 videos once, got 2 rows"),
    ],
)
@pytest.mark.parametrize("joined", [False, True], ids=["as given", "joined"])
def test_shards_are_whole(tables, error, joined):
    """A worker whose files differ, or a part that is lost, does not pass for a shard."""
    spans = [{"shard": number, "start": 2 * number, "stop": min(2 * number + 2, 5)} for number in range(3)]
    given = [shard_table(number, list(ids)) for number, ids in tables]
    given = [pa.concat_tables(given)] if joined and len({number for number, _ in tables}) == len(tables) else given
    with pytest.raises(RuntimeError, match=error) if error else nullcontext():
        found = {number: sorted(table["id"].to_pylist()) for number, table in bulk._whole_shards(given, spans, "abcde")}
        assert found == {0: ["a", "b"], 1: ["c", "d"], 2: ["e"]}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"actors": 0}, ValueError, "actors: expected at least 1"),
        ({"cpus": 0}, ValueError, "cpus: expected at least 1"),
        ({"cpus": None}, TypeError, "cpus: expected an integer"),
        ({"gpus": -1}, ValueError, "gpus: expected at least 0"),
        ({"gpus": True}, TypeError, "gpus: expected an integer"),
        ({"address": "ray://head:10001"}, ValueError, "ray: expected 'auto' or host:port"),
    ],
)
def test_pool_refuses(settings, error, message):
    with pytest.raises(error, match=message):
        Pool(**settings)


def test_pool_takes_integers_of_numpy():
    assert Pool(actors=np.int64(2), cpus=np.int64(3), gpus=np.int64(1)) == Pool(actors=2, cpus=3, gpus=1)


def test_clips_that_are_known_are_not_made_again(media, tmp_path):
    name = "100% #3?.mp4"
    file = MediaFile(media / name, name, "")
    task, *_ = extract._tasks([file], [fragment(name, 0, 1), fragment("a0.mp4", 0, 1)])
    assert task["known"] == [fragment(name, 0, 1)]


def test_files_make_tasks_of_some_bytes(media, monkeypatch):
    """A file that has gone since it was found stops nobody: its worker says so."""
    files = [MediaFile(media / name, name, "") for name in ("gone.mp4", "a0.mp4", "bad.mp4", "a1.mp4")]
    monkeypatch.setattr(extract, "TASK_BYTES", files[1].path.stat().st_size + 10)
    names = [[name for _, name, _ in task["files"]] for task in extract._tasks(files, [])]
    assert names == [["gone.mp4", "a0.mp4", "bad.mp4"], ["a1.mp4"]]


# --- Ray ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one core each, one of which also runs the driver. A test may kill the other."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    _connect(ray, Pool(cluster.address))
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def actor_processes(cluster):
    """Process ids of the cluster's actors of Ray Data."""
    raylets = {entry.process.pid for node in cluster.list_all_nodes() for entry in node.all_processes["raylet"]}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and b"ray::MapWorker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_a_killed_actor_and_a_killed_machine(folder, tmp_path, cluster, monkeypatch, expected):
    to, add, killed = tmp_path / "videos.lance", VideoIndex.add, []

    def add_and_kill(self, ids, *args, **kwargs):
        add(self, ids, *args, **kwargs)
        if not killed:
            actors = actor_processes(cluster)
            assert actors
            os.kill(actors[0], signal.SIGKILL)
        if len(killed) == 2:
            cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        killed.append(ids)

    monkeypatch.setattr(VideoIndex, "add", add_and_kill)
    report = embed(folder, to, Pool(actors=2))
    assert (report.added, report.without_experts, len(report.errors)) == (VIDEOS - 2, 1, 1)
    assert len(killed) > 3
    assert rows(to).equals(expected)


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [(None, None, "local"), (None, "a:1", "a:1"), ("auto", "a:1", "auto"), ("b:2", None, "b:2")],
)
def test_a_cluster_of_others_is_not_joined(given, environment, address, monkeypatch):
    """Ray alone joins the cluster that was started last on the machine."""
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    else:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tasks, "_check_answers", lambda address: None)
    calls = []
    _connect(SimpleNamespace(is_initialized=lambda: False, init=lambda **settings: calls.append(settings)), Pool(given))
    assert [call["address"] for call in calls] == [address]


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "localhost:99999999"])
def test_a_cluster_that_does_not_answer(address):
    ray = SimpleNamespace(is_initialized=lambda: False)
    with pytest.raises(ConnectionError, match=f"^ray: no cluster answers at {address}: "):
        _connect(ray, Pool(address))


def test_errors_of_workers(cluster):
    def make():
        def work(task):
            raise ValueError(f"task {task['number']} cannot be done")
            yield

        return work

    with pytest.raises(RuntimeError, match=r"^ValueError: task 0 cannot be done$"):
        list(run_tasks(make, [{"number": 0}], Pool(actors=1)))
    with pytest.raises(ValueError, match="an actor needs 64 cores and 0 GPUs, more than the cluster has"):
        list(run_tasks(make, [{"number": 0}], Pool(cpus=64)))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    for module in ("av", "cv2"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("media")
    for i in range(4):
        write_media(folder / f"a{i}.mp4", flat_frames([20 * i + j for j in range(20)]), sound=tone(2, 200 + 50 * i))
    (folder / "a3.mp4").rename(folder / "100% #3?.mp4")
    (folder / "bad.mp4").write_text("no media")
    return folder


@pytest.fixture
def tables(cluster, monkeypatch):
    """The tables that workers give. A task's is one block, however small the caller's blocks are, and the caller's
    settings stay as they are."""
    from ray.data import DataContext

    context, level, found = DataContext.get_current(), logging.getLogger("ray.data").level, []
    monkeypatch.setattr(context, "target_max_block_size", 100)
    monkeypatch.setattr(context, "enable_progress_bars", True)
    monkeypatch.setattr(extract, "run_tasks", lambda *work: (found.append(x) or x for x in run_tasks(*work)))
    yield found
    assert DataContext.get_current() is context
    assert (context.target_max_block_size, context.enable_progress_bars) == (100, True)
    assert logging.getLogger("ray.data").level == level


def test_rows_and_report_of_extraction(media, tables, tmp_path, monkeypatch):
    settings = {"experts": ["motion", "audio"], "clips": 1.0}
    monkeypatch.setattr(extract, "TASK_BYTES", 1)
    (tmp_path / "alone").mkdir()
    alone = extract.extract(media, tmp_path / "alone" / "features.lance", **settings)
    part = tmp_path / "part"
    part.mkdir()
    for name in ("a0.mp4", "a1.mp4"):
        (part / name).symlink_to(media / name)
    extract.extract(part, tmp_path / "features.lance", **settings)
    for name in ("a2.mp4", "100% #3?.mp4", "bad.mp4"):
        (part / name).symlink_to(media / name)
    shared = extract.extract(part, tmp_path / "features.lance", **settings, pool=Pool(actors=1))
    assert sorted(map(len, tables)) == [1, 3, 3]  # the last row is the worker's report
    assert (shared.files, shared.skipped, shared.clips) == (2, 2, 4)
    assert [(x.file, x.reason) for x in shared.problems] == [(x.file, x.reason) for x in alone.problems]
    paths = tmp_path / "features.lance", tmp_path / "alone" / "features.lance"
    found, expected = (lance.dataset(str(path)).to_table().sort_by("id") for path in paths)
    assert found.drop_columns("uri").equals(expected.drop_columns("uri"))
