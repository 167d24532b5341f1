"""Processes made by fork from one that has imported everything, so that one costs some hundredths of a second.

The process that forks must not have used Lance, whose threads a child lacks.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

Say = Callable[[int], None]

LONGEST_S = 120
"""A process that says nothing for so long is stuck."""

FILE_CALLS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}
"""Events of Python's audit hooks that come before it opens, renames or removes a file."""


class Stuck(Exception):  # noqa: N818, it is a finding
    """A process raised an error that it should not raise, died, or did not end."""


class Child:
    """A process that works and says numbers.

    Args:
        work: called in the process with a function that says a number. What it returns is said at the end as JSON.

    Attributes:
        ended: ("done", result), ("raised", "class: message", trace) or ("died", status); None before its end is read.
    """

    def __init__(self, work: Callable[[Say], Any]) -> None:
        self.ended: tuple[Any, ...] | None = None
        self._said, out = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            _be_child(work, out)
        os.close(out)
        self._buffer = b""

    def numbers(self, seconds: float = LONGEST_S) -> Iterator[int]:
        """The numbers as they are said, to the end. Raises Stuck after so many seconds without one."""
        while self.ended is None:
            line, is_whole, rest = self._buffer.partition(b"\n")
            if is_whole:
                self._buffer = rest
                kind, *content = json.loads(line)
                if kind == "said":
                    yield content[0]
                else:
                    self._wait()
                    self.ended = kind, *content
            else:
                self._read(seconds)

    def _read(self, seconds: float) -> None:
        if not select.select([self._said], [], [], seconds)[0]:
            os.kill(self._pid, signal.SIGKILL)
            self._wait()
            self.ended = "died", "killed"
            raise Stuck(f"nothing for {seconds} s")
        part = os.read(self._said, 2**16)
        self._buffer += part
        if not part:
            self.ended = "died", self._wait()

    def kill(self) -> list[int]:
        """End it by SIGKILL. Gives the numbers that it had said, but not been asked for."""
        if self.ended is None:
            os.kill(self._pid, signal.SIGKILL)
        return list(self.numbers())

    def _wait(self) -> int:
        os.close(self._said)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _be_child(work: Callable[[Say], Any], out: int) -> NoReturn:
    def write(*content: Any) -> None:
        os.write(out, json.dumps(content).encode() + b"\n")

    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        write("done", work(lambda number: write("said", int(number))))
    except BaseException as error:
        write("raised", f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)[-3:]))
    finally:
        os._exit(0)


def ask(work: Callable[[], Any]) -> Any:
    """What a function returns in a process of its own.

    Raises:
        Stuck: it raised, with the class, or the process died.
    """
    child = Child(lambda say: work())
    list(child.numbers())
    if child.ended[0] != "done":
        raise Stuck(" ".join(map(str, child.ended)))
    return child.ended[1]


def count_calls(folder: Path, count: list[int], most: int | None = None) -> None:
    """Count, in the one element of `count`, the calls of this process that open, rename or remove files below a folder.

    Args:
        most: the call before which the process is killed.
    """

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_CALLS and str(folder) in str(arguments[0]):
            count[0] += 1
            if count[0] == most:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)
