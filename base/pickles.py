"""Files of `torch.save` whose texts are too long for PyTorch to refuse them in a reasonable time."""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .archives import check_archive

LONGEST_TEXT = 10_000
"""Characters. The time that PyTorch takes to word its refusal of a name grows with the square of the name's length."""

_PICKLES_OF_OLD_FORMAT = 4
"""A number, a version, facts of the machine, and the content."""


def check_texts(path: Path) -> None:
    """Raise where a file of `torch.save` is damaged or malicious, before PyTorch reads it. Nothing in it is called.

    Raises:
        pickle.UnpicklingError: a text is longer than `LONGEST_TEXT`, or there is no pickle where one should be.
        ValueError, zipfile.BadZipFile: it would unpack to far more than it holds, or is a damaged archive.
    """
    for content in _pickles(path):
        try:
            for _, argument, _ in pickletools.genops(content):
                if isinstance(argument, str) and len(argument) > LONGEST_TEXT:
                    raise pickle.UnpicklingError(f"it holds a text of {len(argument):,} characters")
        except ValueError as error:
            raise pickle.UnpicklingError(f"it is damaged: {str(error)[:200]}") from None


def refused_name(error: pickle.UnpicklingError) -> str | None:
    """The function or class that PyTorch did not let a file name; None where that was not why it refused.

    PyTorch's own message recommends to load without the protection. That of 2.6 names `builtins`.
    """
    named = re.search(r"GLOBAL (?:builtins\.)?(\S+)", str(error))
    return named and named[1]


def _pickles(path: Path) -> Iterator[IO[bytes] | Any]:
    if zipfile.is_zipfile(path):
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            yield from (io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("data.pkl"))
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(_PICKLES_OF_OLD_FORMAT):
            if content.tell() < len(content):  # a file of one pickle is none of `torch.save`, which PyTorch will say
                yield content
