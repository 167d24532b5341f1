"""Damaged files of every kind: each is refused by an error of this package, or read.

    python benchmarks/proof/files.py [--cases 500] [--seed 0] [--kinds "pth" "captions"]

So many cases of each kind: weights, feature files in each layout, configs, run files, captions and stores (samples.py).
A case damages a right file at random and reads it through the public interface, in a process that may die. Then come
the files of hostile.py: archives that declare or unpack to far more than they hold, and pickles that would run code.
Counted are

- refused: a ValueError, TypeError or OSError of this package, in one line that names the file;
- same: the content of the file before the damage;
- other: another content, in a format without a checksum of it, where changed numbers are numbers;
- wrong: another content although the format has a checksum, or numbers that are not finite;
- foreign: another error, or one of another library, or of several lines, or that does not name the file;
- slow: more than 1 s of processor time;
- large: more than 200 MB of memory beyond what the process held;
- crashed, hung: the process died, or said nothing for 60 s;
- ran: code of a pickle was run. As a control, `armed` pickles of the 100 do run it in Python's own reader.

Ends with one line of JSON; the exit status is 1 if one of those from `wrong` on is not 0. Most of a case is to make and
remove small files: where TMPDIR is a file system in memory, as /dev/shm, about 200 feature files a second are read.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parents[1] / "tests"):
    sys.path.insert(0, str(folder))

import hostile  # noqa: E402
import numpy as np  # noqa: E402
import samples  # noqa: E402
import torch  # noqa: E402
from common import resident  # noqa: E402
from judging import is_ours  # noqa: E402
from tqdm import tqdm  # noqa: E402

SECONDS, BYTES, SILENCE_S = 1.0, 200e6, 60
ADDRESSES = 4e9
"""Bytes of address space that the process may take beyond those of its libraries."""

DONE = "done.txt"
"""In this file of the campaign's folder stands what was done to a sample, should reading it end the process."""

EXPECTED = ("cases", "refused", "same", "other", "armed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=[*samples.KINDS, *hostile.KINDS])
    parser.add_argument("--work", nargs=2, metavar=("FOLDER", "START"), help="be the process that reads")
    options = parser.parse_args()
    if options.work:
        work(options.kinds, options.cases, options.seed, Path(options.work[0]), int(options.work[1]))
        return
    counts, by_kind, examples = campaign(options.cases, options.seed, options.kinds)
    if any(kind.startswith("pickles") for kind in options.kinds):
        with tempfile.TemporaryDirectory() as folder:
            counts["armed"] = hostile.armed(Path(folder))
    for kind, found in by_kind.items():
        print(f"{kind:20} {', '.join(f'{verdict} {count:,}' for verdict, count in found.items())}")
    for verdict, example in examples.items():
        print(f"{verdict}: {example}")
    print(json.dumps(counts | {"seed": options.seed, "kinds": by_kind}))
    sys.exit(any(count for name, count in counts.items() if name not in EXPECTED))


def campaign(
    cases: int, seed: int, kinds: Sequence[str] = (*samples.KINDS, *hostile.KINDS)
) -> tuple[dict[str, int], dict[str, dict[str, int]], dict[str, str]]:
    """The counts, the same by kind, and the first example of each count that should be 0."""
    planned = list(_plan(kinds, cases))
    by_kind = {kind: Counter[str]() for kind in kinds}
    examples: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(planned), unit=" cases", leave=False) as progress:
        start = 0
        while start < len(planned):
            for found in _outcomes(kinds, cases, seed, folder, start):
                for verdict in found["verdicts"]:
                    by_kind[planned[start][0]][verdict] += 1
                    examples.setdefault(f"{verdict}, {planned[start][0]}", f"case {planned[start]}: {found['said']}")
                start += 1
                progress.update()
    counts = Counter(dict.fromkeys(("refused", "same", "other"), 0))
    for found in by_kind.values():
        counts.update(found)
    kept = {name: said for name, said in examples.items() if name.split(",")[0] not in EXPECTED}
    return {**counts, "cases": len(planned)}, {kind: dict(found) for kind, found in by_kind.items()}, kept


def _plan(kinds: Sequence[str], cases: int) -> Iterator[tuple[str, int]]:
    """Each kind with the number of the case."""
    for kind in kinds:
        yield from ((kind, number) for number in range(hostile.count(kind) if kind in hostile.KINDS else cases))


