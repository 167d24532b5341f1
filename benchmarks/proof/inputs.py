"""Random calls of the operator with every kind of array, each answer beside the item computed alone in float64.

    python benchmarks/proof/inputs.py [--calls 100000] [--seed 0]

A call takes a small model, some videos and captions, and a random kind for each array. A quarter of the calls have one
fault: a wrong shape, Inf, text, an unknown expert, and so on. The reference is towhee.models' CENet in float64 on one
video at a time, with the features that were meant. Counted are

- wrong: an answer that differs from the reference by more than 1e-5, or an answer to a call with a fault;
- refused: an error for a call without a fault, of a kind that docs/operator.md says is taken;
- foreign: an error that is no TypeError or ValueError of this package;
- changed: something of the caller's that is not as it was;
- warned: a warning of another library.

Ends with one line of JSON; the exit status is 1 if any count but that of the calls is not 0.
"""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks" / "proof")]

from judging import PACKAGE, is_ours  # noqa: E402

from collaborative_experts import CollaborativeExperts  # noqa: E402
from helpers import SMALL, cenet  # noqa: E402

TOLERANCE = 1e-5
FAULTS = 0.25
"""Share of the calls that have one."""

MODELS = (SMALL, replace(SMALL, use_ce="", mimic_ce_dims=True))


class Subclass(torch.Tensor):
    """A tensor of another class."""


def _structured(x: np.ndarray) -> np.ndarray:
    return np.array(x, dtype=[("x", "f4")])


