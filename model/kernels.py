"""The pieces of arithmetic that the engine is made of, each in its fastest public form.

Everything here is for evaluation: a BatchNorm is an affine map there, and `Parameters` folds it into the
linear layer before it. What was measured and what was not taken is in benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor

from ..base.config import ExpertConfig
from ..base.linear import EPSILON, Int8Rows, Layer, int8_linear, packed_linear
from .cenet import Standardise
from .checkpoint import check_finite


def negated_mish(minus_x: Tensor) -> Tensor:
    """mish(x) = x tanh(softplus(x)) of -x, in a fifth of F.mish's time. The argument is overwritten.

    With q = sigmoid(-x), tanh(log(1 + e^x)) = 2 / (1 + q^2) - 1. The minus sign costs nothing: it is folded
    into the layer that computes x.
    """
    q = torch.sigmoid(minus_x)
    denominator = torch.addcmul(q.new_ones(()), q, q, out=q)
    return torch.addcdiv(minus_x, minus_x, denominator, value=-2, out=minus_x)


def normalise(x: Tensor) -> Tensor:
    """Rows of length 1, in place."""
    return x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(EPSILON))


def fold(layer: tuple[Tensor, Tensor], scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer together with the affine map (a BatchNorm) after it."""
    weight, bias = layer
    return weight * scale[:, None], bias * scale + shift


class Parameters:
    """CENet's parameters by name, folded and packed as they are taken. Each can be taken once."""

    def __init__(self, weights: MutableMapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self._weights = weights
        self.dtype, self.device = dtype, device

    def take(self, name: str) -> Tensor:
        """A float32 tensor on the CPU, not to be kept: it may be a view of a file."""
        return check_finite(name, self._weights.pop(name).to(torch.float32))

    def batch_norm(self, name: str) -> tuple[Tensor, Tensor]:
        """Scale and shift of a BatchNorm in evaluation mode, its epsilon being PyTorch's default."""
        weight, bias, mean, var = (
            self.take(f"{name}.{key}").double() for key in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / torch.sqrt(var + 1e-5)
        return scale.float(), (bias - mean * scale).float()

    def linear(self, name: str, tokens: int = 1) -> tuple[Tensor, Tensor]:
        """Weight and bias of a linear layer, whose input is a NetVLAD of `tokens` clusters (see `Pooling`)."""
        weight = self.take(f"{name}.weight")
        if tokens > 1:
            weight = weight.unflatten(1, (-1, tokens)).transpose(1, 2).flatten(1)
        return weight, self.take(f"{name}.bias")

    def standardise(self, expert: ExpertConfig) -> Standardise:
        """The layer that brings an expert's raw features to mean 0 and deviation 1, in float32 whatever `dtype` is."""
        module = Standardise(expert)
        for key in ("mean", "std"):
            getattr(module, key).copy_(self.take(f"standardise.{expert.name}.{key}"))
        return module.to(self.device)

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> Layer:
        return packed_linear(weight, bias, self.dtype, self.device)

    def pack_int8(self, weight: Tensor, bias: Tensor) -> Callable[[Int8Rows], Tensor]:
        return int8_linear(weight, bias, self.dtype)

    def keep(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype, copy=True)


class Pooling:
    """NetVLAD (Arandjelovic et al., arXiv 1511.07247, as CENet has it): a token sequence to one vector.

    The vector is laid out (clusters, dim), not (dim, clusters) as CENet's, which saves a transposition of
    every batch. The layer that reads it has its columns in the same order (`Parameters.linear`).
    """

    def __init__(self, parameters: Parameters, name: str, clusters: int) -> None:
        scale, shift = parameters.batch_norm(f"{name}.batch_norm")
        # A cluster that hardly any token belongs to counts as much as the others, but would be 0 in half precision.
        self._dtype = torch.float32 if parameters.dtype == torch.float16 else parameters.dtype
        self._result_dtype, device = parameters.dtype, parameters.device
        weight = (parameters.take(f"{name}.clusters") * scale).T
        self._assign = packed_linear(weight, shift, self._dtype, device)
        self._centres = parameters.take(f"{name}.clusters2")[0].T.contiguous().to(device, self._dtype, copy=True)
        self._clusters = clusters

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> (B, clusters * dim), L2-normalised per cluster and in whole."""
        tokens = tokens.to(self._dtype)
        assignment = self._assign(tokens.flatten(0, 1)).softmax(dim=1)[:, : self._clusters]  # without the ghosts
        assignment = assignment.unflatten(0, tokens.shape[:2])  # (B, N, K)
        vlad = torch.bmm(assignment.transpose(1, 2), tokens)  # (B, K, dim)
        vlad.addcmul_(assignment.sum(1).unsqueeze(2), self._centres, value=-1)
        lengths = torch.linalg.vector_norm(vlad, dim=2)
        clamped = lengths.clamp_min(EPSILON)
        whole = torch.linalg.vector_norm(lengths / clamped, dim=1, keepdim=True).clamp_min_(EPSILON)
        return vlad.div_((clamped * whole).unsqueeze(2)).flatten(1).to(self._result_dtype)
