"""An index in Milvus, embedded or on a server, rewritten as a Lance dataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..base.dependencies import extra
from .milvus import connect, read_all, read_columns, read_header, reporting
from .rows import Header, NewVideos
from .store import ROWS, VideoStore


def convert_index(source: str | Path, target: str | Path, collection: str = "videos") -> int:
    """Copy the videos of a Milvus index into a new Lance dataset.

    Args:
        source: a `.db` folder of Milvus Lite, as earlier versions of `VideoIndex` made it, or `http://host:port`.
        target: a path ending in `.lance` where nothing is yet.
        collection: the collection's name in Milvus.

    Returns:
        The number of videos.

    Raises:
        ImportError: without pymilvus, milvus-lite or pylance, naming the extra that brings them.
        FileNotFoundError: there is no such source, or no folder for the target.
        FileExistsError: there is something at the target.
        ValueError: the source is no index of `VideoIndex`.
        OSError: the source cannot be read, or the target not be written; nothing stays at the target.
    """
    source, target = str(source), Path(target)
    if target.suffix != ".lance":
        raise ValueError(f"{target}: expected a path ending in .lance")
    if target.exists():
        raise FileExistsError(f"{target}: exists already; move it away, or name another")
    if "://" not in source and not Path(source).is_dir():
        raise FileNotFoundError(f"{source}: there is no such index of Milvus Lite")
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with reporting(source, "read"):
            count = _copy(source, collection, VideoStore(str(unfinished)))
        unfinished.replace(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return count


def _copy(source: str, collection: str, store: VideoStore) -> int:
    client = connect(source)
    try:
        if not client.has_collection(collection):
            raise ValueError(f"{source}: has no collection {collection!r}, but {client.list_collections()}")
        header = read_header(client, source, collection)
        client.load_collection(collection)
        store.create(header)
        count = int(client.query(collection, filter="", output_fields=["count(*)"])[0]["count(*)"])
        with extra("tqdm", "index").tqdm(total=count, unit=" videos", desc="convert", leave=False) as progress:
            for videos in _videos(header, read_all(client, collection)):
                store.upsert(videos, progress)
        return count
    finally:
        client.close()
        if "://" not in source:
            # The embedded server lives as long as the process otherwise, and keeps others from the folder.
            extra("milvus_lite.server_manager", "milvus").server_manager_instance.release_server(source)


def _videos(header: Header, entries: Iterator[dict[str, Any]]) -> Iterator[NewVideos]:
    """Entries of Milvus as rows for the store, some at a time."""
    while part := list(islice(entries, ROWS)):
        stored = read_columns(part, header.dims)
        yield NewVideos(stored.ids, stored.available, stored.joint.__getitem__, stored.extras)