def _reversed(x: np.ndarray) -> np.ndarray:
    return x[::-1].copy()[::-1]


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def _inference(x: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return torch.from_numpy(x.copy())


TAKEN: dict[str, Callable[[np.ndarray], Any]] = {
    "float32": np.copy,
    "float64": lambda x: x.astype(np.float64),
    "longdouble": lambda x: x.astype(np.longdouble),
    "big-endian": lambda x: x.astype(">f8"),
    "reversed view": _reversed,
    "strided view": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "Fortran order": np.asfortranarray,
    "read-only": _read_only,
    "nested lists": lambda x: x.tolist(),
    "list of arrays": list,
    "tuple of arrays": tuple,
    "torch": lambda x: torch.from_numpy(x.copy()),
    "torch float64": lambda x: torch.from_numpy(x.copy()).double(),
    "torch transposed": lambda x: torch.from_numpy(x.T.copy()).permute(*reversed(range(x.ndim))),
    "torch with gradient": lambda x: torch.from_numpy(x.copy()).requires_grad_(),
    "torch inference": _inference,
    "torch subclass": lambda x: torch.from_numpy(x.copy()).as_subclass(Subclass),
}
"""Kinds that docs/operator.md says are taken."""

WHOLE: dict[str, Callable[[np.ndarray], Any]] = {
    "int8": lambda x: np.nan_to_num(x).astype(np.int8),
    "int64": lambda x: np.nan_to_num(x).astype(np.int64),
    "uint64": lambda x: np.abs(np.nan_to_num(x)).astype(np.uint64),
    "torch int32": lambda x: torch.from_numpy(np.nan_to_num(x).astype(np.int32)),
}
"""Kinds that hold whole numbers: the features that are meant are those, and no row is missing by NaN."""

EITHER: dict[str, Callable[[np.ndarray], Any]] = {
    "masked": lambda x: np.ma.masked_invalid(x),
    "structured": _structured,
    "object": lambda x: x.astype(object),
    "DataFrame": lambda x: pandas.DataFrame(x) if x.ndim == 2 else list(x),
    "Arrow": lambda x: pyarrow.array(x.tolist()),
    "generator": lambda x: (row for row in x),
    "torch sparse": lambda x: torch.from_numpy(np.nan_to_num(x)).to_sparse(),
    "torch meta": lambda x: torch.from_numpy(x.copy()).to("meta"),
    "torch quantised": lambda x: torch.quantize_per_tensor(torch.from_numpy(np.nan_to_num(x)), 0.1, 0, torch.qint8),
    "complex": lambda x: x.astype(np.complex64),
    "datetime": lambda x: np.nan_to_num(x).astype("timedelta64[s]"),
}
"""Kinds that may be refused; an answer has to be right all the same."""


def _wrong_dim(x: np.ndarray) -> Any:
    return np.concatenate([x, x[..., :1]], axis=-1)


def _infinite(x: np.ndarray) -> Any:
    x = x.copy()
    x.reshape(-1)[0] = np.inf
    return x


FAULTY: dict[str, Callable[[np.ndarray], Any]] = {
    "wrong dimension": _wrong_dim,
    "one axis too many": lambda x: x[None, None, None],
    "Inf": _infinite,
    "too large": lambda x: np.full_like(x, 1e30),
    "text": lambda x: x.astype(str),
    "a word": lambda x: "features",
    "a number": lambda x: 3.5,
    "a set": lambda x: {1.0, 2.0},
    "a dict": lambda x: {"a": x},
    "ragged": lambda x: [*x[:-1].tolist(), [[1.0]]],
    "10**400": lambda x: [[10**400] * x.shape[-1]] * len(x),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts, examples = campaign(options.calls, options.seed)
    for kind, example in examples.items():
        print(f"{kind}: {example}")
    print(json.dumps(counts))
    sys.exit(any(count for name, count in counts.items() if name not in ("calls", "answers", "errors")))


def campaign(calls: int, seed: int) -> tuple[dict[str, int], dict[str, str]]:
    """The counts, and the first example of each that should be 0."""
    rng = np.random.default_rng(seed)
    models = [Pair(config, i) for i, config in enumerate(MODELS)]
    counts: Counter[str] = Counter(
        dict.fromkeys(("answers", "errors", "wrong", "refused", "foreign", "changed", "warned"), 0)
    )
    examples: dict[str, str] = {}
    for number in tqdm(range(calls), unit=" calls", leave=False):
        call = Call(models[rng.integers(len(models))], rng)
        for verdict in call.verdicts():
            counts[verdict] += 1
            if verdict not in ("answers", "errors"):
                examples.setdefault(verdict, f"call {number} of seed {seed}: {call}: {call.said}")
    return {"calls": calls, **counts}, examples


class Pair:
    """The operator and its reference, of the same weights."""

    def __init__(self, config: Any, seed: int) -> None:
        self.config = config
        reference = cenet(config, seed)
        path = Path(f"{torch.initial_seed() % 10**9}-{seed}.pth")
        torch.save(reference.state_dict(), path)
        try:
            self.op = CollaborativeExperts(config, path, device="cpu")
        finally:
            path.unlink()
        self.reference = reference.double()

    def expected(self, features: dict, available: dict, text: np.ndarray, row: int) -> tuple[dict, dict] | None:
        """The embeddings of one video and its captions; None where CENet has none, as without any expert."""
        if not any(flags[row] for flags in available.values()):
            return None
        experts, ind = {}, {}
        for name, x in features.items():
            there = available[name][row]
            value = torch.from_numpy(np.asarray(x[row : row + 1], dtype=np.float64))
            experts[name] = value if there else torch.full_like(value, torch.nan)
            ind[name] = torch.tensor([float(there)], dtype=torch.float64)
        with torch.no_grad():
            out = self.reference(experts, ind, torch.from_numpy(text[row : row + 1].astype(np.float64)))
        return out["text_embds"], out["vid_embds"]


class Call:
    """One random call."""

    def __init__(self, pair: Pair, rng: np.random.Generator) -> None:
        self.pair, self.said = pair, ""
        size, captions = int(rng.integers(1, 5)), int(rng.integers(1, 3))
        self.features, self.available = {}, {}
        self.kinds: dict[str, str] = {}
        self.experts: dict[str, Any] = {}
        self.ind: dict[str, Any] = {}
        self.may_refuse = self.has_fault = False
        for expert in pair.config.experts:
            shape = (size, int(rng.integers(1, 7)), expert.dim) if expert.variable else (size, expert.dim)
            self._choose(expert, rng.standard_normal(shape, dtype=np.float32) * 10, rng)
        config = pair.config.text
        self.text = rng.standard_normal((size, captions, config.max_tokens, config.dim), dtype=np.float32)
        self.given_text: Any = self.text.copy() if rng.random() < 0.5 else torch.from_numpy(self.text.copy())
        if rng.random() < FAULTS:
            self._spoil(rng)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {kind}" for name, kind in self.kinds.items())

    def _choose(self, expert: Any, x: np.ndarray, rng: np.random.Generator) -> None:
        """A kind for an expert's features, rows that are missing, and a kind for its `ind`."""
        name = expert.name
        kinds = (TAKEN, WHOLE, EITHER)[rng.choice(3, p=[0.8, 0.15, 0.05])]
        kind = str(rng.choice(list(kinds)))
        there = rng.random(len(x)) < 0.7
        by_nan = kinds is TAKEN and rng.random() < 0.5
        if by_nan:
            x[~there] = np.nan
        given = kinds[kind](x)
        meant = np.asarray(given, dtype=np.float64) if kinds is WHOLE else np.nan_to_num(x)
        if kind in ("torch sparse", "datetime"):
            meant = np.nan_to_num(x)
        if expert.variable and isinstance(given, list | tuple):
            meant = _padded(meant, expert.max_tokens)
        self.may_refuse |= kinds is EITHER
        self.kinds[name], self.features[name], self.experts[name] = kind, meant, given
        self.available[name] = there
        if not by_nan or rng.random() < 0.3:
            self.ind[name] = _flags(there, rng)

    def _spoil(self, rng: np.random.Generator) -> None:
        name = str(rng.choice(list(self.experts)))
        fault = str(rng.choice([*FAULTY, "unknown expert", "ind of 2", "ind too long"]))
        self.has_fault = True
        self.kinds[name] += f" with {fault}"
        if fault == "unknown expert":
            self.experts["smell"] = self.experts.pop(name)
        elif fault == "ind of 2":
            self.ind[name] = [2] * len(self.text)
        elif fault == "ind too long":
            self.ind[name] = [1] * (len(self.text) + 1)
        else:
            self.experts[name] = FAULTY[fault](np.nan_to_num(self.features[name]).astype(np.float32))
            self.ind[name] = np.ones(len(self.text), dtype=int)

    def verdicts(self) -> list[str]:
        """The counts that this call adds to."""
        before = _image((self.experts, self.ind, self.given_text))
        found = []
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                answer = self.pair.op(self.experts, self.ind, self.given_text)
            except Exception as error:
                found += self._judge_error(error)
            else:
                found += self._judge_answer(*answer)
        for warning in warned:
            if not Path(warning.filename).is_relative_to(PACKAGE) or warning.category is not UserWarning:
                self.said = f"{warning.category.__name__}: {warning.message}"
                found.append("warned")
        if _image((self.experts, self.ind, self.given_text)) != before:
            found.append("changed")
        return found

    def _judge_error(self, error: Exception) -> list[str]:
        self.said = f"{type(error).__name__}: {error}"
        if type(error) not in (ValueError, TypeError) or not is_ours(error)[0]:
            return ["errors", "foreign"]
        return ["errors"] if self.has_fault or self.may_refuse else ["errors", "refused"]

    def _judge_answer(self, text: dict, video: dict) -> list[str]:
        if self.has_fault:
            self.said = "an answer to a call with a fault"
            return ["answers", "wrong"]
        for row in range(len(self.text)):
            expected = self.pair.expected(self.features, self.available, self.text, row)
            if expected is None:
                continue
            for ours, theirs in zip((text, video), expected, strict=True):
                for name, x in theirs.items():
                    got = np.asarray(ours[name][row], dtype=np.float64).reshape(-1)
                    difference = np.abs(got - x.numpy().reshape(-1)).max()
                    is_there = ours is text or self.available.get(name, [True] * 9)[row]
                    if is_there and not difference <= TOLERANCE:
                        self.said = f"{name!r} of row {row} differs by {difference:.2g}"
                        return ["answers", "wrong"]
        return ["answers"]


def _padded(x: np.ndarray, tokens: int) -> np.ndarray:
    """Sequences that come as a list: cut, or filled up with zeros, to the expert's number of tokens."""
    filled = np.zeros((len(x), tokens, x.shape[2]))
    filled[:, : x.shape[1]] = x[:, :tokens]
    return filled


def _flags(there: np.ndarray, rng: np.random.Generator) -> Any:
    kinds = [
        lambda x: x.copy(),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float32),
        lambda x: x.astype(">i4"),
        lambda x: x.tolist(),
        lambda x: [int(value) for value in x],
        lambda x: torch.from_numpy(x.copy()),
        lambda x: torch.from_numpy(x.astype(np.float64)),
    ]
    return kinds[rng.integers(len(kinds))](there)


def _image(value: Any) -> bytes:
    """Bytes that are equal where nothing has changed; generators are used up by reading, and left out."""
    if isinstance(value, dict):
        return b"".join(str(key).encode() + _image(x) for key, x in value.items())
    if isinstance(value, list | tuple):
        return b"".join(map(_image, value))
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.is_sparse or value.is_quantized:
            return str(value.shape).encode()
        return value.detach().as_subclass(torch.Tensor).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return pickle.dumps(copy.copy(value)) if value.dtype == object else value.tobytes()
    return b"" if hasattr(value, "__next__") else str(value).encode()


if __name__ == "__main__":
    main()
