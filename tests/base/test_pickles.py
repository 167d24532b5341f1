"""Texts in files of torch.save that PyTorch would take minutes to refuse."""

import pickle
import zipfile

import pytest
import torch

from collaborative_experts import CollaborativeExperts, read_features
from collaborative_experts.base.pickles import LONGEST_TEXT, check_texts
from helpers import SMALL

HEADER = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
NAME = b"\x80\x02ca\n" + b"[" * (LONGEST_TEXT + 1) + b"\n."


def write(path, zipped):
    if not zipped:
        path.write_bytes(HEADER + NAME)
        return
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", NAME)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_long_name_is_refused(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(torch, "load", None)
    write(tmp_path / "motion.pt", zipped)
    with pytest.raises(ValueError, match=r"motion\.pt: cannot be read as \.pt: not a file of torch\.save"):
        read_features({"motion": tmp_path / "motion.pt"})
    with pytest.raises(ValueError, match=r"motion\.pt: refused, it is damaged, or not from torch\.save"):
        CollaborativeExperts(SMALL, tmp_path / "motion.pt", device="cpu")


@pytest.mark.parametrize("zipped", [True, False])
def test_names_of_real_weights_are_short(tmp_path, zipped):
    path = tmp_path / "a.pth"
    torch.save({"a" * LONGEST_TEXT: torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    check_texts(path)
    torch.save({"a" * (LONGEST_TEXT + 1): torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError, match="a text of 10,001 characters"):
        check_texts(path)
