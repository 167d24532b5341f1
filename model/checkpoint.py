"""Weight files <-> named tensors, strict and safe.

Reads safetensors and PyTorch's `.pth`/`.pt`; nothing in a file is ever executed (`weights_only=True`).
Names that this process has added to PyTorch's own allow-list (`add_safe_globals`) are the one exception.
Writes safetensors, with the model's config in its metadata, beside the target and renames it when complete.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..base.config import CEConfig
from ..base.files import replacing
from ..base.pickles import check_texts, refused_name

CONFIG_KEY = "collaborative_experts.config"
"""Key of the config, as JSON, in a safetensors file's metadata."""

NOTES_KEY = "collaborative_experts.notes"
"""Key of further facts about the weights, a dict as JSON."""

_LOADING = threading.Lock()
"""One file is read at a time, since PyTorch's allow-list for it belongs to the process."""

FINGERPRINT_VALUES = 4096
"""Number of values at either end of each tensor that enter its fingerprint."""

SUFFIXES = (".safetensors", ".pth", ".pt")

_DROPPED = ("ce.moe_fc_bottleneck1.", "ce.moe_cg.", "ce.moe_fc_proj.")
"""Parameters of old models that the published code no longer uses."""


def read_weights(path: str | Path) -> MutableMapping[str, Tensor]:
    """The tensors of a weights file on the CPU, under CENet's names; `pop` gives up what it returns.

    Args:
        path: `.safetensors`, of which a tensor is mapped into memory when it is asked for; or `.pth`/`.pt`
            with a state dict, also as the CE authors save it: `{"state_dict": ..., "config": ...}`, of which the
            rest is passed over, with the `module.` prefix of DataParallel, with parameters instead of tensors
            (`keep_vars=True`), and in torch's old format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, a damaged file, one that is no state dict, or one that would run code.
    """
    path = _existing_file(path)
    return _MappedTensors(path) if path.suffix == ".safetensors" else _read_torch(path)


class _MappedTensors(MutableMapping):
    """The tensors of a safetensors file. Each look-up maps the file anew, so that dropping a tensor gives
    its memory back at once and loading a model never holds the weights twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _safetensors(path) as file:
            self._names = _translate(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        with _safetensors(self._path) as file:
            return file.get_tensor(self._names[name])

    def __delitem__(self, name: str) -> None:
        del self._names[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        raise TypeError("a weights file is read only")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_config(path: str | Path) -> CEConfig | None:
    """The config that a safetensors file carries, None where it has none. Raises as `read_weights`."""
    content = _read_metadata(path, CONFIG_KEY)
    try:
        return None if content is None else CEConfig.from_dict(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its metadata holds no config of this version: {error}") from None


def read_notes(path: str | Path) -> dict[str, Any]:
    """The notes on its weights that a safetensors file holds beside the config, `{}` where it holds none."""
    notes = _read_metadata(path, NOTES_KEY)
    return notes if isinstance(notes, dict) else {}


def _read_metadata(path: str | Path, key: str) -> Any:
    path = _existing_file(path)
    if path.suffix != ".safetensors":
        return None
    with _safetensors(path) as file:
        text = (file.metadata() or {}).get(key)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata is damaged: {error}") from None


def check_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: CEConfig, source: str | Path
) -> None:
    """Raise ValueError unless names and shapes are exactly the expected ones; lists the first ten of each kind. Also
    where the file has a config of its own that takes other experts by their logarithm.

    Args:
        expected: the state dict of the config's model, on the meta device.
        source: the file that the weights are from.
    """
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped, retyped = [], []
    for name, tensor in expected.items():
        shape, dtype = found.get(name, (tuple(tensor.shape), tensor.dtype))
        if shape != tuple(tensor.shape):
            reshaped.append(f"{name} ({_whose(name, config)}expected {tuple(tensor.shape)}, got {shape})")
        if tensor.is_floating_point() and not dtype.is_floating_point:
            retyped.append(f"{name} (expected floats, got {dtype})")
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        for kind, names in (
            ("missing", missing), ("unexpected", unexpected), ("mis-shaped", reshaped), ("of the wrong type", retyped)
        )
        if names
    ]  # fmt: skip
    if problems:
        raise ValueError(
            f"{source}: these weights are not of this config's model; pass the config they were trained with. "
            + "; ".join(problems)
        )
    _check_logarithms(source, config)


def _check_logarithms(path: str | Path, config: CEConfig) -> None:
    """Raise ValueError where a config that standardises takes other experts by their logarithm than the one in a
    weights file: all else would fit, and the embeddings be wrong. A file whose config cannot be read says nothing."""
    try:
        own = read_config(path)
    except ValueError:
        return
    if own is None or not (own.standardise and config.standardise):
        return
    learned = {expert.name: expert.logarithm for expert in own.experts}
    for expert in config.experts:
        if learned.get(expert.name, expert.logarithm) != expert.logarithm:
            raise ValueError(
                f"config: experts[{expert.name!r}], logarithm: expected {learned[expert.name]} as in "
                f"{Path(path).name}, got {expert.logarithm}; leave the config out, and the file gives its own"
            )


LARGEST_WEIGHT = 1e18
"""Beyond it, squares overflow in float32. No training comes near."""


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor, or ValueError where it holds what cannot be computed with: NaN, Inf, a size that only damage makes,
    or a variance below 0. Called where a tensor is read anyway: reading takes time.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    low, high = tensor.aminmax()  # NaN where there is one
    if not (low >= -LARGEST_WEIGHT and high <= LARGEST_WEIGHT):
        raise ValueError(f"weights: {name}: expected finite values, got NaN, Inf or beyond {LARGEST_WEIGHT:g}")
    if name.endswith("running_var") and low < 0:
        raise ValueError(f"weights: {name}: expected variances of at least 0, got {float(low):g}")
    return tensor


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 that tells trained models apart, the same for a file in any format, in hexadecimal digits.

    Over names, shapes, and the first and last values of each tensor, so that it takes milliseconds where all
    of the default model's 734 MB would take half a second at every start: training changes every tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        values = tensor.flatten()
        ends = torch.cat([values[:FINGERPRINT_VALUES], values[-FINGERPRINT_VALUES:]])
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(ends.to(torch.float32).numpy())
    return digest.hexdigest()


def _whose(name: str, config: CEConfig) -> str:
    """The expert that a numbered layer of CENet's belongs to."""
    number = re.search(r"(?:video_dim_reduce|video_GU|text_GU|g_reason_unshared_weights)\.(\d+)\.", name)
    return f"expert {config.expert_names[int(number[1])]!r}; " if number else ""


