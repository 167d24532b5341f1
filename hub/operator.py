"""The Towhee operator: construct, call, export. The only module that knows Towhee's operator API."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from towhee import register
from towhee.operator import NNOperator, SharedType

from ..base.checks import check_choice
from ..base.config import MSRVTT, CEConfig
from ..base.files import replacing
from ..model import checkpoint, inputs
from ..model.cenet import CEModel, Modality, initial_state, meta_model
from ..model.engine import Engine, check_dtype, supports
from ..retrieval.arrays import Array
from ..retrieval.embeddings import ModelIdentity, TextEmbeddings, VideoEmbeddings
from ..training import loop as training
from ..training.settings import combine

WEIGHTS_DIR = Path(__file__).resolve().parents[1] / "weights"
DEFAULT_WEIGHTS = "msrvtt-train-full-ce.safetensors"


@register(output_schema=["text_embds", "vid_embds"])
class CollaborativeExperts(NNOperator):
    """Text and video embeddings per expert, by Collaborative Experts (arXiv 1907.13487).

    Args:
        config: a `CEConfig`, a dict in Towhee's, the CE authors' or the short form, or the path of such a JSON
            file; None is the config inside the weights file, else the authors' MSR-VTT model.
        weights_path: `.safetensors`, `.pth` or `.pt`. None takes the file in `weights/` if there is one for
            this config; else the parameters are seeded initial ones, `pretrained` is False and a warning says so.
        device: 'cpu', 'cuda', 'cuda:1', ...; None follows the pipeline's placement, else CUDA if there is one.
        modality: 'video' or 'text' computes and holds that side only; None both.
        output: 'experts' for a dict {expert: (B, D)}, 'vector' for one joint row per item (B, M * D), 'embeddings' for
            what `encode_video` and `encode_text` give, which an index takes.
        dtype: number format of the computation: 'float32', 'bfloat16', 'float16' (CUDA), or 'int8' (the text
            layers, on CPU, for a few queries). The embeddings are always float32.

    Raises:
        TypeError, ValueError: a bad argument, or a weights file that does not fit the config.
        FileNotFoundError: there is no such weights file.

    One instance may be called from several threads. Nothing that is passed in is written to.
    """

    def __init__(
        self,
        config: CEConfig | Mapping[str, Any] | str | Path | None = None,
        weights_path: str | Path | None = None,
        device: str | torch.device | None = None,
        modality: Modality = None,
        output: Literal["experts", "vector", "embeddings"] = "experts",
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        check_choice(modality, (None, "video", "text"), "modality")
        check_choice(output, ("experts", "vector", "embeddings"), "output")
        self.modality, self.output, self.dtype = modality, output, dtype
        self.device = resolve_device(device, self._device_id)
        if isinstance(config, str | Path) and Path(config).suffix in checkpoint.SUFFIXES:
            raise ValueError(f"config: {config} is a weights file; pass it as weights_path=...")
        if isinstance(config, str | Path):
            config = CEConfig.from_json(config)
        elif config is not None and not isinstance(config, CEConfig):
            config = CEConfig.from_dict(config)
        self._adopt(config, Path(weights_path) if weights_path is not None else find_weights(config))
        if not self.pretrained:
            warnings.warn(
                "CollaborativeExperts runs on seeded initial parameters, so its embeddings mean nothing yet. "
                f"Pass weights_path=..., or get the published MSR-VTT model with: python {WEIGHTS_DIR / 'fetch.py'}",
                stacklevel=3,
            )

    @property
    def pretrained(self) -> bool:
        """False while the parameters are the seeded initial ones, also when these were saved and loaded."""
        return self._notes.get("pretrained", True) is True

    @property
    def shared_type(self) -> SharedType:
        return SharedType.Shareable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Embed: `(experts, ind, text)`; with modality 'video' `(experts, ind=None)`; with 'text' `(text)`.

        Args:
            experts: {expert: (B, dim) or (B, N, dim)}; an expert left out, or None, is missing for all.
            ind: {expert: (B,) of 0/1}; where it is left out, a row with NaN is missing.
            text: token embeddings (B, W, dim) or (B, K, W, dim).

        Returns:
            `text_embds, vid_embds`, or the one of the chosen side: dicts {expert: (B, D)} ((B, K, D) for K > 1
            captions), or what else `output` says. A single item comes without the batch axis. NumPy
            for NumPy or lists, else torch on the operator's device.

        Raises:
            TypeError, ValueError: before any computation; naming argument, expert and rows, expected and found.
        """
        embed = {None: self._embed_pairs, "video": self._embed_video, "text": self._embed_text}[self.modality]
        signature = inspect.signature(embed)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"an operator with modality={self.modality!r} takes ({', '.join(signature.parameters)}): {error}"
                + ("" if self.modality else "; ind=None reads the availability off the data")
            ) from None
        return embed(*args, **kwargs)

    def encode_video(self, experts: Mapping[str, Any], ind: Mapping[str, Any] | None = None) -> VideoEmbeddings:
        """Embeddings and availability of B videos; arguments, array types and errors as in a call."""
        self._check_holds("video")
        return self._encode_video(inputs.clean_video(experts, ind, self.config, self.device))

    def encode_text(self, text: Any) -> TextEmbeddings:
        """Embeddings and expert weights of T texts ((B, K, W, dim) gives T = B * K, a video's side by side)."""
        self._check_holds("text")
        return self._encode_text(inputs.clean_text(text, self.config, self.device))

    def train(
        self,
        training_config: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        resume_checkpoint_path: str | Path | None = None,
        **settings: Any,
    ) -> Any:
        """Fit the model to your own videos and captions, and go on with the best weights (see training.py).

        Args:
            training_config: a `TrainingConfig`, or a dict of its attributes; None takes the defaults.
            train_dataset, eval_dataset: `CaptionedVideos`; by the second, if given, the best epoch is chosen.
            resume_checkpoint_path: `last.ckpt` of an interrupted run, which is then continued.
            settings: attributes of `TrainingConfig`, instead of those in `training_config`.

        Returns:
            A `TrainingResult`.

        An operator without trained weights learns the mean and deviation of its features, too, and takes raw ones
        from then on; one with weights keeps to what these say.

        Raises:
            TypeError, ValueError, FileNotFoundError: as `training.train`; the operator is as before then.
            ImportError: without lightning-fabric, naming the extra that brings it.
        """
        if self.modality is not None:
            raise ValueError(f"train: an operator of both sides trains, this one holds the {self.modality} side only")
        chosen = combine(training_config, settings)
        weights = {name: _own(x) for name, x in self._open_weights().items()} if self.pretrained else None
        config = self.config if self.pretrained else replace(self.config, standardise=True)
        result = training.train(
            config, chosen, train_dataset, eval_dataset, resume_checkpoint_path, weights, self.device
        )
        self._adopt(config, result.weights_path)
        return result

    def save(self, path: str | Path) -> Path:
        """Write all weights, of both sides, and the config as one `.safetensors`; returns the path.

        The weights are read anew from where they came, since the operator holds them folded and packed: a
        ValueError says so if that file has changed, a FileNotFoundError if it is gone.
        """
        return checkpoint.write_weights(path, self._open_weights(), self.config, self._notes)

    def save_model(self, format: str = "safetensors", path: str | Path | None = None) -> Path:  # noqa: A002, Towhee's name
        """Towhee's export: 'safetensors' (as `save`) or 'pytorch' (a state dict for `towhee.models`).

        Without `path`, a file `saved/<format>/collaborative_experts.*` in the working directory.
        """
        check_choice(format, self.supported_formats, "format")
        suffix = ".safetensors" if format == "safetensors" else ".pth"
        if path is None:
            path = Path("saved", format, "collaborative_experts" + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
        if format == "safetensors":
            return self.save(path)
        with replacing(Path(path)) as temporary:
            torch.save(dict(self._open_weights()), temporary)
        return Path(path)

    @property
    def supported_formats(self) -> list[str]:
        return ["safetensors", "pytorch"]

    @staticmethod
    def supported_model_names() -> list[str]:
        """Models that load without a config: the default one."""
        return [DEFAULT_WEIGHTS.removesuffix(".safetensors")]

    # --- inside ---------------------------------------------------------------------------------------

    def _embed_pairs(self, experts: Any, ind: Any, text: Any) -> tuple[Any, Any]:
        video = inputs.clean_video(experts, ind, self.config, self.device)
        captions = inputs.clean_text(text, self.config, self.device)
        if captions.batch_shape[:1] != (() if video.single else (len(video.available),)):
            raise ValueError(
                f"text: expected captions for {'one video' if video.single else f'{len(video.available)} videos'}, got "
                f"{'one caption' if not captions.batch_shape else f'{captions.batch_shape[0]} rows'}; encode_text and "
                "encode_video take different numbers"
            )
        return self._finish_text(captions), self._finish_video(video)

    def _embed_video(self, experts: Any, ind: Any = None) -> Any:
        return self._finish_video(inputs.clean_video(experts, ind, self.config, self.device))

    def _embed_text(self, text: Any) -> Any:
        return self._finish_text(inputs.clean_text(text, self.config, self.device))

    def _finish_video(self, video: inputs.VideoInput) -> Any:
        embeddings = self._encode_video(video)
        if self.output == "embeddings":
            return embeddings
        return embeddings.joint() if self.output == "vector" else embeddings.embds

    def _finish_text(self, captions: inputs.TextInput) -> Any:
        embeddings = self._encode_text(captions)
        if self.output == "embeddings":
            return embeddings
        if len(captions.batch_shape) == 2 and captions.batch_shape[1] > 1:
            if self.output == "vector":
                joint = embeddings.joint()
                return joint.reshape(*captions.batch_shape, joint.shape[-1])
            return {name: x.reshape(*captions.batch_shape, x.shape[-1]) for name, x in embeddings.embds.items()}
        return embeddings.joint() if self.output == "vector" else embeddings.embds

    # no_grad, not inference_mode: what comes back is to be an ordinary tensor, on which a head can be trained.

    def _encode_video(self, video: inputs.VideoInput) -> VideoEmbeddings:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            embds = self.model.encode_video(video.features, video.available)
        # One joint embedding is there if any expert is.
        available = video.available.any(1, keepdim=True) if self.config.concat_experts else video.available
        convert = _converter(video.numpy, video.single)
        return VideoEmbeddings({name: convert(x) for name, x in embds.items()}, convert(available), self.identity)

    def _encode_text(self, captions: inputs.TextInput) -> TextEmbeddings:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            embds, weights = self.model.encode_text(captions.tokens)
        convert = _converter(captions.numpy, single=not captions.batch_shape)
        count = captions.batch_shape[1] if len(captions.batch_shape) == 2 else 1
        return TextEmbeddings({name: convert(x) for name, x in embds.items()}, convert(weights), count, self.identity)

    def _adopt(self, config: CEConfig | None, path: Path | None) -> None:
        """Take the weights of a file, or seeded initial ones, and build the model of them."""
        self.weights_path = None if path is None else path.absolute()
        self._notes: dict[str, Any] = {"pretrained": False}
        if self.weights_path is not None:
            config = config or checkpoint.read_config(self.weights_path)
            self._notes = checkpoint.read_notes(self.weights_path)
            self._stamp = _stamp(self.weights_path)
        self.config: CEConfig = config or MSRVTT
        check_dtype(self.config, self.dtype, self.device)
        weights = self._open_weights(self.modality)
        self.identity = ModelIdentity(json.dumps(self.config.to_dict()), self._fingerprint(weights))
        self.model = self._load_model(weights)

    def _check_holds(self, side: str) -> None:
        if self.modality not in (None, side):
            raise ValueError(f"this operator holds the {self.modality} side only (modality={self.modality!r})")

    def _open_weights(self, modality: Modality = None) -> MutableMapping[str, Tensor]:
        """The weights under CENet's names, from where they come, checked; a file's are always all of them."""
        if self.weights_path is None:
            return initial_state(self.config, modality)
        weights = checkpoint.read_weights(self.weights_path)
        if _stamp(self.weights_path) != self._stamp:
            raise ValueError(f"{self.weights_path}: this file has changed since the operator was made from it")
        checkpoint.check_weights(weights, meta_model(self.config).state_dict(), self.config, self.weights_path)
        return weights

    def _fingerprint(self, weights: Mapping[str, Tensor]) -> str:
        return checkpoint.fingerprint(weights) if self.weights_path else "seeded initial parameters"

    def _load_model(self, weights: MutableMapping[str, Tensor]) -> Engine | CEModel:
        if supports(self.config):
            return Engine(self.config, weights, self.modality, self.device, self.dtype)
        model = meta_model(self.config, self.modality)
        state = {name: checkpoint.check_finite(name, _own(weights.pop(name))) for name in model.state_dict()}
        # Not strict: the names are checked, and load_state_dict trips over those with a dot in an expert.
        model.load_state_dict(state, strict=False, assign=True)
        return model.requires_grad_(False).to(self.device)


def resolve_device(device: str | torch.device | None, placement: int = -1) -> torch.device:
    """The device to run on: what the caller says, else the pipeline's GPU number, else CUDA if there is one.

    Raises:
        TypeError, ValueError: no such kind of device, or a GPU that this machine does not have.
    """
    if device is None:
        device = f"cuda:{placement}" if placement >= 0 else "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got '{device}'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(
            f"device: '{device}' asked for, but PyTorch finds {count} CUDA device(s) here; use device='cpu'"
        )
    return device


