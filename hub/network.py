"""What an operator computes, in the form that Towhee can hand over to a Triton server.

`towhee.accelerate` makes a client of Triton in place of this class where a pipeline runs in a server that has the
model's ONNX graph. Both are called alike: with tensors in the order of the graph's inputs.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor
from towhee import accelerate

from ..base.config import CEConfig
from ..model import checkpoint
from ..model.cenet import CEModel, Modality, meta_model
from ..model.engine import Engine, supports


@accelerate
class Network:
    """The engine, or for forms that it does not have CENet's own modules, behind one call.

    Args:
        weights: all weights of the model under CENet's names; those of the side that is built are popped.
    """

    def __init__(
        self,
        config: CEConfig,
        weights: MutableMapping[str, Tensor],
        modality: Modality,
        device: torch.device,
        dtype: str,
    ) -> None:
        self._names = config.expert_names
        model = (
            Engine(config, weights, modality, device, dtype)
            if supports(config)
            else _reference(config, weights, modality, device)
        )
        self.encode_video, self.encode_text = model.encode_video, model.encode_text

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """`(*features, available)`, `(tokens)`, or both sides' one after the other.

        Args:
            tensors: features (B, dim) or (B, N, dim) of each expert in the model's order and their availability
                (B, M) bool; token embeddings (T, W, dim).

        Returns:
            Embeddings (B, D) of each expert; embeddings (T, D) of each expert and expert weights (T, M).
        """
        count, outputs = len(self._names), []
        if len(tensors) > count:
            features = dict(zip(self._names, tensors[:count], strict=True))
            outputs += self.encode_video(features, tensors[count]).values()
        if len(tensors) != count + 1:
            embds, weights = self.encode_text(tensors[-1])
            outputs += [*embds.values(), weights]
        return outputs


def _reference(
    config: CEConfig, weights: MutableMapping[str, Tensor], modality: Modality, device: torch.device
) -> CEModel:
    model = meta_model(config, modality)
    state = {name: checkpoint.check_finite(name, own(weights.pop(name))) for name in model.state_dict()}
    # Not strict: the names are checked, and load_state_dict trips over those with a dot in an expert.
    model.load_state_dict(state, strict=False, assign=True)
    return model.requires_grad_(False).to(device)


def own(x: Tensor) -> Tensor:
    """A copy, in float32: the file it is from may change or vanish while the operator runs."""
    return x.to(torch.float32 if x.is_floating_point() else x.dtype, copy=True)
