"""Files that were made to harm: sizes that are not there, archives that unpack to far more, pickles that run code."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import samples
import torch
from pyarrow import parquet

from collaborative_experts.model.cenet import initial_state
from helpers import TRAINABLE

HUGE, LARGE = 10**12, 10**9
"""Elements: more than memory holds, and as many as it may hold, which is worse."""

READERS = {"weights": samples._embeddings, "features": samples._features, "config": samples._config}


def marker(path: Path) -> Path:
    """The file that is there once code has run."""
    return path.parent / "marker"


# --- bombs ------------------------------------------------------------------------------------------------


def _npy_header(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue()


def _zip(path: Path, entries: dict[str, bytes | int]) -> None:
    """A compressed archive. A number stands for so many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            with file.open(name, "w", force_zip64=True) as out:
                if isinstance(content, int):
                    for _ in range(content // 2**20):
                        out.write(bytes(2**20))
                else:
                    out.write(content)


def _ids() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(["a", "b"]))
    return out.getvalue()


def _npz(elements: int) -> Callable[[Path], None]:
    return lambda path: _zip(path, {"video_id.npy": _ids(), "motion.npy": _npy_header((2, elements)) + b"0" * 64})


def _unpacking_npz(path: Path) -> None:
    """128 MB of zeros in 128 KB."""
    header = _npy_header((2, 2**24))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("video_id.npy", _ids())
        with file.open("motion.npy", "w") as out:
            out.write(header)
            for _ in range(128):
                out.write(bytes(2**20))


def _npy(elements: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(_npy_header((2, elements)) + b"0" * 64)
        path.with_suffix(".ids.txt").write_text("a\nb\n")

    return write


def _folder(elements: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        (path / "a.npy").write_bytes(_npy_header((elements,)) + b"0" * 64)

    return write


def _hdf5(**settings: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["ids"] = ["a", "b"]
            file.create_dataset("features", dtype="f4", **settings)

    return write


def _hdf5_by_video(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("a", "b"):
            file.create_dataset(name, shape=(LARGE,), dtype="f4", chunks=(1024,), compression="gzip")


def _hdf5_of_another_file(path: Path) -> None:
    """Numbers that are the bytes of a file outside."""
    with h5py.File(path, "w") as file:
        file["ids"] = ["a", "b"]
        file.create_dataset("features", shape=(2, 8), dtype="u1", external=[("/etc/passwd", 0, 16)])


def _parquet(path: Path) -> None:
    """One value, repeated by a run length."""
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(2**24, np.int8)), pyarrow.array([1.0]))
    motion = pyarrow.ListArray.from_arrays(pyarrow.array([0, 2**23, 2**24], pyarrow.int32()), values)
    parquet.write_table(pyarrow.table({"video_id": ["a", "b"], "motion": motion}), path, compression="zstd")


def _parquet_of_ids(path: Path) -> None:
    ids = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(2**24, np.int8)), pyarrow.array(["a"]))
    parquet.write_table(pyarrow.table({"video_id": ids, "motion": ids}), path, compression="zstd")


def _parquet_of_levels(path: Path) -> None:
    """Numbers that may not be missing, with counts of those that are."""
    parquet.write_table(pyarrow.table({"video_id": ["a", "b"], "motion": [[1.0], [2.0]]}), path)
    optional, required = b"\x25\x02\x18\x07element", b"\x25\x00\x18\x07element"
    assert path.read_bytes().count(optional) == 1
    path.write_bytes(path.read_bytes().replace(optional, required))


