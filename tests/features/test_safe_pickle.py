"""Files that would run code, or read memory that is not theirs, are refused before they can."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from collaborative_experts import read_features


class Evil:
    def __reduce__(self):
        return print, ("executed",)


class EvilCodec:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, ("YQ==", "base64")


@pytest.mark.parametrize(
    ("content", "what"),
    [(Evil(), "builtins.print"), ({"a": Evil()}, "builtins.print"), (EvilCodec(), "_codecs.encode")],
)
def test_a_pickle_that_would_run_code_is_refused(tmp_path, content, what, capsys):
    (tmp_path / "motion.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"motion\.pkl: .*refused, it would call {what}"):
        read_features({"motion": tmp_path / "motion.pkl"})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", ["pt", "pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_would_run_code_is_refused(tmp_path, suffix, zipped, capsys):
    path = tmp_path / f"motion.{suffix}"
    torch.save({"a": torch.ones(3), "b": Evil()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"motion\.{suffix}: .*refused, it would call print; only tensors"):
        read_features({"motion": path})
    assert capsys.readouterr().out == ""


def test_a_torch_file_of_numpy_arrays_is_refused(tmp_path):
    torch.save({"a": np.ones(3)}, tmp_path / "motion.pt")
    with pytest.raises(ValueError, match=r"motion\.pt: .*refused, it would call numpy\..*only tensors are let in"):
        read_features({"motion": tmp_path / "motion.pt"})


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    """The shape stands in the pickle, the numbers beside it."""
    written = io.BytesIO()
    torch.save({"a": torch.arange(7, dtype=torch.float32)}, written)
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(tmp_path / "motion.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content.replace(b"K\x07", b"M\xff\xff") if name.endswith("data.pkl") else content)
    with pytest.raises(ValueError, match=r"motion\.pt: cannot be read as \.pt"):
        read_features({"motion": tmp_path / "motion.pt"})


def test_a_pickle_cannot_pass_bytes_for_objects(tmp_path):
    """numpy.ndarray, called from a pickle with the type of objects, would follow pointers out of the file."""

    class Forged:
        def __reduce__(self):
            return np.ndarray, ((1, 2), "O", b"A" * 16)

    path = tmp_path / "motion.pkl"
    path.write_bytes(pickle.dumps({"v1": Forged()}))
    with pytest.raises(ValueError, match=r"motion\.pkl"):
        read_features({"motion": path})
