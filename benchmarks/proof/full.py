"""A full disk in every operation that writes: one clear error, and what was there before is intact.

    python benchmarks/proof/full.py [--cases 200] [--seed 0] [--operations extract save]
    unshare --map-root-user --mount python benchmarks/proof/full.py   # without the rights to mount

An operation of operations.py works in a small file system in memory. At its start or after a piece that is drawn at
random, a file fills this, but for a number of bytes that is drawn, too. The operation must then raise one OSError of
one line, which names a path and says that there is no space, and print no traceback. While the disk is still full,
everything acknowledged must be there. When there is room again, the operation goes on in the same place, and its end
must be that of an undisturbed run. Counted for each operation are

- cases: runs that met a full disk, and `fitted`, runs for which the room was enough;
- unclear: another error, or a traceback beside it;
- died: the process was ended, as by a memory map of a file for which there is no room;
- lost, different, stuck: as in kills.py.

Ends with one line of JSON; the exit status is 1 if one of the last five is not 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "LANCE_CPU_THREADS": "2"}  # before NumPy and PyTorch are imported
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from campaigns import Finding, Found, judged, main
from operations import Operation
from processes import Child, Say, Stuck, ask

SIZE = 2**26
"""Bytes of the file system."""

FINDINGS = ("unclear", "died", "lost", "different", "stuck")


def fill_disks(operation: Operation, folder: Path, rng: np.random.Generator, cases: int) -> Found:
    """Full disks in one operation."""
    with small_disk(folder / "disk") as disk:
        return Campaign(operation, folder, disk, rng).run(cases)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of `SIZE` bytes at a new folder. Raises CalledProcessError where it may not be mounted."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class Campaign:
    """Full disks in one operation.

    Args:
        folder: an empty one, but for the disk.
        disk: the file system to fill.
    """

    def __init__(self, operation: Operation, folder: Path, disk: Path, rng: np.random.Generator) -> None:
        self._operation, self._disk, self._rng = operation, disk, rng
        self._given, self._errors = folder / "given", folder / "errors.txt"
        self._place, self._filler = disk / "place", disk / "filler"
        self._counts = Counter(dict.fromkeys(("cases", "fitted", "ends", *FINDINGS), 0))
        self._wrong: list[str] = []

    def run(self, cases: int) -> Found:
        """The counts after so many cases, and what was wrong."""
        self._given.mkdir()
        ask(lambda: self._operation.prepare(self._given))
        self._measure()
        while self._counts["cases"] < cases:
            self._place.mkdir()
            try:
                self._case()
            except (Finding, Stuck) as finding:
                self._note(getattr(finding, "kind", "stuck"), finding)
            shutil.rmtree(self._place)
            self._filler.unlink(missing_ok=True)
        return dict(self._counts), self._wrong

    def _measure(self) -> None:
        """Note the pieces of an undisturbed run, and the bytes that it leaves on the disk."""
        before = free(self._disk)
        self._place.mkdir()
        child = Child(lambda say: self._operation.work(self._given, self._place, 0, say))
        self._pieces = len(list(child.numbers()))
        if child.ended[0] != "done":
            raise Stuck(f"{self._operation.name}, undisturbed: {child.ended}")
        self._used = before - free(self._disk)
        shutil.rmtree(self._place)

    def _case(self) -> None:
        """Fill the disk at one moment of a run, look at what is left, and go on with room again."""
        meant = [n for n in range(self._pieces) if self._operation.is_meant(n)]
        piece, room = int(self._rng.choice(meant)), int(self._rng.integers(self._used // 4 + 1))
        child, said = self._filled(piece, room)
        if child.ended == ("done", None):
            self._counts["fitted"] += 1
        else:
            self._counts["cases"] += 1
            self._judge_error(child, f"{room:,} bytes left before piece {piece}")
            start = judged("lost", lambda: self._operation.look(self._given, self._place, said))
            self._filler.unlink()
            judged("stuck", lambda: self._operation.work(self._given, self._place, start, lambda number: None))
        self._counts["ends"] += 1
        judged("different", lambda: self._operation.finish(self._given, self._place))

    def _filled(self, piece: int, room: int) -> tuple[Child, int]:
        """A process that returns the OSError of a disk that is full from a piece on, and the last number it said."""

        def work(say: Say) -> str | None:
            os.dup2(os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
            begun = [0]

            def begin_next(number: int | None = None) -> None:
                if number is not None:
                    say(number)
                if begun[0] == piece:
                    fill(self._filler, room)
                begun[0] += 1

            begin_next()
            try:
                self._operation.work(self._given, self._place, 0, begin_next)
            except OSError as error:
                return str(error)
            return None

        child = Child(work)
        return child, max([-1, *child.numbers()])

    def _judge_error(self, child: Child, what: str) -> None:
        """Note where the run did not end in one clear error."""
        kind, *content = child.ended
        printed = self._errors.read_text(errors="replace")
        if kind == "died":
            self._note("died", f"{what}: status {content[0]}: {printed[-500:]}")
        elif kind == "raised":
            self._note("unclear", f"{what}: {content[1]}")
        elif not all(x in content[0] for x in (str(self._disk), "No space left")) or "\n" in content[0]:
            self._note("unclear", f"{what}: {content[0]}")
        elif "Traceback" in printed or "panicked" in printed:
            self._note("unclear", f"{what}: {printed[-1500:]}")

    def _note(self, kind: str, what: object) -> None:
        self._counts[kind] += 1
        self._wrong.append(f"{kind}: {what}")


def free(disk: Path) -> int:
    """Bytes that can be written."""
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def fill(filler: Path, room: int) -> None:
    """Fill the disk of a file, but for some bytes."""
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free(filler.parent) - room))


if __name__ == "__main__":
    main(__doc__.splitlines()[0], "cases", 200, FINDINGS, fill_disks)