def _outcomes(kinds: Sequence[str], cases: int, seed: int, folder: str, start: int) -> Iterator[dict[str, Any]]:
    """What a process says of the cases from one on; of the one that it died in, that."""
    command = [sys.executable, __file__, "--cases", str(cases), "--seed", str(seed), "--kinds", *kinds]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LANCE_CPU_THREADS": "2", "RUST_BACKTRACE": "0"}
    process = subprocess.Popen(
        [*command, "--work", folder, str(start)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        while select.select([process.stdout], [], [], SILENCE_S)[0]:
            line = process.stdout.readline()
            if line == b"done\n":
                return
            if not line.endswith(b"\n"):
                status = process.wait()
                done = Path(folder, DONE).read_text()
                yield {"verdicts": ["crashed"], "said": f"{done}: the process ended with status {status}"}
                return
            yield json.loads(line)
        yield {"verdicts": ["hung"], "said": f"nothing for {SILENCE_S} s"}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- the process that reads ---------------------------------------------------------------------------------


def work(kinds: Sequence[str], cases: int, seed: int, folder: Path, start: int) -> None:
    """Do the cases from one on, and print the outcome of each as a line of JSON."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    most = resident("VmSize") + int(ADDRESSES)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))  # what a file makes of this process stays in it
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what hostile files print is not taken for an outcome
        reader = Reader(seed, folder)
        for kind, number in list(_plan(kinds, cases))[start:]:
            print(json.dumps(reader.outcome(kind, number)), file=out, flush=True)
        print("done", file=out, flush=True)


class Reader:
    """Reads damaged and hostile files, and judges what comes of it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.kind, self.sample, self.right = "", None, ""

    def outcome(self, kind: str, number: int) -> dict[str, Any]:
        case = Path(tempfile.mkdtemp(dir=self.folder)) / "case"
        try:
            if kind in hostile.KINDS:
                path, read = hostile.make(kind, number, case)
                (self.folder / DONE).write_text(hostile.name(kind, number))
                return self._judged(path, read, hostile.name(kind, number), right="", may_be_other=False)
            self._prepare(kind)
            path = self.sample.copied_to(case)
            rng = np.random.default_rng([self.seed, samples.KINDS.index(kind), number])
            done = samples.damage(path, rng, only_bytes=kind == "store")
            (self.folder / DONE).write_text(done)
            return self._judged(path, self.sample.read, done, self.right, kind not in samples.CHECKED)
        finally:
            shutil.rmtree(case.parent)

    def _prepare(self, kind: str) -> None:
        """Make the sample of a kind, and read it, which also loads the libraries."""
        if kind != self.kind:
            self.kind, self.sample = kind, samples.make(kind, Path(tempfile.mkdtemp(dir=self.folder)) / "sample")
            self.right = samples.digest(self.sample.read(self.sample.path))
            gc.freeze()  # a collection then looks at what is new

    @staticmethod
    def _judged(
        path: Path, read: Callable[[Path], list[Any]], done: str, right: str, may_be_other: bool
    ) -> dict[str, Any]:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far (Linux)
        memory, begin = resident("VmRSS"), time.process_time()
        try:
            content = read(path)
        except BaseException as error:
            verdict, said = judge_error(error, path)
        else:
            verdict, said = judge_content(content, right, may_be_other)
        seconds, grown = time.process_time() - begin, resident("VmHWM") - memory
        verdicts = [verdict]
        verdicts += ["slow"] if seconds > SECONDS else []
        verdicts += ["large"] if grown > BYTES else []
        verdicts += ["ran"] if hostile.marker(path).exists() else []
        return {"verdicts": verdicts, "said": f"{done}: {said} ({seconds:.2f} s, {grown / 1e6:.0f} MB)"}


def judge_content(content: list[Any], right: str, may_be_other: bool) -> tuple[str, str]:
    if not samples.is_finite(content):
        return "wrong", "numbers that are not finite"
    if samples.digest(content) == right:
        return "same", ""
    return ("other", "") if may_be_other else ("wrong", "it was read")


def judge_error(error: BaseException, path: Path) -> tuple[str, str]:
    """Whether an error is one of this package, in one line that names the file."""
    said = f"{type(error).__name__}: {str(error)[:300]}"
    ours, place = is_ours(error)
    if not isinstance(error, ValueError | TypeError | OSError) or not ours:
        return "foreign", f"{said} at {place}"
    if len(str(error).splitlines()) != 1 or path.stem not in str(error):
        return "foreign", f"{said}: is not one line that names the file"
    return "refused", said


if __name__ == "__main__":
    main()
