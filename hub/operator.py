"""The Towhee operator: construct, call, export."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from towhee import register
from towhee.operator import NNOperator, SharedType

from ..base.checks import check_choice, check_sentences
from ..base.config import MSRVTT, CEConfig
from ..base.files import replacing
from ..model import checkpoint, inputs
from ..model.cenet import Modality, initial_state, meta_model
from ..model.engine import DTYPES, check_dtype, supports
from ..retrieval.arrays import Array, ArrayLike
from ..retrieval.embeddings import ModelIdentity, TextEmbeddings, VideoEmbeddings
from .device import resolve_device
from .export import export_onnx
from .network import Network, own
from .weights_folder import DEFAULT_WEIGHTS, WEIGHTS_DIR, find_weights

if TYPE_CHECKING:
    from ..training.data import CaptionedVideos
    from ..training.encoder import Encoder
    from ..training.loop import TrainingResult
    from ..training.settings import TrainingConfig

Experts = Mapping[str, ArrayLike | Sequence[Any] | None]
"""{expert: (B, dim) or (B, N, dim)}, or a list of B sequences (N, dim) or None."""

Availability = Mapping[str, ArrayLike]
"""{expert: (B,) of 0 or 1}."""

_SUFFIXES = {"safetensors": ".safetensors", "pytorch": ".pth", "onnx": ".onnx"}
"""The formats of `save_model`."""


@register(output_schema=["text_embds", "vid_embds"])
class CollaborativeExperts(NNOperator):
    """Text and video embeddings per expert, by Collaborative Experts (arXiv 1907.13487).

    Args:
        config: a `CEConfig`, a dict in Towhee's, the CE authors' or the short form, or the path of such a JSON
            file; None is the config inside the weights file, else the authors' MSR-VTT model.
        weights_path: `.safetensors`, `.pth` or `.pt`. None takes the file in `weights/` if there is one for
            this config; else the parameters are seeded initial ones, `pretrained` is False, and the first embedding
            comes with a warning.
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
        check_choice(dtype, DTYPES, "dtype")
        if not isinstance(weights_path, str | os.PathLike | None):
            raise TypeError(f"weights_path: expected the path of a file, or None, got {type(weights_path).__name__}")
        self.modality, self.output, self.dtype = modality, output, dtype
        self.device = resolve_device(device, self._device_id)
        if isinstance(config, str | Path) and Path(config).suffix in checkpoint.SUFFIXES:
            raise ValueError(f"config: {config} is a weights file; pass it as weights_path=...")
        if isinstance(config, str | Path):
            config = CEConfig.from_json(config)
        elif config is not None and not isinstance(config, CEConfig):
            config = CEConfig.from_dict(config)
        self._adopt(config, Path(weights_path) if weights_path is not None else find_weights(config))

    def __repr__(self) -> str:
        sides = {None: "texts and videos", "video": "videos", "text": "texts"}[self.modality]
        weights = self.weights_path.name if self.weights_path else "none"
        trained = weights if self.pretrained else f"{weights}, untrained"
        return (
            f"CollaborativeExperts of {sides}, {self.dtype} on {self.device}, weights: {trained}\n"
            f"  experts: {', '.join(f'{expert.name} ({expert.dim})' for expert in self.config.experts)}\n"
            f"  text: token embeddings of {self.config.text.dim}"
        )

    def __deepcopy__(self, _: object) -> CollaborativeExperts:
        """The operator itself, which threads share: Towhee copies the steps of a pipeline, bound methods included."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """An operator is pickled as the arguments that make it again."""
        return type(self), (self.config, self.weights_path, str(self.device), self.modality, self.output, self.dtype)

    @property
    def pretrained(self) -> bool:
        """False while the parameters are the seeded initial ones, also when these were saved and loaded."""
        return self._notes.get("pretrained", True) is True

    @property
    def shared_type(self) -> SharedType:
        return SharedType.Shareable

    @overload
    def __call__(self, experts: Experts, ind: Availability | None, text: ArrayLike) -> tuple[Any, Any]: ...

    @overload
    def __call__(self, experts: Experts, ind: Availability | None = None) -> Any: ...

    @overload
    def __call__(self, text: ArrayLike) -> Any: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Embed: `(experts, ind, text)`; with modality 'video' `(experts, ind=None)`; with 'text' `(text)`.

        Args:
            experts: {expert: (B, dim) or (B, N, dim)}; an expert left out, or None, is missing for all. Masked arrays
                are refused, here and in `ind` and `text`: `x.filled(np.nan)` is one whose masked rows are missing.
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

    def encode_video(self, experts: Experts, ind: Availability | None = None) -> VideoEmbeddings:
        """Embeddings and availability of B videos; arguments, array types and errors as in a call."""
        self._check_holds("video")
        video = inputs.clean_video(experts, ind, self.config, self.device)
        return self._video_embeddings(video, self._compute(*_video_tensors(video)))

    def encode_text(self, text: ArrayLike) -> TextEmbeddings:
        """Embeddings and expert weights of T texts ((B, K, W, dim) gives T = B * K, a video's side by side)."""
        self._check_holds("text")
        return self._encode_text(inputs.clean_text(text, self.config, self.device))

    def encode_sentences(self, sentences: str | Sequence[str], encoder: Encoder | None = None) -> TextEmbeddings:
        """Embeddings and expert weights of T sentences; a single one that is not in a list comes without the axis T.

        Args:
            encoder: gives the token embeddings (`training.encoder.Encoder`). None takes the encoder that the weights
                were trained with, which is neither downloaded nor runs code of its folder; another one is held
                against it.

        Raises:
            TypeError: anything but text, or an encoder that gives anything but arrays of numbers.
            ValueError: an encoder that gives other token embeddings than the one of the training, or not one array
                (W, dim) for each sentence; no encoder is known; or the encoder of the training was of a class of your
                own, which has to be passed.
            FileNotFoundError, ImportError: the known encoder cannot be loaded here.
        """
        from ..training.encoder import token_arrays

        self._check_holds("text")
        different, places = check_sentences(sentences)
        embeddings = self.encode_text(token_arrays(different, self._sentence_encoder(encoder)))
        return embeddings[places]

    def train(
        self,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
        train_dataset: CaptionedVideos | None = None,
        eval_dataset: CaptionedVideos | None = None,
        resume_checkpoint_path: str | Path | None = None,
        **settings: Any,
    ) -> TrainingResult:
        """Fit the model to your own videos and captions, and go on with the best weights.

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
        from ..training import loop  # not before they are used
        from ..training import settings as training_settings

        chosen = training_settings.combine(training_config, settings)
        weights = {name: own(x) for name, x in self._open_weights().items()} if self.pretrained else None
        config = self.config if self.pretrained else replace(self.config, standardise=True)
        result = loop.train(config, chosen, train_dataset, eval_dataset, resume_checkpoint_path, weights, self.device)
        self._adopt(config, result.weights_path)
        return result

    def save(self, path: str | Path) -> Path:
        """Write all weights, of both sides, and the config as one `.safetensors`; returns the path.

        The weights are read anew from where they came, since the operator holds them folded and packed: a
        ValueError says so if that file has changed, a FileNotFoundError if it is gone.
        """
        return checkpoint.write_weights(path, self._open_weights(), self.config, self._notes)

    def save_model(self, format: str = "safetensors", path: str | Path | None = None) -> Path:  # noqa: A002, Towhee's name
        """Towhee's export: 'safetensors' (as `save`), 'pytorch' (a state dict for `towhee.models`) or 'onnx'.

        Without `path`, a file `saved/<format>/collaborative_experts.*` in the working directory. An ONNX file has the
        sides of this operator, in float32; see `hub.export` and docs/export.md.
        """
        check_choice(format, tuple(_SUFFIXES), "format")
        if path is None:
            path = Path("saved", format, f"collaborative_experts{_SUFFIXES[format]}")
            path.parent.mkdir(parents=True, exist_ok=True)
        if format == "safetensors":
            return self.save(path)
        if format == "onnx":
            weights = self._open_weights(self.modality)
            return export_onnx(path, self.config, weights, self.identity, self.modality)
        with replacing(Path(path), RuntimeError) as temporary, temporary.open("wb") as file:
            torch.save(dict(self._open_weights()), file)
        return Path(path)

    @property
    def supported_formats(self) -> list[str]:
        """The formats that a server can run. Towhee makes a model folder for any other one, and leaves it empty."""
        return ["onnx"] if supports(self.config) else []

    @staticmethod
    def supported_model_names(format: str | None = None) -> list[str]:  # noqa: A002, Towhee's name
        """Models that load without a config, the default one, and that can be saved in `format`; None is any."""
        check_choice(format, (None, *_SUFFIXES), "format")
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
        outputs = self._compute(*_video_tensors(video), captions.tokens)
        count = len(self.config.output_dims)
        text_embds = self._finish_text(captions, self._text_embeddings(captions, outputs[count:]))
        return text_embds, self._finish_video(self._video_embeddings(video, outputs[:count]))

    def _embed_video(self, experts: Any, ind: Any = None) -> Any:
        return self._finish_video(self.encode_video(experts, ind))

    def _embed_text(self, text: Any) -> Any:
        captions = inputs.clean_text(text, self.config, self.device)
        return self._finish_text(captions, self._encode_text(captions))

    def _finish_video(self, embeddings: VideoEmbeddings) -> Any:
        if self.output == "embeddings":
            return embeddings
        return embeddings.joint() if self.output == "vector" else embeddings.embds

    def _finish_text(self, captions: inputs.TextInput, embeddings: TextEmbeddings) -> Any:
        if self.output == "embeddings":
            return embeddings
        if len(captions.batch_shape) == 2 and captions.batch_shape[1] > 1:
            if self.output == "vector":
                joint = embeddings.joint()
                return joint.reshape(*captions.batch_shape, joint.shape[-1])
            return {name: x.reshape(*captions.batch_shape, x.shape[-1]) for name, x in embeddings.embds.items()}
        return embeddings.joint() if self.output == "vector" else embeddings.embds

    def _sentence_encoder(self, encoder: Encoder | None) -> Encoder:
        """The encoder to use, checked once against the one that the weights were trained with."""
        from ..training.encoder import EncoderIdentity, SentenceEncoder, check_encoder, check_same_encoder

        known = EncoderIdentity.from_dict(self._notes["encoder"]) if "encoder" in self._notes else None
        if encoder is None and self._checked_encoder is not None:
            return self._checked_encoder
        if encoder is None:
            if known is None or known.model is None:
                named = "do not say which encoder they were trained with" if known is None else f"need {known.name}"
                raise ValueError(f"encode_sentences: the weights {named}; pass encoder=...")
            encoder = SentenceEncoder(known.model, trusted=False)
        if encoder is not self._checked_encoder:
            check_encoder(encoder)
            if known is not None:
                check_same_encoder(known, encoder)
            elif encoder.dim != self.config.text.dim:
                raise ValueError(f"encoder: expected dimension {self.config.text.dim}, got {encoder.dim}")
            self._checked_encoder = encoder
        return encoder

    def _warn_if_untrained(self) -> None:
        """Say once that embeddings of initial parameters mean nothing."""
        if self.pretrained or self._warned:
            return
        self._warned = True
        remedy = "train it, or pass weights_path=..."
        if self.config == MSRVTT:
            remedy = f"pass weights_path=..., or get the published model with: python {WEIGHTS_DIR / 'fetch.py'}"
        warnings.warn(
            f"CollaborativeExperts runs on seeded initial parameters, so its embeddings mean nothing yet; {remedy}",
            stacklevel=4,
        )

    def _compute(self, *tensors: Tensor) -> list[Tensor]:
        """See `Network.__call__`. A client of Triton gives a single output as it is, and any on the CPU."""
        self._warn_if_untrained()
        # no_grad, not inference_mode: what comes back is to be an ordinary tensor, on which a head can be trained.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            outputs = self.model(*tensors)
        return [x.to(self.device) for x in ([outputs] if isinstance(outputs, Tensor) else outputs)]

    def _video_embeddings(self, video: inputs.VideoInput, outputs: Sequence[Tensor]) -> VideoEmbeddings:
        # One joint embedding is there if any expert is.
        available = video.available.any(1, keepdim=True) if self.config.concat_experts else video.available
        convert = _converter(video.numpy, video.single)
        embds = {name: convert(x) for name, x in zip(self.config.output_dims, outputs, strict=True)}
        return VideoEmbeddings(embds, convert(available), self.identity)

    def _encode_text(self, captions: inputs.TextInput) -> TextEmbeddings:
        return self._text_embeddings(captions, self._compute(captions.tokens))

    def _text_embeddings(self, captions: inputs.TextInput, outputs: Sequence[Tensor]) -> TextEmbeddings:
        convert = _converter(captions.numpy, single=not captions.batch_shape)
        *embds, weights = (convert(x) for x in outputs)
        count = captions.batch_shape[1] if len(captions.batch_shape) == 2 else 1
        return TextEmbeddings(dict(zip(self.config.output_dims, embds, strict=True)), weights, count, self.identity)

    def _adopt(self, config: CEConfig | None, path: Path | None) -> None:
        """Take the weights of a file, or seeded initial ones, and build the model of them."""
        self.weights_path = None if path is None else path.absolute()
        self._checked_encoder: Encoder | None = None
        self._warned = False
        self._notes: dict[str, Any] = {"pretrained": False}
        if self.weights_path is not None:
            config = config or checkpoint.read_config(self.weights_path)
            self._notes = checkpoint.read_notes(self.weights_path)
            self._stamp = checkpoint.file_stamp(self.weights_path)
        self.config: CEConfig = config or MSRVTT
        check_dtype(self.config, self.dtype, self.device)
        weights = self._open_weights(self.modality)
        self.identity = ModelIdentity(json.dumps(self.config.to_dict()), self._fingerprint(weights))
        try:
            self.model = Network(self.config, weights, self.modality, self.device, self.dtype)
        except ValueError as error:  # of a number in the weights
            raise ValueError(f"{self.weights_path}: {error}") from None

    def _check_holds(self, side: str) -> None:
        if self.modality not in (None, side):
            raise ValueError(f"this operator holds the {self.modality} side only (modality={self.modality!r})")

    def _open_weights(self, modality: Modality = None) -> MutableMapping[str, Tensor]:
        """The checked weights under CENet's names: all of the file's, or the initial ones of the held sides."""
        if self.weights_path is None:
            return initial_state(self.config, modality)
        weights = checkpoint.read_weights(self.weights_path)
        if checkpoint.file_stamp(self.weights_path) != self._stamp:
            raise ValueError(f"{self.weights_path}: this file has changed since the operator was made from it")
        checkpoint.check_weights(weights, meta_model(self.config).state_dict(), self.config, self.weights_path)
        return weights

    def _fingerprint(self, weights: Mapping[str, Tensor]) -> str:
        return checkpoint.fingerprint(weights) if self.weights_path else "seeded initial parameters"


def _video_tensors(video: inputs.VideoInput) -> tuple[Tensor, ...]:
    return *video.features.values(), video.available


def _converter(numpy: bool, single: bool) -> Callable[[Tensor], Array]:
    def convert(x: Tensor) -> Array:
        x = x[0] if single else x
        return x.cpu().numpy() if numpy else x

    return convert
