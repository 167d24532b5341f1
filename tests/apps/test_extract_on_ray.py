"""Extraction shared by actors of Ray Data: the rows of a run in one process."""

import logging

import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("lance")
pytest.importorskip("ray")

import lance

from collaborative_experts.apps import extract as module
from collaborative_experts.apps.extract import _tasks, extract
from collaborative_experts.apps.tasks import Pool, run_tasks
from collaborative_experts.features.extract.clips import MediaFile, fragment
from helpers import flat_frames, tone, write_media

SETTINGS = {"experts": ["motion", "audio"], "clips": 1.0}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for i in range(4):
        write_media(folder / f"a{i}.mp4", flat_frames([20 * i + j for j in range(20)]), sound=tone(2, 200 + 50 * i))
    (folder / "a3.mp4").rename(folder / "100% #3?.mp4")
    (folder / "bad.mp4").write_text("no media")
    return folder


def rows(path):
    return lance.dataset(str(path)).to_table().sort_by("id")


@pytest.fixture
def tables(cluster, monkeypatch):
    """The tables that workers give. A task's is one block, however small the caller's blocks are, and the caller's
    settings stay as they are."""
    from ray.data import DataContext

    context, level, found = DataContext.get_current(), logging.getLogger("ray.data").level, []
    monkeypatch.setattr(context, "target_max_block_size", 100)
    monkeypatch.setattr(context, "enable_progress_bars", True)
    monkeypatch.setattr(module, "run_tasks", lambda *work: (found.append(x) or x for x in run_tasks(*work)))
    yield found
    assert DataContext.get_current() is context
    assert (context.target_max_block_size, context.enable_progress_bars) == (100, True)
    assert logging.getLogger("ray.data").level == level


def test_rows_and_report(media, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TASK_BYTES", 1)
    (tmp_path / "alone").mkdir()
    alone = extract(media, tmp_path / "alone" / "features.lance", **SETTINGS)
    part = tmp_path / "part"
    part.mkdir()
    for name in ("a0.mp4", "a1.mp4"):
        (part / name).symlink_to(media / name)
    extract(part, tmp_path / "features.lance", **SETTINGS)
    for name in ("a2.mp4", "100% #3?.mp4", "bad.mp4"):
        (part / name).symlink_to(media / name)
    shared = extract(part, tmp_path / "features.lance", **SETTINGS, pool=Pool(actors=1))
    assert sorted(map(len, tables)) == [1, 3, 3]  # the last row is the worker's report
    assert (shared.files, shared.skipped, shared.clips) == (2, 2, 4)
    assert [(x.file, x.reason) for x in shared.problems] == [(x.file, x.reason) for x in alone.problems]
    found, expected = rows(tmp_path / "features.lance"), rows(tmp_path / "alone" / "features.lance")
    assert found.drop_columns("uri").equals(expected.drop_columns("uri"))


def test_clips_that_are_known_are_not_made_again(media, tmp_path):
    name = "100% #3?.mp4"
    file = MediaFile(media / name, name, "")
    task, *_ = _tasks([file], [fragment(name, 0, 1), fragment("a0.mp4", 0, 1)])
    assert task["known"] == [fragment(name, 0, 1)]


def test_files_make_tasks_of_some_bytes(media, monkeypatch):
    """A file that has gone since it was found stops nobody: its worker says so."""
    files = [MediaFile(media / name, name, "") for name in ("gone.mp4", "a0.mp4", "bad.mp4", "a1.mp4")]
    monkeypatch.setattr(module, "TASK_BYTES", files[1].path.stat().st_size + 10)
    names = [[name for _, name, _ in task["files"]] for task in _tasks(files, [])]
    assert names == [["gone.mp4", "a0.mp4", "bad.mp4"], ["a1.mp4"]]
