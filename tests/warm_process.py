"""Processes of their own that need not import everything anew: forks of a server that has imported the package.

Forks of the tests' own process would not do, since it has used Lance, whose threads they would lack.
"""

import multiprocessing
import os
import sys
import warnings

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "pytest",
        "lance",  # imported, which forks bear, but not used
        "pandas",
        "filelock",
        "uvicorn",
        "towhee.models.collaborative_experts",
        "collaborative_experts.hub.operator",
        "collaborative_experts.apps.extract",
        "collaborative_experts.apps.serve",
        "collaborative_experts.apps.server.routes",
    ]
)


class Process:
    """Code that runs in a process of its own, with these `sys.argv[1:]`.

    Attributes:
        pid: its number.
        stdout, stderr: what it prints, as text files.
    """

    def __init__(self, code, *arguments):
        pipes = [_context.Pipe(duplex=False) for _ in range(2)]
        writers = [writer for _, writer in pipes]
        self._process = _context.Process(target=_run, args=(code, [*map(str, arguments)], writers), daemon=True)
        self._process.start()
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno())) for reader, _ in pipes)
        for end in (end for pipe in pipes for end in pipe):
            end.close()
        self.pid = self._process.pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def poll(self):
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds=None):
        """The exit status, negative for a signal; None where it runs on after so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode


def run_script(path, *arguments):
    """A process that runs a script as Python would."""
    return Process(
        "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')", path, *arguments
    )


def _run(code, arguments, writers):
    multiprocessing.current_process().daemon = False  # it may have processes of its own
    for stream, writer in enumerate(writers, start=1):
        os.dup2(writer.fileno(), stream)
        writer.close()
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    sys.argv[1:] = arguments
    warnings.simplefilter("ignore")
    exec(compile(code, "<a process of its own>", "exec"), {"__name__": "__main__"})
