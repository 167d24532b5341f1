"""Interruptions of every operation of operations.py, counted: the part that kills.py and full.py share."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from operations import ALL, Operation
from processes import Stuck, ask

Found = tuple[dict[str, int], list[str]]
"""The counts of an operation, and what was wrong."""

Interrupt = Callable[[Operation, Path, np.random.Generator, int], Found]
"""Interrupts an operation in an empty folder so many times."""


class Finding(Exception):  # noqa: N818
    """What should not be."""

    def __init__(self, kind: str, what: object) -> None:
        super().__init__(what)
        self.kind = kind


def judged(kind: str, look: Callable[[], Any]) -> Any:
    """What a function that looks at the place gives, in a process of its own. Raises Finding."""
    try:
        return ask(look)
    except Stuck as error:
        raise Finding(kind, error) from None


def main(summary: str, unit: str, default: int, findings: Sequence[str], interrupt: Interrupt) -> None:
    """Read the command line, run the campaign, and print its counts. The exit status is 1 where something was found.

    Args:
        summary: what the program does.
        unit: the name of an interruption, such as "kills"; `default` are done, of all operations together.
        findings: the names of the counts that are to be 0.
    """
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument(f"--{unit}", dest="count", type=int, default=default, help="of all operations together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operations", nargs="+", choices=ALL, default=list(ALL))
    options = parser.parse_args()
    for module in {module for name in options.operations for module in ALL[name].modules}:
        importlib.import_module(module)
    counts, examples = _campaign(options.count, options.seed, options.operations, interrupt)
    for name, found in counts.items():
        print(f"{name:10} {', '.join(f'{what} {count:,}' for what, count in found.items())}")
    for example in examples:
        print(example)
    total = sum((Counter(found) for found in counts.values()), Counter())
    print(json.dumps(total | {"seed": options.seed, "operations": counts}))
    sys.exit(any(total[name] for name in findings))


def _campaign(
    count: int, seed: int, names: Sequence[str], interrupt: Interrupt
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """The counts by operation, and what was wrong."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    shares = [len(part) for part in np.array_split(np.arange(count), len(names))]
    counts, examples = {}, []
    for name, share in zip(names, shares, strict=True):
        rng = np.random.default_rng([seed, list(ALL).index(name)])
        with tempfile.TemporaryDirectory() as folder:
            counts[name], wrong = interrupt(ALL[name], Path(folder), rng, share)
        examples += [f"{name}: {what}" for what in wrong]
    return counts, examples
