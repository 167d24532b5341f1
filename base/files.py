"""Files that are complete or not there: written beside the target, then renamed. Which addresses are files here."""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote
from uuid import uuid4

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk, a quota or a limit that is full."""


@contextmanager
def replacing(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """A temporary path beside `path`. It replaces `path` when the block ends well, and is removed otherwise.

    Args:
        failures: as of `naming`.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
        OSError: there is no room for the file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected the name of a file, found a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with naming(path, *failures):
            temporary.touch()
            mode = temporary.stat().st_mode  # of the user's new files; safetensors makes its files private
            yield temporary
            temporary.chmod(mode)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, *failures: type[Exception]) -> Iterator[None]:
    """The error of a full disk, which names no file, as an OSError of one line that names `path`.

    Args:
        failures: what a library raises where it cannot write.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except kinds as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno in NO_ROOM):
            cause = cause.__context__
        if cause is None and isinstance(error, OSError):
            raise
        reason = getattr(cause, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(f"{path}: cannot be written: {reason}") from None


def local_path(uri: str | None) -> Path | None:
    """The file on this machine that a path or `file://` address names, if it is there; None for all others."""
    path = named_path(uri)
    try:
        return path if path is not None and path.is_file() else None
    except OSError:  # such as a name that is too long
        return None


def named_path(uri: str | None) -> Path | None:
    """The path that a path or `file://` address names, there or not; None for other addresses."""
    if not uri:
        return None
    if uri.startswith("file://"):
        uri = "/" + unquote(uri.removeprefix("file://").partition("/")[2], errors="surrogateescape")
    elif "://" in uri:
        return None
    return None if "\0" in uri else Path(uri)


def errors_path(path: Path) -> Path:
    """The file beside a dataset or an index that lists what could not be read: `NAME.errors.csv`."""
    return path.with_suffix(".errors.csv")


def write_errors(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write what could not be read, one line each; no file where there is nothing."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    # Names of files may be no UTF-8.
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
