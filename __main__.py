"""The command line: `collaborative-experts VERB`, or `python -m collaborative_experts VERB`.

Each verb is a module of apps/ with `add_arguments(parser)` and `run_command(options)`. Only the module of the chosen
verb is imported, since some take seconds.

The exit status is 0; 1 after an error, which is one line on stderr; 2 for a wrong usage; 130 after Ctrl-C; and what a
verb's own help says.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

SCRIPT = "collaborative-experts"

COLLECT_AFTER = 100_000
"""New objects between two searches for garbage; Python's own 700 cost a quarter of the time of the imports."""

VERBS = {
    "extract": ("extract", "features of a folder of media files"),
    "init": ("init", "a run file for features and captions"),
    "train": ("train", "a model, as a run file says"),
    "evaluate": ("evaluate", "figures on a run's test videos, also with experts left out"),
    "embed": ("embed", "features to an index, by a trained model or without one"),
    "search": ("search", "the videos of an index that sentences describe"),
    "export": ("export", "a trained model as ONNX graphs"),
    "serve": ("serve", "an index over HTTP, with a page"),
    "convert": ("convert", "weights to safetensors, or an index .db to .lance"),
    "describe": ("describe", "what is in a weights file"),
    "fetch": ("fetch", "a model that the authors published"),
}
"""{verb: (module in apps/, a line of help)}, in the order in which they are used."""


def run() -> int:
    """`main`, in a process of its own, which ends as soon as its threads and the exit functions of its imports have: to
    take down all that PyTorch imported would take Python another 0.2 s, and two with its last searches for garbage."""
    process, status = os.getpid(), 1

    def end() -> None:
        if os.getpid() == process:  # a forked one ends by itself
            for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed before the start
                stream.flush()
            os._exit(status)

    atexit.register(end)  # before others, and so called after them
    try:
        status = main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status. Raises SystemExit for a wrong usage, and after `--help`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with _one_line_warnings(), _rare_collections(), _printable():
        try:
            options = _parse(arguments)
            status: int = options.run_command(options)
            sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            print("; ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader, such as `head`, has seen enough. Python would complain when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            print("error:", _one_line(error), file=sys.stderr)
            return 1
    return status


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the chosen verb, and its `run_command`. Options may stand before and after the rest."""
    program = SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m collaborative_experts"
    if not arguments or arguments[0] not in VERBS:
        _overview(program).parse_args(arguments)  # prints the help, or the error
    verb, *rest = arguments
    name, help_text = VERBS[verb]
    command = argparse.ArgumentParser(
        prog=f"{program} {verb}",
        description=f"{help_text[0].upper()}{help_text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module = import_module(f".apps.{name}", __package__)
    module.add_arguments(command)
    command.set_defaults(run_command=module.run_command)
    return command.parse_intermixed_args(rest)


def _overview(program: str) -> argparse.ArgumentParser:
    """A parser of the verbs alone, without their options."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="From media files to features, a trained model, an index, and answers.",
        epilog="VERB --help shows the options of a verb, and an example.",
    )
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (_, help_text) in VERBS.items():
        commands.add_parser(verb, help=help_text)
    return parser


def _one_line(error: Exception) -> str:
    return "; ".join(filter(None, map(str.strip, str(error).splitlines()))) or type(error).__name__


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Fewer searches for cyclic garbage: importing makes objects by the hundred thousand, and no garbage."""
    usual = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings without the line of code that they come from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def _printable() -> Iterator[None]:
    """What the terminal or the file has no letters for is printed escaped, and is no error."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a notebook's has none
    if reconfigure is None:
        yield
        return
    usual = sys.stdout.errors
    reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        reconfigure(errors=usual)


if __name__ == "__main__":
    sys.exit(run())
