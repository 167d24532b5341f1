"""Files that would run code, or read memory that is not theirs, are refused before they can."""

import gc
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
    assert gc.isenabled()


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


def test_a_pickle_cannot_call_bytes_objects_afterwards(tmp_path):
    """A type of numbers may be changed after it is made: what NumPy then takes for pointers would crash the process."""
    plain = pickle.dumps({"a": np.array([b"A" * 8] * 2, "V8")}, 2)
    forged = plain.replace(b"K\x08K\x01K\x00t", b"K\x08K\x01K\x3ft")
    assert forged != plain
    (tmp_path / "motion.pkl").write_bytes(forged)
    with pytest.raises(ValueError, match=r"motion\.pkl: .*refused, arrays of other things than numbers"):
        read_features({"motion": tmp_path / "motion.pkl"})


def test_a_pickle_cannot_change_what_it_calls(tmp_path):
    content = b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb."
    (tmp_path / "motion.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"motion\.pkl: .*refused, it would change a function"):
        read_features({"motion": tmp_path / "motion.pkl"})


def test_a_pickle_takes_no_room_for_the_number_that_it_gives_an_object(tmp_path, monkeypatch):
    """The reader in C would make a list of 2^28 pointers here."""
    monkeypatch.setattr(pickle, "Unpickler", None)
    (tmp_path / "motion.pkl").write_bytes(b"\x80\x02}r\x00\x00\x00\x08.")
    assert read_features({"motion": tmp_path / "motion.pkl"}).ids == ()


def test_a_tensor_of_one_number_repeated_is_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(2**25)}, tmp_path / "motion.pt")
    with pytest.raises(ValueError, match=r"motion\.pt: .*refused, .* would unpack to 134,217,728"):
        read_features({"motion": tmp_path / "motion.pt"})


def test_a_pickle_takes_no_room_for_bytes_that_it_does_not_hold(tmp_path):
    (tmp_path / "motion.pkl").write_bytes(b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b"a.")
    with pytest.raises(ValueError, match=r"motion\.pkl: .*expected 1,000,000,000,000 bytes, got 2"):
        read_features({"motion": tmp_path / "motion.pkl"})


def test_an_array_of_any_protocol_is_read(tmp_path):
    for protocol in range(6):
        content = {"a": np.arange(7.0), "b": np.arange(100_000, dtype=np.float32)[:7]}
        (tmp_path / "motion.pkl").write_bytes(pickle.dumps(content, protocol))
        features = read_features({"motion": tmp_path / "motion.pkl"})
        assert features.experts["motion"].tolist() == [list(range(7))] * 2
