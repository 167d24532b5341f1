"""A journal of the tasks that are finished, by which the same command goes on where it was killed.

It lies in the store's own folder, so that it goes when the store goes, and is removed when the work is done: later the
same command does everything anew, and replaces what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..base.files import naming

Entry = dict[str, Any]


class Journal:
    """Finished tasks of one piece of work.

    Args:
        path: the file; None keeps no journal, as on stores of another machine.
        work: all that the results depend on, fit for JSON. A journal of other work is begun anew.

    Attributes:
        finished: {number of the task: the entry it was finished with}.
    """

    def __init__(self, path: Path | None, work: Any) -> None:
        self.path = path
        self._head = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
        self.finished: dict[int, Entry] = self._read()

    def finish(self, task: int, entry: Entry) -> None:
        """Note that a task is finished: all that it made is stored. Raises OSError where there is no room."""
        self.finished[task] = entry
        if self.path is None:
            return
        is_new = len(self.finished) == 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), self.path.open("w" if is_new else "a", encoding="utf-8") as file:
            if is_new:
                file.write(json.dumps(self._head))
            file.write("\n" + json.dumps([task, entry]))  # a line that a crash has cut stays a line of its own
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget the tasks: the work is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[int, Entry]:
        """The finished tasks. A line that a crash has cut is passed over: its task is done again."""
        if self.path is None or not self.path.is_file():
            return {}
        head, *lines = self.path.read_text(encoding="utf-8").splitlines() or [""]
        if head != json.dumps(self._head):
            return {}
        finished: dict[int, Entry] = {}
        for line in lines:
            with suppress(ValueError):
                task, entry = json.loads(line)
                finished[task] = entry
        return finished


def fingerprint(path: Path) -> list[list[Any]]:
    """Names, sizes and times of a file, or of all files below a folder, by which a change is noticed."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [[file.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
