"""An error of ours comes without the traceback of the library that noticed it."""

import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

import collaborative_experts as ce
from collaborative_experts.base.dependencies import extra
from helpers import SMALL

RAGGED = [[1.0, 2.0], [1.0]]


def garbage(name):
    Path(name).write_bytes(b"garbage" * 100)
    return name


MISTAKES = {
    "config": lambda op: ce.CEConfig.from_json(garbage("config.json")),
    "weights, safetensors": lambda op: ce.CollaborativeExperts(weights_path=garbage("a.safetensors"), device="cpu"),
    "weights, pth": lambda op: ce.CollaborativeExperts(SMALL, weights_path=garbage("a.pth"), device="cpu"),
    "features, npz": lambda op: ce.read_features({"motion": garbage("motion.npz")}),
    "features, pkl": lambda op: ce.read_features({"motion": garbage("motion.pkl")}),
    "features, pt": lambda op: ce.read_features({"motion": garbage("motion.pt")}),
    "captions": lambda op: ce.read_captions(garbage("captions.csv")),
    "ragged features": lambda op: op.encode_video({"motion": RAGGED}),
    "ragged ind": lambda op: op.encode_video({"motion": np.ones((2, 20))}, {"motion": RAGGED}),
    "ragged embeddings": lambda op: ce.VideoEmbeddings({"motion": RAGGED}, [[1], [1]]),
    "huge integers": lambda op: ce.evaluate_scores([[10**400]]),
    "missing package": lambda op: extra("package_that_is_not_there", "weights"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_traceback_above_ours(mistake, small_op, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, ImportError)) as raised:
        MISTAKES[mistake](small_op)
    printed = "".join(traceback.format_exception(raised.value))
    assert printed.count("Traceback (most recent call last)") == 1, printed
    last = traceback.extract_tb(raised.value.__traceback__)[-1].filename
    assert last.startswith(str(sys.modules["collaborative_experts"].__path__[0]))
