"""Processes killed at random moments of every operation that writes: nothing acknowledged is lost, nothing half.

    python benchmarks/proof/kills.py [--kills 1000] [--seed 0] [--operations extract save]

An operation of operations.py runs in a process that says what it has acknowledged. After some acknowledgements it gets
SIGKILL: by the clock, at a random moment of the time that the next piece takes undisturbed, or, where Python opens the
files, before a random one of the calls that open, rename or remove a file there. Then what is left is looked at, and
the operation goes on in the same place, until it is killed again or comes to its end, where the result must be that of
an undisturbed run. Counted for each operation are

- kills, and the runs that came to their end;
- lost: what was acknowledged is not there, or something is there that no run made as a whole;
- different: the result is not that of an undisturbed run;
- stuck: going on raised an error, or did not end.

Ends with one line of JSON; the exit status is 1 if one of the last three is not 0. A schedule by the clock is drawn
from the seed, and meets another moment in each run.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "LANCE_CPU_THREADS": "2"}  # before NumPy and PyTorch are imported
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from campaigns import Finding, Found, judged, main
from operations import Operation
from processes import Child, Say, Stuck, ask, count_calls

MOST_PIECES = 3
"""Acknowledgements that are waited for before a kill by the clock."""

FINDINGS = ("lost", "different", "stuck")


def kill(operation: Operation, folder: Path, rng: np.random.Generator, kills: int) -> Found:
    """Kills of one operation."""
    return Campaign(operation, folder, rng).run(kills)


class Campaign:
    """Kills of one operation.

    Args:
        folder: an empty one.
    """

    def __init__(self, operation: Operation, folder: Path, rng: np.random.Generator) -> None:
        self._operation, self._rng = operation, rng
        self._given, self._place = folder / "given", folder / "place"
        self._counts = Counter(dict.fromkeys(("kills", "by call", "ends", *FINDINGS), 0))
        self._wrong: list[str] = []

    def run(self, kills: int) -> Found:
        """The counts after so many kills, and what was wrong."""
        self._given.mkdir()
        ask(lambda: self._operation.prepare(self._given))
        self._measure()
        while self._counts["kills"] < kills:
            self._from_the_start(kills)
        return dict(self._counts), self._wrong

    def _measure(self) -> None:
        """Note how long the pieces of an undisturbed run take, and how often it calls the file system."""
        self._place.mkdir()
        calls = [0]

        def work(say: Say) -> int:
            count_calls(self._place, calls)
            self._operation.work(self._given, self._place, 0, say)
            return calls[0]

        times, child = [time.perf_counter()], Child(work)
        times += [time.perf_counter() for _ in child.numbers()]
        if child.ended[0] != "done":
            raise Stuck(f"{self._operation.name}, undisturbed: {child.ended}")
        self._calls, waits = child.ended[1], np.diff(times).tolist()
        self._first, self._next = waits[0], statistics.median(waits[1:])
        shutil.rmtree(self._place)

    def _from_the_start(self, kills: int) -> None:
        """Work in an empty place to the end, interrupted until there were so many kills in all."""
        self._place.mkdir()
        start, said = 0, -1
        try:
            while True:
                child, numbers = self._interrupted(start, is_killed=self._counts["kills"] < kills)
                said = max([said, *numbers])
                if child.ended[0] != "died":
                    break
                self._counts["kills"] += 1
                start = judged("lost", lambda said=said: self._operation.look(self._given, self._place, said))
                said = max(said, start - 1)
            if child.ended[0] == "raised":
                raise Finding("stuck", child.ended)
            self._counts["ends"] += 1
            judged("different", lambda: self._operation.finish(self._given, self._place))
        except (Finding, Stuck) as finding:
            kind = getattr(finding, "kind", "stuck")
            self._counts[kind] += 1
            self._wrong.append(f"{kind}, at kill {self._counts['kills']}, after {said} was said: {finding}")
        shutil.rmtree(self._place)

    def _interrupted(self, start: int, is_killed: bool) -> tuple[Child, list[int]]:
        """A process that goes on, and is killed unless it ends before, and the numbers that it said."""
        by_call = is_killed and self._operation.opens_files and self._rng.random() < 0.5
        most = int(self._rng.integers(1, self._calls + 1)) if by_call else None

        def work(say: Say) -> None:
            if most:
                count_calls(self._place, [0], most)
            self._operation.work(self._given, self._place, start, say)

        child = Child(work)
        if by_call or not is_killed:
            numbers = list(child.numbers())
            self._counts["by call"] += child.ended[0] == "died"
            return child, numbers
        waited = self._rng.choice([n for n in range(MOST_PIECES + 1) if self._operation.is_meant(start + n)])
        numbers = list(islice(child.numbers(), int(waited)))
        time.sleep(self._rng.uniform(0, 1.2 * (self._next if waited else self._first)))
        return child, numbers + child.kill()


if __name__ == "__main__":
    main(__doc__.splitlines()[0], "kills", 1000, FINDINGS, kill)