def _own(x: Tensor) -> Tensor:
    """A copy, in float32: the file it is from may change or vanish while the operator runs."""
    return x.to(torch.float32 if x.is_floating_point() else x.dtype, copy=True)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells that a file is still the same one."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def find_weights(config: CEConfig | None, folder: Path = WEIGHTS_DIR) -> Path | None:
    """The file in `folder` whose config is `config` (any, for None); None if there is none.

    A file without a config of its own counts as the default model. One that cannot be read is passed over
    with a warning.

    Raises:
        ValueError: several fit, and none is the default model's.
    """
    fitting = []
    for path in sorted(folder.glob("*")):
        if path.suffix not in checkpoint.SUFFIXES or not path.is_file():
            continue
        try:
            found = checkpoint.read_config(path) or MSRVTT
        except ValueError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
            continue
        if config in (None, found):
            fitting.append(path)
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    if folder / DEFAULT_WEIGHTS in fitting:
        return folder / DEFAULT_WEIGHTS
    raise ValueError(
        f"weights_path: {folder} holds several files that fit ({', '.join(path.name for path in fitting)}); name one"
    )


def _converter(numpy: bool, single: bool) -> Callable[[Tensor], Array]:
    def convert(x: Tensor) -> Array:
        x = x[0] if single else x
        return x.cpu().numpy() if numpy else x

    return convert