def write_weights(
    path: str | Path, weights: Mapping[str, Tensor], config: CEConfig, notes: Mapping[str, Any] | None = None
) -> Path:
    """Write safetensors with the config and `notes` inside; complete, or not at all. Returns the path.

    Raises:
        ValueError: the suffix is not `.safetensors`.
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be written, for instance because the disk is full.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as .safetensors, got the suffix {path.suffix!r}")
    with replacing(path, SafetensorError) as temporary:
        metadata = {CONFIG_KEY: json.dumps(config.to_dict()), NOTES_KEY: json.dumps(dict(notes or {}))}
        save_file(_unshared(weights), temporary, metadata)
    return path


def _unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with memory of their own each, which safetensors insists on and PyTorch's files do not promise."""
    tensors, storages = {}, set()
    for name, tensor in weights.items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    return tensors


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a weights file ({', '.join(SUFFIXES)}), got the suffix {path.suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such weights file")
    return path


@contextmanager
def _safetensors(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file: {error}") from None


class _Inert:
    """A substitute that does nothing for an object in a checkpoint that is not needed."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


_INERT = (
    # The CE authors pickled their ConfigParser with its paths beside the weights, and the best score.
    "parse_config.ConfigParser",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",  # as Python 3.13 writes them
    "pathlib._local.WindowsPath",
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""Names that a checkpoint may ask for, and gets `_Inert` for."""


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        inert = torch.serialization.safe_globals([(_Inert, name) for name in _INERT])
        with _LOADING, warnings.catch_warnings(), inert:
            check_texts(path)
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = refused_name(error)
        reason = f"loading it would call {name}" if name else "it is damaged, or not from torch.save"
        raise ValueError(f"{path}: refused, {reason}; expected a state dict of plain tensors") from None
    except Exception as error:
        # A damaged file raises whatever its bytes happen to mean.
        said = " ".join(str(error).split()).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a complete PyTorch file: {type(error).__name__}: {said}") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ValueError(f"{path}: expected a state dict (names to tensors), got {type(content).__name__}")
    unusual = [name for name, tensor in content.items() if not _is_plain(tensor)]
    if unusual:
        raise ValueError(f"{path}: expected plain dense tensors, got others for {', '.join(unusual[:10])}")
    # Parameters, with gradients and whatever attributes the file gives them, become plain tensors of the same memory.
    return {name: Tensor.detach(content[name_in_file]) for name, name_in_file in _translate(content).items()}


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
    return dense and tensor.device.type == "cpu"


def _translate(names: Iterable[str]) -> dict[str, str]:
    """{CENet's name: the file's name}, without the parameters in `_DROPPED`."""
    named = {name.removeprefix("module."): name for name in names}
    return {name: name_in_file for name, name_in_file in named.items() if not name.startswith(_DROPPED)}


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Time, size and number of a file, by which a change of it is noticed. None where there is no file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