def _torch_zip(compressed: bool, stored: int, elements: int) -> Callable[[Path], None]:
    """A file of torch.save whose one storage is so many bytes, and said to be so many elements."""

    def write(path: Path) -> None:
        out = io.BytesIO()
        torch.save({"a": torch.arange(7, dtype=torch.float32)}, out)
        kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(out) as old, zipfile.ZipFile(path, "w", kind) as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("data.pkl"):
                    content = content.replace(b"K\x07", b"\x8a\x08" + struct.pack("<q", elements))
                if "/data/" in name:
                    with new.open(name, "w") as file:
                        for _ in range(max(1, stored // 2**20)):
                            file.write(bytes(min(stored, 2**20)))
                else:
                    new.writestr(name, content)

    return write


def _torch_legacy(elements: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        out = io.BytesIO()
        torch.save({"a": torch.arange(7, dtype=torch.float32)}, out, _use_new_zipfile_serialization=False)
        path.write_bytes(out.getvalue().replace(b"K\x07", b"\x8a\x08" + struct.pack("<q", elements)))

    return write


def _safetensors(elements: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tensor = {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}
        header = json.dumps({"a": tensor, "__metadata__": {"collaborative_experts.config": _config_of(24)}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))

    return write


def _safetensors_of_config(**changes: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        header = json.dumps({"__metadata__": {"collaborative_experts.config": _config_of(24, **changes)}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)

    return write


def _pickle_of_objects(path: Path) -> None:
    """Bytes that a forged type calls objects."""
    content = pickle.dumps({"a": np.array([b"A" * 8] * 2, "V8")}, 2)
    assert b"K\x08K\x01K\x00t" in content
    path.write_bytes(content.replace(b"K\x08K\x01K\x00t", b"K\x08K\x01K\x3ft"))


def _config_of(dim: int, **changes: Any) -> str:
    return json.dumps({"experts": {"motion": dim, "sound": 6}, "text": {"dim": 10}, "shared_dim": 32} | changes)


def _config(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


_MANY_EXPERTS = json.dumps({"experts": {f"expert{i}": 4 for i in range(20_000)}, "text": {"dim": 10}, "shared_dim": 4})

_OLD_HEADER = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
_LONG_NAME = _OLD_HEADER + b"\x80\x02ca\n" + b"[" * 10**6 + b"\n."

BOMBS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "npz, 10^12 elements": ("features", "motion.npz", _npz(HUGE)),
    "npz, 10^9 elements": ("features", "motion.npz", _npz(LARGE)),
    "npz, unpacks to 128 MB": ("features", "motion.npz", _unpacking_npz),
    "npy, 10^12 elements": ("features", "motion.npy", _npy(HUGE)),
    "npy, 10^9 elements": ("features", "motion.npy", _npy(LARGE)),
    "folder, 10^12 elements": ("features", "motion", _folder(HUGE)),
    "folder, 10^9 elements": ("features", "motion", _folder(LARGE)),
    "h5, 10^12 elements": ("features", "motion.h5", _hdf5(shape=(2, HUGE), chunks=(1, 1024))),
    "h5, 10^9 elements": ("features", "motion.h5", _hdf5(shape=(2, LARGE), chunks=(1, 1024))),
    "h5 by video, 10^9 elements": ("features", "motion.h5", _hdf5_by_video),
    "h5, numbers of another file": ("features", "motion.h5", _hdf5_of_another_file),
    "parquet, a run of 10^7": ("features", "motion.parquet", _parquet),
    "parquet, a run of 10^7 ids": ("features", "motion.parquet", _parquet_of_ids),
    "parquet, levels that do not fit": ("features", "motion.parquet", _parquet_of_levels),
    "pt, 10^12 elements": ("features", "motion.pt", _torch_zip(False, 28, HUGE)),
    "pt, unpacks to 128 MB": ("features", "motion.pt", _torch_zip(True, 2**27, 2**25)),
    "pt legacy, 10^12 elements": ("features", "motion.pt", _torch_legacy(HUGE)),
    "pt legacy, 10^9 elements": ("features", "motion.pt", _torch_legacy(LARGE)),
    "pkl, 10^12 bytes": ("features", "motion.pkl", _bytes(b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"a.")),
    "pkl, 10^10 bytes": ("features", "motion.pkl", _bytes(b"\x80\x04\x8e" + struct.pack("<Q", 10**10) + b"a.")),
    "pkl, a memo of 2^31": ("features", "motion.pkl", _bytes(b"\x80\x04}r" + struct.pack("<I", 2**31 - 1))),
    "pkl, a memo of 2^27": ("features", "motion.pkl", _bytes(b"\x80\x04}r" + struct.pack("<I", 2**27))),
    "pkl, a memo of 2^27 in letters": ("features", "motion.pkl", _bytes(b"\x80\x04}p134217728\n")),
    "pkl, lists in lists": ("features", "motion.pkl", _bytes(b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b".")),
    "pkl, a bytearray of 10^9": ("features", "motion.pkl", _bytes(b"\x80\x05\x96" + struct.pack("<Q", LARGE) + b"a.")),
    "pt, a name of 10^6 letters": ("features", "motion.pt", _bytes(_LONG_NAME)),
    "pth, a name of 10^6 letters": ("weights", "model.pth", _bytes(_LONG_NAME)),
    "pkl, a type of objects": ("features", "motion.pkl", _pickle_of_objects),
    "pth, 10^12 elements": ("weights", "model.pth", _torch_zip(False, 28, HUGE)),
    "pth, unpacks to 128 MB": ("weights", "model.pth", _torch_zip(True, 2**27, 2**25)),
    "pth legacy, 10^12 elements": ("weights", "model.pth", _torch_legacy(HUGE)),
    "pth legacy, 10^9 elements": ("weights", "model.pth", _torch_legacy(LARGE)),
    "safetensors, 10^12 elements": ("weights", "model.safetensors", _safetensors(HUGE)),
    "safetensors, header of 10^12": ("weights", "model.safetensors", _bytes(struct.pack("<Q", HUGE) + b"{}")),
    "safetensors, config of 10^12": ("weights", "model.safetensors", _safetensors_of_config(shared_dim=HUGE)),
    "safetensors, config of 10^9 layers": ("weights", "model.safetensors", _safetensors_of_config(num_g_layers=LARGE)),
    "config, 10^12": ("config", "config.json", _config(_config_of(HUGE))),
    "config, 10^9": ("config", "config.json", _config(_config_of(LARGE))),
    "config, 10^6 by 10^6": ("config", "config.json", _config(_config_of(10**6, shared_dim=10**6))),
    "config, 10^6 clusters": (
        "config", "config.json", _config(_config_of(24, text={"dim": 10**6, "clusters": 10**6})),
    ),
    "config, 10^9 layers": ("config", "config.json", _config(_config_of(24, num_h_layers=LARGE))),
    "config, 20,000 experts": ("config", "config.json", _config(_MANY_EXPERTS)),
}  # fmt: skip


# --- pickles that run code ----------------------------------------------------------------------------------


def _calls(marker: str) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Functions with arguments that make the marker, by themselves or with what they are given."""
    touch = f"open({marker!r}, 'w').close()"
    return [
        ("os", "system", (f"touch {marker}",)),
        ("posix", "system", (f"touch {marker}",)),
        ("os", "mkdir", (marker,)),
        ("os", "popen", (f"touch {marker}",)),
        ("subprocess", "call", (["touch", marker],)),
        ("subprocess", "Popen", (["touch", marker],)),
        ("subprocess", "getoutput", (f"touch {marker}",)),
        ("builtins", "exec", (touch,)),
        ("builtins", "eval", (touch,)),
        ("builtins", "open", (marker, "w")),
        ("__builtin__", "open", (marker, "w")),
        ("io", "open", (marker, "w")),
        ("_io", "FileIO", (marker, "w")),
        ("codecs", "open", (marker, "w")),
        ("runpy", "_run_code", (touch, {})),
        ("timeit", "timeit", ("0", touch)),
        ("code", "interact", ("", None, {})),
        ("pdb", "run", (touch,)),
        ("shutil", "copyfile", ("/dev/null", marker)),
        ("tempfile", "mkdtemp", ("", "", marker)),
        ("zipfile", "ZipFile", (marker, "w")),
        ("numpy", "savetxt", (marker, [1.0])),
        ("numpy", "memmap", (marker, "uint8", "w+", 0, (1,))),
        ("torch", "save", (1, marker)),
        ("torch.storage", "_load_from_bytes", (pickle.dumps(_Reduced(exec, (touch,))),)),
    ]


class _Reduced:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


FORMS = ("GLOBAL, REDUCE", "STACK_GLOBAL, REDUCE, in an array's type", "INST", "OBJ, as a key")
PICKLES = 25 * len(FORMS)


def hostile_pickle(number: int, marker: Path) -> bytes:
    """One of the pickles that would make the marker."""
    module, name, arguments = _calls(str(marker))[number // len(FORMS)]
    pushed = [pickle.dumps(x, 2)[2:-1] for x in arguments]
    text = b"X" + struct.pack("<I", len(module)) + module.encode(), b"X" + struct.pack("<I", len(name)) + name.encode()
    named = f"c{module}\n{name}\n".encode()
    return (
        b"\x80\x04"
        + (
            b"}X\x01\x00\x00\x00a" + named + b"(" + b"".join(pushed) + b"tRs.",
            b"}X\x01\x00\x00\x00acnumpy\ndtype\n("
            + text[0]
            + text[1]
            + b"\x93("
            + b"".join(pushed)
            + b"tR\x89\x88tRs.",
            b"}X\x01\x00\x00\x00a(" + b"".join(pushed) + f"i{module}\n{name}\n".encode() + b"s.",
            b"}(" + named + b"".join(pushed) + b"oK\x01s.",
        )[number % len(FORMS)]
    )


def armed(folder: Path) -> int:
    """How many of the pickles make their marker where Python's own reader is let loose on them."""
    found = 0
    for number in range(PICKLES):
        path = folder / str(number) / "a.pkl"
        path.parent.mkdir()
        path.write_bytes(hostile_pickle(number, marker(path)))
        read = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'), encoding='latin1')"
        subprocess.run([sys.executable, "-c", read, path], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        found += any(x.name.startswith("marker") for x in path.parent.iterdir())
    return found


def _write_pickle(kind: str, number: int, path: Path) -> None:
    content = hostile_pickle(number, marker(path))
    if kind.startswith("pickles as pkl"):
        path.write_bytes(content)
        return
    is_zip = "legacy" not in kind
    out = io.BytesIO()
    torch.save(initial_state(TRAINABLE), out, _use_new_zipfile_serialization=is_zip)
    if is_zip:
        with zipfile.ZipFile(out) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.namelist():
                new.writestr(entry, content if entry.endswith("data.pkl") else old.read(entry))
    else:
        header = io.BytesIO(out.getvalue())
        for _ in range(3):  # magic number, version, facts of the machine
            pickle.load(header)
        path.write_bytes(out.getvalue()[: header.tell()] + content + pickle.dumps([]))


# --- what files.py asks for -----------------------------------------------------------------------------------

_PICKLED = {
    "pickles as pkl": ("features", "motion.pkl"),
    "pickles as pt": ("features", "motion.pt"),
    "pickles as pt, legacy": ("features", "motion.pt"),
    "pickles as pth": ("weights", "model.pth"),
    "pickles as pth, legacy": ("weights", "model.pth"),
}
KINDS = ("bombs", *_PICKLED)


def count(kind: str) -> int:
    return len(BOMBS) if kind == "bombs" else PICKLES


def name(kind: str, number: int) -> str:
    if kind == "bombs":
        return list(BOMBS)[number]
    return f"{'.'.join(_calls('')[number // len(FORMS)][:2])}, {FORMS[number % len(FORMS)]}"


def make(kind: str, number: int, folder: Path) -> tuple[Path, Callable[[Path], list[Any]]]:
    """Write a file; returns its path and the function that reads it."""
    folder.mkdir()
    if kind == "bombs":
        reader, file_name, write = list(BOMBS.values())[number]
        write(folder / file_name)
    else:
        reader, file_name = _PICKLED[kind]
        _write_pickle(kind, number, folder / file_name)
    return folder / file_name, READERS[reader]
